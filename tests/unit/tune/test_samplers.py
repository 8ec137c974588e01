from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import optuna as real_optuna
import pytest
from optuna import Study

from raysweep.common.seeds import sampler_seed
from raysweep.config.space import configuration, flattened, parse_space
from raysweep.record.known_trials import KnownTrial, as_finished
from raysweep.record.trials import Result, Sweep, Trial
from raysweep.tune.samplers import IndependentSampler, ListSampler, OptunaSampler, PointsFirst, make_sampler, parameter_of
from typed import sweep_config

SPACE = parse_space(
    {
        "u": {"uniform": [0, 1]},
        "l": {"loguniform": [1e-4, 1e-1]},
        "q": {"qloguniform": [1, 100, 5]},
        "i": {"randint": [0, 5]},
        "n": {"normal": [3, 2]},
        "c": {"choice": [[1, 2], {"k": 1}, None]},
        "deep": {"er": {"uniform": [5, 6]}},
        "constant": 7,
    }
)


def finished(index: int, config: dict[str, Any], value: float | None, status: str = "TERMINATED") -> Trial:
    trial = Trial(f"{index:05d}", index, 0, index, config, status)  # type: ignore[arg-type]
    if value is not None:
        trial.results.append(Result(1, {"score": value}, 1.0, ""))
    return trial


def recorded(*trials: Trial) -> Sweep:
    return Sweep(trials={trial.trial_id: trial for trial in trials})


def optuna(sweep: Sweep, seed: int = 0, mode: str = "max", space: dict[str, Any] = SPACE) -> OptunaSampler:
    options = {"name": "optuna", "n_startup_trials": 2, "multivariate": True}
    return OptunaSampler(sweep_config(search_algorithm=options, seed=seed, mode=mode), space, sweep)


def test_the_configured_sampler_is_made() -> None:
    sweep = sweep_config(search_algorithm={"name": "grid"}, seed=1)
    assert isinstance(make_sampler(sweep, SPACE, Sweep(), Path(), Path()), IndependentSampler)
    sweep = sweep_config(search_algorithm={"name": "optuna", "n_startup_trials": 1, "multivariate": False}, seed=1)
    assert isinstance(make_sampler(sweep, SPACE, Sweep(), Path(), Path()), OptunaSampler)


def test_independent_configurations_depend_on_seed_and_index_alone() -> None:
    one, two = IndependentSampler(SPACE, 3), IndependentSampler(SPACE, 3)
    assert [one.propose(i) for i in (0, 1, 5)] == [two.propose(i) for i in (0, 1, 5)]
    assert one.propose(0) != one.propose(1) != IndependentSampler(SPACE, 4).propose(1)


def test_a_list_is_handed_out_in_its_order() -> None:
    assert ListSampler([{"a": 1}, {"a": 2}]).propose(1) == {"a": 2}


def test_optuna_proposes_what_the_space_allows() -> None:
    sampler = optuna(Sweep())
    for index in range(20):
        config = sampler.propose(index)
        flat = flattened({k: v for k, v in config.items() if k != "c"})
        assert 0 <= flat["u"] <= 1
        assert 1e-4 <= flat["l"] <= 1e-1
        assert flat["q"] % 5 == 0
        assert 1 <= flat["q"] <= 100
        assert flat["i"] in range(5)
        assert config["c"] in ([1, 2], {"k": 1}, None)
        assert 5 <= config["deep"]["er"] <= 6
        assert config["constant"] == 7
        sampler.tell(finished(index, config, flat["u"]))
    assert len(sampler.study.trials) == 20
    assert not sampler.asked


def test_optuna_is_told_every_recorded_trial_and_failed_ones_as_failed() -> None:
    configs = [IndependentSampler(SPACE, 0).propose(i) for i in range(4)]
    trials = [finished(i, c, v) for i, (c, v) in enumerate(zip(configs, (0.1, 0.5, 0.9), strict=False))]
    sampler = optuna(recorded(*trials, finished(3, configs[3], 5.0, "ERROR")))
    assert [t.value for t in sampler.study.trials] == [0.1, 0.5, 0.9, None]
    assert [t.state.name for t in sampler.study.trials] == ["COMPLETE"] * 3 + ["FAIL"]
    assert sampler.study.best_value == 0.9
    assert optuna(recorded(*trials), mode="min").study.best_value == 0.1


def test_optuna_copies_no_trials_when_it_is_told_of_recorded_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def copies() -> None:
        raise AssertionError("Study.trials copies every trial")

    monkeypatch.setattr(Study, "trials", property(lambda study: copies()))
    configs = [IndependentSampler(SPACE, 0).propose(i) for i in range(3)]
    sampler = optuna(recorded(*(finished(i, config, None, "PENDING") for i, config in enumerate(configs))))
    assert sampler.asked == {0: 0, 1: 1, 2: 2}


