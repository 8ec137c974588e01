"""Defines the candidates of a sweep: a trial, or the group of trials that share a configuration."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raysweep.common.bounds import Bounds, all_hold
from raysweep.config.model import Mode, Objective
from raysweep.record.events import (
    Attempt,
    Failure,
    FinishReason,
    ScheduleStep,
    Status,
)

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

    @property
    def for_stop(self) -> tuple[int, dict[str, Any]]:
        """Return the epoch and the values that the key `stop` may bound, which are the metrics and two values that Tune adds to each report."""
        return self.epoch, {"training_iteration": self.epoch, "time_total_s": self.time_s, **self.metrics}


class Candidate:
    """Represents one configuration that can win the sweep: a Trial, or a Group where each configuration is trained with several seeds."""

    trial_id: str
    index: int  # number of the configuration
    config: dict[str, Any]
    status: Status
    results: list[Result]
    constraint: Bounds  # bounds that a report must fulfil to be the candidate's best report
    # Several objectives, by which the last report of a candidate is its best report. Empty with one objective.
    objectives: tuple[Objective, ...] = ()

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
