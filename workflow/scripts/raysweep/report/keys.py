"""Describes the keys of a sweep's configurations, and the positions of the keys' values on an axis."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raysweep.common.numeric import is_finite_number
from raysweep.common.text import value_text
from raysweep.config.distributions import Choice, Distribution, Normal, Numeric
from raysweep.config.space import ONE_OF, flattened, parse_space, shown_key


@dataclass(frozen=True)
class Key:
    """Describes a key of the configurations. The name of a nested key is written as `outer/inner`."""

    name: str
    # None for a constant, for a key that the search space no longer has, and for a key with different distributions in the branches of a one_of
    distribution: Distribution | None
    values: tuple[Any, ...]  # all different values of the key in the configurations

    @property
    def varies(self) -> bool:
        return len(self.values) > 1

    @cached_property
    def numeric(self) -> bool:
        """Return whether the values are points on a scale, which means that all values are numbers that were not chosen from a list."""
        return not isinstance(self.distribution, Choice) and all(is_finite_number(v) for v in self.values)

    @cached_property
    def log(self) -> bool:
        """Return whether the axis of the key is logarithmic."""
        return isinstance(self.distribution, Numeric) and self.distribution.log and all(v > 0 for v in self.values)

    @cached_property
    def categories(self) -> list[Any]:
        """Return the values in the order of the axis.

        The values of the list in the search space come first, followed by other values that occur. If all values are numbers, the numbers are sorted by size.
        """
        offered = list(self.distribution.values) if isinstance(self.distribution, Choice) else []
        values = list({_json_text(v): v for v in (*offered, *self.values)}.values())
        return sorted(values) if all(is_finite_number(v) for v in values) else values

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {_json_text(value): number for number, value in enumerate(self.categories)}

    @cached_property
    def _labels(self) -> list[str]:
        texts = [value_text(category) for category in self.categories]
        return [json.dumps(category) for category in self.categories] if len(set(texts)) < len(texts) else texts

    def index(self, value: Any) -> int:
        """Return the position of `value` in `categories`."""
        return self._indices[_json_text(value)]

    def label(self, value: Any) -> str:
        """Return one of `categories` as text. Where two categories would have equal texts, such as 1 and 1.0, the text is JSON."""
        return self._labels[self.index(value)]

    @cached_property
    def span(self) -> tuple[float, float]:
        """Return the two ends of a numeric key's axis.

        The ends are the bounds of the range, or, for a normal distribution, two standard deviations from the mean. Values beyond the ends move the ends
        outwards.
        """
        d = self.distribution
        ends: list[float] = []
        if isinstance(d, Numeric):
            ends = [d.low, d.high - d.integer]
        elif isinstance(d, Normal):
            ends = [max(-sys.float_info.max, d.mean - 2 * d.standard_deviation), min(d.mean + 2 * d.standard_deviation, sys.float_info.max)]
        return min([*ends, *self.values]), max([*ends, *self.values])

    def value_in(self, config: dict[str, Any]) -> Any:
        """Return the value of the key in `config`, or None if `config` lacks the key."""
        return flattened(config).get(self.name)

    def is_in(self, config: dict[str, Any]) -> bool:
        """Return whether `config` has the key."""
        return self.name in flattened(config)

    def position(self, value: Any) -> float:
        """Return the position of `value` on the axis of the key, from 0 to 1."""
        if not self.numeric:
            return (self.index(value) + 0.5) / len(self.categories)
        return position_in_range(*self.span, value, self.log)


def _json_text(value: Any) -> str:
    """Return `value` as JSON text, which is equal for equal values. A list is not hashable, and NaN is not equal to NaN."""
    return json.dumps(value, sort_keys=True)


def position_in_range(low: float, high: float, value: float, log: bool) -> float:
    """Return the position of `value` on a linear or logarithmic scale, from 0 at `low` to 1 at `high`, or 0.5 if both ends are equal."""
    low, high, value = (math.log(x) if log else float(x) for x in (low, high, value))
    if math.isinf(high - low):
        low, high, value = low / 2, high / 2, value / 2
    return (value - low) / (high - low) if high > low else 0.5


def keys_of(search_space: dict[str, Any], configs: list[dict[str, Any]]) -> list[Key]:
    """Return the keys of the search space, followed by the other keys of `configs`."""
    space: dict[str, Any] = {}
    for key, distribution in parse_space(search_space).items():
        name = shown_key(key)
        if not (isinstance(distribution, Choice) and distribution.name == ONE_OF):  # the branches of a one_of contain the values
            # Two branches of a one_of may give the same name different distributions. Then no single distribution describes the key.
            space[name] = distribution if name not in space or space[name] == distribution else None
    flat = [flattened(config) for config in configs]
    names = [*space, *(name for config in flat for name in config)]
    keys = []
    for name in dict.fromkeys(names):
        values = {_json_text(c[name]): c[name] for c in flat if name in c}
        distribution = space.get(name)
        keys.append(Key(name, distribution if isinstance(distribution, Distribution) else None, tuple(values.values())))
    return keys
