"""Which process is which: what is written down of one, so that a later run can tell whether it has ended."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """What another one is to know."""
    return {"host": socket.gethostname(), "pids": pid_namespace(), "pid": os.getpid(), "started": started(os.getpid())}


def pid_namespace() -> str:
    """Within what process ids mean something: containers may share a machine's name."""
    return os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""


def started(pid: int) -> str | None:
    """When a process of this user began, in ticks since the boot, which tells it from a later one of the same id; None when it is gone."""
    try:
        os.kill(pid, 0)
        if not os.path.exists("/proc/self/stat"):
            return ""
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (ProcessLookupError, FileNotFoundError, PermissionError):  # the last: the id is another user's now
        return None
    return None if state == "Z" else rest[18]
