"""Several sweeps on one page: how good each one's best configuration is, after what cost, and which differences are more than chance."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from raysweep.common.errors import logger
from raysweep.common.files import read_yaml, written_aside
from raysweep.common.text import duration, number
from raysweep.record.record import read_sweep
from raysweep.report.analysis import cost, hours_at, unit_of_cost
from raysweep.report.charts import Spec, best_until, chart, metric_scale
from raysweep.report.inputs import Inputs
from raysweep.report.page import html_page

# Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), which people with any colour vision tell apart, as the page has them; then again, dashed.
COLOURS = [f"var(--{name})" for name in ("blue", "winner", "green", "red", "sky", "grey")]
DASHES = [[1, 0], [6, 3], [2, 2]]
MIN_SEEDS = 3  # of each, to tell whether two means differ
# Student's t that chance exceeds, in either direction, in one of 20 cases, by degrees of freedom from 1 on; beyond them that of the last.
T_QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09, 2.09)


def read_sweeps(names: list[str], results_dir: Path, state_dir: Path) -> list[Inputs]:
    """Of each sweep what a comparison needs."""
    return [
        Inputs(
            sweep=read_sweep(state_dir / name / "record.jsonl"),
            best=read_yaml(results_dir / name / "best.yaml"),
            confirmed=read_yaml(results_dir / name / "confirmed.yaml"),
            config_text="",
            data=None,
            data_dir=None,
            env={},
            model_dir=results_dir / name / "model",
            plan=None,
        )
        for name in names
    ]


def groups(sweeps: list[Inputs]) -> list[list[Inputs]]:
    """Sweeps whose figures may be held against each other: of one metric, on one data set, measured in one way; the best first."""
    found: dict[tuple[Any, ...], list[Inputs]] = {}
    for inputs in sweeps:
        # Of a function that brings its own data nobody knows which they are.
        data = inputs.about["dataset"] or ("of", inputs.about["trainable"])
        key = inputs.metric, inputs.mode, data, inputs.confirmed["evaluated_on"]
        found.setdefault(key, []).append(inputs)
    return [sorted(group, key=lambda one: -one.sign * _mean(one)) for group in found.values()]


def _mean(inputs: Inputs) -> float:
    mean = inputs.confirmed["mean"]
    return float("-inf") * inputs.sign if mean is None else mean


def verdict(group: list[Inputs]) -> str:
    """Whether the first sweep's mean over its seeds is better than the second's by more than chance, in a sentence: Welch's t-test, at one in 20.

    B. L. Welch, The generalization of Student's problem when several different population variances are involved, Biometrika 34 (1947).
    """
    if len(group) < 2:
        return "It is the only one with this metric, on these data, measured in this way."
    first, second = group[:2]
    spreads = [one.confirmed["standard_deviation"] for one in (first, second)]
    counts = [one.confirmed["n"] for one in (first, second)]
    names = f"{first.name} and {second.name}"
    if min(counts) < MIN_SEEDS or None in spreads:
        return f"Whether {names} differ cannot be said: it takes {MIN_SEEDS} confirmed seeds of each."
    parts = [spread**2 / n for spread, n in zip(spreads, counts, strict=True)]
    gap = abs(_mean(first) - _mean(second))
    if not all(parts):
        return f"{names} are {number(gap)} apart. All seeds of one of them gave the same value, so nothing is known of chance."
    freedom = sum(parts) ** 2 / sum(part**2 / (n - 1) for part, n in zip(parts, counts, strict=True))
    limit = T_QUANTILES[min(int(freedom), len(T_QUANTILES)) - 1] * sum(parts) ** 0.5
    if gap > limit:
        return f"{first.name} is better than {second.name} by {number(gap)}; by chance alone it would be more than {number(limit)} in one of 20 cases."
    return f"{names} are {number(gap)} apart: chance may explain it, which makes it up to {number(limit)} in 19 of 20 cases."


def _colour_of(group: list[Inputs]) -> Spec:
    names = [one.name for one in group]
    return {
        "color": {
            "field": "sweep",
            "type": "nominal",
            "scale": {"domain": names, "range": [COLOURS[i % len(COLOURS)] for i in range(len(names))]},
        },
        "strokeDash": {
            "field": "sweep",
            "type": "nominal",
            "scale": {"domain": names, "range": [DASHES[i // len(COLOURS) % len(DASHES)] for i in range(len(names))]},
        },
    }


def confirmed_values(group: list[Inputs]) -> Spec:
    """Every confirmed seed of each sweep, and their mean with one standard deviation."""
    seeds = [{"sweep": one.name, "value": s["value"]} for one in group for s in one.confirmed["seeds"] if s["value"] is not None]
    means = [
        {"sweep": one.name, "mean": mean, "low": mean - (spread or 0), "high": mean + (spread or 0)}
        for one in group
        if (mean := one.confirmed["mean"]) is not None
        for spread in [one.confirmed["standard_deviation"]]
    ]
    x = {
        "field": "value",
        "type": "quantitative",
        "title": group[0].metric,
        "scale": {"zero": False, "padding": 14},
        "axis": {"tickCount": 5},
    }
    y = {
        "field": "sweep",
        "type": "nominal",
        "sort": [one.name for one in group],
        "title": None,
        "axis": {"labelLimit": 200, "ticks": False},
    }
    return chart(
        f"Confirmed {group[0].metric} of the sweeps",
        max(70, 40 * len(group)),
        [
            {
                "data": {"values": means},
                "mark": {"type": "rule", "strokeWidth": 3, "color": "var(--blue)"},
                "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}, "y": y},
            },
            {"mark": {"type": "point", "filled": True, "size": 50, "opacity": 0.8, "color": "var(--blue)"}, "encoding": {"x": x, "y": y}},
            {
                "data": {"values": means},
                "mark": {
                    "type": "point",
                    "shape": "diamond",
                    "filled": True,
                    "size": 150,
                    "color": "var(--winner)",
                    "stroke": "var(--paper)",
                },
                "encoding": {"x": x | {"field": "mean"}, "y": y, "tooltip": [{"field": "sweep"}, {"field": "mean", "format": ".4~g"}]},
            },
        ],
        data={"values": seeds},
    )


def best_by_cost(group: list[Inputs]) -> Spec:
    """The best validation figure until then against the hours that each sweep had been given."""
    units = {unit_of_cost(one) for one in group}
    values = [{"sweep": one.name, "hours": round(hours_at(one, at), 5), "value": value} for one in group for at, value in best_until(one)]
    scale: Spec = {"zero": False, "nice": True}
    if all(metric_scale(one).get("type") == "log" for one in group):
        scale = {"type": "log"}
    encoding = {
        "x": {
            "field": "hours",
            "type": "quantitative",
            "title": " or ".join(sorted(units)),
            "scale": {"zero": True, "nice": False},
            "axis": {"tickCount": 8},
        },
        "y": {"field": "value", "type": "quantitative", "title": f"validation {group[0].metric}", "scale": scale},
        "tooltip": [{"field": "sweep"}, {"field": "hours", "format": ".3~g"}, {"field": "value", "format": ".4~g"}],
    }
    return chart(
        f"Best {group[0].metric} so far of the sweeps, by cost",
        280,
        [{"mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2.3}, "encoding": encoding | _colour_of(group)}],
        data={"values": values},
    )


def row_of(inputs: Inputs) -> dict[str, Any]:
    """A sweep as a row of the page's table."""
    confirmed, spent = inputs.confirmed, cost(inputs)
    spread = confirmed["standard_deviation"]
    return {
        "name": inputs.name,
        "report": f"{inputs.name}/report.html",
        "cells": [
            inputs.metric,
            inputs.about["dataset"] or "its own",
            number(inputs.best["metric"]["value"]),
            "" if confirmed["mean"] is None else number(confirmed["mean"]),
            "" if spread is None else f"{spread:.2g}",
            confirmed["n"],
            confirmed["evaluated_on"],
            len(inputs.trials),
            spent.epochs,
            number(spent.hours),
            spent.unit,
            duration(inputs.clock.total_s),
        ],
    }


COLUMNS = [
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


def render(sweeps: list[Inputs]) -> str:
    """The page."""
    specs: dict[str, Spec] = {}
    sections = []
    for i, group in enumerate(groups(sweeps)):
        specs |= {f"confirmed{i}": confirmed_values(group), f"cost{i}": best_by_cost(group)}
        legend = [(one.name, COLOURS[j % len(COLOURS)]) for j, one in enumerate(group)]
        sections.append({"number": i, "first": group[0], "verdict": verdict(group), "legend": legend})
    rows = [row_of(one) for one in itertools.chain.from_iterable(groups(sweeps))]
    return html_page("comparison.html", specs, {}, sections=sections, rows=rows, columns=COLUMNS)


def write_comparison(sweeps: list[Inputs], path_to_output: Path) -> None:
    """Write the page, whole or not at all."""
    with written_aside(path_to_output) as stream:
        stream.write(render(sweeps))
    logger.info("Comparison: %s", path_to_output)
