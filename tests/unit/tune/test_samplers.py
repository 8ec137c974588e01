from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from raysweep.config.space import parse_space
from raysweep.record.sweep import Sweep
from raysweep.tune.optuna_sampler import OptunaSampler
from raysweep.tune.parameters import parameter_of
from raysweep.tune.samplers import IndependentSampler, ListSampler, make_sampler
from tune_parts import SAMPLED_SPACE, finished_trial, recorded_sweep
from typed import sweep_config


def test_the_configured_sampler_is_made() -> None:
    sweep = sweep_config(search_algorithm={"name": "grid"}, seed=1)
    assert isinstance(make_sampler(sweep, SAMPLED_SPACE, Sweep(), Path(), Path()), IndependentSampler)
    sweep = sweep_config(search_algorithm={"name": "optuna", "n_startup_trials": 1, "multivariate": False}, seed=1)
    assert isinstance(make_sampler(sweep, SAMPLED_SPACE, Sweep(), Path(), Path()), OptunaSampler)


def test_independent_configurations_depend_on_seed_and_index_alone() -> None:
    one, two = IndependentSampler(SAMPLED_SPACE, 3), IndependentSampler(SAMPLED_SPACE, 3)
    assert [one.propose(i) for i in (0, 1, 5)] == [two.propose(i) for i in (0, 1, 5)]
    assert one.propose(0) != one.propose(1) != IndependentSampler(SAMPLED_SPACE, 4).propose(1)


def test_a_list_is_handed_out_in_its_order() -> None:
    assert ListSampler([{"a": 1}, {"a": 2}]).propose(1) == {"a": 2}


class TestPointsFirst:
    POINTS: ClassVar[list[dict[str, Any]]] = [{"l": 0.01, "c": {"k": 1}}, {"deep": {"er": 5.5}, "i": 3}]

    def made(self, sweep: Sweep, points: list[dict[str, Any]] | None = None, algorithm: str = "random") -> Any:
        options = {"name": algorithm} | ({"n_startup_trials": 2, "multivariate": True} if algorithm == "optuna" else {})
        given = sweep_config(search_algorithm=options, seed=3, points_to_evaluate=points or self.POINTS)
        return make_sampler(given, SAMPLED_SPACE, sweep, Path(), Path())

    def test_they_come_first_and_what_they_leave_out_is_drawn(self) -> None:
        sampler, plain = self.made(Sweep()), IndependentSampler(SAMPLED_SPACE, 3)
        assert sampler.propose(0) == plain.propose(0) | {"l": 0.01, "c": {"k": 1}}
        assert sampler.propose(1) == plain.propose(1) | {"deep": {"er": 5.5}, "i": 3}
        assert [sampler.propose(i) for i in (2, 3)] == [plain.propose(i) for i in (2, 3)]

    def test_a_sweep_that_goes_on_tries_those_that_it_has_not_and_those_added_later_come_next(self) -> None:
        first = self.made(Sweep()).propose(0)
        sampler = self.made(recorded_sweep(finished_trial(0, first, 0.5)), [*self.POINTS, {"u": 0.25}])
        assert sampler.propose(1)["deep"] == {"er": 5.5}
        assert sampler.propose(2)["u"] == 0.25
        assert sampler.propose(3) == IndependentSampler(SAMPLED_SPACE, 3).propose(3)

    def test_a_trial_counts_as_one_point_at_most(self) -> None:
        points = [{"u": 0.25, "i": 3}, {"i": 3}, {"i": 3}]
        first = self.made(Sweep(), points).propose(0)
        sampler = self.made(recorded_sweep(finished_trial(0, first, 0.5)), points)
        assert [sampler.propose(index)["i"] for index in (1, 2)] == [3, 3]
        assert sampler.propose(3) == IndependentSampler(SAMPLED_SPACE, 3).propose(3)

    def test_optuna_learns_from_them(self) -> None:
        sampler = self.made(Sweep(), [{"u": 0.5}], "optuna")
        config = sampler.propose(0)
        assert config["u"] == 0.5
        sampler.tell(finished_trial(0, config, 0.9))
        [told] = sampler.sampler.study.get_trials()
        assert (told.value, told.params["u"]) == (0.9, 0.5)
        sampler.propose(1)
        assert len(sampler.sampler.study.trials) == 2


def test_true_1_and_1_0_are_three_values_of_a_list() -> None:
    space = parse_space({"x": {"choice": [True, 1, 1.0]}})
    assert [parameter_of(space["x"], value) for value in (True, 1, 1.0)] == [0, 1, 2]
    for value in (True, 1, 1.0):
        given = sweep_config(search_algorithm={"name": "random"}, points_to_evaluate=[{"x": value}])
        tried = [
            make_sampler(given, space, recorded_sweep(finished_trial(0, {"x": other}, 0.5)), Path(), Path()).left
            for other in (True, 1, 1.0)
        ]
        assert [not left for left in tried] == [type(value) is type(other) for other in (True, 1, 1.0)]
