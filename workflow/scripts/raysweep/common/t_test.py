"""This module decides whether means over few seeds differ by more than chance: Student's t, and corrections for several comparisons."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

LEVEL = 0.05  # a difference that chance alone makes in fewer cases than this share is called a difference
MIN_SEEDS = 3  # number of seeds from which a standard deviation says anything about chance
STEPS = 4001  # number of points of a numerical integral


def _integral(start: float, freedom: float) -> float:
    """Return the integral of cos(x)^(freedom − 1) from `start` to π/2. With t = √freedom · tan(x), this is the density of Student's t without its factor."""
    x = np.linspace(start, math.pi / 2, STEPS)
    return float(np.trapezoid(np.maximum(np.cos(x), 0.0) ** (freedom - 1), x))


def p_value(t: float, freedom: float) -> float:
    """Return the share of cases in which chance alone makes Student's t larger than |t| in either direction. `freedom` are the degrees of freedom."""
    return _integral(math.atan(abs(t) / math.sqrt(freedom)), freedom) / _integral(0.0, freedom)


def t_quantile(p: float, freedom: float) -> float:
    """Return the t that chance alone exceeds, in either direction, in the share `p` of all cases."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # bisection of the angle, until the bounds differ by less than a float can show
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(math.sqrt(freedom) * math.tan(middle), freedom) > p else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def paired_interval(differences: Sequence[float], num_comparisons: int = 1) -> tuple[float, float] | None:
    """Return the bounds between which the mean of the differences lies in 19 of 20 cases, by Student's t.

    With several comparisons, the bounds of all comparisons hold together in 19 of 20 cases (Bonferroni). Return None where there are fewer than MIN_SEEDS
    differences, or where all differences are the same, because the part of chance is not known then.
    """
    n = len(differences)
    if n < MIN_SEEDS or not (deviation := statistics.stdev(differences)):
        return None
    mean, slack = statistics.fmean(differences), t_quantile(LEVEL / num_comparisons, n - 1) * deviation / math.sqrt(n)
    return mean - slack, mean + slack


def welch(gap: float, variances: Sequence[float], counts: Sequence[int]) -> float:
    """Return the p-value of the difference `gap` of two means. `variances` are the variances of the two means, `counts` the numbers of their values.

    B. L. Welch, The generalization of Student's problem when several different population variances are involved, Biometrika 34 (1947).
    """
    freedom = sum(variances) ** 2 / sum(v**2 / (n - 1) for v, n in zip(variances, counts, strict=True))
    return p_value(gap / math.sqrt(sum(variances)), freedom)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for their number, in the same order.

    S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).
    """
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected
