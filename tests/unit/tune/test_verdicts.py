"""Verdicts of ASHA and the median rule over faults and restarts: the record holds each verdict, and a rebuilt scheduler goes on as the earlier one."""

from __future__ import annotations

import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from raysweep.record.file import Record, read_events
from raysweep.record.trials import Sweep
from raysweep.slurm.allocation import Deadline
from raysweep.tune.search import trial_id_of
from raysweep.tune.session import finish_whole
from raysweep.tune.wiring import make_session_scheduler
from tune_parts import NO_DEADLINE, Events, end_of_trial, tune_trial
from typed import sweep_config

MAX_EPOCHS, CONFIGS = 6, 6
ASHA = {"name": "asha", "grace_period": 1, "reduction_factor": 2}
MEDIAN = {"name": "median", "grace_period": 1, "min_samples_required": 2}
WAITING = SimpleNamespace(status="PENDING")  # a trial that waits, for which the median rule pauses a trial


def session_scheduler(options: dict[str, Any], record: Any, parts: Any) -> TrialScheduler:
    """Return the scheduler of a session that begins with this record."""
    sweep = sweep_config(trainable="user.py:train", scheduler=options, max_epochs=MAX_EPOCHS, metric="score", mode="max")
    session: Any = SimpleNamespace(sweep=sweep, record=record, space={}, is_search=True, is_over=lambda: False)
    return make_session_scheduler(session, parts, parts)


class Sessions:
    """Sessions of one sweep, in which trials report as Tune would let the trials report."""

    def __init__(self, folder: Path, options: dict[str, Any], repeats: int, waiting: list[Any]) -> None:
        self.folder, self.options, self.repeats, self.waiting = folder, options, repeats, waiting
        self.ids = [trial_id_of(index, repeat, repeats) for index in range(CONFIGS) for repeat in range(repeats)]
        self.begin()

    def begin(self, is_near: bool = False) -> None:
        """Begin a session. What the session before left is finished first."""
        deadline = Deadline(near=time.time() - 1, here=time.time() + 1000) if is_near else NO_DEADLINE
        self.events = events = Events(self.folder, max_epochs=MAX_EPOCHS, max_failures=99, deadline=deadline, repeats=self.repeats)
        finish_whole(events.record, "score", MAX_EPOCHS, {})
        events.scheduler = session_scheduler(self.options, events.record, events.parts)
        events.controller = SimpleNamespace(get_live_trials=lambda: self.waiting)
        self.running: dict[str, Any] = {}

    @property
    def trials(self) -> dict[str, Any]:
        return self.events.record.sweep.trials

    @property
    def unfinished(self) -> list[str]:
        return [trial_id for trial_id in self.ids if trial_id not in self.trials or not self.trials[trial_id].finished]

    def start(self, trial_id: str) -> Any:
        """Start a trial, or continue the trial from the latest checkpoint."""
        if trial_id not in self.trials:
            index, repeat = divmod(self.ids.index(trial_id), self.repeats)
            self.events.record.write("trial", trial=trial_id, index=index, repeat=repeat, seed=0, config={})
        trial = self.running[trial_id] = tune_trial(trial_id)
        epoch = self.trials[trial_id].latest_checkpoint(self.folder)
        trial.latest_checkpoint_result = SimpleNamespace(metrics={"training_iteration": epoch}) if epoch else None
        self.events.scheduler.on_trial_add(self.events.controller, trial)
        self.events.callback.on_trial_start(0, [], trial)
        return trial

    def report(self, trial_id: str, score: float, checkpoint: bool = True) -> None:
        """Let a trial report the next epoch, and do what Tune would do then."""
        trial = self.running.get(trial_id) or self.start(trial_id)
        if self.events.report(trial, self.trials[trial_id].epochs + 1, score, checkpoint=checkpoint):
            del self.running[trial_id]
            self.events.complete(trial)
        elif trial.verdict == TrialScheduler.PAUSE:
            del self.running[trial_id]
            trial.status = "PAUSED"
            self.events.step()

    def fail(self, trial_id: str) -> None:
        """Let a trial fail, which Tune then tries again."""
        if trial_id in self.running:
            assert self.events.fail(self.running.pop(trial_id), ValueError("failed"))

    def verdicts(self) -> list[tuple[str, int, str | None]]:
        return [(trial.trial_id, report.epoch, report.verdict) for trial, report in self.events.record.sweep.history if report]


def score_of(trial_id: str, epoch: int) -> float:
    """Return a score below the bound at which a trial has come far enough."""
    return random.Random(f"{trial_id} {epoch}").random() * 0.9


@pytest.mark.parametrize("options", [ASHA, MEDIAN], ids=lambda options: options["name"])
@pytest.mark.parametrize("repeats", [1, 2])
def test_a_sweep_that_is_restarted_at_each_walltime_stops_the_same_trials(tmp_path: Path, options: dict[str, Any], repeats: int) -> None:
    whole = Sessions(tmp_path / "whole", options, repeats, [])
    short = Sessions(tmp_path / "short", options, repeats, [])
    for sessions in (whole, short):
        while sessions.unfinished:
            if sessions is short:
                sessions.begin(is_near=True)
            for trial_id in sessions.unfinished:
                sessions.report(trial_id, score_of(trial_id, sessions.trials[trial_id].epochs + 1 if trial_id in sessions.trials else 1))
    assert short.verdicts() == whole.verdicts()
    assert {trial.status for trial in whole.trials.values()} == {"STOPPED", "TERMINATED"}
    ends = [{trial_id: (trial.status, trial.epochs) for trial_id, trial in sessions.trials.items()} for sessions in (whole, short)]
    assert ends[0] == ends[1]


