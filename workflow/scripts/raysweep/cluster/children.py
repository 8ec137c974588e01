"""This module starts and ends the child processes of an agent, and makes signals end the agent through its `finally` blocks.

The controller's Python runs this module.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TypeVar

import psutil

from raysweep.common.errors import WorldError, logger

T = TypeVar("T")

# Beginnings of the titles of processes that Ray starts without a trial. Seen in Ray 2.53 and 2.60.
RAYS_OWN_PROCESSES = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # numbers of options of prctl(2) on Linux
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Time in seconds that a child has between SIGTERM and SIGKILL. The time is short because Slurm sends SIGKILL to the agent 30 s after SIGTERM (KillWait).
GRACE_S = 8


def _prctl(option: int, value: int) -> None:
    """Call prctl(2) for this process, or do nothing on systems other than Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def _end_with_parent() -> None:
    """Ask the kernel to end this process when the parent process is killed. This function runs in the child process, before exec."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Children:
    """Starts and ends the child processes of this agent. Each child runs in a new session, so that a Ctrl-C in the terminal reaches only the agent."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[bytes]] = []
        # Some processes that Ray starts live for a moment longer than their parent process. This call lets the kernel make such processes children of this
        # agent, so that the agent can end these processes.
        _prctl(PR_SET_CHILD_SUBREAPER, 1)

    def start(self, argv: list[str], env: dict[str, str], log: Path, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        """Start the command `argv` with the environment variables `env`. The output of the process is appended to the file `log`."""
        with log.open("ab") as stream:
            process = subprocess.Popen(
                argv,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                pass_fds=pass_fds,
                preexec_fn=_end_with_parent,
            )
        self.running.append(process)
        return process

    def end(self) -> None:
        """End the children with SIGTERM, and with SIGKILL after GRACE_S seconds. Then kill all remaining processes that the children started.

        The child that was started first ends first. The agent starts the driver before Ray, because the driver must end before Ray.
        """
        deadline = time.monotonic() + GRACE_S
        for process in self.running:
            process.terminate()
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        self.running.clear()
        self.kill_orphans()

    def kill_orphans(self) -> None:
        """Kill the processes that children have started and left behind. The children that still run keep their processes."""
        deadline = time.monotonic() + GRACE_S
        while (orphans := self.orphans()) and time.monotonic() < deadline:
            for orphan in orphans:
                with contextlib.suppress(psutil.NoSuchProcess):
                    orphan.kill()
            psutil.wait_procs(orphans, timeout=1)
        if orphans:  # a process can be stuck in the kernel, for example on a file system that hangs
            logger.warning("Processes that cannot be ended: %s.", ", ".join(str(process.pid) for process in orphans))

    def have_ray_actor(self) -> bool:
        """Return whether a process below this agent is an actor or a task of Ray. Ray's own actors on a node do not count.

        Ray writes the class of an actor into the title of the process.
        """
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                title = " ".join(process.cmdline())
                if title.startswith("ray::") and not title.startswith(RAYS_OWN_PROCESSES):
                    return True
        return False

    def orphans(self) -> list[psutil.Process]:
        """Return the processes below this agent that do not belong to a running child."""
        orphans: list[psutil.Process] = psutil.Process().children(recursive=True)
        for process in self.running:
            with contextlib.suppress(psutil.NoSuchProcess):
                child = psutil.Process(process.pid)
                kept = {child, *child.children(recursive=True)}
                orphans = [orphan for orphan in orphans if orphan not in kept]
        return orphans


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Make SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt inside the block, so that the `finally` blocks of this process run.

    Only the first signal raises KeyboardInterrupt, because a later signal must not interrupt the `finally` blocks. Where this process ignores SIGINT or
    SIGHUP already, this signal stays ignored, because `nohup`, or a shell that started the command in the background, has set this on purpose.
    """
    numbers = [number for number in ENDING_SIGNALS if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN]

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    handlers_before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers_before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay SIGINT, SIGTERM and SIGHUP until the end of the block."""
    pending: list[int] = []
    handlers_before = {number: signal.signal(number, lambda number, _: pending.append(number)) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers_before.items():
            signal.signal(number, handler)
    for late in pending:  # sends all delayed signals, because this process may ignore the first signal
        os.kill(os.getpid(), late)


def tail_of(log: Path) -> str:
    """Return the last three lines of a program's log as one line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    return " | ".join(lines[-3:]) or "it wrote nothing"


def wait_until_up(
    get_result: Callable[[], T | None], process: subprocess.Popen[bytes], name: str, log: Path, began_at_s: float, deadline_s: float
) -> T:
    """Call `get_result` again and again, and return the first result that is not None.

    Raises WorldError, with the last lines of `log`, when `process` ends before there is a result, or when there is no result within `deadline_s` seconds
    after `began_at_s` (`time.monotonic()`). `name` names the process in the message.
    """
    while True:
        if (result := get_result()) is not None:
            return result
        if process.poll() is not None or time.monotonic() > began_at_s + deadline_s:
            end = f"is not up after {deadline_s:.0f} s" if process.poll() is None else f"ended with exit code {process.returncode}"
            raise WorldError(f"{name} {end}: {tail_of(log)}")
        time.sleep(0.05)  # polling is necessary, because Ray only writes a file when Ray is up, and offers no event
