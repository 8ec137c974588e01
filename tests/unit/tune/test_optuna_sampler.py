from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna as real_optuna
import pytest
from optuna import Study

from raysweep.common.errors import RaysweepError
from raysweep.common.seeds import sampler_seed
from raysweep.config.space import configuration, flattened, parse_space
from raysweep.record.known_trials import KnownTrial, as_finished
from raysweep.record.sweep import Sweep
from raysweep.record.trials import Candidate, Result, Trial
from raysweep.tune.optuna_sampler import CLASSES, STATELESS, OptunaSampler
from raysweep.tune.samplers import IndependentSampler, PointsFirst, make_sampler
from tune_parts import SAMPLED_SPACE, finished_trial, recorded_sweep
from typed import sweep_config


def optuna(sweep: Sweep, seed: int = 0, mode: str = "max", space: dict[str, Any] = SAMPLED_SPACE) -> OptunaSampler:
    options = {"name": "optuna", "n_startup_trials": 2, "multivariate": True}
    return OptunaSampler(sweep_config(search_algorithm=options, seed=seed, mode=mode), space, sweep, Path())


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
        sampler.tell(finished_trial(index, config, flat["u"]))
    assert len(sampler.study.trials) == 20
    assert not sampler.asked


def test_optuna_is_told_every_recorded_trial_and_failed_ones_as_failed() -> None:
    configs = [IndependentSampler(SAMPLED_SPACE, 0).propose(i) for i in range(4)]
    trials = [finished_trial(i, c, v) for i, (c, v) in enumerate(zip(configs, (0.1, 0.5, 0.9), strict=False))]
    sampler = optuna(recorded_sweep(*trials, finished_trial(3, configs[3], 5.0, "ERROR")))
    assert [t.value for t in sampler.study.trials] == [0.1, 0.5, 0.9, None]
    assert [t.state.name for t in sampler.study.trials] == ["COMPLETE"] * 3 + ["FAIL"]
    assert sampler.study.best_value == 0.9
    assert optuna(recorded_sweep(*trials), mode="min").study.best_value == 0.1


def test_optuna_copies_no_trials_when_it_is_told_of_recorded_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def copies() -> None:
        raise AssertionError("Study.trials copies every trial")

    monkeypatch.setattr(Study, "trials", property(lambda study: copies()))
    configs = [IndependentSampler(SAMPLED_SPACE, 0).propose(i) for i in range(3)]
    sampler = optuna(recorded_sweep(*(finished_trial(i, config, None, "PENDING") for i, config in enumerate(configs))))
    assert {index: trial.number for index, trial in sampler.asked.items()} == {0: 0, 1: 1, 2: 2}


def test_optuna_leaves_out_what_another_search_space_recorded() -> None:
    inside, outside, other = ({"x": 0.5}, {"x": 7.0}, {"y": 0.5})
    space = parse_space({"x": {"uniform": [0, 1]}})
    sampler = optuna(recorded_sweep(*(finished_trial(i, c, 1.0) for i, c in enumerate((inside, outside, other)))), space=space)
    assert [t.params for t in sampler.study.trials] == [{"x": 0.5}]


def test_optuna_proposes_something_new_when_it_goes_on() -> None:
    first = optuna(Sweep())
    configs = [first.propose(i) for i in range(3)]
    second = optuna(recorded_sweep(*(finished_trial(i, c, 0.5) for i, c in enumerate(configs))))
    assert second.propose(3) not in configs


def test_optuna_proposes_something_new_when_nothing_had_finished() -> None:
    first = optuna(Sweep())
    configs = [first.propose(i) for i in range(2)]
    begun = [finished_trial(i, c, None, "PENDING") for i, c in enumerate(configs)]
    second = optuna(recorded_sweep(*begun))
    assert [t.state.name for t in second.study.trials] == ["RUNNING", "RUNNING"]
    assert second.propose(2) not in configs
    second.tell(finished_trial(0, configs[0], 0.7))
    assert second.study.best_value == 0.7


