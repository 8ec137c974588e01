"""Numbers, counts, durations and values as text, the same way in logs, in `make watch` and in the report."""

from __future__ import annotations

import json
from typing import Any

from raysweep.common.numeric import is_finite_number


def number(value: float) -> str:
    """Return a number with four significant digits; whole numbers keep all their digits."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.4g}"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Return a count with its noun, such as "1 trial" or "1,000 trials"; `many` is the plural where it does not end in s."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: 12s, 3m05s, 2h07m, 4d03h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def value_text(value: Any) -> str:
    """Return a value of a configuration as text: strings as they are, numbers as `number` writes them, all others as JSON."""
    if isinstance(value, str):
        return value
    return number(value) if is_finite_number(value) else json.dumps(value)
