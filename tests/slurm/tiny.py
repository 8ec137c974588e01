"""A small workflow that submits to Slurm as the project does: its profiles, its programs in cluster/bin, its last words. What the job does is a test's own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from slurm.cluster import REPOSITORY, SlurmCluster, wait_until
from slurm.sweeps import IMPATIENT, python_in

SNAKEFILE = f"""
import sys
from pathlib import Path

sys.path.insert(0, {str(REPOSITORY / "workflow" / "scripts")!r})
from raysweep.slurm import snakemake_private
from raysweep.slurm.runs import Run
from raysweep.slurm.snakemake_private import adapt_snakemake, planned_jobs, rule_job

snakemake_private.RULES_DIR = Path.cwd()  # the rule of this file runs as the rules of the workflow do
adapt_snakemake()
RUN = Run(Path.cwd(), Path("logs"))
if workflow.is_main_process:
    RUN.clear_up()


onstart:
    RUN.begin()
    if workflow.non_local_exec:
        RUN.use_slurm(Path({str(REPOSITORY / "cluster" / "bin")!r}), Path("state"), planned_jobs(workflow.dag.needrun_jobs(), {{}}))


onerror:
    RUN.explain([rule_job(job) for job in workflow.scheduler.failed if not job.is_local], log)


rule report:
    localrule: True
    input:
        expand("results/{{sweep}}", sweep=config.get("sweeps", "a").split(",")),
    shell:
        "hostname > reported_on"


rule run_sweep:
    output:
        "results/{{sweep}}",
    log:
        "logs/run_sweep/{{sweep}}.log",
    threads: 10
    resources:
        mpi="",
        nodes=config.get("nodes", 1),
        tasks=config.get("nodes", 1),
        mem_mb=100,
        runtime=config.get("runtime", 30),
        partitions=config.get("partitions", ""),
        slurm_extra=" ".join(["--ntasks-per-node=1 --no-kill", config.get("options", "")]),
    shell:
        "sh job.sh {{wildcards.sweep}} {{output:q}} {{log:q}}"
"""


class Workflow:
    """A folder with the workflow, and its runs on a cluster. `job` is a shell script: $1 is the sweep, $2 the output, $3 the log.

    The script makes the folder of the output when it writes, as the workflow's own programs do, because Snakemake removes empty folders at the end of each run.
    """

    def __init__(self, cluster: SlurmCluster, folder: Path, job: str) -> None:
        self.cluster, self.folder = cluster, folder
        folder.mkdir(parents=True)
        for profile in ("cluster", "profiles"):
            shutil.copytree(REPOSITORY / profile, folder / profile)
        (folder / "Snakefile").write_text(SNAKEFILE)
        self.job(job)

    def job(self, script: str) -> None:
        (self.folder / "job.sh").write_text(f"set -eu\n{script}\n")

    def argv(self, *arguments: str) -> list[str]:
        """The command of the README, in a hurry."""
        command = [str(python_in(self.folder)), str(IMPATIENT), "--executor", "slurm", "--profile", "cluster"]
        return [*command, "--latency-wait", "5", *arguments]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return self.cluster.popen(self.argv(*arguments), cwd=self.folder)

    def run(self, *arguments: str) -> tuple[int, list[str]]:
        """Run it to its end: exit code, and all lines that it wrote."""
        return ended(self.start(*arguments))

    def jobs(self, states: str = "all") -> list[str]:
        """Ids of the jobs of this workflow, oldest first."""
        lines = self.cluster.run(["squeue", "--noheader", f"--states={states}", "--format=%i %Z"]).stdout.splitlines()
        jobs = [line.split(None, 1) for line in lines]
        return sorted((job for job, folder in jobs if folder == str(self.folder)), key=int)

    def running_job(self) -> str:
        """The id of the one job that runs, when it does."""
        wait_until(lambda: self.jobs("running") != [], "the job runs")
        [job] = self.jobs("running")
        return job


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    output, _ = process.communicate(timeout=400)
    return process.returncode, output.splitlines()
