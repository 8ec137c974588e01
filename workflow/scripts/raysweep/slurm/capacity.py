"""The number of trials that the nodes of an allocation hold at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from raysweep.common.machine import NodeSize


@dataclass(frozen=True)
class TrialResources:
    """The CPUs and GPUs that one trial takes on the nodes of this allocation."""

    cpu: float
    gpu: float


def capacity(nodes: Iterable[NodeSize], trial: TrialResources) -> int:
    """Return the number of trials that `nodes` hold at the same time."""

    def parts(whole: float, part: float) -> float:
        return math.floor(whole / part + 1e-9) if part else math.inf

    def gpu_parts(gpus: int) -> float:
        # Parts of a GPU do not cross its edge: two GPUs hold four parts of 0.4, not five.
        return gpus * parts(1, trial.gpu) if 0 < trial.gpu < 1 else parts(gpus, trial.gpu)

    return int(sum(min(parts(node.cpus, trial.cpu), gpu_parts(node.gpus)) for node in nodes))
