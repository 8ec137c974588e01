from __future__ import annotations

import math
import pickle
import time
from typing import Any

import numpy as np
import pytest

from raysweep.slurm.allocation import Deadline
from raysweep.tune.stopping import EndOfTrial
from tune_parts import end_of_trial, tune_trial


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
