"""Converts the keys and values of a sweep for Optuna's importance evaluators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raysweep.config.distributions import Choice
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
    """Return the choices of Optuna for the categories of a key."""
    from raysweep.record.study import labels_of

    return labels_of(Choice("choice", tuple(key.categories)))


def new_study(result: SweepResult) -> optuna.Study:
    """Return an empty Optuna study. Optuna's messages below the level WARNING are kept out of the log."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize" if result.mode == "max" else "minimize")
