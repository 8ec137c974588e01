"""The sweep that a record describes: its sessions, its trials, and the groups of trials that have one configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from raysweep.common.bounds import Bounds, all_hold
from raysweep.common.errors import RaysweepError
from raysweep.config.model import Mode
from raysweep.record.events import (
    Attempt,
    Failure,
    FusionPlan,
    NodeEvent,
    NotFused,
    ScheduleStep,
    Session,
    SessionHeader,
    Status,
    fusion_from_event,
)


@dataclass
class Result:
    """The report of a trial at the end of one epoch."""

    epoch: int
    metrics: dict[str, float]
    time_s: float  # training time of the trial up to this report, over all its attempts
    at: str
    is_inherited: bool = False  # from the donor trial whose weights this trial took over; such a report never counts as this trial's best


class Candidate:
    """One configuration that is compared with others: a trial, or, where a configuration is trained with several seeds, all its trials (Group)."""

    trial_id: str
    index: int  # number of the configuration
    config: dict[str, Any]
    status: Status
    results: list[Result]
    constraint: Bounds  # bounds that a report must fulfil to be the best

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
        """Return whether there is a value to compare, whether or not the value may win."""
        return any(math.isfinite(result.metrics.get(metric, math.nan)) for result in self.results)

    def best(self, metric: str, mode: Mode, constraint: Bounds | None = None) -> Result | None:
        """Return the report with the best value of `metric`, the earliest of equal reports.

        Only reports that fulfil the constraint count: the candidate's constraint, unless `constraint` is given.
        """
        constraint = self.constraint if constraint is None else constraint
        finite = [
            r
            for r in self.results
            if math.isfinite(r.metrics.get(metric, math.nan)) and all_hold(r.metrics, constraint) and not r.is_inherited
        ]
        if not finite:
            return None
        sign = 1 if mode == "max" else -1
        return max(finite, key=lambda r: (sign * r.metrics[metric], -r.epoch))

    def counted(self, metric: str, mode: Mode, constraint: Bounds | None = None) -> Result | None:
        """Return the best report, if the candidate may win: a candidate that ended in an error may not."""
        return None if self.status == "ERROR" else self.best(metric, mode, constraint)

    def rank(self, metric: str, mode: Mode, constraint: Bounds | None = None) -> tuple[float, str]:
        """Return a key that sorts the best candidate first, the lowest trial_id first of equal candidates, and candidates that cannot win last."""
        result = self.counted(metric, mode, constraint)
        return math.inf if result is None else result.metrics[metric] * (-1 if mode == "max" else 1), self.trial_id


@dataclass
class Trial(Candidate):
    """A trial, as folded from the record."""

    trial_id: str
    index: int
    repeat: int
    seed: int
    config: dict[str, Any]
    status: Status = "PENDING"
    results: list[Result] = field(default_factory=list)
    checkpoints: dict[int, str] = field(default_factory=dict)  # epoch → path, relative to the state folder
    attempts: list[Attempt] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    ended: str | None = None
    error: str | None = None
    constraint: Bounds = field(default_factory=dict)
    # With population based training the configurations by which the trial's weights came about; empty where the trial never changed its configuration.
    schedule: list[ScheduleStep] = field(default_factory=list)

    @property
    def members(self) -> list[Trial]:
        return [self]

    def take_over(self, donor: Trial, epoch: int, config: dict[str, Any], path: str) -> None:
        """Go on from the donor trial's state after `epoch`, whose checkpoint lies at `path`, with another configuration."""
        donor_schedule = donor.schedule or [ScheduleStep(0, donor.config)]
        self.schedule = [*(step for step in donor_schedule if step.from_epoch < epoch), ScheduleStep(epoch, config)]
        self.config = config
        self.results = [replace(result, is_inherited=True) for result in donor.results if result.epoch <= epoch]
        self.checkpoints = {epoch: path}

    def latest_checkpoint(self, state_dir: Path) -> int:
        """Return the last epoch that has a result and a checkpoint that still exists; 0 where there is no such epoch."""
        reported = {result.epoch for result in self.results}
        return max((e for e, path in self.checkpoints.items() if e in reported and (state_dir / path).is_dir()), default=0)

    def config_at(self, epoch: int) -> dict[str, Any]:
        """Return the configuration with which the trial goes on after `epoch`."""
        return next((step.config for step in reversed(self.schedule) if step.from_epoch <= epoch), self.config)

    def go_back_to(self, epoch: int) -> None:
        """Forget the reports after `epoch`: the trial goes on from the checkpoint of that epoch."""
        self.config = self.config_at(epoch)
        schedule = [step for step in self.schedule if step.from_epoch <= epoch]
        self.schedule = schedule if len(schedule) > 1 else []
        self.results = [r for r in self.results if r.epoch <= epoch]
        self.checkpoints = {e: path for e, path in self.checkpoints.items() if e <= epoch}

    @property
    def num_failures(self) -> int:
        """How often the trial failed by its own fault."""
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
    """The trials of one configuration, which differ in their seeds, seen as one candidate: at each epoch that all have reported, by their mean.

    The group is an error if one of its trials is: nobody should be recommended a configuration that fails with some seeds.
    """

    index: int
    repeats: int  # number of trials that the group will have
    constraint: Bounds = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    _means: tuple[tuple[int, ...], list[Result]] = ((), [])  # epochs of the trials, and the means that were computed for them

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
    """Return the mean of the trials' reports at one epoch. Its time is the time of the last report."""
    keys = set.intersection(*(set(result.metrics) for result in results))
    metrics = {key: sum(result.metrics[key] for result in results) / len(results) for key in sorted(keys)}
    return Result(results[0].epoch, metrics, max(result.time_s for result in results), max(result.at for result in results))


