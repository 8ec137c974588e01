"""Computes how many trials can run on the nodes of an allocation at the same time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from raysweep.common.machine import NodeSize


@dataclass(frozen=True)
class TrialResources:
    """Contains the CPUs and GPUs that one trial uses on the nodes of this allocation."""

    cpu: float  # number of CPUs
    gpu: float  # number of GPUs; a number below 1 is the share of one GPU


def capacity(nodes: Iterable[NodeSize], trial: TrialResources) -> int:
    """Return the number of trials that can run on `nodes` at the same time."""

    def parts(whole: float, part: float) -> float:
        return math.floor(whole / part + 1e-9) if part else math.inf

    def gpu_parts(gpus: int) -> float:
        # A trial with a share of a GPU cannot use two GPUs. With a share of 0.4, two GPUs therefore run four trials and not five.
        return gpus * parts(1, trial.gpu) if 0 < trial.gpu < 1 else parts(gpus, trial.gpu)

    return int(sum(min(parts(node.cpus, trial.cpu), gpu_parts(node.gpus)) for node in nodes))
