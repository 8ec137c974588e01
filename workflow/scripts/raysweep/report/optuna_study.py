"""Converts a sweep to an Optuna study. The search algorithm of the sweep does not matter.

Optuna's importance evaluators use the study. The program optuna-dashboard can open the study as a journal file.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.common.files import written_aside
from raysweep.common.numeric import is_finite_number
from raysweep.config.model import Mode
from raysweep.record.trials import Trial
from raysweep.report.inputs import SweepResult
from raysweep.report.keys import Key

if TYPE_CHECKING:
    import optuna

STATES = {"TERMINATED": "COMPLETE", "STOPPED": "PRUNED", "ERROR": "FAIL"}


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


def new_study(result: SweepResult, **options: Any) -> optuna.Study:
    """Return an empty Optuna study. Optuna's messages below the level WARNING are kept out of the log."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(**{"direction": _direction(result.mode)} | options)


def _direction(mode: Mode) -> str:
    return "maximize" if mode == "max" else "minimize"


def write_journal(result: SweepResult, path: Path) -> None:
    """Write the finished trials of the sweep to `path` as an Optuna journal. The file appears only when the journal is complete.

    Trials that were stopped early become pruned trials with all their reported values.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    keys = result.varying_keys
    distributions = {key.name: distribution_of(key) for key in keys}
    # Optuna opens the journal again for each entry and creates a lock file beside the journal. So Optuna writes the journal to a temporary folder,
    # and the complete journal is then copied to `path`.
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "journal"
        options: dict[str, Any] = {"storage": JournalStorage(JournalFileBackend(str(journal))), "study_name": result.name}
        if objectives := result.sweep.objectives:
            options |= {"direction": None, "directions": [_direction(objective.mode) for objective in objectives]}
        study = new_study(result, **options)
        with warnings.catch_warnings():
            # Optuna warns that set_metric_names is experimental. The user need not know this.
            warnings.simplefilter("ignore")
            study.set_metric_names(result.metrics)
        study.add_trials([_frozen(result, trial, keys, distributions) for trial in result.trials if trial.status in STATES])
        with written_aside(path, "wb") as stream:
            stream.write(journal.read_bytes())


def _frozen(result: SweepResult, trial: Trial, keys: list[Key], distributions: dict[str, Any]) -> optuna.trial.FrozenTrial:
    """Return a finished trial as a FrozenTrial of Optuna."""
    import optuna

    params = params_of(keys, trial.config)
    best = trial.best(result.metric, result.mode)
    # A trial that ended without a value cannot be compared, for example when a trainable function reported nothing.
    state = "FAIL" if best is None else STATES[trial.status]
    # Optuna has intermediate values only for one objective.
    values = {report.epoch: report.metrics.get(result.metric) for report in trial.results} if len(result.metrics) == 1 else {}
    frozen = optuna.create_trial(
        state=optuna.trial.TrialState[state],
        values=[best.metrics[metric] for metric in result.metrics] if best and state == "COMPLETE" else None,
        params=params,
        distributions={name: distributions[name] for name in params},
        intermediate_values={epoch: value for epoch, value in values.items() if is_finite_number(value)},
        user_attrs={"trial_id": trial.trial_id, "status": trial.status, "seed": trial.seed}
        | ({"node": trial.node} if trial.node else {})
        | ({"error": trial.error} if trial.error else {}),
    )
    frozen.datetime_start, frozen.datetime_complete = (_local(at) for at in (trial.started, trial.ended))
    return frozen


def _local(at: str | None) -> datetime | None:
    """Return a time of the record in the local time zone but without the name of the zone, because Optuna stores times in this form."""
    return None if at is None else datetime.fromisoformat(at).astimezone().replace(tzinfo=None)
