"""However a sweep on Slurm ends, nothing of it is left, Snakemake ends too and says why, and the same command goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from slurm.cluster import SlurmCluster, wait_until
from slurm.sweeps import SlurmProject, files_of, left_on, processes_of
from sweeping import sweep_of

END_S = 35  # Slurm kills 30 s after it has asked (KillWait)
# A sweep for each way to end: the program to kill, as its command line has it, and whether it is the one on the first node.
KILLED = {"driver": ("drive.py", True), "launcher": ("run_sweep.py --", True), "srun": ("srun", True), "agent": ("agent.py", True), "worker": ("agent.py", False)}


@dataclass(frozen=True)
class Ends:
    """What was seen of a project's sweeps that ended: Snakemake's exit code and words, and of each sweep its job and what it left."""

    project: SlurmProject
    code: int
    said: str
    jobs: dict[str, str]


def sweeps(project: SlurmProject, runtimes: dict[str, int], function: str = "waits") -> None:
    allocation = {"nodes": 2, "cpus_per_node": 1, "gpus_per_node": 0, "mem_mb_per_node": 1000}
    project.configure(
        sweeps={name: sweep_of(function, num_samples=3, allocation=allocation | {"runtime": runtime}) for name, runtime in runtimes.items()}
    )


def start(project: SlurmProject) -> subprocess.Popen[str]:
    targets = [f"results/{name}/best.yaml" for name in project.config()["sweeps"]]
    return project.cluster.popen(project.command(*targets), cwd=project.folder)


def jobs_of(project: SlurmProject) -> dict[str, str]:
    """The job of each sweep, once its trials run on both nodes."""
    names = list(project.config()["sweeps"])
    for name in names:
        wait_until(lambda: running(project, name) == 2, f"the trials of {name} run", 240)  # noqa: B023
    listed = project.cluster.run(["squeue", "--noheader", "--format=%i %k"]).stdout
    return {name: re.search(rf"^(\d+) rule_run_sweep_wildcards_{name} in {re.escape(str(project.folder))}/", listed, re.M)[1] for name in names}


def running(project: SlurmProject, name: str) -> int:
    return sum(trial.status == "RUNNING" for trial in project.record(name).trials.values())
