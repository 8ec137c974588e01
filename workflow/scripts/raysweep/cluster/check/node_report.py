"""What a node measures of itself, and the messages between the node (probe_node.py) and the first node of the job (probe.py)."""

from __future__ import annotations

import json
import os
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import psutil

from raysweep.cluster.ray_node import object_store_mb
from raysweep.common.errors import RaysweepError
from raysweep.common.gpus import usable_gpus, visible_gpus
from raysweep.common.typed_json import from_json
from raysweep.environment.manifest import Environment
from raysweep.slurm.allocation import Node


@dataclass(frozen=True)
class LocalDisk:
    """The folder for temporary files on a node, and its file system."""

    folder: Path
    filesystem: str  # such as ext4, tmpfs or lustre
    free_mb: int
    is_noexec: bool  # no program may be run from it
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
    """The GPUs that CUDA_VISIBLE_DEVICES names, and the GPUs that NVIDIA's driver lists; `description` holds the latter in words."""

    num_named: int
    num_listed: int
    description: str

    @classmethod
    def measure(cls) -> GpuCounts:
        return cls(usable_gpus(), *visible_gpus())


@dataclass(frozen=True)
class PythonStatus:
    """The version of the Python under the node environment, or why that Python does not run on the node."""

    version: str | None
    error: str | None = None

    @classmethod
    def measure(cls, env_dir: Path) -> PythonStatus:
        try:
            environment = Environment.load(env_dir)
            environment.check_python()
        except RaysweepError as error:
            return cls(None, str(error))
        return cls(environment.python_version)


@dataclass(frozen=True)
class NodeResources:
    """What one node can measure alone."""

    local_disk: LocalDisk
    shm_free_mb: int | None  # None: there is no /dev/shm
    object_store_mb: int
    open_files_soft: int | None  # limits of this user; None: no limit
    open_files_hard: int | None
    threads_left: int | None  # None: no limit
    gpus: GpuCounts | None  # None where the job asked for no GPU

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
    """Return the type of the file system that a folder lies on, such as ext4, tmpfs or lustre."""
    # Of several mounts at one place the last one is visible.
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((mounts[folder] for folder in (path.resolve(), *path.resolve().parents) if folder in mounts), "unknown")


def threads_left() -> int | None:
    """Return how many more threads this user may start on this node; None where nothing limits them. Linux counts threads as processes."""
    amounts = []
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if limit != resource.RLIM_INFINITY and os.getuid() != 0:  # the limit does not bind root
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
    """An address that accepts TCP connections."""

    host: str
    port: int


@dataclass(frozen=True)
class ProbeStart:
    """The first message to each node. Each node writes `nonce` to a file in `shared_dir`, by which the nodes see whether they share the folder."""

    nodes: tuple[Node, ...]
    nonce: str
    shared_dir: Path
    env_dir: Path
    kind: Literal["start"] = "start"


@dataclass(frozen=True)
class Listeners:
    """The second message to each node: where the nodes that have answered listen."""

    addresses: dict[str, SocketAddress]  # rank, as text → address
    kind: Literal["listeners"] = "listeners"


@dataclass(frozen=True)
class NodeReport:
    """The first message of a node."""

    rank: int
    resources: NodeResources
    python: PythonStatus
    shared_file_seen_after_s: float | None  # when the node saw the file that the first node wrote; None: not within the deadline
    address: SocketAddress | None  # where the node listens
    address_error: str | None = None  # why it does not listen
    kind: Literal["report"] = "report"


@dataclass(frozen=True)
class FailedConnections:
    """The second message of a node: the other nodes that do not accept a connection from it."""

    rank: int
    reasons: dict[str, str]  # rank of the other node, as text → reason
    kind: Literal["failed_connections"] = "failed_connections"


@dataclass(frozen=True)
class TaskEnded:
    """The task of a node has ended too early: `srun` says so, the node cannot."""

    rank: int
    kind: Literal["task_ended"] = "task_ended"


NodeMessage = NodeReport | FailedConnections | TaskEnded


def read_node_message(line: str) -> NodeMessage | None:
    """Return the message in a line from a node; None for any other line, such as a line that the prolog of a site prints."""
    try:
        return cast(NodeMessage, from_json(cast(Any, NodeMessage), json.loads(line)))
    except (ValueError, TypeError):
        return None
