"""Tune's events, written into the record: the one place where the record of a sweep grows."""

from __future__ import annotations

import errno
import logging
import math
import numbers
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ray.tune import Callback, Checkpoint, Stopper
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.result import AUTO_RESULT_KEYS, DONE, TRIAL_ID
from ray.tune.utils import flatten_dict

from .errors import is_full_disk
from .progress import ProgressLine
from .record import Mode, Record, Trial
from .samplers import Sampler

logger = logging.getLogger("raysweep")
NOT_METRICS = {*AUTO_RESULT_KEYS, DONE, TRIAL_ID, "should_checkpoint", "experiment_tag", "trial_id", "timesteps_total"}


def numbers_of(result: dict[str, Any]) -> dict[str, float]:
    """The finite numbers among what a trial reported, without what Tune adds of its own."""
    return {
        key: value if isinstance(value, int) else float(value)
        for key, value in result.items()
        if key not in NOT_METRICS
        and not key.startswith("config/")
        and isinstance(value, numbers.Real)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


def unusable(result: dict[str, Any], metric: str) -> str | None:
    """Why the metric of a report cannot be compared, or None."""
    if metric not in result:
        reported = (
            ", ".join(sorted(str(key) for key in result if key not in NOT_METRICS and not str(key).startswith("config/"))) or "nothing"
        )
        return f"reported no {metric} (it reported {reported})"
    value = result[metric]
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return f"reported {metric} = {str(value)[:80]!r}, which is not a number"
    return None if math.isfinite(value) else f"reported {metric} = {value}, which is not finite"


def cause_of(error_text: str) -> str:
    """One line for why a trial died, from what Ray says of it."""
    text = error_text.strip()
    if "running low on memory" in text or "OutOfMemoryError: Task was killed" in text:
        return "killed: the node was running out of memory"
    if detail := re.search(r"Worker exit detail: (.*)", text):
        return f"its process died: {detail[1].split('. ')[0]}"
    if "actor died" in text or "ActorDied" in text or "actor is dead" in text:
        return "its process died"
    # What stands below the last indented line of the traceback is the exception; its text may have several lines.
    words: list[str] = []
    for line in reversed(text.splitlines()):
        if line.startswith((" ", "\t")):
            break
        words.insert(0, line.strip())
    return " ".join(" ".join(words).split())[:300] or "it died without a word"


class Bookkeeper(Callback):
    """Records starts, results, checkpoints and ends of trials, and deletes the checkpoints that nobody needs.

    Tune swallows some of what its callbacks raise. A disk that is full must end the sweep, so the first fault is kept in `fault`, and
    the `EndOfTrial` stopper then ends the experiment.
    """

    def __init__(
        self,
        record: Record,
        sampler: Sampler,
        *,
        metric: str,
        mode: Mode,
        max_epochs: int,
        keep_checkpoints: int,
        node: str | None,
        name_of_node: Callable[[str], str],
        progress: ProgressLine,
    ) -> None:
        self.record, self.sampler, self.progress = record, sampler, progress
        self.metric, self.mode, self.max_epochs = metric, mode, max_epochs
        self.keep_checkpoints, self.name_of_node = keep_checkpoints, name_of_node
        self.node = node  # the only one; None where Tune chooses among several
        self.fault: BaseException | None = None
        self.reasons: dict[str, str] = {}  # trial_id → why its report cannot be used
        self.ended: set[str] = set()  # trials whose function returned
        self.running: dict[str, TuneTrial] = {}

    def guarded(self, action: Callable[[], None]) -> None:
        """Do it, unless something failed before; keep the first fault."""
        if self.fault is None:
            try:
                action()
            except Exception as error:
                self.fault = error

    def state_of(self, trial: TuneTrial) -> Trial:
        return self.record.sweep.trials[trial.trial_id]

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **_: Any) -> None:
        paused = [trial_id for trial_id, trial in self.running.items() if trial.status == TuneTrial.PAUSED]
        for trial_id in paused:
            del self.running[trial_id]
            self.guarded(partial(self.record.write, "pause", trial=trial_id))
        self.progress.show(self.record.sweep)

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        def write() -> None:
            restored = trial.latest_checkpoint_result
            epoch = restored.metrics["training_iteration"] if restored else 0
            self.record.write("start", trial=trial.trial_id, node=self.node, from_epoch=epoch)
            self.running[trial.trial_id] = trial

        self.guarded(write)

    def on_trial_result(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **_: Any) -> None:
        result = flatten_dict(result)  # as schedulers see it: a nested metric is `outer/inner`
        self.guarded(
            lambda: self.record.write(
                "result",
                trial=trial.trial_id,
                epoch=result["training_iteration"],
                metrics=numbers_of(result),
                time_s=round(result["time_total_s"], 3),
                node=self.node or self.name_of_node(result["node_ip"]),
            )
        )

    def on_checkpoint(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, checkpoint: Checkpoint, **_: Any) -> None:
        def write() -> None:
            path = Path(checkpoint.path).relative_to(self.record.path.parent)
            epoch = trial.last_result["training_iteration"]
            self.record.write("checkpoint", trial=trial.trial_id, epoch=epoch, path=str(path))
            self.prune(self.state_of(trial))

        self.guarded(write)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        state = self.state_of(trial)
        reason = self.reasons.get(trial.trial_id)
        if reason is None and state.best(self.metric, self.mode) is None:
            reason = f"ended without reporting {self.metric}"
        whole = trial.trial_id in self.ended or state.epochs >= self.max_epochs
        self.guarded(lambda: self.finish(state, "ERROR" if reason else "TERMINATED" if whole else "STOPPED", reason))

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        self.read_error(trial)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        text = self.read_error(trial)
        self.guarded(lambda: self.finish(self.state_of(trial), "ERROR", cause_of(text)))

    def read_error(self, trial: TuneTrial) -> str:
        """What Ray says of a trial that died. A full disk is not the trial's fault: it ends the sweep, and the trial runs again."""
        text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace") if trial.error_file else ""
        logger.debug("trial %s failed:\n%s", trial.trial_id, text)
        if self.fault is None and is_full_disk(text):
            self.fault = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return text

    def finish(self, state: Trial, status: str, reason: str | None) -> None:
        self.running.pop(state.trial_id, None)
        self.record.write("finish", trial=state.trial_id, status=status, error=reason)
        self.sampler.tell(state)
        if reason:
            logger.debug("trial %s: %s", state.trial_id, reason)
        self.prune(state)
        # Another trial's best may just have been surpassed.
        ranked = sorted(
            (t for t in self.record.sweep.trials.values() if t.finished and t.checkpoints), key=lambda t: t.rank(self.metric, self.mode)
        )
        for surpassed in ranked[self.keep_checkpoints :]:
            self.prune(surpassed, keep_best=False)

    def prune(self, state: Trial, keep_best: bool = True) -> None:
        """Delete a trial's checkpoints but the one of its best epoch and, until it is finished, the latest, from which it would go on."""
        best = state.counted(self.metric, self.mode) if keep_best else None
        kept = {best.epoch} if best else set()
        if state.checkpoints and (not state.finished or (best and best.epoch not in state.checkpoints)):
            kept.add(max(state.checkpoints))
        for epoch in [e for e in state.checkpoints if e not in kept]:
            shutil.rmtree(self.record.path.parent / state.checkpoints.pop(epoch), ignore_errors=True)


class EndOfTrial(Stopper):
    """Ends a trial after `max_epochs`, or at a report that cannot be used; ends the experiment after a fault of the bookkeeping."""

    def __init__(self, bookkeeper: Bookkeeper) -> None:
        self.bookkeeper = bookkeeper

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        result = flatten_dict(result)
        if result.get(DONE):
            self.bookkeeper.ended.add(trial_id)
        if "training_iteration" not in result:  # the function returned without a report
            return True
        if reason := unusable(result, self.bookkeeper.metric):
            self.bookkeeper.reasons[trial_id] = reason
            return True
        return result["training_iteration"] >= self.bookkeeper.max_epochs

    def stop_all(self) -> bool:
        return self.bookkeeper.fault is not None
