from __future__ import annotations

import pytest

from raysweep.common.patience import BestSoFar, epochs_without_better


@pytest.mark.parametrize(
    ("values", "min_delta", "mode", "epochs"),
    [
        ([], 0, "max", 0),
        ([0.5], 0, "max", 0),
        ([0.5, 0.5, 0.5], 0, "max", 2),  # an equal value is not better
        ([0.5, 0.6, 0.4, 0.55], 0, "max", 2),
        ([0.5, 0.6, 0.4, 0.55], 0, "min", 1),
        ([0.5, 0.59], 0.1, "max", 1),
        ([0.5, 0.75], 0.25, "max", 1),  # exactly min_delta is not more than min_delta
        (
            [0.0, 0.25, 0.5, 0.75],
            0.25,
            "max",
            1,
        ),  # small steps add up: 0.5 exceeds 0 by more than 0.25, and 0.75 does not exceed 0.5 by more
        ([3.0, 2.0, 1.9, 1.8], 0.5, "min", 2),
    ],
)
def test_the_epochs_since_the_value_became_better(values: list[float], min_delta: float, mode: str, epochs: int) -> None:
    assert epochs_without_better(enumerate(values, start=1), min_delta, mode) == epochs  # type: ignore[arg-type]


def test_epochs_that_were_not_reported_count_too() -> None:
    assert epochs_without_better([(2, 0.5), (4, 0.4), (9, 0.3)], 0, "max") == 7


def test_the_first_value_is_the_best_so_far() -> None:
    best = BestSoFar(1.0, "min")
    assert [best.improves(value) for value in (5.0, 4.5, 3.9, 2.9)] == [True, False, True, False]
    assert best.best == 3.9
