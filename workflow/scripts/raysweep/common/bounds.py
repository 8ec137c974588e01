"""Bounds of metrics, as `stop` and `constraint` of the config have them: {metric: {at_least: value} or {at_most: value}}."""

from __future__ import annotations

import operator
from typing import Any

from raysweep.common.numeric import is_number

BOUNDS = {"at_least": operator.ge, "at_most": operator.le}

Bounds = dict[str, dict[str, float]]


def _held(metrics: dict[str, Any], bounds: Bounds) -> list[bool]:
    """Return for each bound whether it holds. A metric that was not reported, or is no number, holds no bound.

    A boolean is no number: the record drops it, so a sweep that continues would judge otherwise than a live one.
    """
    return [
        is_number(metrics.get(metric)) and BOUNDS[kind](metrics[metric], value)
        for metric, bound in bounds.items()
        for kind, value in bound.items()
    ]


def any_holds(metrics: dict[str, Any], bounds: Bounds) -> bool:
    """Return whether a report holds at least one of the bounds."""
    return any(_held(metrics, bounds))


def all_hold(metrics: dict[str, Any], bounds: Bounds) -> bool:
    """Return whether a report holds all bounds."""
    return all(_held(metrics, bounds))
