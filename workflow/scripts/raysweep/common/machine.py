"""What this machine lets the present process use."""

from __future__ import annotations

import os


def usable_cpus() -> int:
    """Return the number of CPUs that this process may run on; on macOS, which binds no process to a CPU, the CPUs of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
