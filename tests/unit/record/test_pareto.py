from __future__ import annotations

import itertools
import random

import pytest

from raysweep.config.model import Objective
from raysweep.record.pareto import Point, front_of, hypervolume, knee_of, point_of, scale


def test_a_larger_value_is_a_smaller_loss_where_the_mode_is_max() -> None:
    objectives = (Objective("accuracy", "max"), Objective("latency", "min"))
    assert point_of({"accuracy": 0.9, "latency": 3, "other": 1}, objectives) == (-0.9, 3)


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(1.0, 1.0)], [0]),
        ([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0), (2.0, 3.0), (3.0, 3.0)], [0, 1, 2]),
        ([(3.0, 1.0), (1.0, 3.0)], [1, 0]),
        ([(1.0, 2.0), (1.0, 2.0), (1.0, 3.0)], [0, 1]),  # equal points do not dominate each other
        ([(1.0, 1.0, 5.0), (1.0, 1.0, 4.0), (0.0, 9.0, 9.0)], [2, 1]),
    ],
)
def test_the_front_has_the_points_that_no_point_dominates(points: list[Point], front: list[int]) -> None:
    assert front_of(points) == front


@pytest.mark.parametrize("dimensions", [2, 3, 4])
def test_a_front_is_what_the_definition_says(dimensions: int) -> None:
    draw = random.Random(dimensions)
    points = [tuple(float(draw.randrange(4)) for _ in range(dimensions)) for _ in range(60)]
    dominated = {
        index
        for index, other in itertools.product(range(60), range(60))
        if points[other] != points[index] and all(a <= b for a, b in zip(points[other], points[index], strict=True))
    }
    assert set(front_of(points)) == set(range(60)) - dominated


def test_the_knee_lies_farthest_from_the_line_between_the_extremes() -> None:
    assert knee_of([(0.0, 100.0), (1.0, 20.0), (5.0, 10.0), (10.0, 0.0)]) == 1
    assert knee_of([(2.0, 7.0)]) == 0
    assert knee_of([(2.0, 7.0), (2.0, 7.0)]) == 0


def test_losses_are_scaled_by_a_reference() -> None:
    assert scale([(5.0, 1.0), (10.0, 1.0)], [(0.0, 1.0), (10.0, 1.0)]) == [(0.5, 0.0), (1.0, 0.0)]


@pytest.mark.parametrize(
    ("points", "volume"),
    [
        ([], 0.0),
        ([(1.0, 1.0)], 0.0),
        ([(0.0, 0.0)], 1.0),
        ([(0.25,), (0.5,)], 0.75),
        ([(0.5, 0.5), (0.5, 0.5), (0.6, 0.6)], 0.25),
        ([(0.0, 0.5), (0.5, 0.0)], 0.75),
        ([(0.5, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 0.5)], 0.875),
    ],
)
def test_the_hypervolume_of_known_fronts(points: list[Point], volume: float) -> None:
    assert hypervolume(points) == pytest.approx(volume)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_hypervolume_counts_the_cells_of_a_grid(dimensions: int) -> None:
    draw = random.Random(dimensions)
    points = [tuple(draw.randrange(8) / 8 for _ in range(dimensions)) for _ in range(9)]
    cells = itertools.product(range(8), repeat=dimensions)
    dominated = sum(any(all(8 * loss <= cell for loss, cell in zip(point, c, strict=True)) for point in points) for c in cells)
    assert hypervolume(points) == pytest.approx(dominated / 8**dimensions)
