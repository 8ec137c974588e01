"""Bounds of metrics, as `stop` and `constraint` of the config have them: {metric: {at_least: value} or {at_most: value}}."""

from __future__ import annotations

import numbers
import operator
from typing import Any

BOUNDS = {"at_least": operator.ge, "at_most": operator.le}

Bounds = dict[str, dict[str, float]]


def _held(metrics: dict[str, Any], bounds: Bounds) -> list[bool]:
    """For each bound whether it holds; what was not reported, or is no number, holds none."""
    return [
        isinstance(metrics.get(metric), numbers.Real) and BOUNDS[kind](metrics[metric], value)
        for metric, bound in bounds.items()
        for kind, value in bound.items()
    ]


def any_holds(metrics: dict[str, Any], bounds: Bounds) -> bool:
    """Whether a report has come as far as one of the bounds."""
    return any(_held(metrics, bounds))


def all_hold(metrics: dict[str, Any], bounds: Bounds) -> bool:
    """Whether a report is within all of them."""
    return all(_held(metrics, bounds))
