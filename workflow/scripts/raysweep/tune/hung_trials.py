"""This module keeps the list of running trials, and kills the trials that hang."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial as TuneTrial

from raysweep.common.errors import WorldError
from raysweep.common.text import duration
from raysweep.tune.private import actor_of

# Time limit in seconds for the start of a trial while no trial runs. A worker imports torch first, which takes some minutes at most from a slow disk.
START_DEADLINE_S = 900
# Time between two steps of Tune, in seconds, above which Slurm must have suspended the job. A step of Tune takes some seconds at most.
SUSPENDED_S = 60


class RunningTrials:
    """Keeps the running trials and the time of each trial's last report. Kills a trial that reports nothing for `timeout_s` seconds.

    The function `kill` receives the actor of a trial and ends the process of this actor.
    """

    def __init__(self, timeout_s: float | None, kill: Callable[[Any], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.timeout_s, self.kill, self.clock = timeout_s, kill, clock
        self.trials: dict[str, TuneTrial] = {}
        self.last_report_at_s: dict[str, float] = {}  # times of the last reports of running trials, oldest first; no time after a kill
        self.kill_reasons: dict[str, str] = {}
        self.last_event_at_s = self.last_step_at_s = clock()

    def begin(self, trial: TuneTrial) -> None:
        """Record that a trial has begun or has continued."""
        self.trials[trial.trial_id] = trial
        self.note_report(trial.trial_id)

    def note_report(self, trial_id: str) -> None:
        """Record that a trial has reported now."""
        self.last_event_at_s = self.clock()
        self.last_report_at_s.pop(trial_id, None)  # A dict keeps the position of a key that is set again.
        self.last_report_at_s[trial_id] = self.last_event_at_s

    def note_event(self) -> None:
        """Record that a trial has failed or finished now, which shows that the sweep is not stuck."""
        self.last_event_at_s = self.clock()

    def end(self, trial_id: str) -> None:
        """Record that a trial no longer runs."""
        self.trials.pop(trial_id, None)
        self.last_report_at_s.pop(trial_id, None)

    def take_paused(self) -> list[str]:
        """Remove the trials that a scheduler has paused, and return the ids of these trials."""
        paused = [trial_id for trial_id, trial in self.trials.items() if trial.status == TuneTrial.PAUSED]
        for trial_id in paused:
            self.end(trial_id)
        return paused

    def take_kill_reason(self, trial_id: str) -> str | None:
        """Return and forget the reason why the process of a trial was killed. Return None if the process was not killed."""
        return self.kill_reasons.pop(trial_id, None)

    def allow_for_suspension(self) -> None:
        """Extend the time limits of all trials by the time for which Slurm suspended the job, because the trials could not report in this time."""
        now_s = self.clock()
        gap_s, self.last_step_at_s = now_s - self.last_step_at_s, now_s
        if gap_s > SUSPENDED_S:
            self.last_event_at_s += gap_s
            self.last_report_at_s = {trial_id: at_s + gap_s for trial_id, at_s in self.last_report_at_s.items()}

    def kill_hung(self) -> None:
        """Kill the process of each trial that has reported nothing for `timeout_s` seconds. For Tune this is a failure, so Tune can try the trial again."""
        if (timeout_s := self.timeout_s) is None:
            return
        hung = itertools.takewhile(lambda entry: self.clock() >= entry[1] + timeout_s, list(self.last_report_at_s.items()))
        for trial_id, _ in hung:
            if (actor := actor_of(self.trials[trial_id])) is None:
                continue
            self.kill_reasons[trial_id] = f"it reported nothing for {duration(timeout_s)} (trial_timeout), so it was ended"
            del self.last_report_at_s[trial_id]  # prevents that this method kills the trial a second time
            self.kill(actor)

    def start_error(self) -> WorldError | None:
        """Return an error if no trial runs and no trial has begun within the time limit. Return None if a trial runs or may still begin in time."""
        if self.trials or self.clock() <= self.last_event_at_s + START_DEADLINE_S:
            return None
        return WorldError(f"no trial has begun for {START_DEADLINE_S // 60} minutes, though there is room for one")
