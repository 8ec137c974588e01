"""The nodes that a sweep may use, and its share of each node: this machine, or the job of Slurm that this process runs in.

No other module reads `SLURM_*`. Snakemake's jobstep plugin deletes most of those variables before the rule runs, so `scontrol` is asked for the nodes,
CPUs, GPUs, memory and end of the job.
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from raysweep.common.errors import RaysweepError, WorldError
from raysweep.common.gpus import usable_gpus
from raysweep.common.machine import NodeSize, usable_cpus
from raysweep.config.model import AllocationConfig, SweepConfig
from raysweep.slurm.capacity import TrialResources
from raysweep.slurm.commands import SLURM_DEADLINE_S, field_of, hostnames, node_addresses, on_each_node, restarts_in, scontrol

logger = logging.getLogger("raysweep")
# Field of SlurmVariables → variable of the environment.
VARIABLES = {
    "job_id": "SLURM_JOB_ID",
    "cluster": "SLURM_CLUSTER_NAME",
    "rank": "SLURM_PROCID",
    "local_dir": "SLURM_TMPDIR",
    "submit_host": "SLURM_SUBMIT_HOST",
}
# The variables that a program of the user's may see.
VISIBLE_VARIABLES = ("SLURM_JOB_ID", "SLURM_TMPDIR", "SLURM_CONF")
ALIVE_STATES = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "CONFIGURING", "SIGNALING", "STAGE_OUT")


@dataclass(frozen=True)
class SlurmVariables:
    """The variables of Slurm in the environment of this process. None: the variable is not set."""

    job_id: str | None
    cluster: str | None
    rank: str | None  # of this process among the tasks of `srun`
    local_dir: str | None  # a folder on a disk of this node
    submit_host: str | None  # the machine from which the job was submitted

    @classmethod
    def read(cls) -> SlurmVariables:
        """Return the variables as they are now."""
        return cls(**{field: os.environ.get(variable) for field, variable in VARIABLES.items()})


@dataclass(frozen=True)
class Node:
    """A node of the allocation, and the sweep's share of the node."""

    name: str
    cpus: int
    gpus: int
    mem_mb: int
    address: str | None = None  # by which the other nodes reach this node; None on this machine, which has no other nodes

    @property
    def size(self) -> NodeSize:
        """The part of the node that the record keeps."""
        return NodeSize(self.name, self.cpus, self.gpus)


@dataclass(frozen=True)
class Allocation:
    """The nodes that Ray may use. Ray sees whole machines, so Ray is given these numbers."""

    nodes: tuple[Node, ...]
    job_id: str | None = None  # of the job of Slurm; None on this machine
    restarts: int = 0  # how often Slurm has started the job again
    started: float | None = None  # when the job began, in seconds since the epoch
    ends: float | None = None  # when Slurm will end the job
    cluster: str | None = None  # the name of the job's cluster

    @classmethod
    def local(cls, wanted: AllocationConfig, threads: int) -> Allocation:
        """Return this machine: the minimum of what the config asks for, of Snakemake's threads, and of what the machine has."""
        node = Node(
            name=socket.gethostname(),
            cpus=min(wanted.cpus_per_node, threads, usable_cpus()),
            gpus=min(wanted.gpus_per_node, usable_gpus()) if wanted.gpus_per_node else 0,
            mem_mb=min(wanted.mem_mb_per_node, available_mem_mb()),
        )
        return cls((node,))

    @classmethod
    def of_slurm(cls) -> Allocation:
        """Return what Slurm gave to the job that this process runs in, whatever the config asked for.

        Raises:
            RaysweepError: this process does not run in a job of Slurm.
            WorldError: Slurm does not answer, or does not name the job's nodes.
        """
        variables = SlurmVariables.read()
        if variables.job_id is None:
            raise RaysweepError(
                f"this rule runs as a job, but not one of Slurm: {VARIABLES['job_id']} is not set. Use --executor slurm, or no executor"
            )
        job = scontrol("show", "job", "-d", variables.job_id)
        nodes = nodes_of_job(job)
        if not nodes:
            raise WorldError(f"Slurm does not say which nodes job {variables.job_id} has: {' '.join(job.split())[:300]}")
        return cls(
            nodes,
            job_id=variables.job_id,
            restarts=restarts_in(job),
            started=_seconds_since_epoch(field_of(job, "StartTime")),
            ends=_seconds_since_epoch(field_of(job, "EndTime")),
            cluster=variables.cluster,
        )

    @property
    def slurm_job(self) -> SlurmJob | None:
        """The job that holds the nodes; None on this machine."""
        return None if self.job_id is None else SlurmJob(self.job_id, self.cluster, self.restarts)

    def command(self, argv: list[str]) -> list[str]:
        """Return the command that runs `argv` once on each node: on this machine, `argv` itself."""
        return argv if self.job_id is None else on_each_node(argv, len(self.nodes), self.nodes[0].cpus)

    def start_again(self) -> None:
        """Have Slurm end this job and start the job again under its id. This method does not return.

        Raises:
            WorldError: Slurm does not end the job.
        """
        scontrol("requeue", str(self.job_id))
        time.sleep(SLURM_DEADLINE_S)
        raise WorldError(f"Slurm was asked to start job {self.job_id} again, but does not end it")

    def why_interrupted(self) -> str:
        """Return a line on what may have ended this process from outside."""
        if self.job_id is None:
            return "Interrupted."
        if self.ends is not None and time.time() > self.ends - 60:
            return (
                f"Slurm ended job {self.job_id} at its time limit. What is finished is in the record: run the same command again to go on,"
                " with a longer runtime (allocation.runtime, confirm.runtime) if you like"
            )
        return f"Slurm job {self.job_id} was cancelled or preempted. What is finished is in the record: run the same command again to go on"