def test_optuna_leaves_out_what_another_search_space_recorded() -> None:
    inside, outside, other = ({"x": 0.5}, {"x": 7.0}, {"y": 0.5})
    space = parse_space({"x": {"uniform": [0, 1]}})
    sampler = optuna(recorded(*(finished(i, c, 1.0) for i, c in enumerate((inside, outside, other)))), space=space)
    assert [t.params for t in sampler.study.trials] == [{"x": 0.5}]


def test_optuna_asks_something_new_when_it_goes_on() -> None:
    first = optuna(Sweep())
    configs = [first.propose(i) for i in range(3)]
    second = optuna(recorded(*(finished(i, c, 0.5) for i, c in enumerate(configs))))
    assert second.propose(3) not in configs


def test_optuna_asks_something_new_when_nothing_had_finished() -> None:
    first = optuna(Sweep())
    configs = [first.propose(i) for i in range(2)]
    begun = [finished(i, c, None, "PENDING") for i, c in enumerate(configs)]
    second = optuna(recorded(*begun))
    assert [t.state.name for t in second.study.trials] == ["RUNNING", "RUNNING"]
    assert second.propose(2) not in configs
    second.tell(finished(0, configs[0], 0.7))
    assert second.study.best_value == 0.7


def test_optuna_learns() -> None:
    space = parse_space({"x": {"uniform": [0, 1]}})
    sampler = optuna(Sweep(), space=space)
    values = []
    for index in range(40):
        config = sampler.propose(index)
        values.append(config["x"])
        sampler.tell(finished(index, config, -((config["x"] - 0.3) ** 2)))
    assert sum(abs(x - 0.3) for x in values[-10:]) / 10 == pytest.approx(0, abs=0.2)


def known_trials(space: dict[str, Any], count: int) -> list[KnownTrial]:
    """Trials that were known before: their value is best where `u` is 0.3."""
    configs = [configuration(space, 7, index) for index in range(count)]
    return [KnownTrial(config, -((config["u"] - 0.3) ** 2)) for config in configs]


@pytest.mark.parametrize("num_recorded", [0, 3])
def test_after_a_warm_start_optuna_proposes_what_a_study_with_the_same_trials_proposes(num_recorded: int) -> None:
    """The study here is made with Optuna alone, and gets the known trials first and then the recorded trials."""
    space = parse_space({"u": {"uniform": [0, 1]}, "i": {"randint": [1, 9]}, "c": {"choice": ["a", "b"]}})
    known = known_trials(space, 15)
    trials = [finished(index, configuration(space, 1, index), index / 10) for index in range(num_recorded)]
    options = {"name": "optuna", "n_startup_trials": 10, "multivariate": True}
    sweep = sweep_config(search_algorithm=options, seed=5)
    sampler = OptunaSampler(sweep, space, recorded(*trials), as_finished(known, "score"))
    tpe = real_optuna.samplers.TPESampler(seed=sampler_seed(5, num_recorded), constant_liar=True, n_startup_trials=10, multivariate=True)
    study = real_optuna.create_study(direction="maximize", sampler=tpe)
    distributions: dict[str, Any] = {
        "u": real_optuna.distributions.FloatDistribution(0, 1),
        "i": real_optuna.distributions.IntDistribution(1, 8),
        "c": real_optuna.distributions.CategoricalDistribution([0, 1]),
    }
    for config, value in [*((trial.config, trial.value) for trial in known), *((trial.config, trial.index / 10) for trial in trials)]:
        params = {**config, "c": ["a", "b"].index(config["c"])}
        study.add_trial(real_optuna.create_trial(params=params, distributions=distributions, value=value))
    for index in range(num_recorded, num_recorded + 6):
        asked, proposed = study.ask(distributions), sampler.propose(index)
        assert proposed == {**asked.params, "c": ["a", "b"][asked.params["c"]]}
        study.tell(asked, asked.params["u"])
        sampler.tell(finished(index, proposed, proposed["u"]))
    cold = OptunaSampler(sweep, space, recorded(*trials))
    assert cold.propose(num_recorded) != sampler.propose(num_recorded)


