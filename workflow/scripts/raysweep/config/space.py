"""This module reads the search space of the config and samples configurations from the search space.

A value in a search space is a distribution (a map whose only key is the name of the distribution), a nested space (any other map) or a constant.
The distributions have the names and meanings of Ray Tune (https://docs.ray.io/en/latest/tune/api/search_space.html). The upper bound is excluded
for `randint` and `lograndint`, and included for `quniform` and `qloguniform`.

This module samples without Ray Tune for two reasons. Configuration i depends only on (seed, i) and not on the version of Ray. The report, which runs
without Ray, can sample the same configurations.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from raysweep.common.errors import ConfigError
from raysweep.common.numeric import is_same
from raysweep.config.distributions import PLAIN, Choice, Distribution, is_plain, parse_distribution
from raysweep.config.mistakes import KeyPath, Mistake

# These keys of a search space set the training of a `model`. All other keys are arguments of the model's constructor. The key `training` contains numbers
# of the recipe.
OPTIMIZER_KEYS = frozenset({"lr", "momentum", "nesterov", "weight_decay", "betas"})
TRAINING_KEYS = OPTIMIZER_KEYS | {"batch_size", "training"}


def sets_training(key: str) -> bool:
    """Return whether a key of a flat search space of a `model` sets the training, so that it is no argument of the model's constructor."""
    return key.partition(SEPARATOR)[0] in TRAINING_KEYS


SEPARATOR = "/"  # The separator joins the keys of nested spaces to a key of a flat map, such as `optimizer/lr`.


ONE_OF = "one_of"  # The value at this key is a list of spaces, which are called branches. A configuration has the keys of only one branch.
DISTRIBUTIONS = ("uniform", "loguniform", "quniform", "qloguniform", "randint", "lograndint", "normal", "choice", "grid")


def parse_space(space: dict[str, Any]) -> dict[str, Any]:
    """Return a search space of the config as a flat map, in which a key is "key" or "outer/inner", and a value is a distribution or a constant.

    Raises ConfigError for the first mistake. The error begins with the key of the mistake.
    """
    flat, mistakes = read_space(space)
    if mistakes:
        raise ConfigError(f"{'.'.join(map(str, ('search_space', *mistakes[0].path)))}: {mistakes[0].message}")
    return flat


def read_space(space: dict[str, Any], outer: KeyPath = ()) -> tuple[dict[str, Any], list[Mistake]]:
    """Return a search space as the flat map that `parse_space` returns, and all mistakes in the space. `outer` are the keys that lead to the space."""
    flat: dict[str, Any] = {}
    mistakes: list[Mistake] = []
    for key, value in space.items():
        part, mistakes_of_part = _read_value(key, value, outer)
        flat |= part
        mistakes += mistakes_of_part
    return flat, mistakes


def _read_value(key: Any, value: Any, outer: KeyPath) -> tuple[dict[str, Any], list[Mistake]]:
    """Return the flat map and the mistakes of one key of a search space. `outer` are the keys that lead to the space."""
    keys = (*outer, key)
    if not isinstance(key, str) or not key or set("/[]") & set(key) or key.startswith("_"):
        allowed = "a name that neither is empty, holds a slash or a bracket, nor starts with an underscore"
        if not isinstance(key, str):
            allowed = f"a name is text, so write '{json.dumps(key, default=str)}' with the quotes"
        return {}, [Mistake(outer, f"the key {key!r} is not allowed: {allowed}")]
    if isinstance(value, dict):
        return _read_map(key, value, keys)
    if isinstance(value, list):
        allowed = "a distribution, a nested space or a constant. To draw from a list write {choice: […]}"
        return {}, [Mistake(keys, f"{value!r} is not allowed: {allowed}")]
    if not is_plain(value):
        return {}, [Mistake(keys, f"{value!r} is not allowed: a distribution, a nested space or a constant: {PLAIN}")]
    return {key: value}, []


def _read_map(key: str, value: dict[Any, Any], keys: KeyPath) -> tuple[dict[str, Any], list[Mistake]]:
    """Return the flat map and the mistakes of a key whose value is a distribution, a `one_of` or a nested space."""
    if len(value) == 1 and next(iter(value)) in DISTRIBUTIONS:
        name, arguments = next(iter(value.items()))
        try:
            return {key: parse_distribution(name, arguments)}, []
        except ConfigError as error:
            return {}, [Mistake((*keys, name), str(error))]
    if value.keys() == {ONE_OF}:
        return _read_branches(key, value[ONE_OF], (*keys, ONE_OF))
    if not value:
        return {}, [Mistake(keys, f"{{}} is not allowed: one of {', '.join(DISTRIBUTIONS)}, a nested space or a constant")]
    # A misspelt distribution is read as a nested space. The list of arguments is then reported, because a list is not allowed in a space.
    flat, mistakes = read_space(value, keys)
    return {f"{key}{SEPARATOR}{inner}": v for inner, v in flat.items()}, mistakes


