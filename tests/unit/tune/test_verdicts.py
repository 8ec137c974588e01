"""Verdicts of the schedulers over faults and restarts: the record holds each verdict, and a rebuilt scheduler goes on as the earlier one."""

from __future__ import annotations

import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from raysweep.config.space import parse_space
from raysweep.record.file import Record, read_events
from raysweep.record.sweep import Sweep
from raysweep.record.trials import Result
from raysweep.slurm.allocation import Deadline
from raysweep.tune.population import HandOvers
from raysweep.tune.retention import find_checkpoints
from raysweep.tune.search import trial_id_of
from raysweep.tune.session import finish_whole
from raysweep.tune.wiring import make_session_scheduler
from tune_parts import NO_DEADLINE, Events, end_of_trial, tune_trial
from typed import sweep_config

MAX_EPOCHS = 6
ASHA = {"name": "asha", "grace_period": 1, "reduction_factor": 2}
MEDIAN = {"name": "median", "grace_period": 1, "min_samples_required": 2}
HYPERBAND = {"name": "hyperband", "reduction_factor": 2}
PBT = {"name": "pbt", "perturbation_interval": 1, "quantile_fraction": 0.5, "resample_probability": 0.25}
SPACE = {"lr": {"loguniform": [1e-4, 1e-1]}, "batch_size": {"choice": [2, 4, 8]}}
CONFIGS = {"asha": 6, "median": 6, "pbt": 6, "hyperband": 14}  # 14 trials fill three brackets of HyperBand
LOOKAHEAD = 60  # number of events for which a rebuilt scheduler decides
WAITING = SimpleNamespace(status="PENDING")  # a trial that waits, for which the median rule pauses a trial


def reports_of(sweep: Sweep) -> list[tuple[Any, Result]]:
    """Return the trial and the report of each recorded report."""
    return [(entry.trial, entry.result) for entry in sweep.history if entry.event == "result" and entry.result]


def session_scheduler(options: dict[str, Any], record: Any, parts: Any) -> TrialScheduler:
    """Return the scheduler of a session that begins with this record."""
    sweep = sweep_config(trainable="user.py:train", scheduler=options, max_epochs=MAX_EPOCHS, metric="score", mode="max")
    session: Any = SimpleNamespace(sweep=sweep, record=record, space=parse_space(SPACE), is_search=True, fusion=None)
    return make_session_scheduler(session, parts, parts)


def added_trial(recorded: Any, folder: Path) -> Any:
    """Return a stand-in for the trial of Tune's that goes on as the record says."""
    trial = tune_trial(recorded.trial_id)
    trial.path, trial.config, trial.set_config = str(folder), {}, lambda config: None
    trial.status = "PAUSED" if recorded.is_waiting else "PENDING"
    trial.run_metadata = SimpleNamespace(checkpoint_manager=SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None)))
    trial.experiment_tag, trial.is_saving, trial.is_finished = "", False, lambda: trial.status in ("TERMINATED", "ERROR")
    return trial


class StubController:
    """As much of Tune's controller as schedulers call. `waiting` are trials that wait for a place."""

    search_alg = None

    def __init__(self, scheduler: Any, waiting: list[Any], complete: Any = lambda trial: None) -> None:
        self.scheduler, self.waiting, self.complete = scheduler, waiting, complete
        self.stopped: list[str] = []

    def get_live_trials(self) -> list[Any]:
        return self.waiting

    get_trials = get_live_trials

    def stop_trial(self, trial: Any) -> None:
        assert trial.status == "PAUSED"
        self.stopped.append(trial.trial_id)
        self.scheduler.on_trial_remove(self, trial)
        self.complete(trial)
        trial.status = "TERMINATED"

    def pause_trial(self, trial: Any, should_checkpoint: bool) -> None:
        trial.status = "PAUSED"


