"""This module defines the measurements of a node for check_cluster, and the messages between the probes and the first node.

probe_node.py runs once on each node and sends the measurements. probe.py runs on the first node of the job and receives the measurements.
"""

from __future__ import annotations

import os
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import psutil

from raysweep.cluster.channel import read_message
from raysweep.cluster.ray_node import object_store_mb
from raysweep.common.errors import RaysweepError
from raysweep.common.gpus import usable_gpus, visible_gpus
from raysweep.environment.commands import last_json, last_line, run_captured
from raysweep.environment.manifest import Environment
from raysweep.slurm.allocation import Node
from raysweep.usercode.target import SCRIPTS_DIR


@dataclass(frozen=True)
class LocalDisk:
    """Describes the folder for temporary files on a node, and the file system of this folder."""

    folder: Path
    filesystem: str  # type of the file system, such as ext4, tmpfs or lustre
    free_mb: int
    is_noexec: bool  # whether the mount option `noexec` forbids to run programs from the folder
    is_writable: bool

    @classmethod
    def measure(cls, folder: Path) -> LocalDisk:
        disk = os.statvfs(folder)
        return cls(
            folder=folder,
            filesystem=filesystem_type(folder),
            free_mb=disk.f_bavail * disk.f_frsize // 2**20,
            is_noexec=bool(disk.f_flag & os.ST_NOEXEC),
            is_writable=os.access(folder, os.W_OK),
        )


@dataclass(frozen=True)
class GpuCounts:
    """Contains the number of GPUs that variables such as CUDA_VISIBLE_DEVICES name, and the number of GPUs that the vendor's program lists.

    `description` says in words how many GPUs the program lists, or why the program lists none.
    """

    num_named: int
    num_listed: int
    description: str

    @classmethod
    def measure(cls) -> GpuCounts:
        return cls(usable_gpus(), *visible_gpus())


ASK_FOR_COMPILER = f"""
import json, sys
sys.path.insert(0, {str(SCRIPTS_DIR)!r})
from raysweep.common.compiler import default_compiler, reason_not_to_compile
print(json.dumps(reason_not_to_compile(default_compiler())))
"""


@dataclass(frozen=True)
class PythonStatus:
    """Contains the version of the Python that the node environment uses, or the reason why this Python does not run on the node."""

    version: str | None
    error: str | None = None
    reason_not_to_compile: str | None = None  # reason why extensions of this Python cannot be compiled

    @classmethod
    def measure(cls, env_dir: Path) -> PythonStatus:
        try:
            environment = Environment.load(env_dir)
            environment.check_python()
        except RaysweepError as error:
            return cls(None, str(error))
        run = run_captured(environment.command(["-c", ASK_FOR_COMPILER]))
        return cls(environment.python_version, None, last_json(run.stdout) if run.returncode == 0 else last_line(run.stderr))


@dataclass(frozen=True)
class NodeResources:
    """Contains the measurements that a node can make without other nodes."""

    local_disk: LocalDisk
    shm_free_mb: int | None  # free space of /dev/shm; None where /dev/shm does not exist
    object_store_mb: int  # size that Ray's object store would have
    open_files_soft: int | None  # soft limit of open files for a process of this user; None where there is no limit
    open_files_hard: int | None  # hard limit of open files; None where there is no limit
    threads_left: int | None  # number of threads that this user may still start; None where there is no limit
    gpus: GpuCounts | None  # None where the job has no GPU on this node

    @classmethod
    def measure(cls, node: Node, local_dir: Path) -> NodeResources:
        shm = Path("/dev/shm")
        soft, hard = (None if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
        return cls(
            local_disk=LocalDisk.measure(local_dir),
            shm_free_mb=shutil.disk_usage(shm).free // 2**20 if shm.is_dir() else None,
            object_store_mb=object_store_mb(node),
            open_files_soft=soft,
            open_files_hard=hard,
            threads_left=threads_left(),
            gpus=GpuCounts.measure() if node.gpus else None,
        )


def filesystem_type(path: Path) -> str:
    """Return the type of the file system that contains a folder, such as ext4, tmpfs or lustre."""
    # Where several file systems are mounted at the same path, only the last mount is visible. The dictionary keeps the last mount of each path.
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((mounts[folder] for folder in (path.resolve(), *path.resolve().parents) if folder in mounts), "unknown")


def threads_left() -> int | None:
    """Return how many more threads this user may start on this node, or None where there is no limit.

    The function reads the limit of the user (`ulimit -u`) and the limits of the control groups. Linux counts threads as
    processes, so both limits count threads.
    """
    amounts = []
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if limit != resource.RLIM_INFINITY and os.getuid() != 0:  # Linux does not apply this limit to root
        processes = psutil.process_iter(["uids", "num_threads"])
        amounts.append(limit - sum(p.info["num_threads"] or 0 for p in processes if p.info["uids"].real == os.getuid()))
    own = Path("/proc/self/cgroup")
    lines = own.read_text().splitlines() if own.exists() else []
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if path is not None:
        group = Path("/sys/fs/cgroup") / path.strip("/")
        for folder in (group, *group.parents):
            limit_file = folder / "pids.max"
            if limit_file.is_file() and (text := limit_file.read_text().strip()).isdigit():
                amounts.append(int(text) - int((folder / "pids.current").read_text()))
    return min(amounts, default=None)


# ---------------------------------------------------------------------------------------------------------------- messages


@dataclass(frozen=True)
class SocketAddress:
    """Describes an address that accepts TCP connections."""

    host: str
    port: int


@dataclass(frozen=True)
class ProbeStart:
    """Is the first message to each node.

    Each node writes the random text `nonce` to a file in `shared_dir`. The check then tests whether each
    node can read the file of the first node, and whether the first node can read the file of each node.
    """

    nodes: tuple[Node, ...]
    nonce: str
    shared_dir: Path
    env_dir: Path


# The second message to each node maps the rank of each node that listens for connections, as text, to the address of the node.
Listeners = dict[str, SocketAddress]


@dataclass(frozen=True)
class NodeReport:
    """Is the first message from a node, and contains the measurements of the node."""

    rank: int
    resources: NodeResources
    python: PythonStatus
    # Time in seconds until the node saw the first node's file. None where the node did not see the file within SHARED_DEADLINE_S.
    shared_file_seen_after_s: float | None
    address: SocketAddress | None  # address on which the node listens; None where listening failed
    address_error: str | None = None  # reason why listening failed
    kind: Literal["report"] = "report"


@dataclass(frozen=True)
class FailedConnections:
    """Is the second message from a node, and names the other nodes that did not accept a connection from this node."""

    rank: int
    reasons: dict[str, str]  # rank of the other node as text → reason of the failure
    kind: Literal["failed_connections"] = "failed_connections"


@dataclass(frozen=True)
class TaskEnded:
    """Tells that the task on a node has failed. The first node learns this from an error line of `srun`, because a dead task sends no message."""

    rank: int
    kind: Literal["task_ended"] = "task_ended"


NodeMessage = NodeReport | FailedConnections | TaskEnded


def read_node_message(line: str) -> NodeMessage | None:
    """Return the message that a line from a node contains, or None for any other line."""
    return cast(NodeMessage | None, read_message(NodeMessage, line))
