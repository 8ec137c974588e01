"""The identity of a process, as it is written to files, so that a later run can tell whether the process has ended."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """Return the identity of this process: its machine, the namespace of its id, its id and when it began."""
    return {"host": socket.gethostname(), "pids": pid_namespace(), "pid": os.getpid(), "started": started(os.getpid())}


def pid_namespace() -> str:
    """Return the namespace in which this process's id is valid, because containers may share a machine's name; "" where there are none."""
    return os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""


def started(pid: int) -> str | None:
    """Return when a process of this user began, in ticks since the boot; None when the process has ended, "" where the system does not tell.

    The start tells a process from a later process with the same id.
    """
    try:
        os.kill(pid, 0)
        if not os.path.exists("/proc/self/stat"):
            return ""
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (ProcessLookupError, FileNotFoundError, PermissionError):  # PermissionError: the id belongs to another user now
        return None
    return None if state == "Z" else rest[18]
