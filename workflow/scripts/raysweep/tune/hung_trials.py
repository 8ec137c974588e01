"""The trials that run now, and the end of those that hang."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial as TuneTrial

from raysweep.common.errors import WorldError
from raysweep.common.text import duration
from raysweep.tune.private import actor_of

logger = logging.getLogger("raysweep")

START_DEADLINE_S = 900  # a worker imports torch from a slow disk, which takes minutes at most
SUSPENDED_S = 60  # a gap between two steps of Tune, which take seconds at most: Slurm has suspended the job


class RunningTrials:
    """The trials that run now, and when each reported last. A trial that reports nothing for `timeout_s` is killed.

    `kill` ends the process of a trial, given the actor of the trial.
    """

    def __init__(self, timeout_s: float | None, kill: Callable[[Any], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.timeout_s, self.kill, self.clock = timeout_s, kill, clock
        self.trials: dict[str, TuneTrial] = {}
        self.last_report_at_s: dict[str, float] = {}
        self.kill_reasons: dict[str, str] = {}
        self.last_event_at_s = self.last_step_at_s = clock()

    def begin(self, trial: TuneTrial) -> None:
        """Note that a trial has begun or continued."""
        self.trials[trial.trial_id] = trial
        self.note_report(trial.trial_id)

    def note_report(self, trial_id: str) -> None:
        """Note that a trial has reported."""
        self.last_report_at_s[trial_id] = self.last_event_at_s = self.clock()

    def note_event(self) -> None:
        """Note that a trial has failed or finished, so that the sweep does not stand still."""
        self.last_event_at_s = self.clock()

    def end(self, trial_id: str) -> None:
        """Note that a trial runs no more."""
        self.trials.pop(trial_id, None)

    def take_paused(self) -> list[str]:
        """Remove the trials that a scheduler has paused, and return their ids."""
        paused = [trial_id for trial_id, trial in self.trials.items() if trial.status == TuneTrial.PAUSED]
        for trial_id in paused:
            self.end(trial_id)
        return paused

    def take_kill_reason(self, trial_id: str) -> str | None:
        """Return why the process of a trial was killed, once; None where it was not killed."""
        return self.kill_reasons.pop(trial_id, None)

    def allow_for_suspension(self) -> None:
        """Give all trials the time for which Slurm had suspended the job: the driver stood still as the trials did."""
        now_s = self.clock()
        gap_s, self.last_step_at_s = now_s - self.last_step_at_s, now_s
        if gap_s > SUSPENDED_S:
            self.last_event_at_s += gap_s
            self.last_report_at_s = {trial_id: at_s + gap_s for trial_id, at_s in self.last_report_at_s.items()}

    def kill_hung(self) -> None:
        """Kill the process of each trial that has reported nothing for too long. Tune tries the trial again as after any other failure."""
        if self.timeout_s is None:
            return
        for trial_id, trial in self.trials.items():
            actor = actor_of(trial)
            if actor is None or self.clock() < self.last_report_at_s[trial_id] + self.timeout_s:
                continue
            self.kill_reasons[trial_id] = f"it reported nothing for {duration(self.timeout_s)} (trial_timeout), so it was ended"
            self.last_report_at_s[trial_id] = math.inf  # so that it is killed only once
            self.kill(actor)

    def start_error(self) -> WorldError | None:
        """Return the error of a sweep in which no trial begins although none runs; None where trials run or may still begin in time."""
        if self.trials or self.clock() <= self.last_event_at_s + START_DEADLINE_S:
            return None
        return WorldError(f"no trial has begun for {START_DEADLINE_S // 60} minutes, though there is room for one")