def nodes_of_job(job: str) -> tuple[Node, ...]:
    """Return the nodes in the text that `scontrol show job -d` prints, in the order in which srun numbers its tasks."""
    cpus_per_task = field_of(job, "CPUs/Task")
    cpus = int(cpus_per_task) if cpus_per_task.isdigit() else 1  # N/A: one
    nodes = []
    for nodelist, mem_mb, gres in re.findall(r"^\s+Nodes=(\S+) CPU_IDs=\S* Mem=(\d+) GRES=(\S*)", job, re.MULTILINE):
        gpus = sum(int(number) for number in re.findall(r"(?:^|,)gpu(?::[^:(,]+)?:(\d+)", gres))
        addresses = node_addresses(nodelist)
        # Mem=0: Slurm does not hand out memory.
        nodes += [Node(name, cpus, gpus, int(mem_mb) or available_mem_mb(), addresses[name]) for name in hostnames(nodelist)]
    if nodes:
        order = hostnames(field_of(job, "NodeList"))
        nodes.sort(key=lambda node: order.index(node.name))
    return tuple(nodes)


@dataclass(frozen=True)
class Deadline:
    """When the time of a job is nearly up, in seconds since the epoch."""

    near: float  # from then on no trial begins, and each trial ends with its next checkpoint
    here: float  # then the remaining trials are ended too, because ending and starting again take a while

    @classmethod
    def of(cls, started: float | None, ends: float | None, margin_s: float) -> Deadline | None:
        """Return the deadline `margin_s` before the end, but not in the first half of the job; None without a time limit."""
        if started is None or ends is None:
            return None
        margin_s = min(margin_s, (ends - started) / 2)
        return cls(ends - margin_s, ends - min(60, margin_s / 2))

    def is_near(self) -> bool:
        """Return whether no more trial may begin."""
        return time.time() >= self.near

    def is_here(self) -> bool:
        """Return whether all trials are to be ended."""
        return time.time() >= self.here


@dataclass(frozen=True)
class Task:
    """This process among the tasks that `srun` started."""

    rank: int
    local_dir: Path  # a folder on a disk of this node

    @classmethod
    def current(cls, in_slurm: bool) -> Task:
        """Return the task of this process. Without Slurm the task is the only one.

        Raises:
            WorldError: this process was to be a task of `srun`, and is none.
        """
        if not in_slurm:
            return cls(0, Path(tempfile.gettempdir()))
        variables = SlurmVariables.read()
        if variables.rank is None:
            raise WorldError(f"this process is no task of srun: {VARIABLES['rank']} is not set")
        has_local_dir = variables.local_dir is not None and os.path.isdir(variables.local_dir)
        return cls(int(variables.rank), Path(variables.local_dir or "") if has_local_dir else Path(tempfile.gettempdir()))


