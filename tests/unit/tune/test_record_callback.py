from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError

from raysweep.cluster.lock import Lock
from raysweep.record.file import read_events
from raysweep.slurm.allocation import Deadline
from raysweep.tune.population import HandOver
from raysweep.tune.trial import GPU_MEMORY_MB
from tune_parts import Events


def events_of(folder: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (folder / "record.jsonl").read_text().splitlines()]


def test_a_trial_is_stopped_or_terminated_by_how_far_it_came(tmp_path: Path) -> None:
    events = Events(tmp_path)
    whole, early, ended, silent = (events.start(f"{n:05d}") for n in range(4))
    assert [events.report(whole, epoch, 0.1) for epoch in (1, 2, 3)] == [False, False, True]
    assert events.complete(whole) == "TERMINATED"
    assert not events.report(early, 1, 0.1)
    assert events.complete(early) == "STOPPED"
    events.report(ended, 1, 0.1)
    assert events.stop(ended.trial_id, {**ended.last_result, "done": True}) is False
    assert events.complete(ended) == "TERMINATED"
    assert events.stop(silent.trial_id, {"done": True})
    assert events.complete(silent) == "ERROR"
    assert events.record.sweep.trials["00003"].error == "ended without reporting score"
    assert events.parts.running.trials == {}


def test_a_trial_that_has_come_far_enough_is_whole(tmp_path: Path) -> None:
    events = Events(tmp_path)
    good = events.start("00000")
    assert [events.report(good, epoch, score) for epoch, score in ((1, 0.98), (2, 0.99))] == [False, True]
    assert events.complete(good) == "TERMINATED"


def test_each_end_is_recorded_with_its_reason(tmp_path: Path) -> None:
    events = Events(tmp_path)
    scores = {"00000": (0.1, 0.1, 0.1), "00001": (0.99,), "00002": (0.1,), "00003": (0.1,), "00004": ()}
    for trial_id, values in scores.items():
        trial = events.start(trial_id)
        for epoch, score in enumerate(values, start=1):
            events.report(trial, epoch, score)
        if trial_id in ("00003", "00004"):
            events.stop(trial_id, {**trial.last_result, "done": True} if values else {"done": True})
        events.complete(trial)
    finishes = [event for event, _ in read_events(events.record.path) if event["event"] == "finish"]
    assert [(event["trial"], event["reason"]) for event in finishes] == [
        ("00000", "max_epochs"),
        ("00001", "stop"),
        ("00002", "scheduler"),
        ("00003", "returned"),
        ("00004", "error"),
    ]


def test_a_report_is_recorded_with_its_numbers_and_its_node(tmp_path: Path) -> None:
    events = Events(tmp_path)
    trial = events.start("00000")
    events.report(trial, 1, 0.5, nested={"loss": 0.25}, text="x")
    recorded = events.record.sweep.trials["00000"]
    [result] = recorded.results
    assert (result.metrics, result.time_s, recorded.node) == ({"score": 0.5, "nested/loss": 0.25}, 1.0, "n1")


def test_checkpoints_are_pruned_as_reports_and_ends_come(tmp_path: Path) -> None:
    events = Events(tmp_path, max_epochs=9)
    for number, score in enumerate((0.5, 0.9)):
        trial = events.start(f"{number:05d}")
        for epoch in (1, 2, 3):
            events.report(trial, epoch, score / epoch)
        assert f"{number:05d}/1" in events.checkpoints()
        assert f"{number:05d}/2" not in events.checkpoints()
        events.complete(trial)
    assert events.checkpoints() == ["00001/1"]


def test_an_unusable_report_ends_its_trial_and_keeps_no_checkpoint(tmp_path: Path) -> None:
    events = Events(tmp_path)
    trial = events.start("00000")
    events.report(trial, 1, 0.5)
    assert events.report(trial, 2, math.nan)
    assert events.complete(trial) == "ERROR"
    assert events.record.sweep.trials["00000"].error == "reported score = nan, which is not finite"
    assert events.checkpoints() == []


def test_a_hand_over_is_recorded_after_the_report_at_which_it_was_decided(tmp_path: Path) -> None:
    events = Events(tmp_path, max_epochs=9)
    donor, trial = events.start("00000"), events.start("00001")
    events.report(donor, 1, 0.9)
    events.report(trial, 1, 0.1)
    hand_over = HandOver("00000", 1, {"lr": 0.5}, "tune/00001/copy")
    events.parts.hand_overs["00001"] = hand_over
    events.report(trial, 2, 0.2, checkpoint=False)
    assert events_of(tmp_path)[-2:] == ["result", "take_over"]
    recorded = events.record.sweep.trials["00001"]
    assert (recorded.config, recorded.epochs, recorded.checkpoints) == ({"lr": 0.5}, 1, {1: "tune/00001/copy"})
    assert events.checkpoints() == ["00000/1"], "nothing continues from the trial's own checkpoint"
    events.report(trial, 2, 0.3, checkpoint=False)
    assert events_of(tmp_path)[-1] == "result", "it is taken once"