def _read_branches(key: str, branches: Any, keys: KeyPath) -> tuple[dict[str, Any], list[Mistake]]:
    """Return the flat map {key: choice of the branch number, "key[0]/inner": …, "key[1]/other": …} of a `one_of`, and the mistakes in the branches."""
    if not isinstance(branches, list) or len(branches) < 2 or not all(isinstance(branch, dict) and branch for branch in branches):
        return {}, [Mistake(keys, f"{branches!r} is not allowed: a list of at least two spaces")]
    flat: dict[str, Any] = {key: Choice(ONE_OF, tuple(range(len(branches))))}
    mistakes: list[Mistake] = []
    for number, branch in enumerate(branches):
        parsed, mistakes_of_branch = read_space(branch, (*keys, number))
        mistakes += mistakes_of_branch
        if any(isinstance(d, Choice) and d.name == "grid" for d in parsed.values()):
            mistakes.append(Mistake((*keys, number), f"grid is not allowed below {ONE_OF}: choice"))
        flat |= {f"{key}[{number}]{SEPARATOR}{inner}": d for inner, d in parsed.items()}
    return flat, mistakes


def is_conditional(space: dict[str, Any]) -> bool:
    """Return whether a flat space has a `one_of`, so that some keys occur only in some configurations."""
    return any(isinstance(d, Choice) and d.name == ONE_OF for d in space.values())


def shown_key(key: str) -> str:
    """Return the key of a configuration for a key of a flat space, without the numbers of branches: net[1]/width → net/width."""
    return re.sub(r"\[\d+\]", "", key)


def _conditions(key: str) -> list[tuple[str, int]]:
    """Return the branches that contain a key of a flat space as [(key of the `one_of`, number of the branch)]. The outermost branch comes first."""
    return [(key[: match.start()], int(match[1])) for match in re.finditer(r"\[(\d+)\]", key)]


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Return the nested map that corresponds to a flat map: {"a/b": 1} → {"a": {"b": 1}}."""
    result: dict[str, Any] = {}
    for key, value in flat.items():
        *outer, last = key.split(SEPARATOR)
        level = result
        for name in outer:
            level = level.setdefault(name, {})
        level[last] = value
    return result


def flattened(config: dict[str, Any]) -> dict[str, Any]:
    """Return the flat map that corresponds to a nested map: {"a": {"b": 1}} → {"a/b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= {f"{key}{SEPARATOR}{inner}": v for inner, v in flattened(value).items()}
        else:
            flat[key] = value
    return flat


def value_at(config: dict[str, Any], key: str) -> Any:
    """Return the value of a flat key such as "a/b" in a nested configuration, or None where the configuration lacks the key."""
    value: Any = config
    for name in key.split(SEPARATOR):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def fill(space: dict[str, Any], draw: Callable[[str, Distribution], Any]) -> dict[str, Any]:
    """Return a nested configuration of a flat space. The function `draw(key, distribution)` gives the value for each distribution.

    For a `one_of`, `draw` gives the number of a branch. The configuration then gets values for the keys of this branch only.
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
    """Return the values of a configuration for all distributions of a flat space as {key: value}.

    Return None where a value is missing or not allowed by the distribution. For a distribution in a branch that the configuration does not have, the
    value is the median of the distribution. Where a configuration fits several branches of a `one_of`, the first of these branches is used.
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
    """Return whether a configuration has the constants of a branch, and values that the distributions of the branch allow.

    `branch` is the beginning of all keys of the branch, such as "net[1]/". The keys in a branch of an inner `one_of` are not checked.
    """
    for key, d in space.items():
        if not key.startswith(branch) or _conditions(key.removeprefix(branch)):
            continue
        if not has(config, shown_key(key)):
            return False
        value = value_at(config, shown_key(key))
        is_choice = isinstance(d, Choice) and d.name == ONE_OF
        if not is_choice and not (d.contains(value) if isinstance(d, Distribution) else is_same(value, d)):
            return False
    return True


def point_of(space: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a point for the distributions of a flat space as {key: value}. The point is a nested map, as search_space is.

    Raises ConfigError where the space has no distribution for a key, or where the distribution does not allow the value. The error begins with the key.
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
    """Return whether a nested configuration has a value for a flat key such as "a/b"."""
    value: Any = config
    for name in key.split(SEPARATOR):
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


def grids_of(space: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return the `grid` keys of a flat space with the values as {key: values}."""
    return {key: d.values for key, d in space.items() if isinstance(d, Choice) and d.name == "grid"}


def num_combinations(space: dict[str, Any]) -> int:
    """Return the number of combinations of the `grid` values of a flat space, which is 1 where the space has no `grid`."""
    return math.prod(len(values) for values in grids_of(space).values())


def configuration(space: dict[str, Any], seed: int, index: int) -> dict[str, Any]:
    """Return configuration number `index` of a flat space, which depends only on the space, `seed` and `index`.

    As in Ray Tune, consecutive indices go through all combinations of the `grid` values, and all other distributions are sampled for each index. The
    last `grid` key changes fastest. Each key has a separate random generator, so that a new key or new bounds do not change the values of other keys.
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
