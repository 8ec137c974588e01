"""Compares several sweeps on one page.

The page shows the confirmed value of the best configuration of each sweep, the cost of each sweep, and the differences that exceed chance.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from raysweep.common.errors import logger
from raysweep.common.files import written_aside
from raysweep.common.text import duration, number
from raysweep.report.analysis import cost
from raysweep.report.charts.comparison import best_by_cost, colour_of_sweep, confirmed_values
from raysweep.report.charts.parts import Spec, finite
from raysweep.report.inputs import SweepResult, read_result
from raysweep.report.page import html_page

MIN_SEEDS = 3  # number of confirmed seeds of each sweep that a test of two means needs
# Values of Student's t that chance alone exceeds, in either direction, in one of 20 cases. The first value is for one degree of freedom, the second
# value is for two degrees of freedom, and so on. The last value is also used for more degrees of freedom.
T_QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09, 2.09)


def read_sweeps(names: list[str], results_dir: Path, state_dir: Path) -> list[SweepResult]:
    """Return the results of the sweeps with these names."""
    return [
        read_result(name, state_dir / name / "record.jsonl", results_dir / name / "best.yaml", results_dir / name / "confirmed.yaml")
        for name in names
    ]


def groups(sweeps: list[SweepResult]) -> list[list[SweepResult]]:
    """Return the sweeps in groups. Sweeps of one group can be compared with each other. The best sweep of a group stands first.

    All sweeps of a group have the same metric, the same data set, and a confirmation on the same split of the data.
    """
    group_of: dict[tuple[Any, ...], list[SweepResult]] = {}
    for sweep in sweeps:
        # A sweep without a data set is comparable only with sweeps of the same trainable, because only the trainable knows the data.
        data = sweep.header.dataset or ("of", sweep.header.trainable)
        group_of.setdefault((sweep.metric, sweep.mode, data, sweep.confirmed.evaluated_on), []).append(sweep)
    return [sorted(group, key=lambda sweep: -sweep.sign * _mean(sweep)) for group in group_of.values()]


def _mean(sweep: SweepResult) -> float:
    """Return the confirmed mean of a sweep. A sweep without a mean gets the worst possible value."""
    mean = sweep.confirmed.mean
    return float("-inf") * sweep.sign if mean is None else mean


def verdict(group: list[SweepResult]) -> str:
    """Return a sentence on whether the difference between the means of the first two sweeps of `group` exceeds chance.

    The test is Welch's t-test at the 5 % level, that is, 1 in 20 cases.
    B. L. Welch, The generalization of Student's problem when several different population variances are involved, Biometrika 34 (1947).
    """
    if len(group) < 2:
        return "No other sweep has this metric, these data and this way of measuring."
    first, second = group[:2]
    counts = [first.confirmed.n, second.confirmed.n]
    deviations = [d for d in (first.confirmed.standard_deviation, second.confirmed.standard_deviation) if d is not None]
    names = f"{first.name} and {second.name}"
    if min(counts) < MIN_SEEDS or len(deviations) < 2:
        return f"Whether {names} differ is not known: a test takes {MIN_SEEDS} confirmed seeds of each."
    variances = [deviation**2 / n for deviation, n in zip(deviations, counts, strict=True)]  # variance of each of the two means
    gap = abs(_mean(first) - _mean(second))
    if not all(variances):
        return f"{names} are {number(gap)} apart. All seeds of one of them gave the same value, so the part of chance is not known."
    freedom = sum(variances) ** 2 / sum(v**2 / (n - 1) for v, n in zip(variances, counts, strict=True))
    limit = T_QUANTILES[min(int(freedom), len(T_QUANTILES)) - 1] * sum(variances) ** 0.5
    if gap > limit:
        return (
            f"{first.name} is better than {second.name} by {number(gap)}. Chance alone makes a difference of more than {number(limit)}"
            " in one of 20 cases."
        )
    return f"{names} are {number(gap)} apart. Chance may explain this: chance alone makes up to {number(limit)} in 19 of 20 cases."


COLUMNS = [  # list of pairs (title of the column, whether the column contains numbers)
    ("metric", False),
    ("data", False),
    ("validation, winner", True),
    ("confirmed mean", True),
    ("standard deviation", True),
    ("n", True),
    ("confirmed on", False),
    ("trials", True),
    ("epochs", True),
    ("cost", True),
    ("unit", False),
    ("running time", False),
]


def row_of(sweep: SweepResult) -> dict[str, Any]:
    """Return the row of the page's table that describes `sweep`."""
    confirmed, spent = sweep.confirmed, cost(sweep)
    deviation = confirmed.standard_deviation
    return {
        "name": sweep.name,
        "report": f"{sweep.name}/report.html",
        "cells": [
            sweep.metric,
            sweep.header.dataset or "its own",
            number(sweep.best.value),
            "" if confirmed.mean is None else number(confirmed.mean),
            "" if deviation is None else f"{deviation:.2g}",
            confirmed.n,
            confirmed.evaluated_on,
            len(sweep.trials),
            spent.epochs,
            number(spent.hours),
            spent.unit,
            duration(sweep.clock.total_s),
        ],
    }


def render(sweeps: list[SweepResult]) -> str:
    """Return the page as HTML."""
    specs: dict[str, Spec] = {}
    sections = []
    for i, group in enumerate(groups(sweeps)):
        specs |= {f"confirmed{i}": confirmed_values(group), f"cost{i}": best_by_cost(group)}
        legend = [(sweep.name, colour_of_sweep(position)) for position, sweep in enumerate(group)]
        sections.append({"number": i, "first": group[0], "verdict": verdict(group), "legend": legend})
    rows = [row_of(sweep) for sweep in itertools.chain.from_iterable(groups(sweeps))]
    return html_page("comparison.html", finite(specs), {}, sections=sections, rows=rows, columns=COLUMNS)


def write_comparison(sweeps: list[SweepResult], path_to_output: Path) -> None:
    """Write the page to `path_to_output`. The file appears only when the page is complete."""
    with written_aside(path_to_output) as stream:
        stream.write(render(sweeps))
    logger.info("Comparison: %s", path_to_output)
