"""This module writes Tune's events into the record of a sweep."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ray.tune import Callback, Checkpoint
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.utils import flatten_dict

from raysweep.common.errors import logger
from raysweep.common.files import flush_path
from raysweep.record.events import FinishReason, finish
from raysweep.record.file import Record
from raysweep.record.outputs import PartialOutputs
from raysweep.record.progress import ProgressLine
from raysweep.record.trials import Trial
from raysweep.tune.faults import FirstFault
from raysweep.tune.gpu_share import GpuShare
from raysweep.tune.hung_trials import RunningTrials
from raysweep.tune.node_watch import NodeWatch
from raysweep.tune.population import HandOvers
from raysweep.tune.reports import numbers_of
from raysweep.tune.retention import Retention
from raysweep.tune.retries import RetryPolicy
from raysweep.tune.samplers import Sampler
from raysweep.tune.snapshots import NotPickled
from raysweep.tune.stopping import EndOfTrial
from raysweep.tune.trial import GPU_MEMORY_MB

LOCK_INTERVAL_S = 5


@dataclass(frozen=True)
class CallbackParts:
    """Contains the objects that the callback calls. Each object has its own state."""

    faults: FirstFault
    running: RunningTrials
    nodes: NodeWatch
    gpu_share: GpuShare
    retries: RetryPolicy
    retention: Retention
    end_of_trial: EndOfTrial
    hand_overs: HandOvers
    sampler: Sampler
    progress: ProgressLine
    partial_outputs: PartialOutputs | None  # None for a confirmation, which has no partial outputs
    verify_lock: Callable[[], None]  # raises an error if another run of the workflow has acquired the lock of the sweep


class RecordCallback(NotPickled, Callback):
    """Writes each event of Tune into the record, then calls the objects that need to know the event.

    Every write is guarded by faults.FirstFault, because Tune ignores some of the exceptions that callbacks raise.
    """

    def __init__(self, record: Record, parts: CallbackParts) -> None:
        self.record, self.parts = record, parts
        self.lock_verified_at_s = -math.inf

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **_: Any) -> None:
        """Record paused trials, verify the lock, check the nodes, kill hung trials, show the progress and write partial outputs from time to time."""
        parts = self.parts
        for trial_id in parts.running.take_paused():
            self._write("pause", trial=trial_id)
        parts.running.allow_for_suspension()
        self._verify_lock()
        parts.faults.guard(parts.nodes.look)
        parts.running.kill_hung()
        parts.faults.note(parts.running.start_error())
        parts.progress.show(self.record.sweep)
        if parts.partial_outputs:
            parts.faults.guard(partial(parts.partial_outputs.write_now_and_then, self.record.sweep))

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        """Record the start of a trial, and watch from now on whether the trial hangs."""

        def write() -> None:
            restored = trial.latest_checkpoint_result
            epoch = restored.metrics["training_iteration"] if restored else 0
            self.record.write("start", trial=trial.trial_id, node=self.parts.nodes.only_node, from_epoch=epoch)
            self.parts.running.begin(trial)

        self.parts.faults.guard(write)

    def on_trial_result(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **_: Any) -> None:
        """Record the report of a trial, and the take-over that the scheduler announced at this report.

        The first report of a session may set the share of a GPU. Each report restarts the time limit of the trial, and marks an earlier failure as overcome.
        """
        parts = self.parts
        parts.faults.guard(partial(parts.gpu_share.pack, result.get(GPU_MEMORY_MB)))
        # The record has flat keys such as `outer/inner`, because schedulers use such keys.
        parts.faults.guard(partial(self._write_report, trial.trial_id, flatten_dict(result)))
        parts.running.note_report(trial.trial_id)
        parts.retries.note_report(trial.trial_id)

    def on_checkpoint(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, checkpoint: Checkpoint, **_: Any) -> None:
        """Record a new checkpoint, and delete the trial's checkpoints that are no longer needed."""

        def write() -> None:
            path = Path(checkpoint.path).relative_to(self.record.path.parent)
            epoch = trial.last_result["training_iteration"]
            flush_path(Path(checkpoint.path))  # a power loss must not leave an incomplete checkpoint in the record
            self.record.write("checkpoint", trial=trial.trial_id, epoch=epoch, path=str(path))
            self.parts.retention.note_checkpoint(self._recorded(trial))

        self.parts.faults.guard(write)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        """Record the end of a trial that did not fail."""
        recorded, end = self._recorded(trial), self.parts.end_of_trial
        error = end.unusable.get(trial.trial_id)
        missing = [metric for metric in end.limits.metrics if not recorded.has_reported(metric)]
        if error is None and missing:
            error = f"ended without reporting {' and '.join(missing)}"
        self.parts.faults.guard(partial(self._finish, recorded, end.reason(trial.trial_id, recorded.epochs), error))

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        """Give the present share of a GPU to a failed trial that is tried again. The class retries.RetryPolicy has already recorded the failure."""
        self.parts.running.end(trial.trial_id)
        self.parts.gpu_share.apply(trial)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        """Record the end of a trial that has failed too often. Record a pause if the trial may still be tried again."""
        if self.parts.retries.is_retried(trial.trial_id):
            # Tune does not retry a trial that fails before the trial runs, for example because the process that should run the trial has died. The next run
            # of the sweep retries the trial.
            self._pause(trial.trial_id)
            return
        recorded = self._recorded(trial)
        self.parts.faults.guard(lambda: self._finish(recorded, "error", recorded.failures[-1].error))

    def _recorded(self, trial: TuneTrial) -> Trial:
        return self.record.sweep.trials[trial.trial_id]

    def _write(self, event: str, **values: Any) -> None:
        self.parts.faults.guard(partial(self.record.write, event, **values))

    def _verify_lock(self) -> None:
        if time.monotonic() > self.lock_verified_at_s + LOCK_INTERVAL_S:
            self.parts.faults.guard(self.parts.verify_lock)
            self.lock_verified_at_s = time.monotonic()

    def _write_report(self, trial_id: str, result: dict[str, Any]) -> None:
        self.record.write(
            "result",
            trial=trial_id,
            epoch=result["training_iteration"],
            metrics=numbers_of(result),
            time_s=round(result["time_total_s"], 3),
            node=self.parts.nodes.name_of(result["node_ip"]),
            verdict=self.parts.end_of_trial.verdicts.pop(trial_id, None),
        )
        # The scheduler has decided about take-overs already. The record gets the take-over now because the donor may change before the trial continues.
        if (hand_over := self.parts.hand_overs.pop(trial_id, None)) is not None:
            needless = list(self.record.sweep.trials[trial_id].checkpoints.values())
            self.record.write("take_over", trial=trial_id, **vars(hand_over))
            self.parts.retention.delete(needless)

    def _pause(self, trial_id: str) -> None:
        self.parts.running.end(trial_id)
        self._write("pause", trial=trial_id)

    def _finish(self, trial: Trial, reason: FinishReason, error: str | None) -> None:
        self.parts.running.end(trial.trial_id)
        self.record.write("finish", **finish(trial.trial_id, reason, error))
        candidate = self.record.sweep.candidate_of(trial)
        if candidate.finished:
            self.parts.sampler.tell(candidate)
        self.parts.running.note_event()
        if error:
            logger.debug("trial %s: %s", trial.trial_id, error)
        self.parts.retention.note_finish(trial)
