"""Compares points of several objectives: the front, the knee of the front, and the hypervolume.

A point is a tuple of losses, one for each objective. A smaller loss is better. One point dominates another point if the first point is nowhere worse and
somewhere better. The front contains the points that no point dominates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raysweep.config.model import Objective

Point = tuple[float, ...]


def point_of(metrics: Mapping[str, float], objectives: Sequence[Objective]) -> Point:
    """Return the losses of a report. The loss of an objective with the mode `max` is the negative value of the metric."""
    return tuple(metrics[objective.metric] * (-1 if objective.mode == "max" else 1) for objective in objectives)


def front_of(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points that no point dominates, sorted by the losses. Equal points do not dominate each other."""
    front: list[int] = []
    # Only a point with smaller losses in lexicographic order can dominate a point, and then a point of the front dominates it too.
    for index in sorted(range(len(points)), key=lambda index: (points[index], index)):
        if not any(_dominates(points[other], points[index]) for other in front):
            front.append(index)
    return front


def _dominates(point: Point, other: Point) -> bool:
    return point != other and all(loss <= other_loss for loss, other_loss in zip(point, other, strict=True))


def knee_of(front: Sequence[Point]) -> int:
    """Return the index of the knee of a front, which is the point with the smallest sum of losses, each scaled to 0 … 1 over the front.

    This is the point of the front that lies farthest from the hyperplane through the best point of each single objective.
    (I. Das, "On characterizing the 'knee' of the Pareto curve based on normal-boundary intersection", 1999)
    """
    scaled = scale(front, front)
    return min(range(len(front)), key=lambda index: (sum(scaled[index]), index))


def scale(points: Sequence[Point], reference: Sequence[Point]) -> list[Point]:
    """Return `points` with each loss scaled so that the smallest loss of `reference` becomes 0 and the largest becomes 1."""
    lows, highs = [min(losses) for losses in zip(*reference, strict=True)], [max(losses) for losses in zip(*reference, strict=True)]
    return [tuple((loss - low) / (high - low or 1) for loss, low, high in zip(point, lows, highs, strict=True)) for point in points]


def hypervolume(points: Sequence[Point]) -> float:
    """Return the volume of the part of the unit cube that at least one of `points` dominates. The losses of the points lie between 0 and 1.

    The volume is the sum over slices along the last objective, in each of which the same points dominate (E. Zitzler, "Evolutionary algorithms for
    multiobjective optimization", 1999).
    """
    if not points:
        return 0.0
    if len(points[0]) == 1:
        return 1 - min(point[0] for point in points)
    ordered = sorted({points[index] for index in front_of(points)}, key=lambda point: point[-1])
    ends = [*(point[-1] for point in ordered[1:]), 1.0]
    slices = ((ordered[: number + 1], end - point[-1]) for number, (point, end) in enumerate(zip(ordered, ends, strict=True)))
    return sum(hypervolume([point[:-1] for point in below]) * height for below, height in slices if height)
