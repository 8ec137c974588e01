from __future__ import annotations

import pytest

from raysweep.common.capacity import TrialResources, WorkerResources, capacity
from raysweep.common.machine import NodeSize


def sizes(nodes: list[tuple[int, int]]) -> list[NodeSize]:
    return [NodeSize("n", cpus, gpus) for cpus, gpus in nodes]


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "most"),
    [
        ([(2, 0)], 1, 0, 2),
        ([(2, 0)], 3, 0, 0),
        ([(10, 1)], 1, 0.1, 10),  # the wiki's job
        ([(10, 1)], 1, 0.3, 3),
        ([(10, 2)], 1, 0.4, 4),  # a part does not cross the edge of a GPU
        ([(10, 2)], 1, 2, 1),
        ([(10, 3)], 1, 2, 1),
        ([(4, 1), (2, 1)], 1, 0.5, 4),
        ([(4, 0)], 0.5, 0, 8),
    ],
)
def test_capacity_follows_from_the_resources(nodes: list[tuple[int, int]], cpus: float, gpus: float, most: int) -> None:
    assert capacity(sizes(nodes), TrialResources(cpus, gpus)) == most


@pytest.mark.parametrize(
    ("nodes", "gpus", "workers", "most"),
    [
        ([(9, 0)], 0, (2, 4, 0), 1),
        ([(8, 0)], 0, (2, 4, 0), 0),  # the trial itself has no CPU left
        ([(4, 0)] * 2, 0, (2, 3, 0), 1),  # a worker on each node
        ([(4, 0)] * 2, 0, (2, 4, 0), 0),
        ([(4, 0)] * 3, 0, (2, 4, 0), 1),
        ([(16, 4)] * 2, 0, (2, 1, 1), 4),
        ([(16, 4)] * 2, 0.5, (2, 1, 1), 3),  # three trials share two GPUs, and their workers take six
        ([(16, 4)] * 2, 0, (3, 1, 2), 1),
    ],
)
def test_a_trial_needs_room_for_its_workers_too(
    nodes: list[tuple[int, int]], gpus: float, workers: tuple[int, int, int], most: int
) -> None:
    assert capacity(sizes(nodes), TrialResources(1, gpus, WorkerResources(*workers))) == most


def test_shares_that_are_no_binary_fractions_fill_a_node() -> None:
    assert capacity(sizes([(1, 1)]), TrialResources(0.1, 0.1)) == 10
