"""What this machine lets the present process use, and the size of a node."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class NodeSize:
    """The CPUs and GPUs of a node that Ray may use."""

    name: str
    cpus: int
    gpus: int


def usable_cpus() -> int:
    """Return the number of CPUs that this process may run on; on macOS, which binds no process to a CPU, the CPUs of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
