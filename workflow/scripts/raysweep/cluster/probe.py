"""What the nodes of a job are like: each looks at itself and at the others, in the controller's Python.

`srun` starts look_at_node on each node; they talk through its standard input and output, a line of JSON each:

    to the nodes    {"nodes": […], "nonce": …, "shared_dir": …, "env_dir": …}
                    {"addresses": {rank: [ip, port]}}      where those who answered listen
                    (end of file)                          it is over
    from the nodes  {"rank": …, and what it found of itself}
                    {"rank": …, "unreachable": {rank: why}}
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import psutil

from raysweep.cluster.agent import object_store_mb, own_address
from raysweep.common.errors import RaysweepError, WorldError
from raysweep.common.files import written_aside
from raysweep.common.gpus import usable_gpus, visible_gpus
from raysweep.environment.manifest import Environment
from raysweep.slurm.allocation import Allocation, Node, Task
from raysweep.slurm.commands import ended_tasks
from raysweep.usercode.target import SCRIPTS_DIR

logger = logging.getLogger("raysweep")

Facts = dict[str, Any]

SHARED_DEADLINE_S = 60  # as `latency-wait` in the profile: Snakemake gives up after that, too
ANSWER_DEADLINE_S = 180  # modules and a Python on a slow file system, and SHARED_DEADLINE_S
CONNECT_DEADLINE_S = 5
CONNECTIONS = 16  # at a time


# ---------------------------------------------------------------------------------------------------------------- on each node


def look_at_node(told: IO[str], tell: IO[str], in_slurm: bool) -> None:
    """Runs on a node: say what it is like, then which of the others cannot be reached from it."""
    start = json.loads(told.readline())
    nodes = [Node(**node) for node in start["nodes"]]
    task = Task.current(in_slurm)

    def say(**facts: Any) -> None:
        print(json.dumps({"rank": task.rank, **facts}), file=tell, flush=True)

    with written_aside(Path(start["shared_dir"]) / str(task.rank)) as stream:
        stream.write(start["nonce"])
    with socket.socket() as listener:
        facts = facts_of_node(nodes[task.rank], task.local_dir) | {
            "shared_s": seen_after_s([Path(start["shared_dir"]) / "first"], start["nonce"])[0],
            "python": python_of(Path(start["env_dir"])),
        }
        try:
            own = own_address(nodes, task.rank)
            listener.bind((own, 0))
            listener.listen(len(nodes))
            facts["address"] = [own, listener.getsockname()[1]]
        except (WorldError, OSError) as error:
            facts["no_address"] = str(error)
        say(**facts)
        addresses = json.loads(told.readline() or "{}").get("addresses", {})
        say(unreachable=unreachable({rank: address for rank, address in addresses.items() if int(rank) != task.rank}))
        told.read()  # the others may still be connecting


def facts_of_node(node: Node, local_dir: Path) -> Facts:
    """What is asked of this node alone. Free space in MB, numbers of what the user may have and has (None: no limit)."""
    disk = os.statvfs(local_dir)
    shm = Path("/dev/shm")
    gpus_seen, gpus_said = visible_gpus() if node.gpus else (0, "")
    return {
        "local_dir": str(local_dir),
        "local_type": type_of_disk(local_dir),
        "local_free_mb": disk.f_bavail * disk.f_frsize // 2**20,
        "local_noexec": bool(disk.f_flag & os.ST_NOEXEC),
        "local_writable": os.access(local_dir, os.W_OK),
        "shm_free_mb": shutil.disk_usage(shm).free // 2**20 if shm.is_dir() else None,
        "store_mb": object_store_mb(node),
        "open_files": [None if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(resource.RLIMIT_NOFILE)],
        "threads": room_for_threads(),
        "gpus_named": usable_gpus() if node.gpus else 0,
        "gpus_seen": gpus_seen,
        "gpus_said": gpus_said,
    }


def type_of_disk(path: Path) -> str:
    """Type of the file system that a folder lies on, such as ext4, tmpfs or lustre."""
    mounts = {
        Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)
    }  # of several in one place the last is seen
    return next((mounts[folder] for folder in (path.resolve(), *path.resolve().parents) if folder in mounts), "unknown")


def room_for_threads() -> int | None:
    """How many more threads this user may start on this node; None where nothing limits them. Linux counts threads as processes."""
    room = []
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if limit != resource.RLIM_INFINITY and os.getuid() != 0:  # root is not bound by it
        used = sum(p.info["num_threads"] or 0 for p in psutil.process_iter(["uids", "num_threads"]) if p.info["uids"].real == os.getuid())
        room.append(limit - used)
    own = Path("/proc/self/cgroup")
    path = (
        next((line.removeprefix("0::") for line in own.read_text().splitlines() if line.startswith("0::")), None) if own.exists() else None
    )
    if path is not None:
        group = Path("/sys/fs/cgroup") / path.strip("/")
        for folder in (group, *group.parents):
            limits = folder / "pids.max"
            if limits.is_file() and (most := limits.read_text().strip()).isdigit():
                room.append(int(most) - int((folder / "pids.current").read_text()))
    return min(room, default=None)


def python_of(env_dir: Path) -> Facts:
    """Whether the Python under the node environment runs here as it does where that was built."""
    try:
        environment = Environment.load(env_dir)
        environment.check_python()
    except RaysweepError as error:
        return {"wrong": str(error)}
    return {"version": environment.python_version}


def seen_after_s(paths: list[Path], nonce: str) -> list[float | None]:
    """After how many seconds each file is seen here with its content; None where it is not within the deadline."""
    began = time.monotonic()
    found: dict[Path, float] = {}
    while len(found) < len(paths) and time.monotonic() < began + SHARED_DEADLINE_S:
        for path in paths:
            with contextlib.suppress(OSError):
                if path not in found and path.read_text() == nonce:
                    found[path] = time.monotonic() - began
        time.sleep(0.05)  # file systems that are shared offer no event for it
    return [found.get(path) for path in paths]


def unreachable(addresses: dict[str, list[Any]]) -> dict[str, str]:
    """Which of the addresses do not accept a connection, and why."""

    def attempt(address: list[Any]) -> str | None:
        try:
            with socket.create_connection((address[0], address[1]), timeout=CONNECT_DEADLINE_S):
                return None
        except OSError as error:
            return error.strerror or str(error)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        why = dict(zip(addresses, pool.map(attempt, addresses.values()), strict=True))
    return {rank: reason for rank, reason in why.items() if reason is not None}


# ---------------------------------------------------------------------------------------------------------------- on the first node


def probe(allocation: Allocation, env_dir: Path, shared_dir: Path) -> tuple[dict[str, Facts], str]:
    """The facts of each node that answers (see facts_of_node, look_at_node), `gone` of one whose task has ended, and what srun said.

    `shared_dir` is a new folder for files by which the nodes see whether they share it.
    """
    nonce = os.urandom(8).hex()
    (shared_dir / "first").write_text(nonce)
    names = [node.name for node in allocation.nodes]
    heard: dict[str, Facts] = {}
    with _probes(allocation) as (process, messages, words):
        assert process.stdin

        def say(message: dict[str, Any]) -> None:
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps(message), file=process.stdin, flush=True)

        def hear(key: str, waited_for: set[str], deadline_s: float) -> None:
            """Until each of the nodes has said `key` or has gone, or time is up."""
            end = time.monotonic() + deadline_s
            while any(not heard.get(name, {}).keys() & {key, "gone"} for name in waited_for) and (left_s := end - time.monotonic()) > 0:
                try:
                    message = messages.get(timeout=left_s)
                except queue.Empty:
                    return
                if message is None:
                    return
                heard.setdefault(names[message.pop("rank")], {}).update(message)

        start = {"nonce": nonce, "shared_dir": str(shared_dir.absolute()), "env_dir": str(env_dir.absolute())}
        say(start | {"nodes": [asdict(node) for node in allocation.nodes]})
        hear("shared_s", set(names), ANSWER_DEADLINE_S)
        sharing = [name for name, facts in heard.items() if facts.get("shared_s") is not None]
        seen = seen_after_s([shared_dir / str(names.index(name)) for name in sharing], nonce)
        for name in heard:
            heard[name]["seen_s"] = dict(zip(sharing, seen, strict=True)).get(name)
        say({"addresses": {names.index(name): facts["address"] for name, facts in heard.items() if "address" in facts}})
        hear("unreachable", set(heard), CONNECT_DEADLINE_S * (1 + len(names) / CONNECTIONS) + CONNECT_DEADLINE_S)
    return heard, " | ".join(words[-3:])


@contextlib.contextmanager
def _probes(allocation: Allocation) -> Iterator[tuple[subprocess.Popen[str], queue.Queue[dict[str, Any] | None], list[str]]]:
    """look_at_node, running on each node: the process that carries its messages, those, and what else that process says."""
    argv = [sys.executable, str(SCRIPTS_DIR / "probe_node.py"), "slurm" if allocation.job_id else "local"]
    messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
    words: list[str] = []

    def listen(stream: IO[str]) -> None:
        for line in stream:
            try:
                messages.put(json.loads(line))
            except ValueError:  # a site's own prolog
                logger.debug("%s", line.strip())
        messages.put(None)

    def note(stream: IO[str]) -> None:
        for line in stream:
            logger.debug("%s", line.strip())
            words.append(line.strip())
            for rank in ended_tasks(line):
                messages.put({"rank": rank, "gone": True})

    pipe = subprocess.PIPE
    process = subprocess.Popen(allocation.command(argv), stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace")
    readers = [threading.Thread(target=read, args=(stream,)) for read, stream in ((listen, process.stdout), (note, process.stderr))]
    for reader in readers:
        reader.start()
    try:
        yield process, messages, words
    finally:
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(CONNECT_DEADLINE_S)
        except subprocess.TimeoutExpired:  # a node that hangs
            process.kill()
            process.wait()
        for reader in readers:
            reader.join()
