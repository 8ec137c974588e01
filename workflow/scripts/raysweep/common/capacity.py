"""Computes how many trials can run on the nodes of an allocation at the same time."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from raysweep.common.machine import NodeSize

MAX_CAPACITY = 100_000  # number of trials above which the capacity is not counted, because a trial may have any small share of a CPU
ROUNDING = 1e-9  # error of a sum of shares: 0.1 + 0.2 is more than 0.3


@dataclass(frozen=True)
class WorkerResources:
    """Contains what a trial starts of its own, such as the workers of Ray Train, or Ray tasks and actors. All workers have the same size."""

    num: int  # number of workers of each trial
    cpu: float  # number of CPUs of one worker
    gpu: int  # number of GPUs of one worker

    def __str__(self) -> str:
        return f"{self.num} workers of {self.cpu:g} CPUs and {self.gpu} GPUs"


@dataclass(frozen=True)
class TrialResources:
    """Contains the CPUs and GPUs that one trial uses on the nodes of this allocation."""

    cpu: float  # number of CPUs, without the CPUs of the workers
    gpu: float  # number of GPUs, without the GPUs of the workers; a number below 1 is the share of one GPU
    workers: WorkerResources | None = None  # None: the trial starts nothing of its own

    @property
    def bundles(self) -> list[tuple[float, float]]:
        """Return the CPUs and GPUs of the trial's own process, followed by the CPUs and GPUs of each worker. A bundle lies on one node."""
        workers = self.workers
        return [(self.cpu, self.gpu), *([(workers.cpu, workers.gpu)] * workers.num if workers else [])]


class FreeNode:
    """Keeps the CPUs and the GPUs of a node that no trial has taken yet."""

    def __init__(self, size: NodeSize) -> None:
        self.cpus, self.gpus = float(size.cpus), [1.0] * size.gpus

    def take(self, cpus: float, gpus: float) -> bool:
        """Take the CPUs and GPUs, and return True. Return False, and take nothing, if the node has too few. A share of a GPU lies on one GPU."""
        part = min(gpus, 1.0)
        fitting = [number for number, free in enumerate(self.gpus) if free + ROUNDING >= part][: math.ceil(gpus)]
        if self.cpus + ROUNDING < cpus or len(fitting) < math.ceil(gpus):
            return False
        self.cpus -= cpus
        for number in fitting:
            self.gpus[number] -= part
        return True


def capacity(nodes: Iterable[NodeSize], trial: TrialResources) -> int:
    """Return the number of trials that can run on `nodes` at the same time. The trials take their places one after the other, as Ray places them."""
    return _capacity(tuple(nodes), trial)


@functools.cache
def _capacity(nodes: tuple[NodeSize, ...], trial: TrialResources) -> int:
    free, number = [FreeNode(node) for node in nodes], 0
    bundles = sorted(trial.bundles, key=lambda bundle: (bundle[1], bundle[0]), reverse=True)
    while number < MAX_CAPACITY and all(any(node.take(*bundle) for node in free) for bundle in bundles):
        number += 1
    return number
