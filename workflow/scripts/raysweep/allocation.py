"""What a sweep may use: the nodes, and what it may take of each. Here it is this machine."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import RaysweepError

logger = logging.getLogger("raysweep")


@dataclass(frozen=True)
class Node:
    """A node of the allocation, and what of it is ours."""

    name: str
    cpus: int
    gpus: int
    mem_mb: int

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "mem_mb"}


@dataclass(frozen=True)
class Allocation:
    """The nodes that Ray may use. Ray sees whole machines, so it is told these numbers."""

    nodes: tuple[Node, ...]

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


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_gpus() -> int:
    """NVIDIA GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


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
    if wanted["gpu"] and not any(node.gpus for node in allocation.nodes):
        logger.info("There is no GPU here: the trials run on the CPU.")
        wanted["gpu"] = 0
    most_cpus, most_gpus = (max(getattr(node, key) for node in allocation.nodes) for key in ("cpus", "gpus"))
    if wanted["cpu"] > most_cpus:
        raise RaysweepError(
            f"trial_resources.cpu is {wanted['cpu']}, but this run has {most_cpus} CPUs (the least of allocation.cpus_per_node, --cores and the machine)."
            " Ask for less, or run with more --cores"
        )
    if wanted["gpu"] > most_gpus:
        raise RaysweepError(f"trial_resources.gpu is {wanted['gpu']}, but this run has {most_gpus} GPUs. Ask for less")
    return wanted
