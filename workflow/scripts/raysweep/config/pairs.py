"""Lists the pairs of settings that a data set or a sweep cannot have together, each with the reason.

A test makes a config for each two of the settings, and checks that the config is refused with the reason, or is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from raysweep.common.capacity import WorkerResources
from raysweep.common.patience import NO_BETTER_FOR
from raysweep.config.distributions import Distribution
from raysweep.config.mistakes import Mistake
from raysweep.config.recipe import FIXED_RATE_OPTIMIZERS
from raysweep.config.recipe_checks import recipe_values
from raysweep.config.schema import schema_at
from raysweep.config.section import Section, dataset_of, folds_of
from raysweep.data.manifest import is_table


@dataclass(frozen=True)
class Setting:
    """Describes a setting that excludes other settings."""

    key: str  # key of the data set or the sweep at which a mistake is reported; a dot leads to an inner key
    # This function returns the value of the setting for a message, or None where the section does not have the setting.
    value: Callable[[Section], Any]
    reads: str = ""  # further keys that `value` reads, with spaces between the keys


@dataclass(frozen=True)
class Pair:
    """Describes two settings that cannot be combined. A mistake is reported at the key of the first setting."""

    first: str
    second: str
    # Text of the mistake, in which {0} is the value of the first setting, and {1} the value of the second setting.
    message: str
    settings: dict[str, Setting]

    def check(self, section: Section) -> Iterator[Mistake]:
        """Yield a mistake where the section has both settings."""
        values = [self.settings[name].value(section) for name in (self.first, self.second)]
        if None not in values:
            yield section.mistake(self.message.format(*values), *self.settings[self.first].key.split("."))

    @property
    def keys(self) -> str:
        """Return the keys that the check reads, with spaces between the keys."""
        return " ".join(f"{self.settings[name].key} {self.settings[name].reads}" for name in (self.first, self.second))


def _pairs(settings: dict[str, Setting], *rows: tuple[str, str, str]) -> tuple[Pair, ...]:
    """Return the pairs of `rows`. A row contains the names of the two settings and the message."""
    return tuple(Pair(*row, settings) for row in rows)


def _where(value: Any, condition: bool) -> Any:
    return value if condition else None


def _given(key: str, unused: Any = None) -> Callable[[Section], Any]:
    """Return a function that returns the value of `key` as text, or None where the value is missing or `unused`."""
    return lambda section: _where(repr(section.values.get(key)), section.values.get(key) not in (None, unused))


def _folds(sweep: Section) -> str | None:
    folds = folds_of(sweep.values, sweep.config)
    return None if folds is None else f"datasets.{sweep.values['dataset']}.validation.folds {folds}"


def _repeats(sweep: Section) -> Any:
    """Return the repeats, or None where they are the folds of the data set. The config then leaves the key out, and its default is the number of folds."""
    return _where(sweep.values["repeats"], sweep.values["repeats"] != folds_of(sweep.values, sweep.config))


def _of_recipe(key: str, unused: Any) -> Callable[[Section], Any]:
    """Return a function that returns a value of the recipe that is not `unused`, also a value from the search space."""

    def value(sweep: Section) -> Any:
        used = [value for value in recipe_values(sweep, key) if value != unused] if sweep.is_of_model else []
        return max(used) if used else None

    return value


def _augment(sweep: Section, name: str = "") -> Any:
    """Return the operations of the augmentation, or None where there are none, or no operation `name`."""
    operations = sweep.values["training"]["augment"] if sweep.is_of_model else []
    return (name or operations) if any(name in operation for operation in operations) else None


def _schedule(sweep: Section) -> str:
    return str(sweep.values["training"]["schedule"]["name"]) if sweep.is_of_model else "constant"


def _workers(sweep: Section) -> WorkerResources | None:
    workers = sweep.values["trial_resources"]["workers"]
    return WorkerResources(**workers) if workers else None


RECIPE_KEYS = "model search_space training"
SETTINGS_OF_SWEEP = {
    "model": Setting("model", _given("model")),
    "trainable": Setting("trainable", _given("trainable"), "model"),
    "loss": Setting("loss", _given("loss")),
    "optimizer": Setting("optimizer", _given("optimizer")),
    "training": Setting("training", _given("training")),
    "metrics": Setting("metrics", _given("metrics", [])),
    "fuse": Setting("fuse", lambda s: _where("'on'", s.values["fuse"] == "on")),
    "pausing scheduler": Setting("scheduler.name", lambda s: _where(s.scheduler, s.scheduler in ("hyperband", "pbt"))),
    "pbt": Setting("scheduler.name", lambda s: _where("'pbt'", s.scheduler == "pbt")),
    "patience of trials": Setting("stop", lambda s: _where(NO_BETTER_FOR, NO_BETTER_FOR in s.values["stop"])),
    "end_when": Setting("end_when", lambda s: _where(NO_BETTER_FOR, NO_BETTER_FOR in s.values["end_when"])),
    "pbt of lr": Setting(
        "scheduler.name", lambda s: _where("'pbt'", s.scheduler == "pbt" and isinstance(s.space.get("lr"), Distribution)), "search_space"
    ),
    "repeats": Setting("repeats", lambda s: _where(_repeats(s), s.values["repeats"] > 1), "dataset"),
    "other repeats": Setting("repeats", _repeats, "dataset"),
    "folds": Setting("dataset", _folds),
    "learning algorithm": Setting("search_algorithm", lambda s: _where(repr(s.algorithm), s.algorithm not in ("random", "grid"))),
    "searcher of Ray Tune": Setting("search_algorithm.name", lambda s: _where(repr(s.algorithm), ":" in s.algorithm)),
    "cmaes": Setting("search_algorithm.sampler", lambda s: _where("'cmaes'", s.values["search_algorithm"].get("sampler") == "cmaes")),
    "scheduler": Setting("scheduler.name", lambda s: _where(repr(s.scheduler), s.scheduler != "none")),
    "top": Setting("confirm.top", lambda s: _where(s.values["confirm"]["top"], s.values["confirm"]["top"] > 1)),
    "objectives": Setting("objectives", lambda s: _where("several objectives", bool(s.values["objectives"]))),
    "plain algorithm": Setting("search_algorithm", lambda s: _where(repr(s.algorithm), s.algorithm in ("random", "grid"))),
    "warm_start": Setting("warm_start", _given("warm_start")),
    "max_concurrent": Setting("max_concurrent", _given("max_concurrent")),
    "gpu auto": Setting("trial_resources.gpu", lambda s: _where("auto", s.values["trial_resources"]["gpu"] == "auto")),
    "workers": Setting("trial_resources.workers", _workers),
    "other loss": Setting("loss", lambda s: _where(s.values.get("loss"), s.values.get("loss") != "cross_entropy"), "model"),
    "label_smoothing": Setting("training.label_smoothing", _of_recipe("label_smoothing", 0), RECIPE_KEYS),
    "class_weights": Setting("training.class_weights", _of_recipe("class_weights", "none"), RECIPE_KEYS),
    "mixup": Setting("training.augment", lambda s: _augment(s, "mixup"), RECIPE_KEYS),
    "augment": Setting("training.augment", _augment, RECIPE_KEYS),
    "table": Setting("dataset", lambda s: _where(s.values["dataset"], is_table(str(dataset_of(s.values, s.config).get("source"))))),
    "warmup_epochs": Setting("training.warmup_epochs", _of_recipe("warmup_epochs", 0), RECIPE_KEYS),
    "onecycle": Setting("training.schedule.name", lambda s: _where("onecycle", _schedule(s) == "onecycle"), RECIPE_KEYS),
    "schedule": Setting("training.schedule.name", lambda s: _where(repr(_schedule(s)), _schedule(s) != "constant"), RECIPE_KEYS),
    "fixed-rate optimizer": Setting(
        "optimizer", lambda s: _where(s.values.get("optimizer"), s.values.get("optimizer") in FIXED_RATE_OPTIMIZERS)
    ),
}
_OF_MODEL = "{0} is not allowed beside trainable: it belongs to model"
_FIXED_RATE = "{0} is not allowed with optimizer {1}, which reads lr only at its beginning, or one step late"
_CROSS_ENTROPY = "is not allowed with loss {1}"
PAIRS_OF_SWEEP = _pairs(
    SETTINGS_OF_SWEEP,
    ("loss", "trainable", _OF_MODEL),
    ("optimizer", "trainable", _OF_MODEL),
    ("training", "trainable", _OF_MODEL),
    ("metrics", "trainable", _OF_MODEL),
    ("fuse", "trainable", "{0} is not allowed: auto or off with a trainable, since only trials of a model can be trained together"),
    ("repeats", "pausing scheduler", "{0} is not allowed with scheduler {1}, which pauses trials one by one: 1, or scheduler asha"),
    (
        "learning algorithm",
        "pausing scheduler",
        "{0} is not allowed with scheduler {1}, which takes all configurations before there is a result to learn from: random or grid, or scheduler asha",
    ),
    (
        "warm_start",
        "plain algorithm",
        "{0} is not allowed with search_algorithm {1}, which does not learn from results: leave it out, or take optuna",
    ),
    (
        "max_concurrent",
        "pausing scheduler",
        "{0} is not allowed with scheduler {1}, which takes all trials: leave it out, or take scheduler asha",
    ),
    (
        "gpu auto",
        "pausing scheduler",
        "{0} is not allowed with scheduler {1}, which starts all trials before one could be measured: a number, or scheduler asha",
    ),
    ("scheduler", "objectives", "{0} is not allowed with {1}, because a scheduler compares trials by one metric: none"),
    ("searcher of Ray Tune", "objectives", "{0} is not allowed with {1}: random, grid or optuna"),
    ("cmaes", "objectives", "{0} is not allowed with {1}: tpe, gp, nsga2 or qmc"),
    (
        "patience of trials",
        "objectives",
        "{0} is not allowed with {1}, because no single value says whether a trial is better: leave it out",
    ),
    ("end_when", "objectives", "{0} is not allowed with {1}, because no single value says whether a sweep is better: leave it out"),
    ("warm_start", "objectives", "{0} is not allowed with {1}, because a known trial has one value: leave it out"),
    ("top", "objectives", "{0} is not allowed with {1}, because no single value says which configuration is the next best: 1"),
    (
        "patience of trials",
        "pbt",
        "{0} is not allowed with scheduler {1}, where a trial that is no longer better takes over the weights of a better trial: leave it out",
    ),
    (
        "end_when",
        "pausing scheduler",
        "{0} is not allowed with scheduler {1}, which begins all trials before there is a best value: leave it out, or take scheduler asha",
    ),
    ("other repeats", "folds", "{0} is not allowed with {1}, because each fold is one trial of a configuration: leave repeats out"),
    (
        "pausing scheduler",
        "folds",
        "{0!r} is not allowed with {1}, because this scheduler pauses trials one by one: none, asha or median",
    ),
    ("fuse", "folds", "{0} is not allowed with {1}, because trials that are trained together share their rows: auto or off"),
    (
        "workers",
        "model",
        "{0} are not allowed with model, which the workflow trains in one process: leave workers out, or write a trainable",
    ),
    (
        "gpu auto",
        "workers",
        "{0} is not allowed with workers, because the workflow cannot measure the GPU memory of the workers' processes: a number",
    ),
    ("label_smoothing", "other loss", f"{{0}} {_CROSS_ENTROPY}: 0, or loss cross_entropy"),
    ("class_weights", "other loss", f"{{0}} {_CROSS_ENTROPY}: none, or loss cross_entropy"),
    ("mixup", "other loss", f"{{0}} {_CROSS_ENTROPY}: leave it out, or take loss cross_entropy"),
    ("augment", "table", "{0} is not allowed with the table of data set {1}, whose rows are no images: []"),
    ("warmup_epochs", "onecycle", "{0} is not allowed with schedule onecycle, which has its own warm-up: 0"),
    ("schedule", "fixed-rate optimizer", f"{_FIXED_RATE}: constant"),
    ("warmup_epochs", "fixed-rate optimizer", f"{_FIXED_RATE}: 0"),
    ("pbt of lr", "fixed-rate optimizer", f"{_FIXED_RATE}. Give lr one value, or take another optimizer"),
)


def _other_fraction(dataset: Section) -> Any:
    fraction = dataset.values["validation_fraction"]
    return _where(fraction, fraction != schema_at((*dataset.path, "validation_fraction"))["default"])


SETTINGS_OF_DATASET = {
    "images": Setting("source", lambda d: _where(d.values["source"], d.values["source"] in ("download", "synthetic"))),
    "group": Setting("group", _given("group")),
    "time": Setting("split", lambda d: _where("'time'", d.values["split"] == "time")),
    "folds": Setting("validation", _given("validation")),
    "other fraction": Setting("validation_fraction", _other_fraction),
}
PAIRS_OF_DATASET = _pairs(
    SETTINGS_OF_DATASET,
    ("group", "images", "{0} is not allowed with source {1}: it is for arrays, tables and functions. Leave it out"),
    ("time", "images", "{0} is not allowed with source {1}: it is for arrays, tables and functions. Leave it out"),
    ("time", "group", "{0} is not allowed beside group {1}, whose rows may have all times: random"),
    (
        "time",
        "folds",
        "{0} is not allowed beside validation.folds, because most folds would be validated on rows before their training rows: random",
    ),
    (
        "other fraction",
        "folds",
        "{0} is not allowed beside validation.folds, which choose the validation rows: leave it out",
    ),
)
