"""Computes a sweep from the events of a record: the sessions, the trials, and the groups of trials that share a configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from raysweep.common.bounds import Bounds, all_hold
from raysweep.common.errors import RaysweepError
from raysweep.config.model import Mode, Objective
from raysweep.record.events import (
    Attempt,
    Failure,
    FinishReason,
    FusionPlan,
    NodeEvent,
    NotFused,
    ScheduleStep,
    Session,
    SessionHeader,
    Status,
    fusion_from_event,
)
from raysweep.record.pareto import front_of, knee_of, point_of

UNRECORDED = "UNRECORDED"  # verdict of a report in a record of version 0.1, which recorded no verdicts


@dataclass
class Result:
    """Contains the report of a trial at the end of one epoch."""

    epoch: int
    metrics: dict[str, float]
    time_s: float  # training time of the trial in seconds up to this report, over all attempts of the trial
    at: str
    # Answer of the scheduler to this report. None: the scheduler was not asked, because the trial ended with this report.
    verdict: str | None = UNRECORDED
    # True for a report of the donor trial whose checkpoint this trial took over. Such a report never counts as this trial's best report.
    is_inherited: bool = False


class Candidate:
    """Represents one configuration that can win the sweep: a Trial, or a Group where each configuration is trained with several seeds."""

    trial_id: str
    index: int  # number of the configuration
    config: dict[str, Any]
    status: Status
    results: list[Result]
    constraint: Bounds  # bounds that a report must fulfil to be the candidate's best report
    objectives: tuple[
        Objective, ...
    ] = ()  # several objectives, by which the last report of a candidate is its best report; empty with one objective

    @property
    def finished(self) -> bool:
        return self.status in ("TERMINATED", "STOPPED", "ERROR")

    @property
    def epochs(self) -> int:
        return self.results[-1].epoch if self.results else 0

    @property
    def members(self) -> list[Trial]:
        raise NotImplementedError

    def has_reported(self, metric: str) -> bool:
        """Return whether the candidate has reported a finite value of `metric`. The value need not fulfil the constraint."""
        return any(math.isfinite(result.metrics.get(metric, math.nan)) for result in self.results)

    def best(self, metric: str, mode: Mode, constraint: Bounds | None = None) -> Result | None:
        """Return the report with the best value of `metric`. Where several reports have the best value, return the earliest of these reports.

        With several objectives, return the last report with finite values of all objectives, because no report need be the best by all objectives.
        Only reports that fulfil the bounds of `constraint` count. Where `constraint` is None, the candidate's own constraint applies.
        """
        return self.best_of(self.results, metric, mode, constraint)

    def best_of(self, reports: Sequence[Result], metric: str, mode: Mode, constraint: Bounds | None = None) -> Result | None:
        """Return the best one of `reports`, as `best` does."""
        constraint = self.constraint if constraint is None else constraint
        names = [objective.metric for objective in self.objectives] or [metric]
        finite = [
            r
            for r in reports
            if all(math.isfinite(r.metrics.get(name, math.nan)) for name in names)
            and all_hold(r.metrics, constraint)
            and not r.is_inherited
        ]
        if not finite:
            return None
        if self.objectives:
            return finite[-1]
        sign = 1 if mode == "max" else -1
        return max(finite, key=lambda r: (sign * r.metrics[metric], -r.epoch))

    def counted(self, metric: str, mode: Mode, constraint: Bounds | None = None) -> Result | None:
        """Return the best report, or None where the candidate has failed or has no report that counts."""
        return None if self.status == "ERROR" else self.best(metric, mode, constraint)

    def best_epoch(self, metric: str, mode: Mode, epochs: Collection[int]) -> int | None:
        """Return the best one of `epochs`, or the last one where the candidate has no report of these epochs that counts. None: there are no epochs.

        Where no report of these epochs fulfils the constraint, the best report without the constraint counts, because the user may change the constraint later.
        """
        reports = [result for result in self.results if result.epoch in epochs]
        best = self.best_of(reports, metric, mode) or self.best_of(reports, metric, mode, {})
        return best.epoch if best else max(epochs, default=None)

    def rank(self, metric: str, mode: Mode, constraint: Bounds | None = None) -> tuple[float, str]:
        """Return a sort key that puts the best candidate first and candidates that cannot win last.

        Candidates of equal value are sorted by their trial_id.
        """
        result = self.counted(metric, mode, constraint)
        return math.inf if result is None else result.metrics[metric] * (-1 if mode == "max" else 1), self.trial_id


@dataclass
class Trial(Candidate):
    """Contains the state of a trial after all events of the record."""

    trial_id: str
    index: int
    repeat: int
    seed: int
    config: dict[str, Any]
    status: Status = "PENDING"
    results: list[Result] = field(default_factory=list)
    checkpoints: dict[int, str] = field(default_factory=dict)  # epoch → path of the checkpoint, relative to the state folder
    attempts: list[Attempt] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    ended: str | None = None
    error: str | None = None
    is_stopped: bool = False  # whether the scheduler has decided that the trial ends, even if the record does not contain the end yet
    reason: FinishReason | None = None  # why the trial has finished; None while the trial is not finished
    # Last epoch of a finished trial that was re-opened. The reports up to this epoch stay until the trial has reported these epochs again.
    reopened_at: int = 0
    is_waiting: bool = False  # whether the scheduler has paused the trial at its last report, and the trial has not gone on since
    constraint: Bounds = field(default_factory=dict)
    objectives: tuple[Objective, ...] = ()
    # The configurations with which population based training produced the trial's weights. The list is empty where the configuration never changed.
    schedule: list[ScheduleStep] = field(default_factory=list)

    @property
    def members(self) -> list[Trial]:
        return [self]

    def take_over(self, donor: Trial, epoch: int, config: dict[str, Any], path: str) -> None:
        """Replace the trial's state with the donor trial's state after `epoch`, and set the configuration to `config`.

        `path` is the path of the donor's checkpoint after `epoch`.
        """
        donor_schedule = donor.schedule or [ScheduleStep(0, donor.config)]
        self.schedule = [*(step for step in donor_schedule if step.from_epoch < epoch), ScheduleStep(epoch, config)]
        self.config = config
        self.results = [replace(result, is_inherited=True) for result in donor.results if result.epoch <= epoch]
        self.checkpoints = {epoch: path}

    def existing_checkpoints(self, state_dir: Path) -> list[int]:
        """Return the epochs whose checkpoints exist on the disk."""
        return [epoch for epoch, path in self.checkpoints.items() if (state_dir / path).is_dir()]

    def latest_checkpoint(self, state_dir: Path) -> int:
        """Return the last epoch that has a report and an existing checkpoint, or 0 where no epoch has both."""
        reported = {result.epoch for result in self.results}
        return max(reported.intersection(self.existing_checkpoints(state_dir)), default=0)

    def config_at(self, epoch: int) -> dict[str, Any]:
        """Return the configuration with which the trial goes on after `epoch`."""
        return next((step.config for step in reversed(self.schedule) if step.from_epoch <= epoch), self.config)

    def go_back_to(self, epoch: int) -> None:
        """Remove the reports and checkpoints after `epoch`, because the trial goes on from the checkpoint of `epoch`.

        A trial that was re-opened keeps the reports that it had when it was finished, so that the best trial of the sweep does not get worse.
        """
        self.config = self.config_at(epoch)
        schedule = [step for step in self.schedule if step.from_epoch <= epoch]
        self.schedule = schedule if len(schedule) > 1 else []
        self.results = [r for r in self.results if r.epoch <= max(epoch, self.reopened_at)]
        self.checkpoints = {e: path for e, path in self.checkpoints.items() if e <= epoch}

    def add_result(self, result: Result) -> None:
        """Add a report. The report replaces an earlier report of the same epoch, which a trial that was re-opened has."""
        if result.epoch <= self.epochs:
            self.results = sorted([*(r for r in self.results if r.epoch != result.epoch), result], key=lambda r: r.epoch)
        else:
            self.results.append(result)

    @property
    def num_failures(self) -> int:
        """Return the number of failures that count against the trial."""
        return sum(failure.counted for failure in self.failures)

    @property
    def started(self) -> str | None:
        return self.attempts[0].at if self.attempts else None

    @property
    def node(self) -> str | None:
        return self.attempts[-1].node if self.attempts else None

    @property
    def time_s(self) -> float:
        return self.results[-1].time_s if self.results else 0.0


@dataclass
class Group(Candidate):
    """Represents the trials of one configuration as one candidate. The trials differ in their seeds.

    A result of the group is the mean of the trials' reports at an epoch that all trials have reported. The group has the status ERROR if one of the
    trials has the status ERROR, because the workflow should not recommend a configuration that fails with some seeds.
    """

    index: int
    repeats: int  # number of trials of the group when all trials have been created
    constraint: Bounds = field(default_factory=dict)
    objectives: tuple[Objective, ...] = ()
    trials: list[Trial] = field(default_factory=list)
    _means: tuple[tuple[int, ...], list[Result]] = ((), [])  # last epoch of each trial, and the means of the reports up to these epochs

    @property
    def trial_id(self) -> str:  # type: ignore[override]
        return f"{self.index:05d}"

    @property
    def config(self) -> dict[str, Any]:  # type: ignore[override]
        return self.trials[0].config

    @property
    def members(self) -> list[Trial]:
        return self.trials

    @property
    def status(self) -> Status:  # type: ignore[override]
        statuses = {trial.status for trial in self.trials}
        if len(self.trials) < self.repeats or statuses & {"PENDING", "RUNNING"}:
            return "RUNNING" if "RUNNING" in statuses else "PENDING"
        return "ERROR" if "ERROR" in statuses else "STOPPED" if "STOPPED" in statuses else "TERMINATED"

    @property
    def results(self) -> list[Result]:  # type: ignore[override]
        epochs = tuple(trial.epochs for trial in self.trials) if len(self.trials) == self.repeats else ()
        if epochs != self._means[0]:
            by_epoch = [{result.epoch: result for result in trial.results} for trial in self.trials]
            common = sorted(set.intersection(*(set(results) for results in by_epoch)))
            self._means = epochs, [_mean([results[epoch] for results in by_epoch]) for epoch in common]
        return self._means[1]


def _mean(results: list[Result]) -> Result:
    """Return the mean of the trials' reports at one epoch. The times of the mean are the latest times of the reports."""
    keys = set.intersection(*(set(result.metrics) for result in results))
    metrics = {key: sum(result.metrics[key] for result in results) / len(results) for key in sorted(keys)}
    return Result(results[0].epoch, metrics, max(result.time_s for result in results), max(result.at for result in results))


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """Contains one event of a trial that a scheduler learns. A new session gives these events to its scheduler in the order of the record's lines."""

    event: Literal["trial", "result", "take_over", "failure", "finish", "reopen"]
    trial: Trial
    # Report of the event `result`; last report of a trial that has finished; report of the donor trial at the checkpoint that was taken over.
    result: Result | None = None
    status: Status | None = None  # status of a trial that has finished
    donor: Trial | None = None  # trial whose checkpoint was taken over