def test_optuna_learns() -> None:
    space = parse_space({"x": {"uniform": [0, 1]}})
    sampler = optuna(Sweep(), space=space)
    values = []
    for index in range(40):
        config = sampler.propose(index)
        values.append(config["x"])
        sampler.tell(finished_trial(index, config, -((config["x"] - 0.3) ** 2)))
    assert sum(abs(x - 0.3) for x in values[-10:]) / 10 == pytest.approx(0, abs=0.2)


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


class Search:
    """Runs a search without Tune: a sampler, and the record of the proposals and results as events."""

    SPACE = parse_space({"x": {"uniform": [-5, 10]}, "y": {"uniform": [0, 15]}, "i": {"randint": [0, 5]}})

    def __init__(self, root: Path = Path(), known: Sequence[Candidate] = (), **given: Any) -> None:
        self.known = known
        self.config = sweep_config(**{"num_samples": 40, "seed": 1} | given)
        self.root, self.events, self.configs = root, [], []
        self.sweep = Sweep()
        self.write("session", sweep={"name": "s", "metric": "score", "constraint": self.config.constraint})
        self.resume()

    def write(self, kind: str, **values: Any) -> None:
        self.events.append(json.loads(json.dumps({"event": kind, "at": "2026-01-01T00:00:00+00:00", **values})))
        self.sweep.apply(self.events[-1])

    def resume(self) -> None:
        """Go on as after an interruption, with nothing but the record."""
        self.sweep = Sweep()
        for event in self.events:
            self.sweep.apply(event)
        self.sampler = make_sampler(self.config, self.SPACE, self.sweep, Path(), self.root, self.known)

    def run(self, interrupted_after: tuple[int, ...] = ()) -> list[dict[str, Any]]:
        """Run the trials, three at a time, and return the configurations."""
        running: list[int] = []
        for num_finished in range(len(self.configs) + 1, self.config.num_samples + 1):
            while len(running) < 3 and len(self.configs) < self.config.num_samples:
                index = len(self.configs)
                running.append(index)
                self.configs.append(self.sampler.propose(index))
                self.write("trial", trial=f"{index:05d}", index=index, repeat=0, seed=0, config=self.configs[index])
                self.write("start", trial=f"{index:05d}", node="n", from_epoch=0)
            self.finish(running.pop(0))
            if num_finished in interrupted_after:
                self.resume()
        return self.configs

    def finish(self, index: int) -> None:
        trial, config = f"{index:05d}", self.configs[index]
        metrics = {"score": -((config["x"] - 3) ** 2) - (config["y"] - 4) ** 2 - config["i"], "mb": config["x"]}
        self.write("result", trial=trial, epoch=1, metrics=metrics, time_s=1, node="n", verdict=None)
        self.write("finish", trial=trial, status="TERMINATED", reason="max_epochs", error=None)
        self.sampler.tell(self.sweep.trials[trial])


def algorithm(sampler: str, **options: Any) -> dict[str, Any]:
    quick: dict[str, Any] = {"nsga2": {"population_size": 6}, "gp": {"n_startup_trials": 14}}.get(sampler, {})
    return {"name": "optuna", "sampler": sampler, **quick, **options}


SAMPLERS = [*CLASSES, "optuna.samplers:RandomSampler"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_seed_makes_a_search_reproducible(sampler: str) -> None:
    first, second, other = (Search(search_algorithm=algorithm(sampler), num_samples=17, seed=seed).run() for seed in (1, 1, 2))
    assert first == second != other


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in STATELESS])
def test_a_sampler_with_a_state_proposes_the_same_after_interruptions(sampler: str) -> None:
    whole = Search(search_algorithm=algorithm(sampler)).run()
    assert Search(search_algorithm=algorithm(sampler)).run((1, 5, 17, 30)) == whole


