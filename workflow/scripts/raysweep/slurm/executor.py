"""Changes some methods of the executors of Snakemake's Slurm plugins (snakemake-executor-plugin-slurm 2.8 and -slurm-jobstep 0.6).

All methods in this module belong to Snakemake's documented interface for executor plugins. `snakemake_private.py` replaces the plugins' classes with the
classes of this module.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import snakemake_executor_plugin_slurm as slurm
import snakemake_executor_plugin_slurm_jobstep as jobstep
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.utils import format_cli_arg

from raysweep.slurm.allocation import export_of_slurm_conf
from raysweep.slurm.notes import RUN_DIR, read_notes
from raysweep.slurm.snakemake_private import is_own_shell_command

STATUS_INTERVAL_S = 10  # longest time in seconds between two status queries; status.py answers most queries without a program of Slurm


class JobstepExecutor(jobstep.Executor):  # type: ignore[misc, unused-ignore]  # the plugins have no types
    """Runs a rule inside of a Slurm job."""

    def get_python_executable(self) -> str:
        """Return the path of Python, quoted for a shell.

        The plugin puts the path into a shell line, and a path with a space would otherwise prevent the start of every job.
        """
        return shlex.quote(sys.executable)

    def get_job_exec_prefix(self, job: Any) -> str:
        """Return the shell command that runs before the rule.

        The plugin removes SLURM_CONF from the environment of the rule. Where Slurm's configuration is not in the default folder, the programs of Slurm
        would then fail inside of the job.
        """
        return " && ".join(filter(None, (super().get_job_exec_prefix(job), *export_of_slurm_conf())))

    def format_job_exec(self, job: Any) -> str:
        """Return the shell command that runs a rule.

        The plugin starts one more Snakemake for this. A rule of this workflow is only a shell command, and the Snakemake that runs this executor already
        checks the outputs. So the shell command runs directly, after the preparations that the further Snakemake would make. This saves some seconds at the
        start of a job.
        """
        if not is_own_shell_command(job):
            of_plugin: str = super().format_job_exec(job)
            return of_plugin
        files = [Path(file) for file in (*job.output, *job.log)]
        preparations = [
            shlex.join(["rm", "-rf", "--", *map(str, files)]),
            shlex.join(["mkdir", "-p", "--", *sorted({str(file.parent) for file in files})]),
        ]
        command = f"exec bash -c {shlex.quote(f'set -euo pipefail; {job.shellcmd}')} < /dev/null"
        return " && ".join(filter(None, (self.get_job_exec_prefix(job), *preparations, command)))


class SlurmExecutor(slurm.Executor):  # type: ignore[misc, unused-ignore]  # the plugins have no types
    """Submits jobs to Slurm."""

    next_seconds_between_status_checks: int
    jobs_asked_about: tuple[Any, ...] = ()  # jobs in the latest status query, which may still run
    is_detached: bool = False  # whether the user leaves the jobs to Slurm, so that no job may be cancelled

    def get_python_executable(self) -> str:
        """Return the path of Python, quoted for a shell. JobstepExecutor states the reason."""
        return shlex.quote(sys.executable)

    def get_partition_arg(self, job: Any) -> str:
        """Return the option of sbatch with the partitions of the job. The sweep's own partitions replace the partition of the profile."""
        partitions = job.resources.get("partitions")
        if not partitions:
            option: str = super().get_partition_arg(job)
            return option
        if of_profile := job.resources.get("slurm_partition"):
            self.logger.info(
                f"{job.name}: allocation.partitions ({partitions}) is used, and not slurm_partition of cluster/config.yaml ({of_profile})."
            )
        return f" -p {shlex.quote(partitions)}"

    def get_job_args(self, job: Any) -> str:
        """Return options for the Snakemake inside of a job. The job waits until all its input files are visible.

        The plugin's job also waits for a folder of this Snakemake, which exists only until this Snakemake ends. Without the folder, the job would end
        without running its rule. A job that waits in the queue would therefore be lost with this Snakemake.
        """
        files = job.get_wait_for_files()
        options: str = super(RemoteExecutor, self).get_job_args(job)
        return f"{options} {format_cli_arg('--wait-for-files', files)}" if files else options

    def report_job_submission(self, job_info: Any, register_job: bool = True) -> None:
        """Tell Snakemake that a job was submitted, and tell the user where the job is one of an earlier run."""
        super().report_job_submission(job_info, register_job=register_job)
        note = read_notes(Path(os.environ[RUN_DIR])).jobs.get(job_info.external_jobid)
        if note is not None and note.taken_up:
            self.logger.info(f"Job {note.job} was submitted by an earlier run, and nothing has changed. It is followed to its end.")

    async def check_active_jobs(self, active_jobs: list[Any]) -> AsyncIterator[Any]:
        """Yield the jobs that still run, and store all `active_jobs` for `cancel_jobs`.

        The plugin increases the time between two queries to 180 s. The end of a job would be noticed so late, and at the end of a run Snakemake would wait
        as long for the thread that sleeps between the queries.
        """
        self.jobs_asked_about = tuple(active_jobs)
        async for job in super().check_active_jobs(active_jobs):
            yield job
        self.next_seconds_between_status_checks = min(self.next_seconds_between_status_checks, STATUS_INTERVAL_S)

    def cancel_jobs(self, active_jobs: list[Any]) -> None:
        """Cancel all jobs in Slurm.

        While Snakemake queries the states of its jobs, Snakemake's list of active jobs is empty. Without the stored jobs, a Ctrl-C during a query would
        cancel no job, and the jobs would run until Slurm's time limit. `scancel` ignores jobs that have already ended.
        """
        jobs = {job.external_jobid: job for job in (*self.jobs_asked_about, *active_jobs)}
        if not self.is_detached:
            super().cancel_jobs(list(jobs.values()))
