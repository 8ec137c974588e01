"""This module finds out which leaders of a sweep of several jobs are over. The controller's Python runs this module."""

from __future__ import annotations

import math
import time
from pathlib import Path

from raysweep.cluster.lock import LockHolder
from raysweep.slurm.allocation import SlurmJob
from raysweep.slurm.notes import age_s

ASKED = "asked"  # empty file in the state folder of the sweep, which a job touches before the job asks Slurm
ASK_INTERVAL_S = 10  # least time in seconds between two questions of all jobs together


class OverLeaders:
    """Contains the leaders, and the drivers of leaders, whose jobs are over. All jobs of the sweep together ask Slurm once in ASK_INTERVAL_S seconds."""

    def __init__(self, state_dir: Path) -> None:
        self.path_to_asked = state_dir / ASKED
        self.tokens: set[str] = set()  # tokens of the locks of these leaders and drivers
        self.jobs: set[SlurmJob] = set()
        self.asked_at_s = -math.inf  # time (`time.monotonic()`) at which this job has asked last

    def __contains__(self, holder: LockHolder) -> bool:
        """Return whether it is known that the holder of a lock is over."""
        return holder.token in self.tokens

    def find_out(self, holder: LockHolder) -> bool:
        """Return whether the holder of a lock is certainly over. Ask Slurm where this is not known and this job may ask now."""
        if holder.job not in self.jobs and not (self.may_ask() and holder.is_dead()):
            return False
        self.tokens.add(holder.token)
        if holder.job is not None and holder.gate is not None:  # a driver, which has no gate, may have died without its job
            self.jobs.add(holder.job)
        return True

    def may_ask(self) -> bool:
        """Return whether this job may ask Slurm now. If so, the question counts as asked."""
        now_s = time.monotonic()
        # The second limit counts where the clock of this node differs from the clock of the file system.
        if 0 <= age_s(self.path_to_asked) < ASK_INTERVAL_S or now_s < self.asked_at_s + ASK_INTERVAL_S:
            return False
        self.path_to_asked.touch()
        self.asked_at_s = now_s
        return True
