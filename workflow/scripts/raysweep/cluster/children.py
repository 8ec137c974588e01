"""The child processes of an agent: how they are started, how they end, and which signals end the agent.

Runs in the controller's Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
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

from raysweep.common.errors import WorldError

logger = logging.getLogger("raysweep")

T = TypeVar("T")

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of Linux, see prctl(2)
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 8  # between SIGTERM and SIGKILL; Slurm itself kills 30 s after its SIGTERM (KillWait)


def _prctl(option: int, value: int) -> None:
    """Call prctl(2) for this process; do nothing on systems other than Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent is killed. Runs in the child, before exec."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Children:
    """The processes that this agent started, each in a session of its own, so that a Ctrl-C in the terminal reaches the agent alone."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[bytes]] = []
        # Ray's processes start processes that outlive them for a moment: the kernel then makes them children of this process, which ends them.
        _prctl(PR_SET_CHILD_SUBREAPER, 1)

    def start(self, argv: list[str], env: dict[str, str], log: Path, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        """Start `argv` with the environment `env`; its output is appended to the file `log`."""
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
        """End the children with SIGTERM, and after GRACE_S with SIGKILL; then end all processes that the children started."""
        deadline = time.monotonic() + GRACE_S
        for process in reversed(self.running):  # the driver before its Ray
            process.terminate()
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()
        deadline = time.monotonic() + GRACE_S
        while (descendants := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
            for descendant in descendants:
                with contextlib.suppress(psutil.NoSuchProcess):
                    descendant.kill()
            psutil.wait_procs(descendants, timeout=1)
        if descendants:  # stuck in the kernel, on a dead file system for example
            logger.warning("Processes that cannot be ended: %s.", ", ".join(str(process.pid) for process in descendants))


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have SIGINT, SIGTERM and SIGHUP end this process through its `finally` blocks.

    Only the first signal does so: a later signal must not interrupt the `finally` blocks. A signal that this process ignores stays ignored, because
    `nohup`, or a shell that put the command in the background, wants it so.
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
    """Have SIGINT, SIGTERM and SIGHUP wait for the end of the block."""
    pending: list[int] = []
    handlers_before = {number: signal.signal(number, lambda number, _: pending.append(number)) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers_before.items():
            signal.signal(number, handler)
    for late in pending:  # all of them, because the first may be a signal that is ignored
        os.kill(os.getpid(), late)


def tail_of(log: Path) -> str:
    """Return the last lines that a program wrote to its log."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    return " | ".join(lines[-3:]) or "it wrote nothing"


def wait_until_up(get_result: Callable[[], T | None], process: subprocess.Popen[bytes], name: str, log: Path, deadline_s: float) -> T:
    """Return the result of `get_result` as soon as it is not None.

    Raises WorldError with the tail of the log when the process `name` ends before, or is not up within `deadline_s`.
    """
    deadline = time.monotonic() + deadline_s
    while True:
        if (result := get_result()) is not None:
            return result
        if process.poll() is not None or time.monotonic() > deadline:
            end = f"is not up after {deadline_s:.0f} s" if process.poll() is None else f"ended with exit code {process.returncode}"
            raise WorldError(f"{name} {end}: {tail_of(log)}")
        time.sleep(0.05)  # Ray writes a file when it is up, and offers no event