@dataclass
class Sweep:
    """Contains the state of a sweep after all events of the record."""

    sessions: list[Session] = field(default_factory=list)
    trials: dict[str, Trial] = field(default_factory=dict)  # trial_id → trial, in the order in which the record adds the trials
    groups: dict[int, Group] = field(default_factory=dict)  # index of the configuration → the trials of the configuration
    constraint: Bounds = field(default_factory=dict)  # bounds that a report must fulfil to be the best report of a trial
    objectives: tuple[Objective, ...] = ()  # empty with one objective
    choose: str | None = None  # how the best of several objectives is chosen
    nodes: list[NodeEvent] = field(default_factory=list)
    # What a scheduler learns, in the order of the record's lines. The list keeps the reports that a later attempt has repeated.
    history: list[HistoryEntry] = field(default_factory=list)
    # How trials are trained together, or why trials are not trained together. None: the driver did not try to train trials together.
    fused: FusionPlan | NotFused | None = None
    # Share of a GPU that a trial uses. None until the driver has measured the first trial, or until a trial has failed because its GPU was too full.
    gpu_share: float | None = None
    gpu_memory_mb: tuple[int, int] | None = None  # GPU memory that the first trial used, and total memory of that GPU, both in MB
    is_crowded: bool = False  # whether a trial has failed because the other trials on its GPU left too little memory

    @property
    def header(self) -> SessionHeader:
        """Return the description of the sweep in the latest session."""
        return self.sessions[-1].header if self.sessions else SessionHeader()

    def set_goal(self, constraint: Bounds, objectives: tuple[Objective, ...] = (), choose: str | None = None) -> None:
        """Set the bounds that a report must fulfil to be the best report, and the objectives where there are several."""
        self.constraint, self.objectives, self.choose = constraint, objectives, choose
        for candidate in (*self.trials.values(), *self.groups.values()):
            candidate.constraint, candidate.objectives = constraint, objectives

    @property
    def search_history(self) -> Iterator[tuple[Candidate, bool]]:
        """Yield each configuration when it was proposed (False), and when its last trial ended for the first time (True), in the order of the record."""
        ended: dict[int, set[str]] = {}
        for entry in self.history:
            candidate, trials = self.candidate_of(entry.trial), ended.setdefault(entry.trial.index, set())
            if entry.event == "trial" and entry.trial is candidate.members[0]:
                yield candidate, False
            if entry.event == "finish" and entry.trial.trial_id not in trials:
                trials.add(entry.trial.trial_id)
                if len(trials) == self.repeats:
                    yield candidate, True

    @property
    def repeats(self) -> int:
        """Return the number of trials of one configuration."""
        return self.header.repeats

    @property
    def candidates(self) -> list[Candidate]:
        """Return the trials, or the groups of trials where each configuration has several trials."""
        return list(self.trials.values() if self.repeats == 1 else self.groups.values())

    def candidate_of(self, trial: Trial) -> Candidate:
        """Return the candidate to which a trial belongs, which is the trial or the group of the trial."""
        return trial if self.repeats == 1 else self.groups[trial.index]

    def front(self) -> list[tuple[Candidate, Result]]:
        """Return the candidates on the front of several objectives with their last reports, sorted from the best to the worst by the first objective.

        The list is empty with one objective. A candidate that has failed is not on the front.
        """
        if not self.objectives:
            return []
        first = self.objectives[0]
        counted = [(c, result) for c in self.candidates if (result := c.counted(first.metric, first.mode))]
        return [counted[index] for index in front_of([point_of(result.metrics, self.objectives) for _, result in counted])]

    def best_trial(self, metric: str, mode: Mode) -> tuple[Candidate, Result] | None:
        """Return the best candidate and the best report of this candidate, or None where no candidate can win.

        A candidate that has failed cannot win. Among candidates of equal value the candidate with the lowest trial_id wins. With several objectives, the best
        candidate is the one that `choose` picks from the front.
        """
        if front := self.front():
            points = [point_of(result.metrics, self.objectives) for _, result in front]
            if self.choose == "knee":
                return front[knee_of(points)]
            chosen = next((i for i, objective in enumerate(self.objectives) if objective.metric == self.choose), 0)
            return front[min(range(len(front)), key=lambda index: (points[index][chosen], points[index], index))]
        candidate = min(self.candidates, key=lambda candidate: candidate.rank(metric, mode), default=None)
        result = candidate.counted(metric, mode) if candidate else None
        return (candidate, result) if candidate and result else None

    @property
    def used_s(self) -> float:
        """Return the time in seconds that the sessions used. The time of a session lasts from the session's start to the session's last event."""
        times = ((datetime.fromisoformat(session.at), datetime.fromisoformat(session.last_at)) for session in self.sessions)
        return sum((last - first).total_seconds() for first, last in times)

    def is_complete(self, total: int, time_budget_s: float | None, has_stagnated: bool = False) -> bool:
        """Return whether all trials are finished and no new trial may begin.

        No new trial may begin where there are `total` trials, where the time budget is used up, or where the best value no longer becomes better
        (`has_stagnated`, from record/stagnation.py).
        """
        enough = has_stagnated or len(self.trials) >= total or (time_budget_s is not None and self.used_s >= time_budget_s)
        return bool(self.trials) and enough and all(trial.finished for trial in self.trials.values())

    def apply(self, event: Mapping[str, Any]) -> None:
        """Change the state of the sweep as one event says. Raises RaysweepError for an event that this version does not know."""
        kind = event["event"]
        if kind not in HANDLERS:
            raise RaysweepError(f"the record holds an event {kind!r} that this version does not know: use the version that wrote it")
        if kind != "session":
            self.sessions[-1].last_at = event["at"]
        HANDLERS[kind](self, event)


