"""Reads which nodes a sweep may use, and which share of each node. The nodes are this machine or the nodes of the Slurm job of this process.

No other module reads the variables `SLURM_*`. Snakemake's jobstep plugin deletes most of these variables before the rule runs. This module therefore asks
`scontrol` for the nodes, CPUs, GPUs, memory and end time of the job.
"""

from __future__ import annotations

import datetime
import math
import os
import re
import shlex
import socket
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from raysweep.common.capacity import TrialResources, capacity
from raysweep.common.errors import RaysweepError, WorldError, logger
from raysweep.common.gpus import usable_gpus
from raysweep.common.machine import NodeSize, usable_cpus
from raysweep.config.model import AllocationConfig, SweepConfig
from raysweep.slurm.commands import SLURM_DEADLINE_S, field_of, hostnames, node_addresses, on_each_node, restarts_in, scontrol
from raysweep.slurm.queries import is_headless

# Maps each field of SlurmVariables to the name of an environment variable.
VARIABLES = {
    "job_id": "SLURM_JOB_ID",
    "cluster": "SLURM_CLUSTER_NAME",
    "rank": "SLURM_PROCID",
    "local_dir": "SLURM_TMPDIR",
    "submit_host": "SLURM_SUBMIT_HOST",
    "array": "SLURM_ARRAY_JOB_ID",
    "array_task": "SLURM_ARRAY_TASK_ID",
}
# The Slurm variables that a program of the user may see.
VISIBLE_VARIABLES = ("SLURM_JOB_ID", "SLURM_TMPDIR", "SLURM_CONF")
# The states in which a job has not ended and still has its nodes.
ALIVE_STATES = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "CONFIGURING", "SIGNALING", "STAGE_OUT")


@dataclass(frozen=True)
class SlurmVariables:
    """Contains the Slurm variables in the environment of this process. The value None means that the variable is not set."""

    job_id: str | None
    cluster: str | None
    rank: str | None  # number of this process among the tasks of `srun`, from 0
    local_dir: str | None  # a folder on a disk of this node
    submit_host: str | None  # the machine from which the job was submitted
    array: str | None  # id of the job array that the job belongs to
    array_task: str | None  # number of the job in the job array

    @classmethod
    def read(cls) -> SlurmVariables:
        """Return the present values of the variables."""
        return cls(**{field: os.environ.get(variable) for field, variable in VARIABLES.items()})

    @property
    def job(self) -> str | None:
        """Return the id by which Slurm's programs find only the job of this process.

        One job of a job array has the id of the array as its own id. With this id, Slurm's programs find all jobs of the array.
        """
        return self.job_id if self.array is None else f"{self.array}_{self.array_task}"


def export_of_slurm_conf() -> list[str]:
    """Return the shell commands that set SLURM_CONF to the present value, or no command where the variable is not set."""
    conf = os.environ.get("SLURM_CONF")
    return [] if conf is None else [f"export SLURM_CONF={shlex.quote(conf)}"]


@dataclass(frozen=True)
class Node:
    """Describes a node of the allocation, with the CPUs, GPUs and memory of the node that the sweep may use."""

    name: str
    cpus: int
    gpus: int
    mem_mb: int
    address: str | None = None  # network address of the node for the other nodes; None without Slurm, where there is only this machine

    @property
    def size(self) -> NodeSize:
        """Return the name, the CPUs and the GPUs of the node, which the record stores."""
        return NodeSize(self.name, self.cpus, self.gpus)