def next_verdicts(events: list[dict[str, Any]], first: int, options: dict[str, Any], waiting: list[Any]) -> list[tuple[int, str]]:
    """Rebuild a scheduler from the first events, and return the verdicts of the later lines. The scheduler learns the later lines from Tune."""
    sweep = Sweep()
    for event in events[:first]:
        sweep.apply(event)
    end = end_of_trial()
    parts: Any = SimpleNamespace(end_of_trial=end, retries=SimpleNamespace(is_retried=lambda trial_id: False), hand_overs=None)
    scheduler = session_scheduler(options, SimpleNamespace(sweep=sweep), parts)
    controller, verdicts = SimpleNamespace(get_live_trials=lambda: waiting), []
    for trial in sweep.trials.values():
        if not trial.finished:
            scheduler.on_trial_add(controller, tune_trial(trial.trial_id))
    last: dict[str, dict[str, Any]] = {
        id: {"training_iteration": t.epochs, **t.results[-1].metrics} for id, t in sweep.trials.items() if t.results
    }
    for number, event in enumerate(events[first:], start=first):
        trial = tune_trial(event.get("trial", ""))
        if event["event"] == "result":
            last[trial.trial_id] = report = {"training_iteration": event["epoch"], **event["metrics"]}
            if event["verdict"] is not None:
                verdicts.append((number, scheduler.on_trial_result(controller, trial, report)))
        sweep.apply(event)
        if event["event"] == "trial":
            scheduler.on_trial_add(controller, trial)
        elif event["event"] == "finish":
            scheduler.on_trial_complete(controller, trial, last[trial.trial_id])
    return verdicts


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("waiting", [[], [WAITING]], ids=["none waits", "one waits"])
@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("options", [ASHA, MEDIAN], ids=lambda options: options["name"])
def test_a_scheduler_that_is_rebuilt_from_any_first_events_decides_as_recorded(
    tmp_path: Path, options: dict[str, Any], repeats: int, waiting: list[Any], seed: int
) -> None:
    choice = random.Random(seed)
    sessions = Sessions(tmp_path, options, repeats, waiting)
    for _ in range(300):
        if not sessions.unfinished:
            break
        trial_id, fate = choice.choice(sessions.unfinished[:5]), choice.random()
        if fate < 0.05:
            sessions.fail(trial_id)
        elif fate < 0.1:  # the session is killed, or comes to its walltime
            sessions.begin(is_near=choice.random() < 0.5)
        else:
            sessions.report(trial_id, choice.random() * 0.9, checkpoint=choice.random() < 0.8)
    events = [event for event, _, _ in read_events(sessions.events.record.path)]
    recorded = [(number, event["verdict"]) for number, event in enumerate(events) if event["event"] == "result" and event["verdict"]]
    assert {"CONTINUE", "STOP"} <= {verdict for _, verdict in recorded}
    for first in range(1, len(events) + 1):
        assert next_verdicts(events, first, options, waiting) == [pair for pair in recorded if pair[0] >= first], first


def start_worst(sessions: Sessions) -> Any:
    """Let three trials report, and start trial 00003, which a scheduler will stop at a report of 0.1."""
    for trial_id, score in zip(sessions.ids, (0.5, 0.6, 0.7), strict=False):
        sessions.report(trial_id, score)
    return sessions.start("00003")


@pytest.mark.parametrize("options", [ASHA, MEDIAN], ids=lambda options: options["name"])
def test_a_trial_that_was_stopped_in_the_moment_of_a_kill_is_finished_and_does_not_go_on(tmp_path: Path, options: dict[str, Any]) -> None:
    sessions = Sessions(tmp_path, options, 1, [])
    trial = start_worst(sessions)
    assert sessions.events.report(trial, 1, 0.1), "the driver is killed before Tune ends the trial"
    sessions.begin()
    assert [sessions.trials[trial_id].status for trial_id in ("00002", "00003")] == ["PENDING", "STOPPED"]


@pytest.mark.parametrize("options", [ASHA, MEDIAN], ids=lambda options: options["name"])
def test_a_trial_that_fails_after_it_was_stopped_is_stopped_again(tmp_path: Path, options: dict[str, Any]) -> None:
    sessions = Sessions(tmp_path, options, 1, [])
    trial = start_worst(sessions)
    assert sessions.events.report(trial, 1, 0.1, checkpoint=False)
    sessions.fail("00003")  # its checkpoint could not be saved
    sessions.report("00003", 0.9)
    assert sessions.verdicts()[-2:] == [("00003", 1, "STOP")] * 2
    assert sessions.trials["00003"].status == "STOPPED"


def test_a_record_without_verdicts_is_read_as_before(tmp_path: Path) -> None:
    with Record(tmp_path / "record.jsonl") as record:
        record.write("session", sweep={}, host="h", pid=1, nodes=[])
        record.write("trial", trial="00000", index=0, repeat=0, seed=0, config={})
        record.write("start", trial="00000", node="n", from_epoch=0)
        record.write("result", trial="00000", epoch=1, metrics={"score": 0.5}, time_s=1.0, node="n")
        finish_whole(record, "score", 3, {})
        trial = record.sweep.trials["00000"]
        assert (trial.status, trial.is_stopped, trial.results[0].verdict) == ("RUNNING", False, "UNRECORDED")
