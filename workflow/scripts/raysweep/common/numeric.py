"""This module decides whether a value from YAML, from JSON or from a trainable is a number."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, TypeGuard


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether `value` is a real number of Python or NumPy. A boolean does not count as a number, although `bool` is a subclass of `int`."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Return whether `value` is a real number that is neither NaN nor infinite."""
    return is_number(value) and math.isfinite(value)
