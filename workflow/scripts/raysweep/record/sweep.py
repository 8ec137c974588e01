"""Computes a sweep from the events of a record: the sessions, the trials, and what the scheduler and the sampler learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from raysweep.common.bounds import Bounds
from raysweep.common.errors import RaysweepError
from raysweep.config.model import Mode, Objective
from raysweep.record.events import (
    Attempt,
    Failure,
    FinishReason,
    FusionPlan,
    NodeEvent,
    NotFused,
    Session,
    SessionHeader,
    Status,
    fusion_from_event,
)
from raysweep.record.pareto import front_of, knee_of, point_of
from raysweep.record.trials import UNRECORDED, Candidate, Group, Result, Trial


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

    def front(self, candidates: Sequence[Candidate] | None = None) -> list[tuple[Candidate, Result]]:
        """Return the candidates on the front of several objectives with their last reports, sorted from the best to the worst by the first objective.

        Only `candidates` are compared (None: all of the sweep). The list is empty with one objective. A candidate that has failed is not on the front.
        """
        if not self.objectives:
            return []
        first = self.objectives[0]
        counted = [
            (c, result) for c in (self.candidates if candidates is None else candidates) if (result := c.counted(first.metric, first.mode))
        ]
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
        return sum(session.duration_s for session in self.sessions)

    def is_complete(self, total: int, may_begin_trials: bool = True) -> bool:
        """Return whether all trials are finished, and no new trial begins, because there are `total` trials or because of record/budget.py."""
        enough = len(self.trials) >= total or not may_begin_trials
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
    facts = {key: event[key] for key in ("cpus", "gpus", "job") if key in event}
    sweep.nodes.append(NodeEvent(event["node"], event["state"], event["at"], session=len(sweep.sessions) - 1, **facts))


def _note_fusion(sweep: Sweep, event: Mapping[str, Any]) -> None:
    sweep.fused = sweep.sessions[-1].fused = fusion_from_event(event)


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