class Sessions:
    """Sessions of one sweep, in which trials report as Tune would let the trials report."""

    def __init__(self, folder: Path, options: dict[str, Any], repeats: int, waiting: list[Any]) -> None:
        self.folder, self.options, self.repeats, self.waiting = folder, options, repeats, waiting
        self.ids = [trial_id_of(index, repeat, repeats) for index in range(CONFIGS[options["name"]]) for repeat in range(repeats)]
        self.begin()

    def begin(self, is_near: bool = False) -> None:
        """Begin a session. What the session before left is finished first. HyperBand and a population get all trials at once."""
        deadline = Deadline(near=time.time() - 1, here=time.time() + 1000) if is_near else NO_DEADLINE
        self.events = events = Events(self.folder, max_epochs=MAX_EPOCHS, max_failures=99, deadline=deadline, repeats=self.repeats)
        find_checkpoints(events.record)
        finish_whole(events.record, "score", MAX_EPOCHS, {})
        events.scheduler = session_scheduler(self.options, events.record, events.parts)
        events.controller = StubController(events.scheduler, self.waiting, lambda trial: events.callback.on_trial_complete(0, [], trial))
        self.running: dict[str, Any] = {}
        self.paused: dict[str, Any] = {}
        if self.options in (HYPERBAND, PBT):
            for trial_id in self.unfinished:
                self.add(trial_id)

    @property
    def trials(self) -> dict[str, Any]:
        return self.events.record.sweep.trials

    @property
    def unfinished(self) -> list[str]:
        return [trial_id for trial_id in self.ids if trial_id not in self.trials or not self.trials[trial_id].finished]

    @property
    def ready(self) -> list[str]:
        """Return the unfinished trials that Tune would let run. A trial that HyperBand has paused waits until HyperBand lets the trial go on."""
        hyperband: Any = self.events.scheduler.inner  # type: ignore[attr-defined]
        waiting = [trial_id for trial_id, trial in self.paused.items() if trial.status == "PAUSED" and self.options == HYPERBAND]
        unpaused = {trial.trial_id for trial_id in waiting for trial in hyperband._trial_info[self.paused[trial_id]][0].trials_to_unpause}
        return [trial_id for trial_id in self.unfinished if trial_id not in waiting or trial_id in unpaused]

    def add(self, trial_id: str) -> None:
        """Give a trial to the scheduler, as Tune does."""
        if trial_id not in self.trials:
            index, repeat = divmod(self.ids.index(trial_id), self.repeats)
            config = {"lr": 0.001 * (index + 1), "batch_size": 4}
            self.events.record.write("trial", trial=trial_id, index=index, repeat=repeat, seed=0, config=config)
        trial = added_trial(self.trials[trial_id], self.folder / "tune" / trial_id)
        self.paused[trial_id] = trial
        self.events.scheduler.on_trial_add(self.events.controller, trial)

    def start(self, trial_id: str) -> Any:
        """Start a trial, or continue the trial from the latest checkpoint."""
        if trial_id not in self.paused:
            self.add(trial_id)
        trial = self.running[trial_id] = self.paused.pop(trial_id)
        epoch = self.trials[trial_id].latest_checkpoint(self.folder)
        trial.latest_checkpoint_result = SimpleNamespace(metrics={"training_iteration": epoch}) if epoch else None
        trial.status = "RUNNING"
        self.events.callback.on_trial_start(0, [], trial)
        return trial

    def report(self, trial_id: str, score: float, checkpoint: bool = True, is_killed: bool = False) -> None:
        """Let a trial report the next epoch, and do what Tune would do then. If `is_killed` is true, the driver is killed before Tune ends the trial."""
        trial = self.running.get(trial_id) or self.start(trial_id)
        is_over = self.events.report(trial, self.trials[trial_id].epochs + 1, score, checkpoint=checkpoint)
        if is_killed:
            self.begin()
        elif is_over:
            del self.running[trial_id]
            self.events.complete(trial)
            trial.status = "TERMINATED"
        elif trial.verdict in (TrialScheduler.PAUSE, TrialScheduler.NOOP):
            self.paused[trial_id] = self.running.pop(trial_id)
            trial.status = "PAUSED"
            self.events.step()

    def fail(self, trial_id: str) -> None:
        """Let a trial fail, which Tune then tries again."""
        if trial_id in self.running:
            trial = self.running.pop(trial_id)
            assert self.events.fail(trial, ValueError("failed"))
            self.events.scheduler.on_trial_error(self.events.controller, trial)
            trial.status = "PENDING"
            self.paused[trial_id] = trial
            self.events.scheduler.on_trial_add(self.events.controller, trial)

    def verdicts(self) -> list[tuple[str, int, str | None]]:
        return [(trial.trial_id, report.epoch, report.verdict) for trial, report in reports_of(self.events.record.sweep)]


