"""Search spaces: how the config describes a space, and how configurations are drawn from the space.

A value of the space is a distribution (a map with one key, its name), a nested space (any other map) or a constant. Distributions have the
names and the meaning that they have in Ray Tune (https://docs.ray.io/en/latest/tune/api/search_space.html): upper bounds are excluded for
`randint` and `lograndint`, included for `quniform` and `qloguniform`. This module draws the values itself: so configuration i depends on (seed, i) alone,
whatever the version of Ray, and the report, which runs without Ray, can draw as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from raysweep.common.errors import ConfigError
from raysweep.common.numeric import is_finite_number

# Keys of a search space that set the training of a `model`; all others go to the model's constructor.
TRAINING_KEYS = frozenset({"lr", "momentum", "nesterov", "weight_decay", "betas", "batch_size"})
PLAIN = "text (a date stands in quotes), numbers, true, false, null"  # the values of JSON, in which the record is written
SEPARATOR = "/"  # of the keys of a nested space, as in `config/optimizer/lr`


@dataclass(frozen=True)
class Numeric:
    """A distribution over numbers: uniform between two bounds, on a linear or a logarithmic scale, perhaps rounded to a step."""

    name: str
    low: float
    high: float  # excluded for integers
    log: bool = False
    integer: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Return whether all values of the distribution are whole numbers."""
        return self.integer or (self.step is not None and self.step.is_integer())

    def contains(self, value: Any) -> bool:
        """Return whether `value` lies in the distribution. The step is not checked."""
        is_number = isinstance(value, int if self.integer else int | float) and not isinstance(value, bool)
        return is_number and self.low <= value <= (self.high - 1 if self.integer else self.high)

    @property
    def range(self) -> str:
        """Return in words which values can be drawn."""
        return f"a {'whole ' if self.integer else ''}number from {self.low:g} to {self.high - self.integer:g}"

    def quantile(self, u: float) -> float | int:
        """Return the value below which a fraction `u` in [0, 1) of the distribution lies."""
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
    """A normal distribution."""

    mean: float
    standard_deviation: float
    name: str = "normal"
    range = "a number"

    def contains(self, value: Any) -> bool:
        """Return whether `value` can be drawn."""
        return is_finite_number(value)

    def cumulative(self, value: float) -> float:
        """Return the fraction of the distribution that lies below `value`."""
        return NormalDist(self.mean, self.standard_deviation).cdf(value)

    def quantile(self, u: float) -> float:
        """Return the value below which a fraction `u` in [0, 1) of the distribution lies."""
        return NormalDist(self.mean, self.standard_deviation).inv_cdf(min(max(u, 1e-12), 1 - 1e-12))


@dataclass(frozen=True)
class Choice:
    """A list of values, of which one is drawn at random (`choice`) or each is taken in turn (`grid`)."""

    name: str
    values: tuple[Any, ...]

    def contains(self, value: Any) -> bool:
        """Return whether `value` can be drawn."""
        return any(value == allowed and type(value) is type(allowed) for allowed in self.values)  # True == 1 in Python

    @property
    def range(self) -> str:
        """Return in words which values can be drawn."""
        return "one of " + ", ".join(str(value) for value in self.values)

    def quantile(self, u: float) -> Any:
        """Return the value at a fraction `u` in [0, 1) of the list."""
        return self.values[min(int(u * len(self.values)), len(self.values) - 1)]


Distribution = Numeric | Normal | Choice


def quantized(value: float, low: float, high: float, step: float) -> float:
    """Return `value` rounded to a multiple of `step` that lies within the bounds, without the noise of binary fractions."""
    # ASSUME a step has at most 12 significant decimals
    steps = min(max(round(value / step), math.ceil(low / step - 1e-9)), math.floor(high / step + 1e-9))
    return float(f"{steps * step:.12g}")


