"""A sweep as a study of Optuna's: for its evaluators, and as a journal that optuna-dashboard opens, whichever algorithm searched."""

from __future__ import annotations

import json
import warnings
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.common.numeric import is_finite_number
from raysweep.record.record import Trial
from raysweep.report.inputs import Inputs, Key

if TYPE_CHECKING:
    import optuna

STATES = {"TERMINATED": "COMPLETE", "STOPPED": "PRUNED", "ERROR": "FAIL"}


def distribution_of(key: Key) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not key.numeric:
        return CategoricalDistribution([_choice(value) for value in key.categories])
    low, high = key.span
    if all(isinstance(value, int) for value in key.values) and float(low).is_integer() and float(high).is_integer():
        return IntDistribution(int(low), int(high), log=key.log)
    return FloatDistribution(low, high, log=key.log)


def params_of(keys: list[Key], config: dict[str, Any]) -> dict[str, Any]:
    """Of those keys that the configuration has."""
    found = {key.name: (key, key.value_in(config)) for key in keys if key.is_in(config)}
    return {name: value if key.numeric else _choice(value) for name, (key, value) in found.items()}


def _choice(value: Any) -> Any:
    """Optuna keeps no lists and maps among what can be chosen."""
    return value if value is None or isinstance(value, str | bool | int | float) else json.dumps(value)


def new_study(inputs: Inputs, **options: Any) -> optuna.Study:
    """An empty one, without a word of Optuna's in the log."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize" if inputs.mode == "max" else "minimize", **options)


def write_journal(inputs: Inputs, path: Path) -> None:
    """Write the sweep's finished trials as a journal, whole or not at all: those that were stopped early as pruned ones, with their values epoch by epoch."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    aside = path.with_name(f"{path.name}.new")
    aside.unlink(missing_ok=True)
    keys = [key for key in inputs.keys if key.varies]
    study = new_study(inputs, storage=JournalStorage(JournalFileBackend(str(aside))), study_name=inputs.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is experimental is no news to the user
        study.set_metric_names([inputs.metric])
    distributions = {key.name: distribution_of(key) for key in keys}
    study.add_trials([_frozen(inputs, trial, keys, distributions) for trial in inputs.trials if trial.status in STATES])
    aside.rename(path)


def _frozen(inputs: Inputs, trial: Trial, keys: list[Key], distributions: dict[str, Any]) -> optuna.trial.FrozenTrial:
    import optuna

    params = params_of(keys, trial.config)
    value = inputs.value(trial)
    # A trial that ended without a value, such as a function that reported none, has nothing to be compared by.
    state = "FAIL" if value is None else STATES[trial.status]
    values = {result.epoch: result.metrics.get(inputs.metric) for result in trial.results}
    frozen = optuna.create_trial(
        state=optuna.trial.TrialState[state],
        value=value if state == "COMPLETE" else None,
        params=params,
        distributions={name: distributions[name] for name in params},
        intermediate_values={epoch: value for epoch, value in values.items() if is_finite_number(value)},
        user_attrs={"trial_id": trial.trial_id, "status": trial.status, "seed": trial.seed}
        | ({"node": trial.node} if trial.node else {})
        | ({"error": trial.error} if trial.error else {}),
    )
    # When it ran, without a time zone, as Optuna keeps it.
    frozen.datetime_start, frozen.datetime_complete = (_local(at) for at in (trial.started, trial.ended))
    return frozen


def _local(at: str | None) -> datetime | None:
    return None if at is None else datetime.fromisoformat(at).astimezone().replace(tzinfo=None)
