from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError

from raysweep.cluster.lock import Lock
from raysweep.record.file import Record
from raysweep.record.progress import ProgressLine
from raysweep.slurm.allocation import Deadline
from raysweep.tune import record_callback as bookkeeping
from raysweep.tune.record_callback import Bookkeeper, EndOfTrial, cause_of, is_lost_node, numbers_of, unusable
from raysweep.tune.samplers import ListSampler


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
        7: 0.25,
    }
    assert numbers_of(reported) == {"score": 0.5, "n": 3, "7": 0.25}


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

    def __init__(self, folder: Path, keep_checkpoints: int = 1, max_epochs: int = 3, **options: Any) -> None:
        self.record = Record(folder / "record.jsonl")
        self.record.write("session", sweep={}, host="h", pid=1, nodes=[])
        self.bookkeeper = Bookkeeper(
            self.record,
            ListSampler([]),
            metric="score",
            mode="max",
            max_epochs=max_epochs,
            keep_checkpoints=keep_checkpoints,
            **{
                "max_failures": 1,
                "trial_timeout_s": None,
                "gpu_share": 0,
                "measures_gpu": False,
                "scratch": folder / "tune",
                "node": "n1",
                "names_of_nodes": dict,
                "progress": ProgressLine("s", total=9, metric="score", mode="max"),
                "partial_outputs": None,
                "deadline": None,
                "verify_lock": lambda: None,
                "in_company": False,
                "taken_over": {},
                **options,
            },
        )
        self.stop = EndOfTrial(self.bookkeeper, {"loss": {"at_most": 0.1}, "score": {"at_least": 0.99}})
        self.folder = folder

    def start(self, trial_id: str) -> SimpleNamespace:
        self.record.write("trial", trial=trial_id, index=int(trial_id), repeat=0, seed=0, config={})
        trial = SimpleNamespace(trial_id=trial_id, latest_checkpoint_result=None, last_result={}, status="RUNNING")
        trial.temporary_state = SimpleNamespace(ray_actor="its process")
        trial.placement_group_factory = SimpleNamespace(required_resources={"CPU": 1, "GPU": self.bookkeeper.gpu_share})
        trial.update_resources = lambda resources: trial.placement_group_factory.required_resources.update(GPU=resources["gpu"])
        self.bookkeeper.on_trial_start(0, [], trial)
        return trial

    def report(self, trial: SimpleNamespace, epoch: int, score: float, checkpoint: bool = True) -> bool:
        result = {
            "score": score,
            "training_iteration": epoch,
            "time_total_s": float(epoch),
            "node_ip": "10.0.0.1",
            "should_checkpoint": checkpoint,
        }
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


