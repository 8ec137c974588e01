"""What a sweep may use: the nodes, and what it may take of each. Here that is this machine; in a job of Slurm, what Slurm gave.

The only module that reads SLURM_* and asks Slurm about the job. Snakemake's jobstep plugin deletes most of those variables before the
rule runs, so what they would have said (nodes, CPUs, GPUs, memory, end) is asked of `scontrol`.
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import socket
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raysweep.common.durations import minutes
from raysweep.common.errors import RaysweepError, WorldError
from raysweep.common.gpus import usable_gpus
from raysweep.common.machine import usable_cpus

logger = logging.getLogger("raysweep")
SLURM_DEADLINE_S = 120  # slurmctld may be restarted, or have much to do


@dataclass(frozen=True)
class Node:
    """A node of the allocation, and what of it is ours."""

    name: str
    cpus: int
    gpus: int
    mem_mb: int
    address: str | None = None  # by which the other nodes reach it; None where there are no others

    def as_dict(self) -> dict[str, Any]:
        """What the record says of it."""
        return {key: value for key, value in asdict(self).items() if key not in ("mem_mb", "address")}


@dataclass(frozen=True)
class Allocation:
    """The nodes that Ray may use. Ray sees whole machines, so it is told these numbers."""

    nodes: tuple[Node, ...]
    job_id: str | None = None  # of Slurm; None on this machine
    restarts: int = 0  # how often Slurm has started the job again
    started: float | None = None  # when the job began, in seconds since the epoch
    ends: float | None = None  # when Slurm will end it

    @classmethod
    def local(cls, wanted: dict[str, Any], threads: int) -> Allocation:
        """This machine: the smaller of what the config wants, of Snakemake's threads, and of what there is."""
        return cls(
            (
                Node(
                    name=socket.gethostname(),
                    cpus=min(wanted["cpus_per_node"], threads, usable_cpus()),
                    gpus=min(wanted["gpus_per_node"], usable_gpus()) if wanted["gpus_per_node"] else 0,
                    mem_mb=min(wanted["mem_mb_per_node"], available_mem_mb()),
                ),
            )
        )

    @classmethod
    def of_slurm(cls) -> Allocation:
        """What Slurm gave to the job that this process runs in, whatever the config asked for. Raises RaysweepError outside of a job."""
        job_id = os.environ.get("SLURM_JOB_ID")
        if job_id is None:
            raise RaysweepError(
                "this rule runs as a job, but not one of Slurm: SLURM_JOB_ID is not set. Use --executor slurm, or no executor"
            )
        job = scontrol("show", "job", "-d", job_id)
        cpus = int(_first(r"CPUs/Task=(\d+)", job) or 1)
        nodes = []
        for names, mem_mb, gres in re.findall(r"^\s+Nodes=(\S+) CPU_IDs=\S* Mem=(\d+) GRES=(\S*)", job, re.MULTILINE):
            gpus = sum(int(n) for n in re.findall(r"(?:^|,)gpu(?::[^:(,]+)?:(\d+)", gres))
            addresses = dict(re.findall(r"NodeName=(\S+).*?NodeAddr=(\S+)", scontrol("show", "node", names), re.DOTALL))
            # Where Slurm does not hand out memory it says 0.
            nodes += [
                Node(name, cpus, gpus, int(mem_mb) or available_mem_mb(), addresses[name])
                for name in scontrol("show", "hostnames", names).split()
            ]
        if not nodes:
            raise WorldError(f"Slurm does not say which nodes job {job_id} has: {' '.join(job.split())[:300]}")
        order = scontrol("show", "hostnames", _first(r"^\s+NodeList=(\S+)", job)).split()
        nodes.sort(key=lambda node: order.index(node.name))  # as srun numbers its tasks
        times = (_seconds_since_epoch(job, key) for key in ("StartTime", "EndTime"))
        return cls(tuple(nodes), job_id, restarts_of(job), *times)

    def command(self, argv: list[str]) -> list[str]:
        """How to run `argv` once on each node. Locally: just so."""
        if self.job_id is None:
            return argv
        number = len(self.nodes)
        return [
            "srun",
            "--overlap",  # the batch step holds the CPUs
            f"--nodes={number}",
            f"--ntasks={number}",
            "--ntasks-per-node=1",
            f"--cpus-per-task={self.nodes[0].cpus}",  # srun does not take it from the job
            "--mem=0",  # all that the job has; and all its GPUs, since nothing is said of them
            "--mpi=none",
            "--no-kill",  # a lost node ends its own part only
            "--kill-on-bad-exit=0",
            "--unbuffered",
            *argv,
        ]

    def start_again(self) -> None:
        """Have Slurm end this job and start it again under its id. Does not return. Raises WorldError when Slurm does not do so."""
        scontrol("requeue", str(self.job_id))
        time.sleep(SLURM_DEADLINE_S)
        raise WorldError(f"Slurm was asked to start job {self.job_id} again, but does not end it")

    def why_interrupted(self) -> str:
        """What may have ended this process from outside."""
        if self.job_id is None:
            return "Interrupted."
        if self.ends is not None and time.time() > self.ends - 60:
            return (
                f"Slurm ended job {self.job_id} at its time limit. What is finished is in the record: run the same command again to go on,"
                " with a longer runtime (allocation.runtime, confirm.runtime) if you like"
            )
        return f"Slurm job {self.job_id} was cancelled or preempted. What is finished is in the record: run the same command again to go on"


