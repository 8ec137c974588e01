"""Asks Slurm's programs, with a time limit and without the default options of the user, so that a status query is always answered."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any, NamedTuple

STARTED = time.monotonic()  # time at which this program started
DEADLINE_S = 50  # time limit in seconds for all queries to Slurm together; the limit is below the 60 s that the plugin waits for an answer


def ask(*command: str, limit_s: float | None = None) -> list[str] | None:
    """Return the lines that a program of Slurm prints, or None where the program fails or does not end in `limit_s` seconds.

    Without `limit_s`, the program may use the rest of DEADLINE_S.
    """
    if limit_s is None:
        limit_s = max(1.0, STARTED + DEADLINE_S - time.monotonic())
    # Default options that the user has set, such as SQUEUE_PARTITION, would hide jobs.
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SACCT_"))}
    options: dict[str, Any] = {"env": env, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    try:
        run = subprocess.run(command, check=False, timeout=limit_s, **options)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.splitlines() if run.returncode == 0 else None


class QueuedJob(NamedTuple):
    """Describes a job of this user in Slurm's queue."""

    job: str  # Slurm's id of only this job, such as 7 or 7_2
    array: str  # id of the job array of the job; the id of the job where the job is in no array
    state: str
    first: str  # node on which the script of the job runs
    nodes: str  # list of the job's present nodes
    reason: str  # Slurm's reason why the job waits
    comment: str


def queued_jobs(*options: str) -> list[QueuedJob] | None:
    """Return the jobs of this user that slurmctld knows, or None where squeue fails.

    squeue fails for a single job id that Slurm does not know, so this query names no ids. The option `--all` is needed because some partitions may be hidden.
    """
    lines = ask("squeue", "--all", "--me", "--noheader", *options, "--format=%i|%F|%T|%B|%N|%r|%k")
    return None if lines is None else [QueuedJob(*words) for words in columns(lines, len(QueuedJob._fields))]


def columns(lines: list[str], number: int) -> list[list[str]]:
    """Split the lines with at least `number` columns, and leave out all other lines, because sites add lines to Slurm's output."""
    return [line.split("|", number - 1) for line in lines if line.count("|") >= number - 1]


def is_headless(first: str, nodes: str) -> bool:
    """Return whether a job has lost its first node `first`, on which the script of the job ran. `nodes` is the list of the job's present nodes.

    A sweep uses the option --no-kill, so that the job goes on after the loss of another node. With this option Slurm does not end the job after the loss of
    the first node.
    """
    if nodes == first or not nodes:
        return False
    names = ask("scontrol", "show", "hostnames", nodes)
    return names is not None and names != [] and first not in names
