"""Ends the Snakemake that runs in a folder, and leaves the jobs of this Snakemake to Slurm. The same Snakemake command takes the jobs up again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from raysweep.common.errors import WorldError, logger
from raysweep.common.processes import started
from raysweep.slurm.notes import PLANNED, read_notes
from raysweep.slurm.runs import PROCESS_FILE, PreviousRun
from raysweep.slurm.status import FINAL

SIGNAL = signal.SIGUSR1  # signal on which a Snakemake ends and leaves its jobs to Slurm


def left_jobs_message(run_dir: Path) -> str:
    """Return a message for the user about the jobs of a run that have not ended."""
    left = [f"{note.job} ({note.name})" for note in read_notes(run_dir).jobs.values() if note.state not in FINAL]
    if not left:
        return "Snakemake has left no job in Slurm. The same command goes on."
    return f"Snakemake has left to Slurm: job {', '.join(left)}. The same command follows {'it' if len(left) == 1 else 'them'} again."


def detach(root: Path) -> None:
    """End the Snakemake that runs in the folder `root`, wait for its end, and tell the user which jobs it has left to Slurm.

    Raises:
        WorldError: no Snakemake is at work here, or it is not one that this process may end, or its jobs run on this machine and would end with it.
    """
    paths = sorted((root / ".snakemake" / "raysweep").glob(f"*/{PROCESS_FILE}"))
    runs = [run for path in paths if (run := PreviousRun.read(path)) is not None and (not run.is_visible or run.is_alive)]
    if not runs:
        raise WorldError(
            f"no Snakemake is at work in {root}. Jobs that a killed Snakemake left go on; the same Snakemake command takes them up"
        )
    run = runs[0]
    if not run.is_visible:
        raise WorldError(f"a Snakemake of this folder is process {run.pid} on {run.host}: type the same there, as the user who started it")
    if not (run.folder / PLANNED).exists():
        raise WorldError(
            f"the Snakemake of this folder (process {run.pid}) has no jobs in Slurm, so that its jobs would end with it: use Ctrl-C"
        )
    message = ""
    os.kill(run.pid, SIGNAL)
    while started(run.pid) == run.started:  # jobs that run on this machine end first
        message = left_jobs_message(run.folder) if (run.folder / PLANNED).exists() else message
        time.sleep(0.1)
    logger.info("%s", message)