@pytest.mark.parametrize("sampler", STATELESS)
def test_a_sampler_without_a_state_proposes_nothing_twice_after_interruptions(sampler: str) -> None:
    texts = [json.dumps(config) for config in Search(search_algorithm=algorithm(sampler), num_samples=20).run((1, 5, 17))]
    assert len(set(texts)) == len(texts) == 20


@pytest.mark.parametrize("sampler", ["cmaes", "qmc", "nsga2"])
def test_points_of_the_config_leave_the_state_exact(sampler: str) -> None:
    given = {"search_algorithm": algorithm(sampler), "points_to_evaluate": [{"x": 1.0}, {"i": 2, "y": 3.0}], "num_samples": 20}
    whole = Search(**given).run()
    assert whole[0]["x"] == 1.0
    assert Search(**given).run((1, 2, 5, 9)) == whole


@pytest.mark.parametrize("sampler", ["cmaes", "qmc", "nsga2"])
def test_what_another_sampler_proposed_is_adopted(sampler: str) -> None:
    search = Search(num_samples=10)  # random
    search.run()
    search.config = sweep_config(search_algorithm=algorithm(sampler), num_samples=20)
    search.resume()
    assert [t.state.name for t in search.sampler.study.trials if t.params["x"] == search.configs[0]["x"]] == ["COMPLETE"]
    configs = search.run()
    assert len({json.dumps(config) for config in configs}) == len(configs) == 20


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2"])
def test_a_bound_is_told_as_a_constraint(sampler: str) -> None:
    search = Search(search_algorithm=algorithm(sampler), constraint={"mb": {"at_most": 1}}, num_samples=12)
    configs = search.run((6,))
    trials = {trial.params["x"]: trial for trial in search.sampler.study.trials}
    assert [trials[c["x"]].state.name for c in configs] == ["COMPLETE"] * 12
    assert [trials[c["x"]].constraints["mb at_most"] for c in configs] == pytest.approx([c["x"] - 1 for c in configs])


def test_a_sampler_that_ignores_constraints_is_told_of_a_failure() -> None:
    search = Search(search_algorithm=algorithm("cmaes"), constraint={"mb": {"at_most": 1}}, num_samples=12)
    feasible = [config["x"] <= 1 for config in search.run()]
    assert [trial.state.name == "COMPLETE" for trial in search.sampler.study.trials] == feasible
    assert len(set(feasible)) == 2


def test_a_trial_without_the_metric_of_a_bound_has_failed() -> None:
    search = Search(search_algorithm=algorithm("tpe"), constraint={"other": {"at_least": 1}}, num_samples=3)
    search.run()
    assert {trial.state.name for trial in search.sampler.study.trials} == {"FAIL"}


def test_a_class_of_the_users_own_gets_its_options_and_the_seed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import optuna\n\n\nclass Mine(optuna.samplers.RandomSampler):\n"
        "    def __init__(self, seed, shift):\n        super().__init__(seed)\n        self.shift = shift\n"
    )
    search = Search(tmp_path, search_algorithm=algorithm("mine.py:Mine", shift=3), num_samples=3)
    assert search.sampler.study.sampler.shift == 3
    assert search.run() == Search(tmp_path, search_algorithm=algorithm("mine.py:Mine", shift=4), num_samples=3).run()


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        ("optuna.samplers:RandomSampler", {"depth": 3}, "sampler optuna.samplers:RandomSampler: TypeError: "),
        ("optuna.samplers:Nothing", {}, "sampler optuna.samplers:Nothing: it is no optuna.samplers.BaseSampler"),
        ("no.such.library:Sampler", {}, "sampler no.such.library:Sampler: No module named 'no'. Add what it needs to env.requirements"),
    ],
)
def test_a_class_that_cannot_be_used_has_one_line(sampler: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RaysweepError) as error:
        Search(search_algorithm=algorithm(sampler, **options))
    assert message in str(error.value)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "qmc", "nsga2"])
