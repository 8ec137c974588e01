"""Writes the trials of a sweep to an Optuna journal, which the program optuna-dashboard opens. The search algorithm of the sweep does not matter."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from raysweep.common.files import written_aside
from raysweep.common.numeric import is_finite_number, is_same
from raysweep.config.distributions import Choice, Distribution, Normal
from raysweep.config.model import Objective
from raysweep.config.space import ONE_OF, has, parse_space, shown_key, value_at
from raysweep.record.sweep import Sweep
from raysweep.record.trials import Result, Trial

STATES = {"TERMINATED": TrialState.COMPLETE, "STOPPED": TrialState.PRUNED, "ERROR": TrialState.FAIL}
SHOWN_QUANTILES = (1e-9, 1 - 1e-9)  # ends of the range that Optuna shows for a normal distribution


class SingleWriter(BaseJournalBackend):
    """Keeps the lines of a journal in memory, and appends several lines to the file at once.

    Optuna's own backend locks the file and waits for the disk for each line, because several processes may write. Only the driver writes this file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.num_written = path, 0
        self.logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.logs.extend(json.loads(json.dumps(logs)))

    def flush(self) -> None:
        """Write the lines that the file lacks. The first call replaces the file, because a line of an earlier session may be incomplete."""
        lines = "".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in self.logs[self.num_written :])
        if self.num_written == 0:
            with written_aside(self.path) as stream:
                stream.write(lines)
        elif lines:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(lines)
        self.num_written = len(self.logs)


