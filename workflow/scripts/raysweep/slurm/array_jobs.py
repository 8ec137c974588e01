"""Asks Slurm for the jobs of a job array that wait or run, for `make watch`."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from raysweep.slurm.queries import ask, columns

ASK_INTERVAL_S = 30  # least time in seconds between two calls of squeue
ASK_LIMIT_S = 10  # time limit in seconds for one call of squeue, in which the view stands still


@dataclass(frozen=True)
class ArrayJob:
    """Describes a job of a job array that has not ended."""

    id: str  # such as "123_2"
    state: str
    nodes: str  # Slurm's list of the job's nodes; "" while the job waits
    start: str  # time at which the job started or is expected to start, as Slurm writes it; "" where Slurm gives no time
    reason: str  # Slurm's reason why the job waits


def listed_jobs(array: str) -> tuple[ArrayJob, ...] | None:
    """Return the jobs of a job array that have not ended, by number, or None where squeue fails or does not know the array any more."""
    lines = ask("squeue", "--all", "--array", "--noheader", f"--jobs={array}", "--format=%i|%T|%N|%S|%r", limit_s=ASK_LIMIT_S)
    if lines is None:
        return None
    jobs = (ArrayJob(id_, state, nodes, "" if start == "N/A" else start, reason) for id_, state, nodes, start, reason in columns(lines, 5))
    of_array = [job for job in jobs if re.fullmatch(rf"{array}_\d+", job.id)]
    return tuple(sorted(of_array, key=lambda job: int(job.id.partition("_")[2])))


class ArrayJobs:
    """Keeps Slurm's latest answer, so that Slurm is asked at most once in ASK_INTERVAL_S seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.array, self.asked_at_s = clock, "", -math.inf
        self.jobs: tuple[ArrayJob, ...] | None = None

    def of(self, array: str) -> tuple[ArrayJob, ...] | None:
        """Return the jobs of a job array that have not ended, or None where Slurm does not say."""
        now_s = self.clock()
        if array != self.array or now_s - self.asked_at_s >= ASK_INTERVAL_S:
            self.array, self.asked_at_s, self.jobs = array, now_s, listed_jobs(array)
        return self.jobs