def _begin_session(sweep: Sweep, event: Mapping[str, Any]) -> None:
    sweep.sessions.append(Session.from_event(event))
    sweep.set_goal(sweep.header.constraint, sweep.header.objectives, sweep.header.choose)
    for trial in sweep.trials.values():  # a trial that ran when the last session was interrupted has to run again
        if trial.status == "RUNNING":
            trial.status = "PENDING"


def _end_session(sweep: Sweep, event: Mapping[str, Any]) -> None:
    sweep.sessions[-1].outcome = event["outcome"]


def _add_trial(sweep: Sweep, event: Mapping[str, Any]) -> None:
    trial = Trial(
        event["trial"],
        event["index"],
        event["repeat"],
        event["seed"],
        event["config"],
        constraint=sweep.constraint,
        objectives=sweep.objectives,
    )
    sweep.trials[trial.trial_id] = trial
    group = sweep.groups.setdefault(trial.index, Group(trial.index, sweep.repeats, sweep.constraint, sweep.objectives))
    group.trials.append(trial)
    sweep.history.append(HistoryEntry("trial", trial))


def _note_node(sweep: Sweep, event: Mapping[str, Any]) -> None:
    sweep.nodes.append(NodeEvent(event["node"], event["state"], event["at"]))


def _note_fusion(sweep: Sweep, event: Mapping[str, Any]) -> None:
    sweep.fused = fusion_from_event(event)


