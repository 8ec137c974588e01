from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, MedianStoppingRule, TrialScheduler

from raysweep.config.space import parse_space
from raysweep.tune.population import PBT, HandOvers
from raysweep.tune.schedulers import ShieldedScheduler, make_scheduler
from records import new_record
from tune_parts import tune_trial
from typed import sweep_config


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
    shielded = ShieldedScheduler(FIFOScheduler(), lambda trial_id: False, lambda: is_over)
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
    inner = NotingScheduler()
    shielded = ShieldedScheduler(inner, {"bad"}.__contains__, lambda: False)
    for trial_id in ("good", "bad"):
        shielded.on_trial_complete(None, tune_trial(trial_id), {})
    assert inner.calls == ["complete good", "error bad"]


def test_a_shielded_scheduler_decides_as_the_scheduler_does() -> None:
    asha = ASHAScheduler(time_attr="training_iteration", max_t=9, grace_period=1, reduction_factor=2)
    shielded = ShieldedScheduler(asha, lambda trial_id: False, lambda: False)
    assert shielded.set_search_properties("score", "max")
    assert shielded.metric == "score"
    decisions = []
    for trial_id, score in (("a", 0.5), ("b", 0.9), ("c", 0.1)):
        shielded.on_trial_add(None, tune_trial(trial_id))
        decisions.append(shielded.on_trial_result(None, tune_trial(trial_id), {"training_iteration": 1, "score": score}))
    assert decisions == [TrialScheduler.CONTINUE, TrialScheduler.CONTINUE, TrialScheduler.STOP]
    assert shielded.debug_string() == asha.debug_string()