@dataclass(frozen=True)
class Deadline:
    """When the time of a job is nearly up, in seconds since the epoch."""

    near: float  # from then on no trial begins, and each ends with its next checkpoint
    here: float  # then the others are ended, too, since it takes a while to end and to start again

    @classmethod
    def of(cls, started: float | None, ends: float | None, margin_s: float) -> Deadline | None:
        """`margin_s` before the end, but not in the first half of the job. None without a time limit."""
        if started is None or ends is None:
            return None
        margin_s = min(margin_s, (ends - started) / 2)
        return cls(ends - margin_s, ends - min(60, margin_s / 2))

    def is_near(self) -> bool:
        return time.time() >= self.near

    def is_here(self) -> bool:
        return time.time() >= self.here


@dataclass(frozen=True)
class Task:
    """This process's part of the allocation, as `srun` tells it."""

    rank: int
    local_dir: Path  # a folder on a disk of this node

    @classmethod
    def current(cls, in_slurm: bool) -> Task:
        local_dir = os.environ.get("SLURM_TMPDIR", "") if in_slurm else ""
        return cls(
            rank=int(os.environ["SLURM_PROCID"]) if in_slurm else 0,
            local_dir=Path(local_dir) if os.path.isdir(local_dir) else Path(tempfile.gettempdir()),
        )


def ended_tasks(line: str) -> list[int]:
    """The tasks of which srun says that they have failed, as in `srun: error: node[2-3]: tasks 1-2: Exited with exit code 2`."""
    told = re.match(r"srun: error: \S+: tasks? ([\d,-]+): ", line)
    spans = [span.split("-") for span in told[1].split(",")] if told else []
    return [rank for span in spans for rank in range(int(span[0]), int(span[-1]) + 1)]


def without_slurm(env: dict[str, str]) -> dict[str, str]:
    """An environment for programs of the user's: libraries that see a job step's variables take themselves for one task of many."""
    kept = ("SLURM_JOB_ID", "SLURM_TMPDIR", "SLURM_CONF")
    return {k: v for k, v in env.items() if k in kept or not k.startswith(("SLURM", "SRUN_", "SBATCH_", "PMI_", "PMIX_", "PMI2_"))}


def submit_host() -> str | None:
    """The machine from which the job was submitted."""
    return os.environ.get("SLURM_SUBMIT_HOST")


def this_job() -> dict[str, Any] | None:
    """The job of Slurm that this process runs in: its id, its cluster, and how often it was started again. None outside of one."""
    if (job_id := os.environ.get("SLURM_JOB_ID")) is None:
        return None
    return {"id": job_id, "cluster": os.environ.get("SLURM_CLUSTER_NAME"), "restarts": restarts_of(scontrol("show", "job", job_id))}