def _note_gpu_share(sweep: Sweep, event: Mapping[str, Any]) -> None:
    sweep.gpu_share = event["gpu"]
    if "used_mb" in event:
        sweep.gpu_memory_mb = event["used_mb"], event["total_mb"]
    else:
        sweep.is_crowded = True


def _start(sweep: Sweep, event: Mapping[str, Any]) -> None:
    trial = sweep.trials[event["trial"]]
    trial.status, trial.ended, trial.error, trial.reason, trial.is_waiting = "RUNNING", None, None, None, False
    trial.attempts.append(Attempt(event["node"], event["at"], event["from_epoch"]))
    # A new attempt repeats the epochs after its checkpoint. The reports that the earlier attempt made of these epochs therefore no longer count.
    trial.go_back_to(event["from_epoch"])


def _add_result(sweep: Sweep, event: Mapping[str, Any]) -> None:
    trial = sweep.trials[event["trial"]]
    result = Result(event["epoch"], event["metrics"], event["time_s"], event["at"], event.get("verdict", UNRECORDED))
    trial.add_result(result)
    trial.is_stopped |= result.verdict == "STOP"
    trial.is_waiting = result.verdict == "PAUSE"
    sweep.history.append(HistoryEntry("result", trial, result))
    if trial.attempts[-1].node != event["node"]:
        trial.attempts[-1] = replace(trial.attempts[-1], node=event["node"])