@dataclass(frozen=True)
class Allocation:
    """Describes the nodes that Ray may use.

    The workflow passes the numbers of CPUs and GPUs to Ray, because Ray would otherwise use the whole machines.
    """

    nodes: tuple[Node, ...]
    job_id: str | None = None  # id of the Slurm job; None where the sweep runs without Slurm
    restarts: int = 0  # number of times that Slurm has started the job again
    started: float | None = None  # time at which the job started, in seconds since the epoch
    ends: float | None = None  # time at which Slurm will end the job, in seconds since the epoch
    cluster: str | None = None  # name of the job's Slurm cluster
    array: str | None = None  # id of the job array that contains all jobs of the sweep; None where the sweep has one job
    job_number: str | None = None  # the number of the job, which `srun` needs in place of `job_id` for a job of a job array

    @classmethod
    def local(cls, wanted: AllocationConfig, threads: int) -> Allocation:
        """Return the allocation that consists of this machine.

        The CPUs are the smallest of the config's number, of Snakemake's `threads` and of the machine's number. GPUs and memory are the smaller of the
        config's number and of the machine's number.
        """
        node = Node(
            name=socket.gethostname(),
            cpus=min(wanted.cpus_per_node, threads, usable_cpus()),
            gpus=min(wanted.gpus_per_node, usable_gpus()) if wanted.gpus_per_node else 0,
            mem_mb=min(wanted.mem_mb_per_node, available_mem_mb()),
        )
        return cls((node,))

    @classmethod
    def of_slurm(cls) -> Allocation:
        """Return the nodes that Slurm gave to the job of this process. The numbers of the config do not count.

        Raises:
            RaysweepError: This process does not run in a Slurm job.
            WorldError: Slurm does not answer, or Slurm does not name the job's nodes.
        """
        variables = SlurmVariables.read()
        job_id = variables.job
        if job_id is None:
            raise RaysweepError(
                f"this rule runs as a job, but not one of Slurm: {VARIABLES['job_id']} is not set. Use --executor slurm, or no executor"
            )
        job = scontrol("show", "job", "-d", job_id)
        nodes = nodes_of_job(job)
        if not nodes:
            raise WorldError(f"Slurm does not say which nodes job {job_id} has: {' '.join(job.split())[:300]}")
        return cls(
            nodes,
            job_id=job_id,
            restarts=restarts_in(job),
            started=_seconds_since_epoch(field_of(job, "StartTime")),
            ends=_seconds_since_epoch(field_of(job, "EndTime")),
            cluster=variables.cluster,
            array=variables.array,
            job_number=variables.job_id,
        )

    @property
    def slurm_job(self) -> SlurmJob | None:
        """Return the Slurm job of the allocation, or None where the sweep runs without Slurm."""
        return None if self.job_id is None else SlurmJob(self.job_id, self.cluster, self.restarts)

    def command(self, argv: list[str]) -> list[str]:
        """Return the command that runs `argv` once on each node. Without Slurm, this command is `argv`."""
        return argv if self.job_id is None else on_each_node(argv, len(self.nodes), self.nodes[0].cpus)

    def neighbour(self) -> Node | None:
        """Return another node of the partition of this job, or None where the partition has no other node."""
        partition = scontrol("show", "partition", field_of(scontrol("show", "job", str(self.job_id)), "Partition"))
        own = {node.name for node in self.nodes}
        name = next((name for name in hostnames(field_of(partition, "Nodes")) if name not in own), None)
        return None if name is None else Node(name, cpus=0, gpus=0, mem_mb=0, address=node_addresses(name)[name])

    def present_end(self) -> float | None:
        """Return the time at which Slurm will now end the job, or None where the job has no end. Raises WorldError where Slurm does not answer."""
        return _seconds_since_epoch(field_of(scontrol("show", "job", str(self.job_id)), "EndTime"))

    def start_again(self) -> None:
        """Ask Slurm to end this job and to start the job again with the present job id. This method does not return, because Slurm ends this process.

        Raises:
            WorldError: Slurm has not ended the job within SLURM_DEADLINE_S seconds.
        """
        scontrol("requeue", str(self.job_id))
        time.sleep(SLURM_DEADLINE_S)
        raise WorldError(f"Slurm was asked to start job {self.job_id} again, but does not end it")

    def has_expired(self) -> bool:
        """Return whether the time of the Slurm job is over."""
        return self.ends is not None and time.time() >= self.ends

    def why_interrupted(self) -> str:
        """Return a message for the user that says why this process was probably interrupted."""
        if self.job_id is None:
            return "Interrupted."
        if self.ends is not None and time.time() > self.ends - 60:
            return (
                f"Slurm ended job {self.job_id} at its time limit. What is finished is in the record: run the same command again to go on,"
                " with a longer runtime (allocation.runtime, confirm.runtime) if you like"
            )
        return f"Slurm job {self.job_id} was cancelled or preempted. What is finished is in the record: run the same command again to go on"


