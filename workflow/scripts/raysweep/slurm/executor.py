"""The executors of Snakemake's Slurm plugins (snakemake-executor-plugin-slurm 2.8 and -slurm-jobstep 0.6), with the methods that this workflow needs changed.

All methods here are part of the interface for executor plugins. `snakemake_private.py` registers the classes in the place of the plugins' own.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import AsyncIterator
from typing import Any

import snakemake_executor_plugin_slurm as slurm
import snakemake_executor_plugin_slurm_jobstep as jobstep


class JobstepExecutor(jobstep.Executor):  # type: ignore[misc, unused-ignore]  # the plugins have no types
    """The executor of the Snakemake that runs in a job."""

    def get_python_executable(self) -> str:
        """Return the path of Python, quoted. The plugin puts the path into a shell line: with a space in it no job would start."""
        return shlex.quote(sys.executable)


class SlurmExecutor(slurm.Executor):  # type: ignore[misc, unused-ignore]  # the plugins have no types
    """The executor that submits jobs to Slurm."""

    jobs_asked_about: tuple[Any, ...] = ()  # the jobs of the present or of the latest status query

    def get_python_executable(self) -> str:
        """Return the path of Python, quoted, for the same reason as JobstepExecutor."""
        return shlex.quote(sys.executable)

    async def check_active_jobs(self, active_jobs: list[Any]) -> AsyncIterator[Any]:
        """Yield the jobs that still run, and remember all `active_jobs` for `cancel_jobs`."""
        self.jobs_asked_about = tuple(active_jobs)
        async for job in super().check_active_jobs(active_jobs):
            yield job

    def cancel_jobs(self, active_jobs: list[Any]) -> None:
        """Cancel all jobs in Slurm.

        While Snakemake queries the states of its jobs, the list of active jobs is empty: jobs would outlive a Ctrl-C in that moment, up to their time limit.
        Some of the jobs have ended, which `scancel` does not mind.
        """
        jobs = {job.external_jobid: job for job in (*self.jobs_asked_about, *active_jobs)}
        super().cancel_jobs(list(jobs.values()))