def test_the_first_report_packs_gpus(tmp_path: Path) -> None:
    events = Events(tmp_path, gpu_share=1.0, measures_gpu=True)
    events.report(events.start("00000"), 1, 0.5, checkpoint=False, **{GPU_MEMORY_MB: (1000, 10_000)})
    assert events.parts.gpu_share.share == 1 / 9
    assert events_of(tmp_path)[-2:] == ["gpu_share", "result"]


def test_the_first_fault_ends_the_experiment(tmp_path: Path) -> None:
    events = Events(tmp_path)
    trial = events.start("00000")
    events.record.close()
    assert not events.stop.stop_all()
    events.report(trial, 1, 0.5, checkpoint=False)
    assert events.stop.stop_all()
    assert isinstance(events.parts.faults.fault, ValueError)  # "write to closed file"


def test_a_paused_trial_does_not_count_as_running(tmp_path: Path) -> None:
    events = Events(tmp_path)
    trial = events.start("00000")
    trial.status = "PAUSED"
    events.step()
    assert events.record.sweep.trials["00000"].status == "PENDING"
    assert events.parts.running.trials == {}


def test_a_trial_that_failed_too_often_ends_with_the_cause_of_its_last_failure(tmp_path: Path) -> None:
    events = Events(tmp_path, max_failures=1)
    trial = events.start("00000")
    assert events.fail(trial, ValueError("one"))
    events.callback.on_trial_start(0, [], trial)
    assert not events.fail(trial, ValueError("two"))
    state = events.record.sweep.trials["00000"]
    assert (state.status, state.error) == ("ERROR", "two")
    assert [failure.error for failure in state.failures] == ["one", "two"]


def test_a_trial_that_is_tried_again_takes_the_share_that_its_failure_led_to(tmp_path: Path) -> None:
    events = Events(tmp_path, max_failures=0, gpu_share=0.3)
    trial = events.start("00000")
    assert events.fail(trial, RuntimeError("CUDA out of memory"))
    assert trial.placement_group_factory.required_resources["GPU"] == 0.6


def test_a_trial_that_hangs_is_killed_and_that_is_its_failure(tmp_path: Path) -> None:
    events = Events(tmp_path, max_failures=0)
    trial = events.start("00000")
    events.clock.now_s += 50  # less than the gap at which the job counts as suspended
    events.step()
    other = events.start("00001")
    events.clock.now_s += 51
    for _ in range(2):
        events.step()
    assert events.killed == ["actor of 00000"], "once"
    assert not events.fail(trial, RayActorError())
    assert events.record.sweep.trials["00000"].error == "it reported nothing for 1m40s (trial_timeout), so it was ended"
    assert events.record.sweep.trials[other.trial_id].status == "RUNNING"


def test_a_sweep_in_which_no_trial_ever_begins_ends(tmp_path: Path) -> None:
    events = Events(tmp_path)
    for _ in range(19):  # steps of 50 s, which are no suspension
        events.clock.now_s += 50
        events.step()
    assert events.stop.stop_all()
    assert str(events.parts.faults.fault) == "no trial has begun for 15 minutes, though there is room for one"


def test_when_time_is_nearly_up_a_trial_is_paused_at_a_report_with_a_checkpoint(tmp_path: Path) -> None:
    now = time.time()
    events = Events(tmp_path, max_epochs=9, deadline=Deadline(near=now - 1, here=now + 1000))
    paused, without, done = (events.start(f"{number:05d}") for number in range(3))
    for trial in (paused, without):
        assert not events.report(trial, 1, 0.1, checkpoint=trial is paused)
    assert (paused.verdict, without.verdict) == ("PAUSE", "CONTINUE")
    assert events.report(done, 9, 0.1)
    assert events.complete(done) == "TERMINATED"
    paused.status = "PAUSED"
    events.step()
    state = events.record.sweep.trials["00000"]
    assert (state.status, state.is_waiting, state.results[0].verdict) == ("PENDING", False, "CONTINUE")
    assert list(events.parts.running.trials) == ["00001"]


def test_a_trial_that_fails_before_it_runs_is_left_to_the_next_run(tmp_path: Path) -> None:
    events = Events(tmp_path, max_failures=1)
    trial = events.start("00000")
    events.parts.retries.judge(trial, RayActorError())
    events.callback.on_trial_error(0, [], trial)  # Tune gives it up all the same
    state = events.record.sweep.trials["00000"]
    assert (state.status, state.finished, events.parts.running.trials) == ("PENDING", False, {})


def test_a_run_whose_lock_another_has_taken_writes_no_more(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir(mode=0o700)
    with Lock(tmp_path / "locks", "s") as lock:
        events = Events(tmp_path, verify_lock=lock.verify)
        trial: Any = events.start("00000")
        events.step()
        assert not events.stop.stop_all()
        lock.path.write_text(lock.path.read_text().replace(lock.holder.token, "another"))
        events.callback.lock_verified_at_s = -math.inf
        events.step()
        assert events.stop.stop_all()
        assert "another run has taken the sweep over" in str(events.parts.faults.fault)
        written = events.record.path.read_bytes()
        events.report(trial, 1, 0.5)
        events.complete(trial)
        assert events.record.path.read_bytes() == written