def is_over(job: dict[str, Any]) -> bool:
    """Whether a job, as this_job() gave it, has ended or was started again since. Slurm forgets old jobs. False where it cannot be asked.

    That of another cluster on the same file system cannot: here its number is no job's, or another one's.
    """
    try:
        if job["cluster"] is not None and job["cluster"] != _cluster():
            return False
        now = scontrol("show", "job", job["id"])
    except WorldError as error:
        return "Invalid job id" in str(error)
    state = _first(r"\bJobState=(\S+)", now)
    return restarts_of(now) > job["restarts"] or state not in (
        "RUNNING",
        "COMPLETING",
        "SUSPENDED",
        "STOPPED",
        "CONFIGURING",
        "SIGNALING",
        "STAGE_OUT",
    )


def _cluster() -> str | None:
    return os.environ.get("SLURM_CLUSTER_NAME") or _first(r"\bClusterName\s*=\s*(\S+)", scontrol("show", "config"))


def restarts_of(job: str) -> int:
    """By what scontrol shows of a job."""
    return int(_first(r"\bRestarts=(\d+)", job) or 0)


def slurm_extra(allocation: dict[str, Any], runtime: float | str) -> str:
    """What only the plugin's `slurm_extra` can tell `sbatch`. It is pasted into a shell line, so nothing but checked words and numbers gets here."""
    words = ["--ntasks-per-node=1", "--no-kill"]
    if allocation["gpus_per_node"]:
        gpu_type = f"{allocation['gpu_type']}:" if allocation["gpu_type"] else ""
        words.append(f"--gpus-per-node={gpu_type}{allocation['gpus_per_node']}")
    if allocation["max_wait"] is not None:
        # Slurm removes a job that can no longer end before its deadline, hence the time it may take as well.
        words.append(f"--deadline=now+{minutes(allocation['max_wait']) + minutes(runtime)}minutes")
    return " ".join(words)


def scontrol(*arguments: str) -> str:
    """What `scontrol` prints. Asks again while slurmctld is away; raises WorldError when it stays so."""
    end = time.monotonic() + SLURM_DEADLINE_S
    while True:
        try:
            run = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=SLURM_DEADLINE_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise WorldError(f"`scontrol {' '.join(arguments)}` does not work on {socket.gethostname()}: {error}") from None
        if run.returncode == 0:
            return run.stdout
        if "Unable to contact" not in run.stderr or time.monotonic() > end:
            raise WorldError(f"`scontrol {' '.join(arguments)}` fails on {socket.gethostname()}: {' '.join(run.stderr.split())}")
        time.sleep(2)  # Slurm offers no event for its controller's return


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else ""


def _seconds_since_epoch(job: str, key: str) -> float | None:
    text = _first(rf"\b{key}=(\S+)", job)
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


def trial_resources(sweep: dict[str, Any], allocation: Allocation) -> dict[str, float]:
    """What a trial takes here. Without a GPU on this machine trials run on the CPU, and a line says so.

    Raises RaysweepError when no node can hold a trial.
    """
    wanted = dict(sweep["trial_resources"])
    if wanted["gpu"] == "auto":
        wanted["gpu"] = 1  # of the first trial; see bookkeeping.py
    if wanted["gpu"] and not any(node.gpus for node in allocation.nodes):
        if allocation.job_id is not None:
            raise RaysweepError(
                f"trial_resources.gpu is {wanted['gpu']}, but Slurm gave job {allocation.job_id} no GPU. Ask for one (allocation.gpus_per_node), or for none"
            )
        logger.info("There is no GPU here: the trials run on the CPU.")
        wanted["gpu"] = 0
    most_cpus, most_gpus = (max(getattr(node, key) for node in allocation.nodes) for key in ("cpus", "gpus"))
    if wanted["cpu"] > most_cpus:
        raise RaysweepError(
            f"trial_resources.cpu is {wanted['cpu']}, but "
            + (
                f"Slurm gave job {allocation.job_id} {most_cpus} CPUs a node. Ask for less, or for more (allocation.cpus_per_node)"
                if allocation.job_id is not None
                else f"this run has {most_cpus} CPUs (the least of allocation.cpus_per_node, --cores and the machine)."
                " Ask for less, or run with more --cores"
            )
        )
    if wanted["gpu"] > most_gpus:
        raise RaysweepError(f"trial_resources.gpu is {wanted['gpu']}, but this run has {most_gpus} GPUs. Ask for less")
    return wanted