def test_several_objectives_are_told_together(sampler: str) -> None:
    objectives = [{"metric": "score", "mode": "max"}, {"metric": "mb", "mode": "min"}]
    search = Search(search_algorithm=algorithm(sampler), objectives=objectives, num_samples=16)
    configs = search.run((6,))
    assert [direction.name for direction in search.sampler.study.directions] == ["MAXIMIZE", "MINIMIZE"]
    told = {json.dumps(trial.params, sort_keys=True): trial.values for trial in search.sampler.study.trials}
    reported = [trial.results[-1].metrics for trial in search.sweep.trials.values()]
    assert [told[json.dumps(config, sort_keys=True)] for config in configs] == [[m["score"], m["mb"]] for m in reported]


def known_trials(space: dict[str, Any], count: int) -> list[KnownTrial]:
    """Trials that were known before: their value is best where `u` is 0.3."""
    configs = [configuration(space, 7, index) for index in range(count)]
    return [KnownTrial(config, -((config["u"] - 0.3) ** 2)) for config in configs]


@pytest.mark.parametrize("num_recorded", [0, 3])
def test_after_a_warm_start_optuna_proposes_what_a_study_with_the_same_trials_proposes(num_recorded: int) -> None:
    """The study here is made with Optuna alone, and gets the known trials first and then the recorded trials."""
    space = parse_space({"u": {"uniform": [0, 1]}, "i": {"randint": [1, 9]}, "c": {"choice": ["a", "b"]}})
    known = known_trials(space, 15)
    trials = [finished_trial(index, configuration(space, 1, index), index / 10) for index in range(num_recorded)]
    options = {"name": "optuna", "n_startup_trials": 10, "multivariate": True}
    sweep = sweep_config(search_algorithm=options, seed=5)
    sampler = OptunaSampler(sweep, space, recorded_sweep(*trials), Path(), known=as_finished(known, "score"))
    tpe = real_optuna.samplers.TPESampler(seed=sampler_seed(5, num_recorded), n_startup_trials=10, multivariate=True)
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
        sampler.tell(finished_trial(index, proposed, proposed["u"]))
    cold = OptunaSampler(sweep, space, recorded_sweep(*trials), Path())
    assert cold.propose(num_recorded) != sampler.propose(num_recorded)


def test_what_was_known_is_no_trial_of_the_sweep() -> None:
    space = parse_space({"u": {"uniform": [0, 1]}})
    begun = finished_trial(0, {"u": 0.5}, None, "PENDING")
    sweep = sweep_config(search_algorithm={"name": "optuna", "n_startup_trials": 2, "multivariate": True}, points_to_evaluate=[{"u": 0.25}])
    known = [KnownTrial({"u": 0.25}, 0.9), KnownTrial({"u": 0.75}, 0.1)]
    sampler = make_sampler(sweep, space, recorded_sweep(begun), Path(), Path(), as_finished(known, "score"))
    assert isinstance(sampler, PointsFirst)
    assert isinstance(sampler.sampler, OptunaSampler)
    assert {index: trial.number for index, trial in sampler.sampler.asked.items()} == {0: 2}, (
        "the trial of the sweep comes after the known trials"
    )
    assert [t.state.name for t in sampler.sampler.study.trials] == ["COMPLETE", "COMPLETE", "RUNNING"]
    assert sampler.propose(1) == {"u": 0.25}, "a point is tried although its value is known, because a known trial cannot win"


@pytest.mark.parametrize("sampler", ["cmaes", "qmc", "nsga2"])
def test_what_was_known_leaves_the_state_exact(sampler: str) -> None:
    known = as_finished(known_trials(parse_space({"u": {"uniform": [0, 1]}}), 3), "score")
    for trial in known:
        trial.config = {"x": 10 * trial.config["u"], "y": 1.0, "i": 2}
    given = {"search_algorithm": algorithm(sampler), "num_samples": 15, "known": known}
    search = Search(**given)
    assert [trial.state.name for trial in search.sampler.study.trials] == ["COMPLETE"] * 3
    assert Search(**given).run((1, 4, 9)) == search.run()
