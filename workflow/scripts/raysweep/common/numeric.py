"""What counts as a number among values that come from YAML, JSON or a trainable."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, TypeGuard


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether `value` is a real number, NumPy's scalars included. Booleans are not numbers, although Python counts with them."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Return whether `value` is a real number that is neither NaN nor infinite."""
    return is_number(value) and math.isfinite(value)