def score_of(trial_id: str, epoch: int) -> float:
    """Return a score below the bound at which a trial has come far enough."""
    return random.Random(f"{trial_id} {epoch}").random() * 0.9


@pytest.mark.parametrize(
    ("options", "repeats"),
    [(ASHA, 1), (ASHA, 2), (MEDIAN, 1), (MEDIAN, 2), (HYPERBAND, 1), (PBT, 1)],
    ids=lambda value: value["name"] if isinstance(value, dict) else str(value),
)
def test_a_sweep_that_is_restarted_at_each_walltime_stops_the_same_trials(tmp_path: Path, options: dict[str, Any], repeats: int) -> None:
    whole = Sessions(tmp_path / "whole", options, repeats, [])
    short = Sessions(tmp_path / "short", options, repeats, [])
    for sessions in (whole, short):
        while sessions.unfinished:
            if sessions is short:
                sessions.begin(is_near=True)
            for trial_id in sessions.ready:
                sessions.report(trial_id, score_of(trial_id, sessions.trials[trial_id].epochs + 1 if trial_id in sessions.trials else 1))
    assert short.verdicts() == whole.verdicts()
    assert {trial.status for trial in whole.trials.values()} == ({"TERMINATED"} if options == PBT else {"STOPPED", "TERMINATED"})
    assert [trial.config for trial in short.trials.values()] == [trial.config for trial in whole.trials.values()]
    ends = [{trial_id: (trial.status, trial.epochs) for trial_id, trial in sessions.trials.items()} for sessions in (whole, short)]
    assert ends[0] == ends[1]


class Rebuilt:
    """A scheduler that is rebuilt from the first events of a record, and learns the later events from Tune. `decisions` are its answers."""

    def __init__(self, folder: Path, events: list[dict[str, Any]], first: int, options: dict[str, Any], waiting: list[Any]) -> None:
        self.sweep, self.folder, self.hand_overs, self.retried = Sweep(), folder, HandOvers(), set()  # type: ignore[var-annotated]
        self.decisions: list[tuple[Any, ...]] = []
        for event in events[:first]:
            self.sweep.apply(event)
        ended: list[str] = []
        record = SimpleNamespace(sweep=self.sweep, path=folder / "record.jsonl", write=lambda event, trial, **_: ended.append(trial))
        parts: Any = SimpleNamespace(
            end_of_trial=end_of_trial(), retries=SimpleNamespace(is_retried=self.retried.__contains__), hand_overs=self.hand_overs
        )
        self.scheduler = session_scheduler(options, record, parts)
        self.controller = StubController(self.scheduler, waiting)
        self.controller.stopped += ended
        self.trials: dict[str, Any] = {}
        for trial in self.sweep.trials.values():
            if not trial.finished:
                self.add(trial.trial_id)
        self.last = {id: {"training_iteration": t.epochs, **t.results[-1].metrics} for id, t in self.sweep.trials.items() if t.results}
        if first < len(events) and events[first]["event"] == "take_over":
            self.report(first - 1, events[first - 1])  # the take-over was lost, so the trial makes the report again
        for number, event in enumerate(events[first:], start=first):
            self.learn(number, event)

    def add(self, trial_id: str) -> None:
        trial = self.trials[trial_id] = added_trial(self.sweep.trials[trial_id], self.folder / "rebuilt" / trial_id)
        self.scheduler.on_trial_add(self.controller, trial)

    def report(self, number: int, event: dict[str, Any]) -> None:
        self.last[event["trial"]] = report = {"training_iteration": event["epoch"], **event["metrics"]}
        trial = self.trials[event["trial"]]
        trial.status = "RUNNING"
        if event["verdict"] is None:
            return
        verdict = self.scheduler.on_trial_result(self.controller, trial, report)
        self.decisions.append((number, verdict))
        trial.status = "PAUSED" if verdict in ("PAUSE", "NOOP") else "RUNNING"

    def learn(self, number: int, event: dict[str, Any]) -> None:
        """Let the scheduler learn an event as Tune would tell it. HyperBand stops other trials itself."""
        trial = self.trials.get(event.get("trial", ""))
        if event["event"] == "result":
            self.report(number, event)
        elif event["event"] == "take_over":
            taken = self.hand_overs.pop(event["trial"], None)
            self.decisions.append((number, taken.donor, taken.epoch, taken.config) if taken else (number, None))
        elif event["event"] == "failure":
            self.retried.add(event["trial"])
            self.scheduler.on_trial_error(self.controller, trial)
            trial.status = "PENDING"
            self.scheduler.on_trial_add(self.controller, trial)
        elif event["event"] == "finish" and trial.status not in ("PAUSED", "TERMINATED"):
            trial.status = "RUNNING"
            self.scheduler.on_trial_complete(self.controller, trial, self.last[event["trial"]])
            trial.status = "TERMINATED"
        self.sweep.apply(event)
        if event["event"] == "trial":
            self.add(event["trial"])


