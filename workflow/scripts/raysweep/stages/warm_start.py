"""Reads what was known before a sweep (`warm_start`): a table of trials, the results of another sweep, or an Optuna study."""

from __future__ import annotations

import contextlib
import csv
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.common.errors import ConfigError
from raysweep.common.numeric import is_finite_number, is_same
from raysweep.config.distributions import Choice, Distribution
from raysweep.config.model import SweepConfig
from raysweep.config.space import ONE_OF, SEPARATOR, nested, parse_space, shown_key, values_in
from raysweep.record.known_trials import KnownTrial, KnownTrials

if TYPE_CHECKING:
    import optuna

PREFIX = "config/"  # begins the name of each column of trials.csv that contains a key of the configuration
SQLITE = "sqlite:///"
FORMS = (
    "a .csv file, a folder such as results/<sweep>, an Optuna journal (*.journal, *.log), or sqlite:///<file>; after # the name of a study"
)


@dataclass(frozen=True)
class Row:
    """Contains a trial of a source: the values of the keys (flat, such as "net/width"), and the value of the metric, which may be missing or NaN."""

    config: Mapping[str, Any]
    value: Any


def read_source(source: str, sweep: SweepConfig, root: Path) -> KnownTrials:
    """Return the trials of `source` that fit the search space of a sweep. Relative paths start at `root`.

    Raises ConfigError, with one line, where the source is missing, cannot be read, or has no trial that fits the search space.
    """
    try:
        rows = list(_rows(source, sweep, root))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{source} cannot be read ({error})") from None
    if not rows:
        raise ConfigError(f"{source} holds no finished trial. Name another source, or leave the key out")
    space = parse_space(sweep.search_space)
    searched = {shown_key(key) for key, d in space.items() if isinstance(d, Distribution)}
    given = {key for row in rows for key in row.config}
    if not any(_is_part(key, name) for key in given for name in searched):
        raise ConfigError(
            f"{source} has none of the searched keys ({', '.join(sorted(searched))}). The keys of {source}: {', '.join(sorted(given)) or 'none'}"
        )
    with_value = [row for row in rows if is_finite_number(row.value)]
    if not with_value:
        raise ConfigError(f"no trial of {source} has a finite value of {sweep.metric}")
    configs = [(_config_of(space, row.config), float(row.value)) for row in with_value]
    known = tuple(KnownTrial(config, value) for config, value in configs if values_in(space, config) is not None)
    if not known:
        raise ConfigError(
            f"no trial of {source} has a value for each searched key ({', '.join(sorted(searched))}) within the range of the key"
        )
    return KnownTrials(source, known, len(rows) - len(known))


def _rows(source: str, sweep: SweepConfig, root: Path) -> Iterator[Row]:
    """Yield the trials of a source. The form of the source decides how the source is read."""
    location, _, study = source.partition("#")
    if location.startswith(SQLITE):
        yield from _rows_of_study(root / location.removeprefix(SQLITE), study, sweep)
        return
    path = root / location
    if not path.exists():
        raise ConfigError(f"{source} does not exist. Allowed: {FORMS}. If another sweep writes {source}, run that sweep first")
    if path.is_dir():
        path = path / "trials.csv"
        if not path.exists():
            raise ConfigError(f"{source}: the folder holds no trials.csv. Allowed: {FORMS}")
    if path.suffix == ".csv":
        yield from _rows_of_table(path, sweep.metric)
    elif path.suffix in (".journal", ".log"):
        yield from _rows_of_study(path, study, sweep)
    else:
        raise ConfigError(f"the form of {source} is not known. Allowed: {FORMS}")


# --- tables -----------------------------------------------------------------------------------------------------------------------------


def _rows_of_table(path: Path, metric: str) -> Iterator[Row]:
    """Yield the trials of a CSV file. A row of a trial that failed or has not finished has no value."""
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        columns = reader.fieldnames or []
        if columns and metric not in columns:
            raise ConfigError(
                f"{path} has no column {metric}, which is the metric of the sweep. The columns of {path}: {', '.join(columns)}"
            )
        for cells in reader:
            is_finished = cells.get("status", "TERMINATED") in ("TERMINATED", "STOPPED")
            config = {key.removeprefix(PREFIX): _parsed(text) for key, text in cells.items() if key and key.startswith(PREFIX) and text}
            yield Row(config, _parsed(cells[metric] or "") if is_finished else None)


