"""Compares several sweeps on one page.

The page shows the confirmed value of the best configuration of each sweep, the cost of each sweep, and the differences that exceed chance.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from raysweep.common.errors import logger
from raysweep.common.files import written_aside
from raysweep.common.t_test import LEVEL, MIN_SEEDS, holm, welch
from raysweep.common.text import duration, number, plural
from raysweep.report.analysis import cost
from raysweep.report.charts.comparison import best_by_cost, colour_of_sweep, confirmed_values
from raysweep.report.charts.parts import Spec, finite
from raysweep.report.inputs import SweepResult, read_result
from raysweep.report.page import html_page

MAX_NAMED = 5  # maximum number of sweeps with which the text compares the best sweep


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


def p_values(group: list[SweepResult]) -> dict[tuple[str, str], float]:
    """Return the p-value of the difference between the means of each two sweeps of a group, as {(name, name): p}, corrected for the number of these pairs.

    All pairs count, although the page compares only the best sweep with the others, because the same values chose which sweep is the best one. A pair is left
    out if a sweep has fewer than MIN_SEEDS values, or if all values of a sweep are the same.
    """
    uncorrected = {}
    for first, second in itertools.combinations(group, 2):
        counts = [first.confirmed.n, second.confirmed.n]
        deviations = [first.confirmed.standard_deviation, second.confirmed.standard_deviation]
        if min(counts) >= MIN_SEEDS and all(deviations):
            variances_of_means = [deviation**2 / n for deviation, n in zip(deviations, counts, strict=True) if deviation]
            uncorrected[first.name, second.name] = welch(_mean(first) - _mean(second), variances_of_means, counts)
    return dict(zip(uncorrected, holm(list(uncorrected.values())), strict=True))


def verdict(group: list[SweepResult]) -> str:
    """Return sentences on whether the first sweep of `group`, which has the best mean, is better than each other sweep by more than chance."""
    if len(group) < 2:
        return "No other sweep has this metric, these data and this way of measuring."
    first, *others = group
    corrected = p_values(group)
    sentences = [_difference(first, other, corrected.get((first.name, other.name))) for other in others[:MAX_NAMED]]
    if len(others) > MAX_NAMED:
        sentences.append(f"{plural(len(others) - MAX_NAMED, 'sweep')} with lower places are not compared here.")
    if corrected:
        correction = (
            f", corrected for {plural(len(corrected), 'pair')} of {len(group)} sweeps (Holm), because the same values chose the best sweep"
        )
        sentences.append(
            f"p is the share of cases in which chance alone makes such a difference (Welch's t-test{correction if len(group) > 2 else ''})."
        )
    return " ".join(sentences)


def _difference(first: SweepResult, other: SweepResult, p: float | None) -> str:
    """Return a sentence on the difference between the best sweep and another sweep. `p` is None if there is no test of the difference."""
    names = f"{first.name} and {other.name}"
    if min(first.confirmed.n, other.confirmed.n) < MIN_SEEDS:
        return f"Whether {names} differ is not known: a test takes {MIN_SEEDS} confirmed seeds of each."
    gap = number(abs(_mean(first) - _mean(other)))
    if p is None:
        return f"{names} are {gap} apart. All seeds of one of them gave the same value, so the part of chance is not known."
    if p <= LEVEL:
        return f"{first.name} is better than {other.name} by {gap} (p = {p:.2g})."
    return f"{names} are {gap} apart. Chance may explain this (p = {p:.2g})."


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
