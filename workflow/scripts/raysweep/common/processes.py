"""This module describes a process in a form for files, so that a later run can find out whether the process has ended."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """Return the identity of this process: the host name, the namespace of process ids, the process id and the start time."""
    return {"host": socket.gethostname(), "pids": pid_namespace(), "pid": os.getpid(), "started": started(os.getpid())}


def pid_namespace() -> str:
    """Return the namespace in which the id of this process is valid, or "" where the system has no such namespaces.

    The host name does not suffice, because two containers may share a host name and have different processes with the same id.
    """
    return os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""


def started(pid: int) -> str | None:
    """Return the start time of a process of this user, in clock ticks since the boot.

    Return None where the process has ended, and "" where the system has no /proc. The start time distinguishes a process from a later process with
    the same id.
    """
    try:
        os.kill(pid, 0)
        if not os.path.exists("/proc/self/stat"):
            return ""
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (ProcessLookupError, FileNotFoundError, PermissionError):  # PermissionError means that a process of another user has the id now
        return None
    return None if state == "Z" else rest[18]
