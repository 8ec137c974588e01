from __future__ import annotations

import pytest

from raysweep.driver import capacity


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
    assert capacity([{"cpus": c, "gpus": g} for c, g in nodes], cpus, gpus) == most
