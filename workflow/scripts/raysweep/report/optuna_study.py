"""Converts the keys and values of a sweep for Optuna's importance evaluators. The search algorithm of the sweep does not matter."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from raysweep.report.inputs import SweepResult
from raysweep.report.keys import Key

if TYPE_CHECKING:
    import optuna


def distribution_of(key: Key) -> optuna.distributions.BaseDistribution:
    """Return the Optuna distribution that contains all values of `key`."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not key.numeric:
        return CategoricalDistribution(_choices(key))
    low, high = key.span
    if all(isinstance(value, int) for value in key.values) and float(low).is_integer() and float(high).is_integer():
        return IntDistribution(int(low), int(high), log=key.log)
    return FloatDistribution(low, high, log=key.log)


def params_of(keys: list[Key], config: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the keys that `config` contains, by the name of the key."""
    values = {key.name: (key, key.value_in(config)) for key in keys if key.is_in(config)}
    return {name: value if key.numeric else _choices(key)[key.index(value)] for name, (key, value) in values.items()}


def _choices(key: Key) -> list[Any]:
    """Return the choices of Optuna for the categories of a key. Where Python calls two choices equal, such as True and 1, all choices are JSON text."""
    choices = [_choice(value) for value in key.categories]
    are_equal = any(choice in choices[:number] for number, choice in enumerate(choices))
    return [json.dumps(value) for value in key.categories] if are_equal else choices


def _choice(value: Any) -> Any:
    """Return `value` as a choice for Optuna. A list or a map becomes JSON text, because Optuna's choices cannot be lists or maps."""
    return value if value is None or isinstance(value, str | bool | int | float) else json.dumps(value)


def new_study(result: SweepResult) -> optuna.Study:
    """Return an empty Optuna study. Optuna's messages below the level WARNING are kept out of the log."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize" if result.mode == "max" else "minimize")
