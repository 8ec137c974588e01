from __future__ import annotations

import math
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysweep.common.bounds import Bounds
from raysweep.common.patience import is_enough
from raysweep.config.model import Mode
from raysweep.record.trials import Result
from raysweep.slurm.allocation import Deadline
from raysweep.tune.faults import FirstFault
from raysweep.tune.hung_trials import RunningTrials
from raysweep.tune.stopping import EndOfTrial, TrialLimits
from records import new_record
from tune_parts import begin, end_of_trial, report, tune_trial


def ends(end: EndOfTrial, trial_id: str, result: dict[str, Any]) -> bool:
    """Return whether a trial ends with this report, if a scheduler would let the trial continue."""
    return end(trial_id, result)


def near() -> Deadline:
    return Deadline(near=time.time() - 1, here=time.time() + 1000)


def test_a_trial_ends_after_its_last_epoch() -> None:
    end = end_of_trial()
    assert [end("00000", {"training_iteration": epoch, "score": 0.1}) for epoch in (1, 2, 3)] == [False, False, True]
    assert [end.reason("00000", epochs) for epochs in (2, 3)] == ["scheduler", "max_epochs"]


def test_a_trial_takes_its_last_epoch_again_where_a_change_is_due() -> None:
    due = {"00000"}
    end = end_of_trial(is_replayed=due.__contains__)
    assert not end("00000", {"training_iteration": 3, "score": 0.1})
    due.clear()
    assert end("00000", {"training_iteration": 3, "score": 0.1})


def test_a_trial_whose_function_returned_is_complete() -> None:
    end = end_of_trial()
    assert not end("00000", {"training_iteration": 1, "score": 0.1, "done": True})
    assert end("00001", {"done": True}), "it has reported nothing"
    assert end.reason("00000", 1) == "returned"


@pytest.mark.parametrize(
    ("metrics", "is_enough"),
    [
        ({"score": 0.98}, False),
        ({"score": 0.99}, True),
        ({"score": 0.1, "loss": 0.1}, True),
        ({"score": 0.1, "loss": 0.2}, False),
        ({"score": 0.1, "loss": None}, False),
        ({"score": 0.1, "loss": False}, False),  # the record drops it, so that a sweep that continues would judge otherwise
        ({"score": 0.1, "loss": np.bool_(False)}, False),
        ({"score": 0.1, "loss": np.float32(0.05)}, True),
    ],
)
def test_a_trial_that_has_come_far_enough_is_complete(metrics: dict[str, Any], is_enough: bool) -> None:
    end = end_of_trial()
    assert end("00000", {"training_iteration": 1, **metrics}) is is_enough
    assert end.reason("00000", 1) == ("stop" if is_enough else "scheduler")


def reports(*scores: float) -> list[Result]:
    return [Result(epoch, {"score": score}, 1.0, "") for epoch, score in enumerate(scores, start=1)]


PATIENCE: Bounds = {"no_better_for": {"epochs": 2, "min_delta": 0.01}, "loss": {"at_most": 0.1}}


@pytest.mark.parametrize(
    ("before", "score", "mode", "ends"),
    [
        ((), 0.5, "max", False),
        ((0.5,), 0.4, "max", False),
        ((0.5, 0.4), 0.4, "max", True),
        ((0.5, 0.4), 0.505, "max", True),
        ((0.5, 0.4), 0.52, "max", False),
        ((0.5, 0.4), 0.3, "min", False),
        ((0.5, 0.6), 0.5, "min", True),
        ((0.1, 0.5, 0.4), 0.4, "max", True),
    ],
)
def test_a_trial_that_gets_no_better_is_complete(before: tuple[float, ...], score: float, mode: Mode, ends: bool) -> None:
    recorded = {"00000": reports(*before)}
    limits = TrialLimits(("score",), 9, PATIENCE, Deadline(), mode)
    end = EndOfTrial(limits, FirstFault(), RunningTrials(None, lambda actor: None), reports_of=lambda trial_id: recorded[trial_id])
    assert end("00000", {"training_iteration": len(before) + 1, "score": score}) is ends
    assert end.reason("00000", len(before) + 1) == ("stop" if ends else "scheduler")
    assert end("00000", {"training_iteration": len(before) + 1, "score": score, "loss": 0.05}), "the bounds hold as before"


