"""One plain line on how a sweep is doing, at most every ten seconds."""

from __future__ import annotations

import logging
import time

from raysweep.common.text import duration
from raysweep.config.model import Mode
from raysweep.record.trials import Sweep

logger = logging.getLogger("raysweep")
INTERVAL_S = 10.0


class ProgressLine:
    """Says how many trials are done, running and failed, the best value so far, the time gone and the time left."""

    def __init__(self, name: str, *, total: int, metric: str, mode: Mode) -> None:
        self.name, self.total, self.metric, self.mode = name, total, metric, mode
        self.started = self.shown = time.monotonic()
        self.done_at_start: int | None = None

    def show(self, sweep: Sweep, now: float | None = None) -> None:
        """Log the line, unless the last one is less than ten seconds old."""
        now = time.monotonic() if now is None else now
        if self.done_at_start is None:
            self.done_at_start = sum(trial.finished for trial in sweep.trials.values())
        if now - self.shown >= INTERVAL_S:
            self.shown = now
            logger.info("%s", self.text(sweep, now))

    def text(self, sweep: Sweep, now: float) -> str:
        statuses = [trial.status for trial in sweep.trials.values()]
        done = sum(trial.finished for trial in sweep.trials.values())
        parts = [f"{done}/{self.total} trials done, {statuses.count('RUNNING')} running, {statuses.count('ERROR')} failed"]
        if best := sweep.best_trial(self.metric, self.mode):
            parts.append(f"best {self.metric} {best[1].metrics[self.metric]:.4g} (trial {best[0].trial_id})")
        elapsed = now - self.started
        parts.append(f"{duration(elapsed)} elapsed")
        finished_here = done - (self.done_at_start or 0)
        if finished_here:
            parts.append(f"about {duration(elapsed / finished_here * (self.total - done))} left")
        return f"{self.name}: " + ", ".join(parts)
