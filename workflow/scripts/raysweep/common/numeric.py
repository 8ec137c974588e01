"""This module decides whether a value from YAML, from JSON or from a trainable is a number, and whether two such values are the same."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, TypeGuard


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether `value` is a real number of Python or NumPy. A boolean does not count as a number, although `bool` is a subclass of `int`."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Return whether `value` is a real number that is neither NaN nor infinite, nor an integer beyond the range of a float."""
    try:
        return is_number(value) and math.isfinite(value)
    except OverflowError:
        return False


def is_same(value: Any, other: Any) -> bool:
    """Return whether two values of a configuration are the same. Python calls True, 1 and 1.0 equal, but a configuration can contain all three."""
    if type(value) is not type(other):
        return False
    if isinstance(value, dict):
        return bool(value.keys() == other.keys()) and all(is_same(inner, other[key]) for key, inner in value.items())
    if isinstance(value, list):
        return len(value) == len(other) and all(map(is_same, value, other))
    return bool(value == other)