def test_what_was_known_is_no_trial_of_the_sweep() -> None:
    space = parse_space({"u": {"uniform": [0, 1]}})
    begun = finished(0, {"u": 0.5}, None, "PENDING")
    sweep = sweep_config(search_algorithm={"name": "optuna", "n_startup_trials": 2, "multivariate": True}, points_to_evaluate=[{"u": 0.25}])
    known = [KnownTrial({"u": 0.25}, 0.9), KnownTrial({"u": 0.75}, 0.1)]
    sampler = make_sampler(sweep, space, recorded(begun), Path(), Path(), as_finished(known, "score"))
    assert isinstance(sampler, PointsFirst)
    assert isinstance(sampler.sampler, OptunaSampler)
    assert sampler.sampler.asked == {0: 2}, "the trial of the sweep comes after the two known trials, and still runs"
    assert [t.state.name for t in sampler.sampler.study.trials] == ["COMPLETE", "COMPLETE", "RUNNING"]
    assert sampler.propose(1) == {"u": 0.25}, "a point is tried although its value is known, because a known trial cannot win"


class TestPointsFirst:
    POINTS: ClassVar[list[dict[str, Any]]] = [{"l": 0.01, "c": {"k": 1}}, {"deep": {"er": 5.5}, "i": 3}]

    def made(self, sweep: Sweep, points: list[dict[str, Any]] | None = None, algorithm: str = "random") -> Any:
        options = {"name": algorithm} | ({"n_startup_trials": 2, "multivariate": True} if algorithm == "optuna" else {})
        given = sweep_config(search_algorithm=options, seed=3, points_to_evaluate=points or self.POINTS)
        return make_sampler(given, SPACE, sweep, Path(), Path())

    def test_they_come_first_and_what_they_leave_out_is_drawn(self) -> None:
        sampler, plain = self.made(Sweep()), IndependentSampler(SPACE, 3)
        assert sampler.propose(0) == plain.propose(0) | {"l": 0.01, "c": {"k": 1}}
        assert sampler.propose(1) == plain.propose(1) | {"deep": {"er": 5.5}, "i": 3}
        assert [sampler.propose(i) for i in (2, 3)] == [plain.propose(i) for i in (2, 3)]

    def test_a_sweep_that_goes_on_tries_those_that_it_has_not_and_those_added_later_come_next(self) -> None:
        first = self.made(Sweep()).propose(0)
        sampler = self.made(recorded(finished(0, first, 0.5)), [*self.POINTS, {"u": 0.25}])
        assert sampler.propose(1)["deep"] == {"er": 5.5}
        assert sampler.propose(2)["u"] == 0.25
        assert sampler.propose(3) == IndependentSampler(SPACE, 3).propose(3)

    def test_a_trial_counts_as_one_point_at_most(self) -> None:
        points = [{"u": 0.25, "i": 3}, {"i": 3}, {"i": 3}]
        first = self.made(Sweep(), points).propose(0)
        sampler = self.made(recorded(finished(0, first, 0.5)), points)
        assert [sampler.propose(index)["i"] for index in (1, 2)] == [3, 3]
        assert sampler.propose(3) == IndependentSampler(SPACE, 3).propose(3)

    def test_optuna_learns_from_them(self) -> None:
        sampler = self.made(Sweep(), [{"u": 0.5}], "optuna")
        config = sampler.propose(0)
        assert config["u"] == 0.5
        sampler.tell(finished(0, config, 0.9))
        [told] = sampler.sampler.study.get_trials()
        assert (told.value, told.params["u"]) == (0.9, 0.5)
        sampler.propose(1)
        assert len(sampler.sampler.study.trials) == 2


def test_optuna_searches_branches_and_goes_on() -> None:
    space = parse_space({"net": {"one_of": [{"kind": "a", "x": {"uniform": [0, 1]}}, {"kind": "b", "y": {"uniform": [2, 3]}}]}})
    sweep = Sweep()
    for index in range(12):
        config = optuna(sweep, space=space).propose(index)
        assert config["net"].keys() in ({"kind", "x"}, {"kind", "y"})
        one = Trial(f"{index:05d}", index, 0, 0, config, "TERMINATED")
        one.results = [Result(1, {"score": config["net"].get("y", 0.0)}, 1.0, f"{index:03d}")]
        sweep.trials[one.trial_id] = one
    sampler = optuna(sweep, space=space)
    assert len(sampler.study.trials) == 12
    assert {trial.state.name for trial in sampler.study.trials} == {"COMPLETE"}
    assert {trial.config["net"]["kind"] for trial in sweep.trials.values()} == {"a", "b"}


def test_true_1_and_1_0_are_three_values_of_a_list() -> None:
    space = parse_space({"x": {"choice": [True, 1, 1.0]}})
    assert [parameter_of(space["x"], value) for value in (True, 1, 1.0)] == [0, 1, 2]
    for value in (True, 1, 1.0):
        given = sweep_config(search_algorithm={"name": "random"}, points_to_evaluate=[{"x": value}])
        tried = [make_sampler(given, space, recorded(finished(0, {"x": other}, 0.5)), Path(), Path()).left for other in (True, 1, 1.0)]
        assert [not left for left in tried] == [type(value) is type(other) for other in (True, 1, 1.0)]
