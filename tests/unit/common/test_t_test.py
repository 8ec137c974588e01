"""Student's t against the values of printed tables, and the corrections for several comparisons."""

from __future__ import annotations

import statistics

import pytest

from raysweep.common.t_test import holm, p_value, paired_interval, t_quantile, welch


@pytest.mark.parametrize(
    ("p", "freedom", "t"),
    [(0.05, 1, 12.706), (0.05, 2, 4.303), (0.05, 4, 2.776), (0.05, 20, 2.086), (0.01, 5, 4.032), (0.001, 3, 12.924), (0.05, 1e4, 1.960)],
)
def test_quantiles_are_those_of_the_tables(p: float, freedom: float, t: float) -> None:
    assert t_quantile(p, freedom) == pytest.approx(t, abs=1e-3)
    assert p_value(t_quantile(p, freedom), freedom) == pytest.approx(p, rel=1e-6)
    assert p_value(-t, freedom) == p_value(t, freedom)


def test_no_difference_is_always_explained_by_chance() -> None:
    assert p_value(0, 3) == pytest.approx(1)


def test_an_interval_has_the_mean_in_its_middle_and_is_wider_for_several_comparisons() -> None:
    differences = [0.1, 0.2, 0.3]
    interval = paired_interval(differences)
    assert interval is not None
    low, high = interval
    assert (low + high) / 2 == pytest.approx(0.2)
    assert (high - low) / 2 == pytest.approx(4.3027 * statistics.stdev(differences) / 3**0.5, rel=1e-4)
    wide = paired_interval(differences, 3)
    assert wide is not None
    assert wide[0] < low < high < wide[1]


@pytest.mark.parametrize("differences", [[], [0.1], [0.1, 0.2], [0.1, 0.1, 0.1]])
def test_few_seeds_or_equal_differences_say_nothing(differences: list[float]) -> None:
    assert paired_interval(differences) is None


def test_the_test_of_welch() -> None:
    # Equal variances and counts: Student's own test of two samples of three, t = 0.2 / (0.1·√(2/3)), 4 degrees of freedom.
    assert welch(0.2, [0.01 / 3, 0.01 / 3], [3, 3]) == pytest.approx(p_value(0.2 / (0.1 * (2 / 3) ** 0.5), 4))


def test_the_correction_of_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