def test_a_trial_that_has_come_far_enough_is_whole(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    good = kept.start("00000")
    assert [kept.report(good, epoch, score) for epoch, score in ((1, 0.98), (2, 0.99))] == [False, True]
    assert kept.complete(good) == "TERMINATED"
    assert kept.stop("00001", {"training_iteration": 1, "score": 0.1, "loss": 0.1})
    assert not kept.stop("00001", {"training_iteration": 1, "score": 0.1, "loss": 0.2})


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


def test_a_failed_trial_is_tried_again_until_it_has_failed_too_often_over_all_sessions(tmp_path: Path) -> None:
    kept = Kept(tmp_path, max_failures=2)
    trial = kept.start("00000")
    kept.record.write("failure", trial="00000", error="of an earlier session", counted=True)
    assert kept.bookkeeper.judge(trial, ValueError("two"))
    assert not kept.bookkeeper.judge(trial, ValueError("three"))
    kept.bookkeeper.on_trial_error(0, [], trial)
    state = kept.record.sweep.trials["00000"]
    assert (state.status, state.error) == ("ERROR", "three")
    assert [failure.error for failure in state.failures] == ["of an earlier session", "two", "three"]


def test_a_lost_node_is_not_counted_against_its_trials(tmp_path: Path) -> None:
    kept = Kept(tmp_path, max_failures=0)
    trial = kept.start("00000")
    lost = RayActorError()
    lost.error_msg = "The actor died because its node has died. Node Id: 12ab"
    assert is_lost_node(lost)
    assert kept.bookkeeper.judge(trial, lost)
    assert kept.record.sweep.trials["00000"].num_failures == 0
    assert not kept.bookkeeper.judge(trial, ValueError("my node has died"))


def test_trials_that_fill_a_gpu_get_more_of_it_until_they_have_it_for_themselves(tmp_path: Path) -> None:
    kept = Kept(tmp_path, max_failures=0, gpu_share=0.3)
    trials = [kept.start(f"{number:05d}") for number in range(2)]
    full = RuntimeError("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB")
    for trial in trials:  # they fail in the same moment
        assert kept.bookkeeper.judge(trial, full)
    for trial in trials:
        kept.bookkeeper.on_trial_recover(0, [], trial)
        assert trial.placement_group_factory.required_resources["GPU"] == 0.6
    assert kept.bookkeeper.judge(trials[0], full)
    assert kept.bookkeeper.gpu_share == 1.0 == kept.record.sweep.gpu_share
    kept.bookkeeper.on_trial_recover(0, [], trials[0])
    assert not kept.bookkeeper.judge(trials[0], full), "alone on its GPU it is its own fault"


def test_a_trial_that_hangs_is_killed_and_that_is_its_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(tmp_path, max_failures=0, trial_timeout_s=100)
    killed: list[object] = []
    monkeypatch.setattr(bookkeeping.ray, "kill", killed.append)
    trial, other = kept.start("00000"), kept.start("00001")
    kept.bookkeeper.heard["00000"] -= 99
    kept.bookkeeper.on_step_end(0, [])
    assert killed == []
    kept.bookkeeper.heard["00000"] -= 2
    for _ in range(2):
        kept.bookkeeper.on_step_end(0, [])
    assert killed == [trial.temporary_state.ray_actor], "once"
    assert not kept.bookkeeper.judge(trial, RayActorError())
    kept.bookkeeper.on_trial_error(0, [], trial)
    assert kept.record.sweep.trials["00000"].error == "it reported nothing for 1m40s (trial_timeout), so it was ended"
    assert kept.record.sweep.trials[other.trial_id].status == "RUNNING"


def test_when_time_is_nearly_up_each_trial_ends_with_its_next_checkpoint_and_is_not_finished(tmp_path: Path) -> None:
    now = time.time()
    kept = Kept(tmp_path, max_epochs=9, deadline=Deadline(near=now - 1, here=now + 1000))
    saved, without, done = (kept.start(f"{number:05d}") for number in range(3))
    assert kept.report(saved, 1, 0.1)
    assert not kept.report(without, 1, 0.1, checkpoint=False), "it would have to begin anew"
    assert kept.report(done, 9, 0.1)
    assert kept.complete(done) == "TERMINATED"
    assert kept.complete(saved) == "PENDING"
    assert not kept.stop.stop_all(), "one still runs"
    kept.bookkeeper.deadline = Deadline(near=now - 2, here=now - 1)
    assert kept.stop.stop_all()


def test_where_nothing_runs_there_is_nothing_to_wait_for(tmp_path: Path) -> None:
    kept = Kept(tmp_path, deadline=Deadline(near=time.time() - 1, here=time.time() + 1000))
    assert kept.stop.stop_all()


def test_a_sweep_in_which_nothing_ever_begins_ends(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.bookkeeper.last_event -= bookkeeping.START_DEADLINE_S + 1
    kept.bookkeeper.on_step_end(0, [])
    assert kept.stop.stop_all()
    assert str(kept.bookkeeper.fault) == "no trial has begun for 15 minutes, though there is room for one"


def test_nodes_that_come_and_go_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = {"10.0.0.1": "n1", "10.0.0.2": "n2"}
    kept = Kept(tmp_path, node=None, names_of_nodes=lambda: dict(alive))
    monkeypatch.setattr(bookkeeping, "LOOK_AT_NODES_S", 0)
    kept.bookkeeper.on_step_end(0, [])
    del alive["10.0.0.2"]
    alive["10.0.0.3"] = "n3"
    kept.bookkeeper.on_step_end(0, [])
    assert [(node.node, node.state) for node in kept.record.sweep.nodes] == [("n2", "lost"), ("n3", "joined")]


def test_a_trial_that_fails_before_it_runs_is_left_to_the_next_run(tmp_path: Path) -> None:
    kept = Kept(tmp_path, max_failures=1)
    trial = kept.start("00000")
    trial.is_tried_again = kept.bookkeeper.judge(trial, RayActorError())
    kept.bookkeeper.on_trial_error(0, [], trial)  # Tune gives it up all the same
    state = kept.record.sweep.trials["00000"]
    assert (state.status, state.finished, kept.bookkeeper.running) == ("PENDING", False, {})


def test_the_time_for_which_the_job_was_suspended_is_not_held_against_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(tmp_path, trial_timeout_s=100)
    monkeypatch.setattr(bookkeeping.ray, "kill", lambda actor: pytest.fail("it was killed"))
    kept.start("00000")
    for suspended_s in (90.0, 5000.0):
        kept.bookkeeper.last_step -= suspended_s
        kept.bookkeeper.last_event -= suspended_s
        kept.bookkeeper.heard["00000"] -= suspended_s
        kept.bookkeeper.on_step_end(0, [])
    assert kept.bookkeeper.heard["00000"] == pytest.approx(time.monotonic(), abs=50)
    assert not kept.stop.stop_all()


def test_a_run_whose_lock_another_has_taken_writes_no_more(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir(mode=0o700)
    with Lock(tmp_path / "locks", "s") as lock:
        kept = Kept(tmp_path, verify_lock=lock.verify)
        kept.bookkeeper.on_step_end(0, [])
        assert not kept.stop.stop_all()
        lock.path.write_text(lock.path.read_text().replace(lock.holder.token, "another"))
        kept.bookkeeper.verified = -math.inf
        kept.bookkeeper.on_step_end(0, [])
        assert kept.stop.stop_all()
        assert "another run has taken the sweep over" in str(kept.bookkeeper.fault)
        written = kept.record.path.read_bytes()
        kept.bookkeeper.guarded(lambda: kept.record.write("node", node="n1", state="lost"))
        assert kept.record.path.read_bytes() == written