def _parsed(text: str) -> Any:
    """Return the number, boolean, list or map that `text` shows, or `text` itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


# --- Optuna -----------------------------------------------------------------------------------------------------------------------------


def _rows_of_study(path: Path, name: str, sweep: SweepConfig) -> Iterator[Row]:
    """Yield the trials of an Optuna study that have ended. Only a complete trial has a value, because a pruned trial has only a value of an early epoch."""
    if not path.is_file():
        raise ConfigError(f"{path} does not exist, or is no file")
    study = _study(path, name)
    if len(study.directions) > 1:
        raise ConfigError(f"{path}: the study {study.study_name} has {len(study.directions)} objectives. Allowed: one")
    wanted = "MAXIMIZE" if sweep.mode == "max" else "MINIMIZE"
    if study.direction.name != wanted:
        raise ConfigError(
            f"{path}: the study {study.study_name} has the direction {study.direction.name.lower()}, but the sweep has mode {sweep.mode}"
        )
    if study.metric_names not in (None, [sweep.metric]):
        raise ConfigError(
            f"{path}: the study {study.study_name} is of the metric {study.metric_names[0]}, but the sweep is of {sweep.metric}"
        )
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished():
            yield Row(trial.params, trial.value if trial.state.name == "COMPLETE" else None)


def _study(path: Path, name: str) -> optuna.Study:
    """Return the study `name` of a storage, or the only study if `name` is empty. Nothing is written to the storage."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = _storage(path)
        names = [summary.study_name for summary in optuna.get_all_study_summaries(storage, include_best_trial=False)]
    except Exception as error:  # Optuna and SQLAlchemy raise many kinds of errors for a file of another form or another version
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"Optuna cannot read {path}: {reason}") from None
    if name not in names and (name or len(names) != 1):
        wrong = f"has no study {name!r}" if name else "has no study" if not names else f"has {len(names)} studies, so name one after #"
        raise ConfigError(f"{path} {wrong}. Allowed: {', '.join(names) or 'a storage with a study'}")
    return optuna.load_study(study_name=name or names[0], storage=storage)


def _storage(path: Path) -> Any:
    """Return the storage of a journal or of a SQLite file. A SQLite file is opened for reading only, because Optuna would add tables to another database."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    with path.open("rb") as stream:
        is_sqlite = stream.read(16).startswith(b"SQLite format 3")
    if not is_sqlite:
        return JournalStorage(JournalFileBackend(str(path)))
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        if not connection.execute("SELECT name FROM sqlite_master WHERE name = 'studies'").fetchone():
            raise ValueError("the database has no table of studies")
    return RDBStorage(f"sqlite:///file:{path}?mode=ro&uri=true")


# --- configurations ---------------------------------------------------------------------------------------------------------------------


def _config_of(space: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested configuration of a row, with values of the types that the search space has. Keys that the space does not have are left out."""
    flat = {}
    for key, value in config.items():
        allowed = [d for name, d in space.items() if _is_part(key, shown_key(name)) and not (isinstance(d, Choice) and d.name == ONE_OF)]
        if allowed:
            flat[key] = next((form for form in _forms(value) if any(_allows(d, form) for d in allowed)), value)
    if any(other != key and _is_part(other, key) for key in flat for other in flat):
        return {}  # a table can have a value for a key, such as net, and for a key below this key, such as net/width
    return nested(flat)


def _is_part(key: str, name: str) -> bool:
    """Return whether a key of a trial is the key `name` of the search space, or lies below this key, because a value of a choice can be a map."""
    return key == name or key.startswith(f"{name}{SEPARATOR}")


def _forms(value: Any) -> Iterator[Any]:
    """Yield a value of a table or a study in the types that the search space may have for it."""
    yield value
    if is_finite_number(value):
        yield float(value)
        if float(value).is_integer():
            yield int(value)
    if isinstance(value, str):
        yield _parsed(value)
    else:
        yield json.dumps(value) if isinstance(value, bool) else str(value)


def _allows(d: Any, value: Any) -> bool:
    return d.contains(value) if isinstance(d, Distribution) else is_same(value, d)