@dataclass
class Sweep:
    """A sweep, as folded from its record."""

    sessions: list[Session] = field(default_factory=list)
    trials: dict[str, Trial] = field(default_factory=dict)  # in the order in which their ids appear first
    groups: dict[int, Group] = field(default_factory=dict)  # index of the configuration → its trials
    constraint: Bounds = field(default_factory=dict)  # bounds that a report must fulfil to be a trial's best
    nodes: list[NodeEvent] = field(default_factory=list)
    fused: FusionPlan | NotFused | None = None  # how trials are trained together, or why not; None: the driver did not try
    # Part of a GPU that a trial takes, from the time when the first trial was measured, or when a trial did not find room beside its neighbours.
    gpu_share: float | None = None
    gpu_memory_mb: tuple[int, int] | None = None  # memory that the first trial took of its GPU, and the memory of that GPU
    is_crowded: bool = False  # whether a trial did not find room

    @property
    def header(self) -> SessionHeader:
        """The sweep as its latest session describes it."""
        return self.sessions[-1].header if self.sessions else SessionHeader()

    def set_constraint(self, constraint: Bounds) -> None:
        """Let only reports that fulfil `constraint` be the best of a trial, from now on."""
        self.constraint = constraint
        for candidate in (*self.trials.values(), *self.groups.values()):
            candidate.constraint = constraint

    @property
    def repeats(self) -> int:
        """Number of trials of one configuration."""
        return self.header.repeats

    @property
    def candidates(self) -> list[Candidate]:
        """The trials, or, where a configuration has several trials, the groups of trials."""
        return list(self.trials.values() if self.repeats == 1 else self.groups.values())

    def candidate_of(self, trial: Trial) -> Candidate:
        """Return the candidate that a trial belongs to: the trial itself, or its group."""
        return trial if self.repeats == 1 else self.groups[trial.index]

    def best_trial(self, metric: str, mode: Mode) -> tuple[Candidate, Result] | None:
        """Return the candidate without error that reported the best value, the lowest trial_id of equal candidates, and that report."""
        candidate = min(self.candidates, key=lambda candidate: candidate.rank(metric, mode), default=None)
        result = candidate.counted(metric, mode) if candidate else None
        return (candidate, result) if candidate and result else None

    @property
    def used_s(self) -> float:
        """Time used in seconds: for each session the time from its start to its last event. Time between sessions does not count."""
        times = ((datetime.fromisoformat(session.at), datetime.fromisoformat(session.last_at)) for session in self.sessions)
        return sum((last - first).total_seconds() for first, last in times)

    def is_complete(self, total: int, time_budget_s: float | None) -> bool:
        """Return whether nothing is left to run: no trial is unfinished, and there are `total` trials, or the time is used up."""
        enough = len(self.trials) >= total or (time_budget_s is not None and self.used_s >= time_budget_s)
        return bool(self.trials) and enough and all(trial.finished for trial in self.trials.values())

    def apply(self, event: Mapping[str, Any]) -> None:
        """Fold one event in. Raises RaysweepError for an event of a later version."""
        kind = event["event"]
        if kind not in HANDLERS:
            raise RaysweepError(f"the record holds an event {kind!r} that this version does not know: use the version that wrote it")
        if kind != "session":
            self.sessions[-1].last_at = event["at"]
        HANDLERS[kind](self, event)