@dataclass(frozen=True)
class SlurmJob:
    """A job of Slurm, as a lock names the job."""

    id: str
    cluster: str | None
    restarts: int  # how often Slurm has started the job again

    @classmethod
    def current(cls) -> SlurmJob | None:
        """Return the job that this process runs in, or None outside of a job."""
        variables = SlurmVariables.read()
        if variables.job_id is None:
            return None
        return cls(variables.job_id, variables.cluster, restarts_in(scontrol("show", "job", variables.job_id)))

    def is_over(self) -> bool:
        """Return whether the job has ended, or was started again since. Slurm forgets old jobs. False where Slurm does not answer.

        A job of another cluster on the same file system counts as alive: this cluster has no such job, or another job of that number.
        """
        try:
            if self.cluster is not None and self.cluster != _cluster():
                return False
            job = scontrol("show", "job", self.id)
        except WorldError as error:
            return "Invalid job id" in str(error)
        return restarts_in(job) > self.restarts or field_of(job, "JobState") not in ALIVE_STATES


def _cluster() -> str | None:
    return SlurmVariables.read().cluster or field_of(scontrol("show", "config"), "ClusterName")


def without_slurm(env: dict[str, str]) -> dict[str, str]:
    """Return an environment for programs of the user's, without Slurm's variables.

    Libraries that see the variables of a job step take themselves for one task of many.
    """
    prefixes = ("SLURM", "SRUN_", "SBATCH_", "PMI_", "PMIX_", "PMI2_")
    return {key: value for key, value in env.items() if key in VISIBLE_VARIABLES or not key.startswith(prefixes)}


def submit_host() -> str | None:
    """Return the machine from which the job was submitted, or None outside of a job."""
    return SlurmVariables.read().submit_host


def _seconds_since_epoch(text: str) -> float | None:
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:  # Unknown, N/A
        return None


def available_mem_mb() -> int:
    """Memory that is free for a new program, in MB: what the kernel says, or the rest of the control group's limit if that is less."""
    amounts = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        amounts += [int(line.split()[1]) // 1024 for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")]
    else:
        amounts.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        amounts.append((int(text) - int(used.read_text())) // 2**20)
    return min(amounts)


def trial_resources(sweep: SweepConfig, allocation: Allocation) -> TrialResources:
    """Return the CPUs and GPUs of a trial. Without a GPU on this machine trials run on the CPU, and a line says so.

    Raises:
        RaysweepError: no node can hold a trial.
    """
    cpu, gpu = sweep.trial_resources.cpu, sweep.trial_resources.gpu
    if gpu == "auto":
        gpu = 1  # the first trial has a GPU for itself, and is measured
    if gpu and not any(node.gpus for node in allocation.nodes):
        if allocation.job_id is not None:
            raise RaysweepError(
                f"trial_resources.gpu is {gpu}, but Slurm gave job {allocation.job_id} no GPU. Ask for one (allocation.gpus_per_node), or for none"
            )
        logger.info("There is no GPU here: the trials run on the CPU.")
        gpu = 0
    most_cpus, most_gpus = max(node.cpus for node in allocation.nodes), max(node.gpus for node in allocation.nodes)
    if cpu > most_cpus:
        raise RaysweepError(
            f"trial_resources.cpu is {cpu}, but "
            + (
                f"Slurm gave job {allocation.job_id} {most_cpus} CPUs a node. Ask for less, or for more (allocation.cpus_per_node)"
                if allocation.job_id is not None
                else f"this run has {most_cpus} CPUs (the least of allocation.cpus_per_node, --cores and the machine)."
                " Ask for less, or run with more --cores"
            )
        )
    if gpu > most_gpus:
        raise RaysweepError(f"trial_resources.gpu is {gpu}, but this run has {most_gpus} GPUs. Ask for less")
    return TrialResources(cpu, gpu)