def nodes_of_job(job: str) -> tuple[Node, ...]:
    """Return the nodes in the output of `scontrol show job -d`, in the order in which `srun` numbers the tasks."""
    cpus_per_task = field_of(job, "CPUs/Task")
    cpus = int(cpus_per_task) if cpus_per_task.isdigit() else 1  # Slurm prints N/A where a task has one CPU
    nodes = []
    for nodelist, mem_mb, gres in re.findall(r"^\s+Nodes=(\S+) CPU_IDs=\S* Mem=(\d+) GRES=(\S*)", job, re.MULTILINE):
        gpus = sum(int(number) for number in re.findall(r"(?:^|,)gpu(?::[^:(,]+)?:(\d+)", gres))
        addresses = node_addresses(nodelist)
        # Mem=0 means that Slurm does not allocate memory on this cluster.
        nodes += [Node(name, cpus, gpus, int(mem_mb) or available_mem_mb(), addresses[name]) for name in hostnames(nodelist)]
    if nodes:
        order = hostnames(field_of(job, "NodeList"))
        nodes.sort(key=lambda node: order.index(node.name))
    return tuple(nodes)


@dataclass(frozen=True)
class Deadline:
    """Contains two times near the end of a job, in seconds since the epoch. Both times are infinite where the job has no time limit."""

    near: float = math.inf  # after this time no trial begins, and each running trial ends with its next checkpoint
    # At this time the driver ends the remaining trials, because the end of the driver and the restart of the job take some time.
    here: float = math.inf

    @classmethod
    def of(cls, started: float | None, ends: float | None, margin_s: float) -> Deadline:
        """Return the deadline that is `margin_s` seconds before the end of the job, but never in the first half of the job.

        Without `started` or `ends` the job has no time limit.
        """
        if started is None or ends is None:
            return cls()
        margin_s = min(margin_s, (ends - started) / 2)
        return cls(ends - margin_s, ends - min(60, margin_s / 2))

    @classmethod
    def early(cls, ends: float) -> Deadline:
        """Return the deadline of a job that Slurm will end early, at the time `ends`. No trial may begin any more."""
        now_s = time.time()
        return cls(now_s, ends - min(60, (ends - now_s) / 2))

    def is_near(self) -> bool:
        """Return whether the time `near` has passed, so that no trial may begin."""
        return time.time() >= self.near

    def is_here(self) -> bool:
        """Return whether the time `here` has passed, so that the driver must end all trials."""
        return time.time() >= self.here


@dataclass(frozen=True)
class Task:
    """Describes this process as one of the tasks that `srun` started."""

    rank: int  # number of the task, from 0
    local_dir: Path  # a folder on a disk of this node

    @classmethod
    def current(cls, in_slurm: bool) -> Task:
        """Return the task of this process. Without Slurm this process is the only task and has the rank 0.

        Raises:
            WorldError: `in_slurm` is True, but `srun` did not start this process.
        """
        if not in_slurm:
            return cls(0, Path(tempfile.gettempdir()))
        rank = SlurmVariables.read().rank
        if rank is None:
            raise WorldError(f"this process is no task of srun: {VARIABLES['rank']} is not set")
        return cls(int(rank), local_dir_of_job())


def local_dir_of_job() -> Path:
    """Return a folder on a disk of this node, which the Slurm job of this process may use."""
    local_dir = SlurmVariables.read().local_dir
    return Path(local_dir if local_dir is not None and os.path.isdir(local_dir) else tempfile.gettempdir())


@dataclass(frozen=True)
class SlurmJob:
    """Identifies a Slurm job. The lock file of a sweep contains this identification."""

    id: str
    cluster: str | None
    restarts: int  # number of times that Slurm has started the job again

    @classmethod
    def current(cls) -> SlurmJob | None:
        """Return the Slurm job of this process, or None where this process does not run in a Slurm job."""
        variables = SlurmVariables.read()
        job_id = variables.job
        return None if job_id is None else cls(job_id, variables.cluster, restarts_in(scontrol("show", "job", job_id)))

    def is_over(self) -> bool:
        """Return whether the job has ended or was started again since this object was created. Return False where Slurm does not answer.

        A job that has lost its first node counts as ended, although Slurm lets it run, because the script of the job ran on this node. A job id that Slurm
        does not know counts as ended, because Slurm forgets old jobs. A job of another cluster counts as alive, because the Slurm of this cluster does not
        know that job and may use the job id for another job.
        """
        try:
            if self.cluster is not None and self.cluster != _cluster():
                return False
            job = scontrol("show", "job", self.id)
            state, first, nodes = (field_of(job, name) for name in ("JobState", "BatchHost", "NodeList"))
            is_lost = state == "RUNNING" and is_headless(first, nodes)
            is_over = restarts_in(job) > self.restarts or state not in ALIVE_STATES or is_lost
        except WorldError as error:
            # Slurm says that a job of a job array was not found while other jobs of the array are known.
            return "Invalid job id" in str(error) or "not found" in str(error)
        return is_over