def _is_plain(value: Any) -> bool:
    """Return whether JSON holds a value of YAML unchanged. Dates, sets and bytes are values that JSON does not hold."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    return all(map(_is_plain, value)) if isinstance(value, list) else value is None or isinstance(value, str | int | float)


def parse_distribution(name: str, arguments: Any) -> Distribution:
    """Return the distribution `name` with the arguments of the config. Raises ConfigError, with a text that begins with the value."""
    if name in ("choice", "grid"):
        if not isinstance(arguments, list) or not arguments:
            raise ConfigError(f"{arguments!r} is not allowed: {name} takes a list of at least one value")
        for value in arguments:
            if not _is_plain(value):
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


ONE_OF = "one_of"  # the key of a list of spaces, of which a configuration has one
DISTRIBUTIONS = ("uniform", "loguniform", "quniform", "qloguniform", "randint", "lograndint", "normal", "choice", "grid")


Keys = tuple[str | int, ...]  # the keys and numbers that lead to a part of a search space


@dataclass(frozen=True)
class SpaceMistake:
    """A part of a search space that is not allowed."""

    keys: Keys
    message: str


def parse_space(space: dict[str, Any]) -> dict[str, Any]:
    """Return a search space of the config as a flat map: {"key" or "outer/inner": distribution or constant}.

    Raises ConfigError for the first mistake; the text of the error begins with the key.
    """
    flat, mistakes = read_space(space)
    if mistakes:
        raise ConfigError(f"{'.'.join(map(str, ('search_space', *mistakes[0].keys)))}: {mistakes[0].message}")
    return flat


def read_space(space: dict[str, Any], outer: Keys = ()) -> tuple[dict[str, Any], list[SpaceMistake]]:
    """Return a search space of the config as a flat map, as `parse_space` does, and all mistakes. `outer` leads to the space."""
    flat: dict[str, Any] = {}
    mistakes: list[SpaceMistake] = []
    for key, value in space.items():
        part, mistakes_of_part = _read_value(key, value, outer)
        flat |= part
        mistakes += mistakes_of_part
    return flat, mistakes


def _read_value(key: Any, value: Any, outer: Keys) -> tuple[dict[str, Any], list[SpaceMistake]]:
    """Return the flat map and the mistakes of one key of a search space."""
    keys = (*outer, key)
    if not isinstance(key, str) or not key or set("/[]") & set(key) or key.startswith("_"):
        allowed = "a name that neither is empty, holds a slash or a bracket, nor starts with an underscore"
        return {}, [SpaceMistake(outer, f"the key {key!r} is not allowed: {allowed}")]
    if isinstance(value, dict):
        return _read_map(key, value, keys)
    if isinstance(value, list):
        allowed = "a distribution, a nested space or a constant. To draw from a list write {choice: […]}"
        return {}, [SpaceMistake(keys, f"{value!r} is not allowed: {allowed}")]
    if not _is_plain(value):
        return {}, [SpaceMistake(keys, f"{value!r} is not allowed: a distribution, a nested space or a constant: {PLAIN}")]
    return {key: value}, []


def _read_map(key: str, value: dict[Any, Any], keys: Keys) -> tuple[dict[str, Any], list[SpaceMistake]]:
    """Return the flat map and the mistakes of a key whose value is a distribution, several branches or a nested space."""
    if len(value) == 1 and next(iter(value)) in DISTRIBUTIONS:
        name, arguments = next(iter(value.items()))
        try:
            return {key: parse_distribution(name, arguments)}, []
        except ConfigError as error:
            return {}, [SpaceMistake((*keys, name), str(error))]
    if value.keys() == {ONE_OF}:
        return _read_branches(key, value[ONE_OF], (*keys, ONE_OF))
    if not value:
        return {}, [SpaceMistake(keys, f"{{}} is not allowed: one of {', '.join(DISTRIBUTIONS)}, a nested space or a constant")]
    # A misspelt distribution is read as a nested space with a list in it, and a list is a mistake.
    flat, mistakes = read_space(value, keys)
    return {f"{key}{SEPARATOR}{inner}": v for inner, v in flat.items()}, mistakes


def _read_branches(key: str, branches: Any, keys: Keys) -> tuple[dict[str, Any], list[SpaceMistake]]:
    """Return the flat map {key: number of the branch, "key[0]/inner": …, "key[1]/other": …} of a `one_of`, and the mistakes."""
    if not isinstance(branches, list) or len(branches) < 2 or not all(isinstance(branch, dict) and branch for branch in branches):
        return {}, [SpaceMistake(keys, f"{branches!r} is not allowed: a list of at least two spaces")]
    flat: dict[str, Any] = {key: Choice(ONE_OF, tuple(range(len(branches))))}
    mistakes: list[SpaceMistake] = []
    for number, branch in enumerate(branches):
        parsed, mistakes_of_branch = read_space(branch, (*keys, number))
        mistakes += mistakes_of_branch
        if any(isinstance(d, Choice) and d.name == "grid" for d in parsed.values()):
            mistakes.append(SpaceMistake((*keys, number), f"grid is not allowed below {ONE_OF}: choice"))
        flat |= {f"{key}[{number}]{SEPARATOR}{inner}": d for inner, d in parsed.items()}
    return flat, mistakes


def is_conditional(space: dict[str, Any]) -> bool:
    """Return whether a flat space has keys that only some configurations have."""
    return any(isinstance(d, Choice) and d.name == ONE_OF for d in space.values())


def shown_key(key: str) -> str:
    """Return the name that a key of a flat space has in a configuration: net[1]/width → net/width."""
    return re.sub(r"\[\d+\]", "", key)


def _conditions(key: str) -> list[tuple[str, int]]:
    """Return the branches in which a key of a flat space lies, the outermost first: [(key of the choice, number of the branch)]."""
    return [(key[: match.start()], int(match[1])) for match in re.finditer(r"\[(\d+)\]", key)]


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Return a flat map as a nested map: {"a/b": 1} → {"a": {"b": 1}}."""
    result: dict[str, Any] = {}
    for key, value in flat.items():
        *outer, last = key.split(SEPARATOR)
        level = result
        for name in outer:
            level = level.setdefault(name, {})
        level[last] = value
    return result


