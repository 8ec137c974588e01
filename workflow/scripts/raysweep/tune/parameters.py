"""This module converts the values of distributions into the parameters that learning algorithms propose, and back.

A parameter is a position in a list, a quantile of a normal distribution, or the numerical value. All learning algorithms support such parameters.
"""

from __future__ import annotations

from typing import Any

from raysweep.config.distributions import Choice, Distribution, Normal, quantized

NORMAL_QUANTILES = (1e-6, 1 - 1e-6)  # lowest and highest quantile of a normal distribution that a learning algorithm proposes


def value_of(d: Distribution, parameter: Any) -> Any:
    """Return the value of the distribution for a parameter of a learning algorithm."""
    if isinstance(d, Choice):
        return d.values[parameter]
    if isinstance(d, Normal):
        return d.quantile(parameter)
    return quantized(parameter, d.low, d.high, d.step) if d.step else parameter


def parameter_of(d: Distribution, value: Any) -> Any:
    """Return the parameter of a learning algorithm for a value of the distribution. This is the inverse of `value_of`."""
    if isinstance(d, Choice):
        return d.position(value)
    if isinstance(d, Normal):
        return min(max(d.cumulative(value), NORMAL_QUANTILES[0]), NORMAL_QUANTILES[1])
    return value
