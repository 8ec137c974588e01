"""This module selects the values of a trial's report that are recorded, and checks whether the metric of a report can be compared."""

from __future__ import annotations

import math
import warnings
from typing import Any

from raysweep.common.numeric import is_finite_number, is_number
from raysweep.common.patience import NO_BETTER_FOR
from raysweep.config.model import TUNE_NAMES

HAS_CHECKPOINT = "should_checkpoint"  # Tune adds this key to a report that comes with a checkpoint


def without_tune_names(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return a report without the names that Tune adds to each report, so that Tune's own values count. Warns where there are such names."""
    if names := sorted(TUNE_NAMES.intersection(metrics)):
        warnings.warn(f"reported {', '.join(names)}, which Ray Tune sets itself: left out of the report", stacklevel=2)
    return {key: value for key, value in metrics.items() if key not in TUNE_NAMES}


def numbers_of(result: dict[str, Any]) -> dict[str, float]:
    """Return the finite numbers in a trial's report, without the values that Tune adds to the report."""
    return {
        key: value if isinstance(value, int) else float(value)
        for key, value in ((str(key), value) for key, value in result.items())
        if _is_reported(key) and is_finite_number(value)
    }


def reason_unusable(result: dict[str, Any], metric: str) -> str | None:
    """Return the reason why the metric of a report cannot be compared. Return None if the metric can be compared."""
    if NO_BETTER_FOR in result:
        return f"reported {NO_BETTER_FOR}, which is an entry of stop and no name of a metric: report the value under another name"
    if metric not in result:
        reported = ", ".join(sorted(str(key) for key in result if _is_reported(str(key)))) or "nothing"
        return f"reported no {metric} (it reported {reported})"
    value = result[metric]
    if not is_number(value):
        return f"reported {metric} = {str(value)[:80]!r}, which is not a number"
    return None if math.isfinite(value) else f"reported {metric} = {value}, which is not finite"


def _is_reported(key: str) -> bool:
    return key not in TUNE_NAMES and not key.startswith("config/")