def _take_over(sweep: Sweep, event: Mapping[str, Any]) -> None:
    trial, donor = sweep.trials[event["trial"]], sweep.trials[event["donor"]]
    trial.take_over(donor, event["epoch"], event["config"], event["path"])
    sweep.history.append(HistoryEntry("take_over", trial, trial.results[-1], donor=donor))


def _pause(sweep: Sweep, event: Mapping[str, Any]) -> None:
    """Mark a trial as pending, because the scheduler waits for other trials, or because the time limit of the job is near."""
    sweep.trials[event["trial"]].status = "PENDING"


def _add_failure(sweep: Sweep, event: Mapping[str, Any]) -> None:
    """Add a failure to a trial, and mark the trial as pending. A later event says whether the trial started again or ended."""
    trial = sweep.trials[event["trial"]]
    trial.status, trial.is_waiting = "PENDING", False
    sweep.history.append(HistoryEntry("failure", trial))
    trial.failures.append(Failure(event["error"], event["counted"], event["at"]))


def _add_checkpoint(sweep: Sweep, event: Mapping[str, Any]) -> None:
    sweep.trials[event["trial"]].checkpoints[event["epoch"]] = event["path"]


def _finish(sweep: Sweep, event: Mapping[str, Any]) -> None:
    trial = sweep.trials[event["trial"]]
    trial.status, trial.ended, trial.error = event["status"], event["at"], event["error"]
    trial.reason = event.get("reason") or _unrecorded_reason(sweep, trial)
    sweep.history.append(HistoryEntry("finish", trial, trial.results[-1] if trial.results else None, trial.status))


def _unrecorded_reason(sweep: Sweep, trial: Trial) -> FinishReason:
    """Return why a trial has finished, where version 0.1 has recorded only the status. A bound of `stop` counts as an end by the function itself."""
    if trial.status != "TERMINATED":
        return "error" if trial.status == "ERROR" else "scheduler"
    return "max_epochs" if trial.epochs >= sweep.header.max_epochs else "returned"


def _reopen(sweep: Sweep, event: Mapping[str, Any]) -> None:
    """Mark a finished trial as pending, because the reason for its end no longer holds."""
    trial = sweep.trials[event["trial"]]
    trial.status, trial.ended, trial.reason, trial.reopened_at = "PENDING", None, None, trial.epochs
    sweep.history.append(HistoryEntry("reopen", trial))


HANDLERS: dict[str, Callable[[Sweep, Mapping[str, Any]], None]] = {
    "session": _begin_session,
    "session_end": _end_session,
    "trial": _add_trial,
    "node": _note_node,
    "fused": _note_fusion,
    "gpu_share": _note_gpu_share,
    "start": _start,
    "result": _add_result,
    "take_over": _take_over,
    "pause": _pause,
    "failure": _add_failure,
    "checkpoint": _add_checkpoint,
    "finish": _finish,
    "reopen": _reopen,
}