def test_all_reports_count_also_reports_outside_the_constraint(tmp_path: Path) -> None:
    """Otherwise another constraint, with which the sweep goes on, would change how long its trials train."""
    record = new_record(tmp_path, metric="score", constraint={"score": {"at_most": 0.45}})
    begin(record, "00000")
    for epoch, score in enumerate((0.4, 0.5, 0.6), start=1):
        report(record, "00000", epoch, score)
    trial = record.sweep.trials["00000"]
    best = trial.best("score", "max")
    assert best is not None
    assert best.epoch == 1
    assert not is_enough(
        [(each.epoch, each.metrics) for each in trial.results], {"no_better_for": {"epochs": 2, "min_delta": 0}}, "score", "max"
    )


def test_a_metric_with_the_name_of_the_rule_is_refused() -> None:
    end = end_of_trial()
    assert end("00000", {"training_iteration": 1, "score": 0.5, "no_better_for": 3})
    assert "reported no_better_for, which is an entry of stop" in end.unusable["00000"]


def test_an_unusable_report_ends_its_trial() -> None:
    end = end_of_trial()
    assert end("00000", {"training_iteration": 1, "score": math.nan})
    assert end.unusable == {"00000": "reported score = nan, which is not finite"}
    assert [end.is_unusable(trial_id) for trial_id in ("00000", "00001")] == [True, False]


def test_when_time_is_nearly_up_each_trial_is_paused_with_its_next_checkpoint() -> None:
    end = end_of_trial(near())
    report = {"training_iteration": 1, "score": 0.1}
    assert end.is_time_to_pause({**report, "should_checkpoint": True})
    assert not end_of_trial().is_time_to_pause({**report, "should_checkpoint": True})
    assert not end.is_time_to_pause({**report, "should_checkpoint": False}), "it would have to begin anew"
    assert not end.is_time_to_pause({**report, "should_checkpoint": True, "done": True}), "it ends by itself"


def test_the_experiment_ends_when_time_is_nearly_up_and_nothing_runs() -> None:
    assert not end_of_trial().stop_all()
    end = end_of_trial(near())
    end.running.begin(tune_trial("00000"))
    assert not end.stop_all()
    end.running.end("00000")
    assert end.stop_all()


def test_the_experiment_ends_when_time_is_up_and_after_a_fault() -> None:
    end = end_of_trial(Deadline(near=time.time() - 2, here=time.time() - 1))
    end.running.begin(tune_trial("00000"))
    assert end.stop_all()
    end = end_of_trial()
    end.faults.note(OSError("disk"))
    assert end.stop_all()


def test_tune_may_pickle_it() -> None:
    assert pickle.loads(pickle.dumps(end_of_trial())).__dict__ == {}


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ({"score": 0.5, "cost": 3}, None),
        ({"score": 0.5}, "reported no cost (it reported score, training_iteration)"),
        ({"cost": 3}, "reported no score (it reported cost, training_iteration)"),
        ({"score": 0.5, "cost": "high"}, "reported cost = 'high', which is not a number"),
    ],
)
def test_each_report_must_contain_all_objectives(report: dict[str, Any], reason: str | None) -> None:
    limits = TrialLimits(("score", "cost"), 9, {}, Deadline())
    end = EndOfTrial(limits, FirstFault(), RunningTrials(None, lambda actor: None))
    assert end("00000", {"training_iteration": 1, **report}) is (reason is not None)
    assert end.unusable.get("00000") == (reason and reason.replace(", training_iteration", ""))
