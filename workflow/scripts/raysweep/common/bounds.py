"""This module checks metrics against the bounds in `stop` and `constraint` of the config: {metric: {at_least: value} or {at_most: value}}."""

from __future__ import annotations

import operator
from typing import Any

from raysweep.common.numeric import is_finite_number, is_number

BOUNDS = {"at_least": operator.ge, "at_most": operator.le}

Bounds = dict[str, dict[str, float]]


def _held(metrics: dict[str, Any], bounds: Bounds) -> list[bool]:
    """Return for each bound whether the metrics of a report fulfil the bound. A metric that is missing or not a number fulfils no bound.

    A boolean does not count as a number. The record drops booleans, so a resumed sweep would otherwise judge a report differently from the first run.
    """
    return [
        is_number(metrics.get(metric)) and BOUNDS[kind](metrics[metric], value)
        for metric, bound in bounds.items()
        for kind, value in bound.items()
    ]


def any_holds(metrics: dict[str, Any], bounds: Bounds) -> bool:
    """Return whether the metrics of a report fulfil at least one of the bounds."""
    return any(_held(metrics, bounds))


def all_hold(metrics: dict[str, Any], bounds: Bounds) -> bool:
    """Return whether the metrics of a report fulfil all bounds."""
    return all(_held(metrics, bounds))


def violations(metrics: dict[str, Any], bounds: Bounds) -> dict[str, float] | None:
    """Return by how much the metrics violate each bound, as {"metric kind": amount}, or None where a metric of a bound is missing or is not finite.

    The amount is at most 0 where the bound holds. The names and the sign are those of the constraints of Optuna.
    """
    amounts = {}
    for metric, bound in bounds.items():
        for kind, value in bound.items():
            if not is_finite_number(metrics.get(metric)):
                return None
            amounts[f"{metric} {kind}"] = float(value - metrics[metric] if kind == "at_least" else metrics[metric] - value)
    return amounts
