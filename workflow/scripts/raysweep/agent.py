"""The agent: starts Ray on its node, keeps what it started, and ends that and nothing else.

Ray's own ways out harm others: `ray stop` kills every Ray process of the machine by name, and a default cluster listens on fixed ports and
runs code for anyone who can reach them. So each Ray process here is a child of the agent in a session of its own, gets its ports from the
kernel, asks for a token that only this job knows, and keeps its files in a private folder that is gone at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from .allocation import Allocation, Node
from .environment import Environment
from .errors import RaysweepError, WorldError
from .sources import SCRIPTS_DIR

logger = logging.getLogger("raysweep")

HEAD_DEADLINE_S = 120
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of Linux, see prctl(2)
GRACE_S = 10  # between SIGTERM and SIGKILL
# Ray puts sockets below its folder, and the path of a socket ends at 107 bytes: 43 are left for the folder.
LONGEST_TEMP_DIR = 43
# Ray turns 127.0.0.1 into an address that the network can reach; the other loopback addresses, which Linux has, it takes as they are.
LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
OBJECT_STORE_SHARE = 0.1
LEAST_OBJECT_STORE_MB = 100


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this user can enter, on a local disk, with a path that is short enough for Ray; removed at the end."""
    for base in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(base)) + len("/rs-XXXXXXXX/ray") <= LONGEST_TEMP_DIR and Path(base).is_dir():
            break
    else:
        raise WorldError(f"no folder for temporary files with a path of at most {LONGEST_TEMP_DIR - 16} bytes: set TMPDIR to one")
    folder = Path(tempfile.mkdtemp(prefix="rs-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prctl(option: int, value: int) -> None:
    """Ask Linux for something about this process; elsewhere nothing is asked."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def _die_with_parent() -> None:
    """Runs in the child, before exec: the kernel is to end it when its agent is killed."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Children:
    """Processes that this agent started, each in a session of its own, so that a Ctrl-C in the terminal reaches the agent alone."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[bytes]] = []
        # Ray's processes start others that outlive them for a moment: those come to this process, which then ends them.
        _prctl(PR_SET_CHILD_SUBREAPER, 1)

    def start(self, argv: list[str], env: dict[str, str], log: Path, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        with log.open("ab") as stream:
            process = subprocess.Popen(
                argv,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                pass_fds=pass_fds,
                preexec_fn=_die_with_parent,
            )
        self.running.append(process)
        return process

    def end(self) -> None:
        """End them, the last started first, with SIGTERM, and after a while with SIGKILL; then whatever they started."""
        for process in reversed(self.running):
            process.terminate()
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()
        end = time.monotonic() + GRACE_S
        while (descendants := psutil.Process().children(recursive=True)) and time.monotonic() < end:
            for descendant in descendants:
                with contextlib.suppress(psutil.NoSuchProcess):
                    descendant.kill()
            psutil.wait_procs(descendants, timeout=1)
        if descendants:  # stuck in the kernel, on a dead file system for example
            logger.warning("Processes that cannot be ended: %s.", ", ".join(str(process.pid) for process in descendants))


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end this process as Ctrl-C does: through the `finally` blocks."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ray_environment(folder: Path) -> dict[str, str]:
    """The environment of every Ray process: the user's, without his own settings of Ray, and with ours."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "TUNE_", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"))
    }
    return kept | {
        "PYTHONPATH": str(SCRIPTS_DIR),
        "PYTHONUNBUFFERED": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without a GPU sees none
        "RAY_DEDUP_LOGS": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # else ending takes 30 s, and Slurm kills after 30
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
    }


def write_token(path: Path) -> None:
    """A fresh token, for this user's eyes."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(secrets.token_hex(32))


def object_store_mb(node: Node) -> int:
    """The size of Ray's object store: sweeps pass little through it, and it must fit into /dev/shm."""
    wanted = max(LEAST_OBJECT_STORE_MB, int(node.mem_mb * OBJECT_STORE_SHARE))
    shm = Path("/dev/shm")
    # Where /dev/shm cannot even hold the least, Ray puts the object store into a file.
    return min(wanted, max(LEAST_OBJECT_STORE_MB, shutil.disk_usage(shm).free // 2**20 // 2)) if shm.is_dir() else wanted


def head_command(environment: Environment, node: Node, temp_dir: Path) -> list[str]:
    """How to start Ray's head on this node for this machine alone."""
    store_mb = object_store_mb(node)
    return environment.command(
        [
            *("-m", "ray.scripts.scripts", "start", "--head", "--block"),
            f"--node-ip-address={LOOPBACK}",
            "--port=0",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--dashboard-agent-listen-port=0",
            "--include-dashboard=false",
            "--disable-usage-stats",
            f"--num-cpus={node.cpus}",
            f"--num-gpus={node.gpus}",
            f"--memory={max(1, node.mem_mb - store_mb) * 2**20}",
            f"--object-store-memory={store_mb * 2**20}",
            f"--temp-dir={temp_dir}",
        ]
    )


def wait_for(ready: Callable[[], Any], process: subprocess.Popen[bytes], what: str, log: Path, deadline_s: float) -> Any:
    """What `ready` returns once it returns something. Raises WorldError with the tail of the log when the process dies or time is up."""
    end = time.monotonic() + deadline_s
    while True:
        if found := ready():
            return found
        if process.poll() is not None or time.monotonic() > end:
            why = f"is not up after {deadline_s:.0f} s" if process.poll() is None else f"ended with exit code {process.returncode}"
            tail = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-3:]
            raise WorldError(f"{what} {why}: {' | '.join(tail) or 'it wrote nothing'}")
        time.sleep(0.05)  # Ray offers a file, and no event, that says it is up


def run(allocation: Allocation, environment: Environment, job: dict[str, Any], path_to_log: Path) -> int:
    """Bring Ray up, run the driver on it, take all down again; returns the driver's exit code."""
    (node,) = allocation.nodes
    path_to_log.parent.mkdir(parents=True, exist_ok=True)
    children = Children()
    with ended_by_signals(), private_folder() as folder:
        env = ray_environment(folder)
        write_token(folder / "token")
        temp_dir = folder / "ray"
        try:
            began = time.monotonic()
            head = children.start(head_command(environment, node, temp_dir), env, folder / "head.log")
            address_file = temp_dir / "ray_current_cluster"
            address = wait_for(
                lambda: address_file.exists() and address_file.read_text().strip(), head, "Ray's head", folder / "head.log", HEAD_DEADLINE_S
            )
            logger.info("Ray is up after %.1f s: %d CPUs, %d GPUs.", time.monotonic() - began, node.cpus, node.gpus)
            path_to_job = folder / "job.json"
            path_to_job.write_text(json.dumps({**job, "address": address, "nodes": [node.as_dict()]}))
            terminal = os.dup(sys.stderr.fileno())  # for what the user should see; Ray's and the trials' own output goes to the log
            try:
                argv = environment.command(
                    [str(SCRIPTS_DIR / "drive.py"), "--job", str(path_to_job), "--terminal-fd", str(terminal), "--log", str(path_to_log)]
                )
                driver = children.start(argv, env, path_to_log, pass_fds=(terminal,))
            finally:
                os.close(terminal)
            while True:
                try:
                    return driver.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    if head.poll() is not None:
                        raise RaysweepError(
                            f"Ray's head ended with exit code {head.returncode} in the middle: run the same command again to go on"
                        ) from None
        finally:
            children.end()
