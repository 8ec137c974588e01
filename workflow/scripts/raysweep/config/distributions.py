"""This module defines the distributions of a search space, and reads a distribution from the config."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from raysweep.common.errors import ConfigError
from raysweep.common.numeric import is_finite_number, is_same

PLAIN = "text (a date stands in quotes), numbers, true, false, null"  # The record is written as JSON, which can contain only these values.


@dataclass(frozen=True)
class Numeric:
    """Describes a uniform distribution of numbers between two bounds, on a linear or logarithmic scale. Values may be rounded to a step."""

    name: str
    low: float
    high: float  # The upper bound is excluded where `integer` is True.
    log: bool = False
    integer: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Return whether all values of the distribution are whole numbers."""
        return self.integer or (self.step is not None and self.step.is_integer())

    def contains(self, value: Any) -> bool:
        """Return whether `value` has the right type and lies within the bounds. The step is not checked."""
        is_number = isinstance(value, int if self.integer else int | float) and not isinstance(value, bool)
        return is_number and self.low <= value <= (self.high - 1 if self.integer else self.high)

    @property
    def range(self) -> str:
        """Return a description in words of the values that can be sampled."""
        return f"a {'whole ' if self.integer else ''}number from {self.low:g} to {self.high - self.integer:g}"

    def quantile(self, u: float) -> float | int:
        """Return the value below which a sampled value lies with probability `u` in [0, 1)."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + u * (high - low)
        if self.log:
            value = math.exp(value)
        value = min(max(value, self.low), self.high)
        if self.integer:
            return min(math.floor(value), int(self.high) - 1)
        return quantized(value, self.low, self.high, self.step) if self.step else value


@dataclass(frozen=True)
class Normal:
    """Describes a normal distribution."""

    mean: float
    standard_deviation: float
    name: str = "normal"
    range = "a number"

    def contains(self, value: Any) -> bool:
        """Return whether `value` is a finite number, because a normal distribution can give any finite number."""
        return is_finite_number(value)

    def cumulative(self, value: float) -> float:
        """Return the probability in [0, 1] that a sampled value lies below `value`."""
        return NormalDist(self.mean, self.standard_deviation).cdf(value)

    def quantile(self, u: float) -> float:
        """Return the value below which a sampled value lies with probability `u` in [0, 1)."""
        return NormalDist(self.mean, self.standard_deviation).inv_cdf(min(max(u, 1e-12), 1 - 1e-12))


@dataclass(frozen=True)
class Choice:
    """Describes a list of values. With `choice` and `one_of`, a value is sampled at random. With `grid`, all values are used one after the other."""

    name: str
    values: tuple[Any, ...]

    def contains(self, value: Any) -> bool:
        """Return whether the list has the value."""
        return self.position(value) is not None

    def position(self, value: Any) -> int | None:
        """Return the position of `value` in the list, or None where the list lacks the value."""
        return next((number for number, allowed in enumerate(self.values) if is_same(value, allowed)), None)

    @property
    def range(self) -> str:
        """Return a description in words of the values that can be sampled."""
        return "one of " + ", ".join(str(value) for value in self.values)

    def quantile(self, u: float) -> Any:
        """Return the value at position `u` of the list, where 0 stands for the start and 1 for the end of the list."""
        return self.values[min(int(u * len(self.values)), len(self.values) - 1)]


Distribution = Numeric | Normal | Choice


def quantized(value: float, low: float, high: float, step: float) -> float:
    """Return the multiple of `step` within the bounds that is nearest to `value`, without the rounding error of binary floating-point numbers."""
    # ASSUME that a multiple of the step has at most 12 significant decimal digits
    steps = min(max(round(value / step), math.ceil(low / step - 1e-9)), math.floor(high / step + 1e-9))
    return float(f"{steps * step:.12g}")


def is_plain(value: Any) -> bool:
    """Return whether JSON can contain `value`, a value from YAML, unchanged. JSON cannot contain dates, sets and bytes."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(inner) for key, inner in value.items())
    return all(map(is_plain, value)) if isinstance(value, list) else value is None or isinstance(value, str | int | float)


def parse_distribution(name: str, arguments: Any) -> Distribution:
    """Return the distribution `name` with the arguments from the config.

    Raises ConfigError where the arguments are not allowed. The error begins with the bad value.
    """
    if name in ("choice", "grid"):
        if not isinstance(arguments, list) or not arguments:
            raise ConfigError(f"{arguments!r} is not allowed: {name} takes a list of at least one value")
        for value in arguments:
            if not is_plain(value):
                raise ConfigError(f"{value!r} is not allowed: {name} takes {PLAIN}, and lists and maps of those")
        return Choice(name, tuple(arguments))
    expected = {"normal": "[mean, standard deviation]", "quniform": "[lower, upper, step]", "qloguniform": "[lower, upper, step]"}.get(
        name, "[lower, upper]"
    )
    if not isinstance(arguments, list) or len(arguments) != expected.count(",") + 1 or not all(map(is_finite_number, arguments)):
        raise ConfigError(f"{arguments!r} is not allowed: {name} takes {expected}, all of them numbers")
    if name == "normal":
        if arguments[1] <= 0:
            raise ConfigError(f"{arguments!r} is not allowed: the standard deviation must be above 0")
        return Normal(float(arguments[0]), float(arguments[1]))
    low, high, step = (*arguments, None)[:3]
    log, integer = "log" in name, name.endswith("randint")
    if log and low <= 0:
        raise ConfigError(f"{arguments!r} is not allowed: the bounds of {name} must be above 0")
    if low >= high:
        raise ConfigError(f"{arguments!r} is not allowed: the lower bound of {name} must be below the upper one")
    if integer and not all(float(a).is_integer() for a in arguments):
        raise ConfigError(f"{arguments!r} is not allowed: the bounds of {name} must be whole numbers (the upper one is excluded)")
    if step is not None and (step <= 0 or math.floor(high / step + 1e-9) < math.ceil(low / step - 1e-9)):
        raise ConfigError(
            f"{arguments!r} is not allowed: the step of {name} must be above 0, and a multiple of it must lie within the bounds"
        )
    return Numeric(name, float(low), float(high), log, integer, None if step is None else float(step))
