"""This module converts durations of the config. A duration is a number in minutes, or a text with units, such as 90s, 45m, 3h or 1d12h."""

from __future__ import annotations

import math
import re
from typing import overload

SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@overload
def seconds(duration: float | str) -> float: ...
@overload
def seconds(duration: float | str | None) -> float | None: ...
def seconds(duration: float | str | None) -> float | None:
    """Return a duration of the config in seconds, or None where `duration` is None.

    A number is in minutes, because Snakemake reads `runtime` in minutes.
    """
    if duration is None:
        return None
    if isinstance(duration, str):
        amounts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd])", duration)
        return sum(float(number) * SECONDS_PER_UNIT[unit] for number, unit in amounts)
    return duration * 60


def minutes(duration: float | str) -> int:
    """Return a duration of the config in whole minutes, rounded up, because `sbatch` accepts only whole minutes."""
    return math.ceil(seconds(duration) / 60)