def flattened(config: dict[str, Any]) -> dict[str, Any]:
    """Return a nested map as a flat map: {"a": {"b": 1}} → {"a/b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= {f"{key}{SEPARATOR}{inner}": v for inner, v in flattened(value).items()}
        else:
            flat[key] = value
    return flat


def value_at(config: dict[str, Any], key: str) -> Any:
    """Return the value that a nested configuration holds for a key of the flat space, or None where the configuration lacks the key."""
    value: Any = config
    for name in key.split(SEPARATOR):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def fill(space: dict[str, Any], draw: Callable[[str, Distribution], Any]) -> dict[str, Any]:
    """Return the nested configuration that has `draw(key, distribution)` in the place of each distribution of a flat space.

    Branches of a `one_of` that were not drawn are left out.
    """
    flat: dict[str, Any] = {}
    drawn: dict[str, int] = {}
    for key, d in space.items():
        if any(drawn.get(choice) != number for choice, number in _conditions(key)):
            continue
        value = draw(key, d) if isinstance(d, Distribution) else d
        if isinstance(d, Choice) and d.name == ONE_OF:
            drawn[key] = value
        else:
            flat[shown_key(key)] = value
    return nested(flat)


def values_in(space: dict[str, Any], config: dict[str, Any]) -> dict[str, Any] | None:
    """Return the values that a configuration has for all distributions of a flat space, or None where the configuration is not of this space.

    A distribution in a branch that the configuration does not have gets the middle of the distribution. Where a configuration fits two branches,
    the first branch counts.
    """
    values: dict[str, Any] = {}
    for key, d in space.items():
        if any(values.get(choice) != number for choice, number in _conditions(key)):
            if isinstance(d, Distribution):
                values[key] = d.quantile(0.5)
        elif isinstance(d, Choice) and d.name == ONE_OF:
            values[key] = next((number for number in d.values if _is_in(space, f"{key}[{number}]{SEPARATOR}", config)), None)
        elif isinstance(d, Distribution):
            values[key] = value_at(config, shown_key(key))
    return values if all(space[key].contains(value) for key, value in values.items()) else None


def _is_in(space: dict[str, Any], branch: str, config: dict[str, Any]) -> bool:
    """Return whether a configuration has the constants of a branch, and values for the distributions of the branch."""
    for key, d in space.items():
        if not key.startswith(branch) or _conditions(key.removeprefix(branch)):
            continue
        if not has(config, shown_key(key)):
            return False
        value = value_at(config, shown_key(key))
        is_choice = isinstance(d, Choice) and d.name == ONE_OF
        if not is_choice and not (d.contains(value) if isinstance(d, Distribution) else value == d):
            return False
    return True


def point_of(space: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    """Return the values that a point, nested as the space is, gives to distributions of a flat space: {key: value}.

    Raises ConfigError, with a text that begins with the key, where the space has no such distribution, or the distribution no such value.
    """
    distributions = {key: d for key, d in space.items() if isinstance(d, Distribution)}
    for given in point:
        if not isinstance(given, str) or SEPARATOR in given:
            raise ConfigError(f"{given}: is not allowed: a point is nested as search_space is, with text as keys")
    values = {key: value_at(point, key) for key in distributions if has(point, key)}
    for given in flattened(point):
        if not any(given == key or given.startswith(f"{key}{SEPARATOR}") for key in values):
            raise ConfigError(
                f"{given.replace(SEPARATOR, '.')}: is not searched. Allowed: {', '.join(distributions).replace(SEPARATOR, '.')}"
            )
    for key, value in values.items():
        if not distributions[key].contains(value):
            raise ConfigError(f"{key.replace(SEPARATOR, '.')}: {value!r} is not allowed: {distributions[key].range}, as search_space says")
    return values


def has(config: dict[str, Any], key: str) -> bool:
    """Return whether a nested configuration holds a key of the flat space."""
    value: Any = config
    for name in key.split(SEPARATOR):
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


def grids_of(space: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return the keys of a flat space whose values are taken in turn, with the values."""
    return {key: d.values for key, d in space.items() if isinstance(d, Choice) and d.name == "grid"}


def num_combinations(space: dict[str, Any]) -> int:
    """Return the number of combinations of the `grid` values of a flat space; 1 where the space has none."""
    return math.prod(len(values) for values in grids_of(space).values())


def configuration(space: dict[str, Any], seed: int, index: int) -> dict[str, Any]:
    """Return configuration `index` of a flat space, which depends on (seed, index) alone.

    As in Ray Tune, each sample is combined with the whole grid: consecutive indices differ in the values of the grid, and the last key changes fastest.
    Each key draws from a generator of its own. So a key that is added, or whose bounds change, leaves the values of the other keys unchanged.
    """
    grids = grids_of(space)
    position = np.unravel_index(index % num_combinations(space), [len(v) for v in grids.values()]) if grids else ()
    on_grid = {key: values[i] for (key, values), i in zip(grids.items(), position, strict=True)}

    def draw(key: str, distribution: Distribution) -> Any:
        if key in on_grid:
            return on_grid[key]
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index, *key.encode()])))
        return distribution.quantile(generator.random())

    return fill(space, draw)
