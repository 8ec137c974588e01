"""Logs a line about the progress of a sweep, at most once in ten seconds."""

from __future__ import annotations

import time

from raysweep.common.errors import logger
from raysweep.common.text import duration
from raysweep.config.model import Mode
from raysweep.record.sweep import Sweep

INTERVAL_S = 10.0


class ProgressLine:
    """Logs how many trials are done, running and failed, the best value so far, the time that has passed and the time left."""

    def __init__(self, name: str, *, total: int, metric: str, mode: Mode) -> None:
        self.name, self.total, self.metric, self.mode = name, total, metric, mode
        self.started_s = self.shown_s = time.monotonic()
        self.done_at_start: int | None = None

    def show(self, sweep: Sweep, now: float | None = None) -> None:
        """Log the line, unless the last line is less than ten seconds old."""
        now = time.monotonic() if now is None else now
        if self.done_at_start is None:
            self.done_at_start = sum(trial.finished for trial in sweep.trials.values())
        if now - self.shown_s >= INTERVAL_S:
            self.shown_s = now
            logger.info("%s", self.text(sweep, now))

    def text(self, sweep: Sweep, now: float) -> str:
        """Return the line at the time `now`, in seconds of the monotonic clock."""
        statuses = [trial.status for trial in sweep.trials.values()]
        done = sum(trial.finished for trial in sweep.trials.values())
        parts = [f"{done}/{self.total} trials done, {statuses.count('RUNNING')} running, {statuses.count('ERROR')} failed"]
        if best := sweep.best_trial(self.metric, self.mode):
            parts.append(f"best {self.metric} {best[1].metrics[self.metric]:.4g} (trial {best[0].trial_id})")
        elapsed_s = now - self.started_s
        parts.append(f"{duration(elapsed_s)} elapsed")
        finished_in_session = done - (self.done_at_start or 0)
        if finished_in_session:
            parts.append(f"about {duration(elapsed_s / finished_in_session * (self.total - done))} left")
        return f"{self.name}: " + ", ".join(parts)
