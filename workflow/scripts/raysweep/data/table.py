"""Reads a table of the user's own, from a .csv or .parquet file.

This module runs in the environment of the trials, because Ray's package already brings pandas and pyarrow there. pyarrow alone has 160 MB, which is too
much for the controller's environment.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from raysweep.common.errors import ConfigError, WorldError, logger
from raysweep.common.text import plural
from raysweep.data.columns import MAX_CATEGORIES, Raw
from raysweep.data.manifest import Task
from raysweep.data.split import Arrays
from raysweep.data.targets import read_targets

UNNAMED = "Unnamed: 0"  # pandas gives this name to the column of row numbers that `DataFrame.to_csv` writes


def read(
    path: Path, target: str, task: Task | None, key: str, group: str | None
) -> tuple[Arrays, tuple[str, ...], list[Raw], np.ndarray | None]:
    """Return the columns except the target and the group, float64 [n, columns], with the targets; the names of the classes; the description of each
    column; and the number of each row's group, int64 [n], or None without groups.

    A missing value is NaN, and a text is the number of its category. Raises ConfigError, whose message begins with the path or with `key`, for a
    table on which a model cannot be trained.
    """
    table = _read_file(path)
    for name, column in (("target", target), ("group", group)):
        if column not in (None, *table.columns):
            names = ", ".join(map(repr, table.columns[:20])) + (f" and {len(table.columns) - 20} more" if len(table.columns) > 20 else "")
            raise ConfigError(f"{key}.{name}: {path} has no column {column!r}. Allowed: {names}.")
    if UNNAMED in table.columns and UNNAMED not in (target, group):
        logger.info("%s: the first column has no name, so it counts as row numbers and is ignored", path)
        table = table.drop(columns=UNNAMED)
    place = f"{path}: column {target!r}"
    labels, classes = read_targets({"train": _targets(table.pop(target), place)}, task, place)
    groups = None if group is None else _groups(table.pop(group), f"{path}: column {group!r}")
    if not len(table.columns):
        raise ConfigError(
            f"{path}: has no column beside {target!r}{f' and {group!r}' if group else ''}. Allowed: at least one column for the model."
        )
    raws, columns = [], []
    for name in table.columns:
        values, categories = _column(table[name], f"{path}: column {name!r}")
        raws.append(Raw(name, categories))
        columns.append(values)
    return (np.stack(columns, axis=1), labels["train"]), classes, raws, groups


def _read_file(path: Path) -> pd.DataFrame:
    """Return the table. Raises WorldError for a file that pandas cannot read or that has no rows."""
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, low_memory=False)
        # pandas changes the second of two equal names in a .csv file, so that a copy of the target would become an input.
        names = table.columns if path.suffix == ".parquet" else pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0].dropna()
    except (ValueError, OSError, ImportError) as error:  # the errors of pandas and pyarrow are of these types
        raise WorldError(
            f"{path}: cannot be read as a table ({' '.join(str(error).split())}). Save it again as .csv or .parquet."
        ) from error
    if not isinstance(table.index, pd.RangeIndex) and path.suffix != ".parquet":
        # pandas takes the values before the first name for the names of the rows, which would move all columns.
        raise WorldError(f"{path}: the rows have more values than the first line has names. Give each column a name.")
    if len(equal := names[names.duplicated()]):
        raise WorldError(f"{path}: several columns have the name {str(equal.tolist()[0])!r}. Give each column a name of its own.")
    if not len(table):
        raise WorldError(f"{path}: has no rows. Allowed: a line with the names of the columns, and a line for each row.")
    table.columns = table.columns.map(str)
    return table


def _refuse_missing(column: pd.Series, place: str, noun: str) -> None:
    if len(missing := np.flatnonzero(column.isna())):
        raise ConfigError(f"{place} has {plural(len(missing), f'missing {noun}')}, the first in row {missing[0]}. Remove these rows.")


def _groups(column: pd.Series, place: str) -> np.ndarray:
    """Return the number of each row's group, int64 [n]. Raises ConfigError where some groups are missing."""
    _refuse_missing(column, place, "group")
    numbers, _ = pd.factorize(column)
    return np.asarray(numbers, np.int64)


def _targets(column: pd.Series, place: str) -> np.ndarray:
    """Return the targets as an array of text, bool or numbers. Raises ConfigError where some are missing."""
    _refuse_missing(column, place, "target")
    kind = pd.api.types.infer_dtype(column)
    if kind in ("string", "categorical", "mixed", "mixed-integer"):
        return np.array(column.astype(str), dtype=str)
    if kind not in ("boolean", "integer", "floating", "decimal", "mixed-integer-float"):
        raise ConfigError(f"{place} has values of the type {kind}. Allowed: numbers, or text as names of classes.")
    if kind == "integer" and max(abs(int(column.min())), abs(int(column.max()))) >= 2**63:
        return np.array([float(value) for value in column])  # int64 holds no such number
    return np.array(column, dtype={"boolean": bool, "integer": np.int64}.get(kind, np.float64))


def _column(column: pd.Series, place: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return a column as float64 [n], and the categories of a text column. Raises ConfigError for infinite values and for other types of values."""
    kind = pd.api.types.infer_dtype(column, skipna=True)
    if kind in ("string", "categorical"):
        codes, names = pd.factorize(column.astype("string"), sort=True)  # the code of a missing value is -1
        if len(names) > MAX_CATEGORIES:
            raise ConfigError(
                f"{place} has {len(names):,} different texts. Allowed: at most {MAX_CATEGORIES}, which are categories. Remove the column from the file, or "
                "replace its texts by numbers."
            )
        return np.where(codes < 0, np.nan, codes.astype(np.float64)), tuple(map(str, names))
    if kind not in ("boolean", "integer", "floating", "decimal", "mixed-integer-float", "empty"):
        raise ConfigError(
            f"{place} has values of the type {kind}. Allowed: numbers, true and false, or text. Convert the column, or remove it."
        )
    values: np.ndarray = pd.to_numeric(column.astype("Float64" if kind != "decimal" else float)).to_numpy(dtype=np.float64, na_value=np.nan)
    if len(infinite := np.flatnonzero(np.isinf(values))):
        raise ConfigError(
            f"{place} has {plural(len(infinite), 'infinite value')}, the first in row {infinite[0]}. Allowed: numbers, or no value."
        )
    return values, ()
