"""This module counts the CPUs that this process may use, and describes the size of a node."""

from __future__ import annotations

import os
from dataclasses import dataclass

from raysweep.common.typed_json import Extensible

# Resources of a Ray node in a sweep of several Slurm jobs. The name of the first ends with the id of the node's job. The amount of the second is the time
# after which no trial may begin on the node, in seconds since the epoch.
JOB_RESOURCE, JOB_DEADLINE_RESOURCE = "raysweep_job_", "raysweep_deadline"


@dataclass(frozen=True)
class NodeSize(Extensible):
    """Describes a node by its name and the numbers of CPUs and GPUs that Ray may use on the node."""

    name: str
    cpus: int
    gpus: int


def usable_cpus() -> int:
    """Return the number of CPUs on which this process may run.

    On macOS, this is the number of CPUs of the machine, because macOS does not bind a process to CPUs.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
