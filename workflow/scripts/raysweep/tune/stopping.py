"""This module decides when a trial ends and when Tune's experiment ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune import Stopper
from ray.tune.result import DONE, NODE_IP
from ray.tune.utils import flatten_dict

from raysweep.common.bounds import Bounds
from raysweep.common.patience import NO_BETTER_FOR, is_enough
from raysweep.config.model import Mode
from raysweep.record.events import FinishReason
from raysweep.record.trials import Result
from raysweep.slurm.allocation import Deadline
from raysweep.tune.faults import FirstFault
from raysweep.tune.hung_trials import RunningTrials
from raysweep.tune.node_watch import NodeWatch
from raysweep.tune.reports import HAS_CHECKPOINT, reason_unusable
from raysweep.tune.snapshots import NotPickled


@dataclass(frozen=True)
class TrialLimits:
    """Contains the limits at which a trial ends."""

    metrics: tuple[str, ...]  # names of the metrics that each report must contain. Trials are compared by these metrics
    max_epochs: int
    stop: Bounds  # the key `stop` of the config. A trial is complete when `is_enough` says so
    deadline: Deadline  # when the Slurm job's time is nearly over
    mode: Mode = "max"


class EndOfTrial(NotPickled, Stopper):
    """Decides for Tune when a trial ends and when the experiment ends.

    A trial ends after `max_epochs` epochs, at a report with which the trial is complete by `stop`, or at a report without a usable metric. If the job's time is
    nearly over, a trial is paused at a report with a checkpoint (`is_time_to_pause`). The experiment ends after a fault, and before the job's time is over.

    `is_replayed(trial_id)` returns whether a trial must train its last epoch again (population.Replay). `reports_of(trial_id)` returns the recorded reports
    of a trial, without the report that Tune is handling. `nodes` knows which Slurm jobs are nearly over. None means that no job but the session's counts.
    """

    def __init__(
        self,
        limits: TrialLimits,
        faults: FirstFault,
        running: RunningTrials,
        is_replayed: Callable[[str], bool] = lambda trial_id: False,
        reports_of: Callable[[str], Sequence[Result]] = lambda trial_id: (),
        nodes: NodeWatch | None = None,
    ) -> None:
        self.limits, self.faults, self.running, self.is_replayed, self.reports_of = limits, faults, running, is_replayed, reports_of
        self.nodes = nodes
        self.unusable: dict[str, str] = {}  # trial_id → reason why a report of the trial cannot be used
        self.complete: dict[str, FinishReason] = {}  # trial_id → why the trial is complete, if not because of `max_epochs`
        # trial_id → answer of the scheduler to the trial's present report, until the record contains this report. No key: the scheduler was not asked.
        self.verdicts: dict[str, str] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return whether a trial ends with this report."""
        result, limits = flatten_dict(result), self.limits
        if result.get(DONE):
            self.complete[trial_id] = "returned"
        if "training_iteration" not in result:  # the user's function has returned without a report
            return True
        if reasons := [reason for metric in limits.metrics if (reason := reason_unusable(result, metric))]:
            self.unusable[trial_id] = reasons[0]
            return True
        if result["training_iteration"] >= limits.max_epochs:
            return not self.is_replayed(trial_id)
        # The reports of a trial that was re-opened stay until the trial has reported their epochs again.
        epoch, needs_earlier = result["training_iteration"], NO_BETTER_FOR in limits.stop
        before = [report.for_stop for report in self.reports_of(trial_id) if report.epoch < epoch] if needs_earlier else []
        if is_enough([*before, (epoch, result)], limits.stop, limits.metrics[0], limits.mode):
            self.complete[trial_id] = "stop"
            return True
        return False

    @property
    def deadline(self) -> Deadline:
        """Return the deadline of the session's job, which comes early where Slurm ends the job before the job's time limit."""
        return (self.nodes and self.nodes.early_deadline) or self.limits.deadline

    def is_over(self) -> bool:
        """Return whether the time of the session's job is nearly over, so that no trial may begin or continue."""
        return self.deadline.is_near()

    def is_time_to_pause(self, result: dict[str, Any]) -> bool:
        """Return whether a trial is paused with the checkpoint of this report because the time of a job is nearly over.

        If this is the session's job, the next session continues the trial. If this is the job of another node, the trial continues on a node that stays.
        """
        is_near = self.is_over() or (self.nodes is not None and self.nodes.is_leaving(str(result.get(NODE_IP))))
        return is_near and bool(result.get(HAS_CHECKPOINT)) and not result.get(DONE)

    def stop_all(self) -> bool:
        """Return whether the experiment ends.

        The experiment ends after a fault, when the job's time is over, or when the job's time is nearly over and no trial runs.
        """
        if self.faults.fault is not None:
            return True
        return self.is_over() and (self.deadline.is_here() or not self.running.trials)

    def is_unusable(self, trial_id: str) -> bool:
        """Return whether the trial ended because its report cannot be used."""
        return trial_id in self.unusable

    def reason(self, trial_id: str, epochs: int) -> FinishReason:
        """Return why a trial that has not failed has ended after `epochs` epochs."""
        return self.complete.get(trial_id) or ("max_epochs" if epochs >= self.limits.max_epochs else "scheduler")