def _begin_session(sweep: Sweep, event: Mapping[str, Any]) -> None:
    sweep.sessions.append(Session.from_event(event))
    sweep.set_constraint(sweep.header.constraint)
    for trial in sweep.trials.values():  # trials that ran when the last session broke off have to run again
        if trial.status == "RUNNING":
            trial.status = "PENDING"


def _end_session(sweep: Sweep, event: Mapping[str, Any]) -> None:
    sweep.sessions[-1].outcome = event["outcome"]


def _add_trial(sweep: Sweep, event: Mapping[str, Any]) -> None:
    trial = Trial(event["trial"], event["index"], event["repeat"], event["seed"], event["config"], constraint=sweep.constraint)
    sweep.trials[trial.trial_id] = trial
    sweep.groups.setdefault(trial.index, Group(trial.index, sweep.repeats, sweep.constraint)).trials.append(trial)


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
    trial.status, trial.ended, trial.error = "RUNNING", None, None
    trial.attempts.append(Attempt(event["node"], event["at"], event["from_epoch"]))
    # A new attempt repeats the epochs after its checkpoint: the broken attempt's reports of those epochs no longer count.
    trial.go_back_to(event["from_epoch"])


def _add_result(sweep: Sweep, event: Mapping[str, Any]) -> None:
    trial = sweep.trials[event["trial"]]
    trial.results.append(Result(event["epoch"], event["metrics"], event["time_s"], event["at"]))
    if trial.attempts[-1].node != event["node"]:
        trial.attempts[-1] = replace(trial.attempts[-1], node=event["node"])


def _take_over(sweep: Sweep, event: Mapping[str, Any]) -> None:
    sweep.trials[event["trial"]].take_over(sweep.trials[event["donor"]], event["epoch"], event["config"], event["path"])


def _pause(sweep: Sweep, event: Mapping[str, Any]) -> None:
    """A scheduler paused the trial to wait for other trials, or the driver did so because time is nearly up."""
    sweep.trials[event["trial"]].status = "PENDING"


def _add_failure(sweep: Sweep, event: Mapping[str, Any]) -> None:
    """The trial failed, and will be tried again."""
    trial = sweep.trials[event["trial"]]
    trial.status = "PENDING"
    trial.failures.append(Failure(event["error"], event["counted"], event["at"]))


def _add_checkpoint(sweep: Sweep, event: Mapping[str, Any]) -> None:
    sweep.trials[event["trial"]].checkpoints[event["epoch"]] = event["path"]


def _finish(sweep: Sweep, event: Mapping[str, Any]) -> None:
    trial = sweep.trials[event["trial"]]
    trial.status, trial.ended, trial.error = event["status"], event["at"], event["error"]


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
}