def decisions_of(events: list[dict[str, Any]]) -> tuple[list[tuple[Any, ...]], dict[str, int]]:
    """Return the recorded answers to reports with the take-overs, and the number of the event with which a scheduler stopped a trial that waited."""
    decisions: list[tuple[Any, ...]] = []
    stopped, waiting = {}, set()
    for number, event in enumerate(events):
        if event["event"] == "result":
            (waiting.add if event["verdict"] == "PAUSE" else waiting.discard)(event["trial"])
            if event["verdict"]:
                decisions.append((number, event["verdict"]))
        elif event["event"] == "take_over":
            decisions.append((number, event["donor"], event["epoch"], event["config"]))
        elif event["event"] == "finish" and event["trial"] in waiting:
            stopped[event["trial"]] = number
    return decisions, stopped


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("options", "repeats", "waiting"),
    [
        *((options, repeats, waiting) for options in (ASHA, MEDIAN) for repeats in (1, 2) for waiting in ([], [WAITING])),
        *((HYPERBAND, 1, []), (PBT, 1, []), (PBT, 1, [WAITING])),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else str(value) if isinstance(value, int) else f"{len(value)} wait",
)
def test_a_scheduler_that_is_rebuilt_from_any_first_events_decides_as_recorded(
    tmp_path: Path, options: dict[str, Any], repeats: int, waiting: list[Any], seed: int
) -> None:
    choice = random.Random(seed)
    sessions = Sessions(tmp_path, options, repeats, waiting)
    for _ in range(300):
        if not sessions.unfinished:
            break
        if not sessions.ready:  # all trials of HyperBand are paused, because the time of the job is nearly over
            sessions.begin()
        trial_id, fate = choice.choice(sessions.ready[:5]), choice.random()
        if fate < 0.05:
            sessions.fail(trial_id)
        elif fate < 0.1:  # the session is killed, or comes to its walltime
            sessions.begin(is_near=choice.random() < 0.5)
        else:
            sessions.report(trial_id, choice.random() * 0.9, checkpoint=choice.random() < 0.8, is_killed=fate < 0.15)
    assert not sessions.unfinished
    events = [event for event, _ in read_events(sessions.events.record.path)]
    decisions, stopped = decisions_of(events)
    assert {decision[1] for decision in decisions} >= {PBT["name"]: {"CONTINUE", "NOOP"}}.get(options["name"], {"CONTINUE", "STOP"})
    assert bool(stopped) is (options == HYPERBAND)
    for event in events:  # also the checkpoints that were not needed any more
        if event["event"] in ("checkpoint", "take_over"):
            (tmp_path / event["path"]).mkdir(parents=True, exist_ok=True)
    for first in range(1, len(events) + 1):
        # Population based training copies a folder for each take-over. Each later event is among the next events of a later `first`.
        last = len(events) if first == 1 or options == HYPERBAND else first + LOOKAHEAD
        rebuilt = Rebuilt(tmp_path, events[:last], first, options, waiting)
        expected = [decision for decision in decisions if first <= decision[0] < last]
        if first < len(events) and events[first]["event"] == "take_over":
            expected.insert(0, (first - 1, "NOOP"))
        assert rebuilt.decisions == expected, first
        assert sorted(rebuilt.controller.stopped) == sorted(trial_id for trial_id, number in stopped.items() if number >= first), first


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
