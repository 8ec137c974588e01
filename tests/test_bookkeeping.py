from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raysweep.bookkeeping import Bookkeeper, EndOfTrial, cause_of, numbers_of, unusable
from raysweep.progress import ProgressLine
from raysweep.record import Record
from raysweep.samplers import ListSampler


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"score": 1}, None),
        ({"score": np.float32(0.5)}, None),
        ({}, "reported no score (it reported nothing)"),
        ({"loss": 1, "acc": 2, "training_iteration": 1}, "reported no score (it reported acc, loss)"),
        ({"score": "0.9"}, "reported score = '0.9', which is not a number"),
        ({"score": None}, "reported score = 'None', which is not a number"),
        ({"score": True}, "reported score = 'True', which is not a number"),
        ({"score": math.nan}, "reported score = nan, which is not finite"),
        ({"score": -math.inf}, "reported score = -inf, which is not finite"),
    ],
)
def test_a_report_is_usable_if_its_metric_is_a_finite_number(result: dict[str, Any], reason: str | None) -> None:
    assert unusable(result, "score") == reason


def test_the_record_takes_finite_numbers_and_nothing_of_tunes_own() -> None:
    reported = {
        "score": np.float64(0.5),
        "n": np.int64(3),
        "bad": math.nan,
        "text": "x",
        "flag": True,
        "training_iteration": 1,
        "time_total_s": 2.0,
        "pid": 3,
    }
    assert numbers_of(reported) == {"score": 0.5, "n": 3}


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "it died without a word"),
        ('\x1b[36mray::f()\x1b[39m (pid=1)\n  File "x.py", line 1, in f\n    raise E\nValueError: two\nlines', "ValueError: two lines"),
        ("The actor died unexpectedly before finishing this task.", "its process died"),
        ("… Worker exit detail: Worker exits with code 3. End of file. Some causes", "its process died: Worker exits with code 3"),
        ("Task was killed due to the node running low on memory.\nMore", "killed: the node was running out of memory"),
    ],
)
def test_a_cause_is_one_line(text: str, cause: str) -> None:
    assert cause_of(text) == cause


class Kept:
    """A bookkeeper with a record, and Tune's events as they come."""

    def __init__(self, folder: Path, keep_checkpoints: int = 1, max_epochs: int = 3) -> None:
        self.record = Record(folder / "record.jsonl")
        self.record.write("session", sweep={}, host="h", pid=1, nodes=[])
        self.bookkeeper = Bookkeeper(
            self.record,
            ListSampler([]),
            metric="score",
            mode="max",
            max_epochs=max_epochs,
            keep_checkpoints=keep_checkpoints,
            node="n1",
            name_of_node={"10.0.0.1": "n1"}.__getitem__,
            progress=ProgressLine("s", total=9, metric="score", mode="max"),
        )
        self.stop = EndOfTrial(self.bookkeeper)
        self.folder = folder

    def start(self, trial_id: str) -> SimpleNamespace:
        self.record.write("trial", trial=trial_id, index=int(trial_id), repeat=0, seed=0, config={})
        trial = SimpleNamespace(trial_id=trial_id, latest_checkpoint_result=None, last_result={}, error_file=None, status="RUNNING")
        self.bookkeeper.on_trial_start(0, [], trial)
        return trial

    def report(self, trial: SimpleNamespace, epoch: int, score: float, checkpoint: bool = True) -> bool:
        result = {"score": score, "training_iteration": epoch, "time_total_s": float(epoch), "node_ip": "10.0.0.1"}
        stopped = self.stop(trial.trial_id, result)
        self.bookkeeper.on_trial_result(0, [], trial, result)
        trial.last_result = result
        if checkpoint:
            path = self.folder / "tune" / trial.trial_id / f"{epoch}"
            path.mkdir(parents=True)
            self.bookkeeper.on_checkpoint(0, [], trial, SimpleNamespace(path=str(path)))
        return stopped

    def complete(self, trial: SimpleNamespace) -> str:
        self.bookkeeper.on_trial_complete(0, [], trial)
        return self.record.sweep.trials[trial.trial_id].status

    def checkpoints(self) -> list[str]:
        return sorted(f"{p.parent.name}/{p.name}" for p in self.folder.glob("tune/*/*"))


def test_a_trial_is_stopped_or_terminated_by_how_far_it_came(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    whole, early, ended, silent = (kept.start(f"{n:05d}") for n in range(4))
    assert [kept.report(whole, epoch, 0.1) for epoch in (1, 2, 3)] == [False, False, True]
    assert kept.complete(whole) == "TERMINATED"
    assert not kept.report(early, 1, 0.1)
    assert kept.complete(early) == "STOPPED"
    kept.report(ended, 1, 0.1)
    assert kept.stop(ended.trial_id, {**ended.last_result, "done": True}) is False
    assert kept.complete(ended) == "TERMINATED"
    assert kept.stop(silent.trial_id, {"done": True})
    assert kept.complete(silent) == "ERROR"
    assert kept.record.sweep.trials["00003"].error == "ended without reporting score"


def test_a_running_trial_keeps_its_best_and_its_latest_checkpoint(tmp_path: Path) -> None:
    kept = Kept(tmp_path, max_epochs=9)
    trial = kept.start("00000")
    for epoch, score in ((1, 0.1), (2, 0.9), (3, 0.9), (4, 0.3), (5, 0.2)):
        kept.report(trial, epoch, score)
    assert kept.checkpoints() == ["00000/2", "00000/5"]  # of equal values the earliest


def test_only_the_best_trials_keep_a_checkpoint_when_they_are_finished(tmp_path: Path) -> None:
    kept = Kept(tmp_path, keep_checkpoints=2)
    for number, score in enumerate((0.5, 0.1, 0.7, 0.6)):
        trial = kept.start(f"{number:05d}")
        kept.report(trial, 1, score)
        kept.report(trial, 2, score / 2)
        kept.complete(trial)
    assert kept.checkpoints() == ["00002/1", "00003/1"]


def test_without_a_checkpoint_of_the_best_epoch_the_latest_is_kept(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    trial = kept.start("00000")
    kept.report(trial, 1, 0.9, checkpoint=False)
    kept.report(trial, 2, 0.5)
    kept.complete(trial)
    assert kept.checkpoints() == ["00000/2"]


def test_an_unusable_report_ends_its_trial_and_keeps_no_checkpoint(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    trial = kept.start("00000")
    kept.report(trial, 1, 0.5)
    assert kept.report(trial, 2, math.nan)
    assert kept.complete(trial) == "ERROR"
    assert kept.checkpoints() == []


def test_the_first_fault_of_the_disk_ends_the_experiment(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    trial = kept.start("00000")
    kept.record._file.close()
    assert not kept.stop.stop_all()
    kept.report(trial, 1, 0.5, checkpoint=False)
    assert kept.stop.stop_all()
    assert isinstance(kept.bookkeeper.fault, ValueError)  # "write to closed file"


def test_a_paused_trial_does_not_count_as_running(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    trial = kept.start("00000")
    trial.status = "PAUSED"
    kept.bookkeeper.on_step_end(0, [])
    assert kept.record.sweep.trials["00000"].status == "PENDING"