class StudyJournal:
    """Writes the trials of a sweep that have started as a study of Optuna. A trial that the scheduler stopped is a pruned trial with all reported values."""

    def __init__(self, path: Path, sweep: Sweep) -> None:
        """Write the recorded trials to `path`. The file appears only when the journal is complete, and replaces the journal of an earlier session."""
        header = sweep.header
        self.metric, self.mode = header.metric, header.mode
        self.objectives = sweep.objectives or (Objective(header.metric, header.mode),)
        self.keys = keys_of(parse_space(header.search_space))
        self.distributions = {key: distribution_of(d) for key, d in self.keys.items()}
        self.ids: dict[str, int] = {}  # trial_id → Optuna's id of the trial
        self.backend = SingleWriter(path)
        self.storage = JournalStorage(self.backend)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=self.storage,
            study_name=header.name,
            directions=["maximize" if objective.mode == "max" else "minimize" for objective in self.objectives],
        )
        with warnings.catch_warnings():
            # Optuna warns that set_metric_names is experimental. The user need not know this.
            warnings.simplefilter("ignore")
            study.set_metric_names([objective.metric for objective in self.objectives])
        self.study_id = self.storage.get_study_id_from_name(header.name)
        for trial in sweep.trials.values():
            self.update(trial)
        self.backend.flush()

    def update(self, trial: Trial) -> None:
        """Add what the journal lacks of a trial: the trial itself, its last report, and its end."""
        if not (trial.attempts or trial.finished):
            return
        if trial.trial_id not in self.ids:
            self.ids[trial.trial_id] = self.storage.create_new_trial(self.study_id, template_trial=self._frozen(trial))
            return
        number = self.ids[trial.trial_id]
        # The last report in the list is not always the latest one, because a trial that trains epochs again still has the reports of later epochs.
        latest = max(trial.results, key=lambda result: result.at, default=None)
        for epoch, value in self._intermediate_values([latest] if latest else []).items():
            self.storage.set_trial_intermediate_value(number, epoch, value)
        if trial.finished:
            frozen = self._frozen(trial)
            for key, value in frozen.user_attrs.items():
                self.storage.set_trial_user_attr(number, key, value)
            self.storage.set_trial_state_values(number, frozen.state, frozen.values)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        """Return a trial as a trial of Optuna."""
        best = trial.best(self.metric, self.mode)
        state = STATES.get(trial.status, TrialState.RUNNING)
        # A trial that ended without a value cannot be compared, for example when a trainable function reported nothing.
        state = TrialState.FAIL if trial.finished and best is None else state
        parameters = self._parameters(trial.config)
        attributes = {"trial_id": trial.trial_id, "status": trial.status, "seed": trial.seed, "node": trial.node, "error": trial.error}
        frozen = optuna.create_trial(
            state=state,
            values=self._values(best) if best and state is TrialState.COMPLETE else None,
            params=parameters,
            distributions={key: self.distributions[key] for key in parameters},
            intermediate_values=self._intermediate_values(trial.results),
            user_attrs={key: value for key, value in attributes.items() if value is not None},
        )
        frozen.datetime_start, frozen.datetime_complete = (_local(at) for at in (trial.started, trial.ended))
        return frozen

    def _values(self, report: Result) -> list[float]:
        return [report.metrics[objective.metric] for objective in self.objectives]

    def _intermediate_values(self, reports: list[Result]) -> dict[int, float]:
        """Return the value of each report. The map is empty with several objectives, because Optuna has intermediate values only for one objective."""
        values = {report.epoch: report.metrics.get(self.metric) for report in reports} if len(self.objectives) == 1 else {}
        return {epoch: value for epoch, value in values.items() if is_finite_number(value)}

    def _parameters(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the values of the keys that a configuration has. A value that the search space no longer allows is left out."""
        parameters = {}
        for key, d in self.keys.items():
            value = value_at(config, shown_key(key))
            if not has(config, shown_key(key)) or not d.contains(value):
                continue
            parameters[key] = labels_of(d)[d.position(value) or 0] if isinstance(d, Choice) else value
            if isinstance(d, Normal):  # Optuna refuses a value outside of the range
                parameters[key] = min(max(value, d.quantile(SHOWN_QUANTILES[0])), d.quantile(SHOWN_QUANTILES[1]))
        return parameters


def keys_of(space: dict[str, Any]) -> dict[str, Distribution]:
    """Return the keys of a search space that can have several values, with their distributions.

    The key in a branch of a `one_of` is named without the number of the branch, unless the branches have different distributions for the name. The values of
    constants in branches are a list, because the constants differ from branch to branch.
    """
    constants: dict[str, list[Any]] = {}
    keys: dict[str, Distribution] = {}
    for key, d in space.items():
        name = shown_key(key)
        if not isinstance(d, Distribution):
            if name != key and not any(is_same(d, value) for value in constants.setdefault(name, [])):
                constants[name].append(d)
        elif not (isinstance(d, Choice) and d.name == ONE_OF):  # the branches of a `one_of` contain the values
            is_alone = all(other == d for k, other in space.items() if shown_key(k) == name and isinstance(other, Distribution))
            keys[name if is_alone else key] = d
    return keys | {name: Choice("choice", tuple(values)) for name, values in constants.items() if name not in keys}


def distribution_of(d: Distribution) -> BaseDistribution:
    """Return the Optuna distribution that contains all values of `d`."""
    if isinstance(d, Choice):
        return CategoricalDistribution(labels_of(d))
    if isinstance(d, Normal):
        return FloatDistribution(*(d.quantile(quantile) for quantile in SHOWN_QUANTILES))
    if d.integer:
        return IntDistribution(int(d.low), int(d.high) - 1, log=d.log)
    return FloatDistribution(d.low, d.high, log=d.log)


def labels_of(choice: Choice) -> list[Any]:
    """Return the choices of Optuna for the values of a list. A list or a map becomes JSON text, because Optuna's choices cannot be lists or maps.

    Where Python calls two choices equal, such as True and 1, all choices are JSON text.
    """
    labels = [value if value is None or isinstance(value, str | bool | int | float) else json.dumps(value) for value in choice.values]
    are_equal = any(label in labels[:number] for number, label in enumerate(labels))
    return [json.dumps(value) for value in choice.values] if are_equal else labels


def _local(at: str | None) -> datetime | None:
    """Return a time of the record in the local time zone but without the name of the zone, because Optuna stores times in this form."""
    return None if at is None else datetime.fromisoformat(at).astimezone().replace(tzinfo=None)
