from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, MedianStoppingRule, TrialScheduler

from raysweep.config.space import parse_space
from raysweep.slurm.allocation import Deadline
from raysweep.tune.population import PBT, HandOvers
from raysweep.tune.schedulers import ShieldedScheduler, make_scheduler
from records import new_record
from tune_parts import begin, end_of_trial, tune_trial
from typed import sweep_config

NO_RECORD: Any = None


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"name": "none"}, FIFOScheduler),
        ({"name": "asha", "grace_period": 2, "reduction_factor": 3}, ASHAScheduler),
        ({"name": "hyperband", "reduction_factor": 3}, HyperBandScheduler),
        ({"name": "median", "grace_period": 2, "min_samples_required": 4}, MedianStoppingRule),
        ({"name": "pbt", "perturbation_interval": 1, "quantile_fraction": 0.5, "resample_probability": 0.25}, PBT),
    ],
)
def test_each_name_gives_its_scheduler(tmp_path: Path, options: dict[str, Any], kind: type) -> None:
    sweep = sweep_config(scheduler=options, max_epochs=9, trainable="user.py:train")
    assert isinstance(make_scheduler(sweep, new_record(tmp_path), parse_space({"x": {"uniform": [0, 1]}}), HandOvers()), kind)


@pytest.mark.parametrize("is_over", [False, True])
def test_when_time_is_nearly_up_no_trial_that_waits_continues(is_over: bool) -> None:
    controller = SimpleNamespace(get_live_trials=lambda: {second, first})
    first, second = WaitingTrial("00000"), WaitingTrial("00001")
    shielded = ShieldedScheduler(FIFOScheduler(), NO_RECORD, end_of_trial(Deadline(near=0) if is_over else Deadline()))
    assert shielded.choose_trial_to_run(controller) is (None if is_over else first)


class WaitingTrial:
    """A trial that waits for its resources."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id, self.status = trial_id, "PENDING"


class NotingScheduler(FIFOScheduler):
    """Notes the ends of trials."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.calls.append(f"error {trial.trial_id}")

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self.calls.append(f"complete {trial.trial_id}")


def test_the_end_of_a_trial_without_a_usable_metric_is_an_error_to_the_scheduler() -> None:
    inner, end = NotingScheduler(), end_of_trial()
    shielded = ShieldedScheduler(inner, NO_RECORD, end)
    shielded.set_search_properties("score", "max")
    assert end("bad", {"training_iteration": 1, "score": None})
    for trial_id in ("good", "bad"):
        shielded.on_trial_complete(None, tune_trial(trial_id), {"score": 0.5})
    shielded.on_trial_complete(None, tune_trial("silent"), {"done": True})
    assert inner.calls == ["complete good", "error bad", "error silent"]


def test_a_shielded_scheduler_decides_as_the_scheduler_does(tmp_path: Path) -> None:
    record = new_record(tmp_path)
    asha = ASHAScheduler(time_attr="training_iteration", max_t=9, grace_period=1, reduction_factor=2)
    end = end_of_trial()
    shielded = ShieldedScheduler(asha, record, end)
    assert shielded.set_search_properties("score", "max")
    assert shielded.metric == "score"
    decisions = []
    for trial_id, score in (("0", 0.5), ("1", 0.9), ("2", 0.1)):
        trial = begin(record, trial_id)
        shielded.on_trial_add(None, trial)
        decisions.append(shielded.on_trial_result(None, trial, {"training_iteration": 1, "score": score}))
    assert decisions == [TrialScheduler.CONTINUE, TrialScheduler.CONTINUE, TrialScheduler.STOP]
    assert end.verdicts == {"0": "CONTINUE", "1": "CONTINUE", "2": "STOP"}
    assert shielded.debug_string() == asha.debug_string()


def test_no_process_is_kept_while_a_job_is_nearly_over() -> None:
    """Tune would let a trial that was moved begin again in its old process, on the node that leaves."""
    nodes: Any = SimpleNamespace(leaving=False, early_deadline=None)
    nodes.has_leaving = lambda: nodes.leaving
    controller = SimpleNamespace(_reuse_actors=True, ended=[])
    controller._cleanup_cached_actors = lambda force_all: controller.ended.append(force_all)
    wrapper = SimpleNamespace(get_live_trials=lambda: set(), _tune_controller=controller)
    shielded = ShieldedScheduler(FIFOScheduler(), NO_RECORD, end_of_trial(nodes=nodes), reuses_processes=True)
    for is_leaving in (False, True, True, False):
        nodes.leaving = is_leaving
        shielded.choose_trial_to_run(wrapper)
        assert controller._reuse_actors is not is_leaving
    assert controller.ended == [True], "kept processes end once"
    controller._reuse_actors, nodes.leaving = False, True
    ShieldedScheduler(FIFOScheduler(), NO_RECORD, end_of_trial(nodes=nodes)).choose_trial_to_run(wrapper)
    assert controller.ended == [True], "without the option Tune keeps no process"
