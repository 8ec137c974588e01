"""This module formats numbers, counts, durations and values as text. Logs, `make watch` and the report all use this format."""

from __future__ import annotations

import json
from typing import Any

from raysweep.common.numeric import is_finite_number


def number(value: float) -> str:
    """Return a number as text with four significant digits. An integer, or a whole float below 1e6, keeps all digits."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.4g}"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Return a count and a noun, such as "1 trial" or "1,000 trials". `many` is the plural of a noun that does not only add an s."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def duration(seconds: float) -> str:
    """Return a duration, given in seconds, as text with the two largest units: 12s, 3m05s, 2h07m, 4d03h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def value_text(value: Any) -> str:
    """Return a value of a configuration as text. Strings stay unchanged, `number` formats finite numbers, and all other values become JSON."""
    if isinstance(value, str):
        return value
    return number(value) if is_finite_number(value) else json.dumps(value)
