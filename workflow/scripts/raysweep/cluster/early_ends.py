"""This module tells the driver of a sweep of several jobs which jobs Slurm will end before their time limits, as at a preemption with a grace time.

Where a site has set `preempt_send_user_signal`, Slurm sends a signal to a job at the beginning of the grace time. The job asks Slurm for the new
end of the job, and makes a folder on the first node of the leader's job, through a job step. The name of the folder contains the id of the job and the new
end. A file on a shared file system could become visible only after the grace time. The driver also uses this module, in the node environment.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

from raysweep.cluster.lock import LockHolder
from raysweep.common.errors import logger
from raysweep.slurm.allocation import without_slurm_job
from raysweep.slurm.commands import SLURM_DEADLINE_S, step_of_other_job


class EarlyEnd(NamedTuple):
    """Describes the early end of a job. The times are in seconds since the epoch."""

    job: str  # id of the job
    instead_of: float  # former deadline of the job, which distinguishes the job from a later start of the job under this id
    ends: float

    def __str__(self) -> str:
        return f"{self.job}@{self.instead_of:.0f}@{self.ends:.0f}"


def folder_beside(gate: Path) -> Path:
    """Return the folder with the early ends, for a leader whose gate is the socket `gate`."""
    return gate.with_name("early-ends")


def tell(leader: LockHolder, early_end: EarlyEnd) -> None:
    """Tell the driver of the leader that a job of this user ends early.

    If the leader cannot be reached, the trials on this job go on from their last checkpoints.
    """
    if leader.job is None or leader.gate is None:
        return
    path = folder_beside(Path(leader.gate.path)) / str(early_end)
    command = ["mkdir", str(path)]
    if leader.job.id != early_end.job:
        command = step_of_other_job(leader.gate.job, command)
    try:
        subprocess.run(command, env=without_slurm_job(dict(os.environ)), capture_output=True, timeout=SLURM_DEADLINE_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        logger.debug("The driver does not learn of %s: %s", early_end, error)


def early_ends(folder: Path) -> list[EarlyEnd]:
    """Return the early ends that the jobs have told. The list is empty where the folder does not exist."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [EarlyEnd(job, float(instead_of), float(ends)) for job, instead_of, ends in (name.split("@") for name in names)]