def _cluster() -> str | None:
    return SlurmVariables.read().cluster or field_of(scontrol("show", "config"), "ClusterName")


def without_slurm(env: dict[str, str]) -> dict[str, str]:
    """Return a copy of `env` without Slurm's variables, for the programs of the user.

    A library that finds the variables of a job step would assume that its process is one of several tasks of a parallel program.
    """
    prefixes = ("SLURM", "SRUN_", "SBATCH_", "PMI_", "PMIX_", "PMI2_")
    return {key: value for key, value in env.items() if key in VISIBLE_VARIABLES or not key.startswith(prefixes)}


def without_slurm_job(env: dict[str, str]) -> dict[str, str]:
    """Return a copy of `env` without the variables of the job of this process, for an `srun` in another job."""
    return {key: value for key, value in without_slurm(env).items() if key == "SLURM_CONF" or not key.startswith("SLURM_")}


def forget_job_options() -> None:
    """Remove the variables with the options of this process's job, as Snakemake's jobstep plugin does.

    `srun` would read the options of the whole job, such as a number of tasks, beside the options of its command line.
    """
    kept = {*VISIBLE_VARIABLES, *VARIABLES.values()}
    for key in [key for key in os.environ if key.startswith(("SLURM_", "SRUN_", "SBATCH_")) and key not in kept]:
        del os.environ[key]


def submit_host() -> str | None:
    """Return the name of the machine from which the Slurm job was submitted, or None where this process does not run in a Slurm job."""
    return SlurmVariables.read().submit_host


def _seconds_since_epoch(text: str) -> float | None:
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:  # Slurm prints "Unknown" or "N/A" where there is no time
        return None


def available_mem_mb() -> int:
    """Return the memory in MB that a new program can use.

    The value is the smaller of the kernel's available memory and the memory that is left below the limit of the control group.
    """
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
    """Return the CPUs and GPUs that a trial uses. If this run has no Slurm job and no GPU, trials run on the CPU, and a log line tells the user.

    Raises:
        RaysweepError: No node has enough CPUs or GPUs for a trial.
    """
    cpu, gpu, workers = sweep.trial_resources.cpu, sweep.trial_resources.gpu, sweep.trial_resources.workers
    if gpu == "auto":
        gpu = 1  # the first trial uses a whole GPU, so that the driver can measure the trial's GPU memory
    if (gpu or (workers and workers.gpu)) and not any(node.gpus for node in allocation.nodes):
        if allocation.job_id is not None:
            name, number = ("gpu", gpu) if gpu or workers is None else ("workers.gpu", workers.gpu)
            raise RaysweepError(
                f"trial_resources.{name} is {number}, but Slurm gave job {allocation.job_id} no GPU."
                " Ask for one (allocation.gpus_per_node), or for none"
            )
        logger.info("There is no GPU here: the trials run on the CPU.")
        gpu, workers = 0, workers and replace(workers, gpu=0)
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
    resources = TrialResources(cpu, gpu, workers)
    if workers and not capacity((node.size for node in allocation.nodes), resources):
        nodes = ", ".join(f"{node.name} with {node.cpus} CPUs and {node.gpus} GPUs" for node in allocation.nodes)
        source = f"Slurm gave job {allocation.job_id}" if allocation.job_id is not None else "this run has"
        raise RaysweepError(
            f"trial_resources.workers is {workers}, but {source} {nodes}, which hold no trial of {cpu:g} CPUs and {gpu:g} GPUs with these workers."
            " Ask for less, or for more (allocation)"
        )
    return resources
