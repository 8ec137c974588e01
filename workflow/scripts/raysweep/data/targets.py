"""Decides whether targets are classes or numbers, and converts the targets to labels or to float64."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from raysweep.common.errors import ConfigError
from raysweep.data.manifest import Task


def read_targets(parts: Mapping[str, np.ndarray], task: Task | None, place: str) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the targets of each part, and the names of the classes.

    Text, bool and integers are classes, and become labels, int64 [n]. Floats are the numbers of a regression, and become float64 [n], and there are no
    classes. `task` changes this: a regression also takes integers, and a classification also takes floats that are whole. Raises ConfigError, whose
    message begins with `place`, for targets that are neither.
    """
    for name, values in parts.items():
        if _group(values) != _group(parts["train"]):  # the concatenation would change the type of the training part
            types = f"{parts['train'].dtype} in the training part and {values.dtype} in the {name} part"
            raise ConfigError(f"{place} has the type {types}. Allowed: one type.")
    targets = np.concatenate([_flat(values, place) for values in parts.values()])
    kind = targets.dtype.kind
    if kind in "US" and task != "regression":
        names, labels = np.unique(targets, return_inverse=True)
        classes = [str(name) for name in (names.astype(str) if kind == "S" else names)]
    elif kind in "biuf" and (task == "regression" or (kind == "f" and task is None)):
        labels, classes = _numbers(targets, place), []
    elif kind in "biuf":
        labels = _labels(targets, place)
        classes = [str(label) for label in range(int(np.max(labels)) + 1)]
    else:
        raise ConfigError(
            f"{place} has the type {targets.dtype}. Allowed: numbers{'' if task == 'regression' else ', or text as names of classes'}."
        )
    starts = np.cumsum([len(values) for values in parts.values()])[:-1]
    labels_of_parts = dict(zip(parts, np.split(labels, starts), strict=True))
    _refuse_training_part(labels_of_parts["train"], tuple(classes), place)
    return labels_of_parts, tuple(classes)


def _group(targets: np.ndarray) -> str:
    """Return the kinds of NumPy (dtype.kind) that mean the same as the kind of the targets."""
    return next((kinds for kinds in ("biu", "f", "US") if targets.dtype.kind in kinds), targets.dtype.kind)


def _flat(values: np.ndarray, place: str) -> np.ndarray:
    """Return targets as [n]. Targets [n, 1] lose their second axis, because a loss would combine [n, 1] with [n] to [n, n]."""
    if values.ndim == 2 and values.shape[1] == 1:
        return values[:, 0]
    if values.ndim != 1:
        raise ConfigError(f"{place} has the shape [{', '.join(map(str, values.shape))}]. Allowed: [n] or [n, 1], one target for each row.")
    return values


def _numbers(targets: np.ndarray, place: str) -> np.ndarray:
    """Return the targets as float64. Raises ConfigError where some are NaN or infinite."""
    numbers = targets.astype(np.float64)
    if bad := np.flatnonzero(~np.isfinite(numbers)).tolist():
        raise ConfigError(
            f"{place} has {len(bad):,} targets that are NaN or infinite, the first in row {bad[0]}. Allowed: numbers. Remove these rows."
        )
    return numbers


def _labels(targets: np.ndarray, place: str) -> np.ndarray:
    """Return the targets as labels, int64. Raises ConfigError where some are no whole numbers of at least 0."""
    numbers = _numbers(targets, place)
    bad = np.flatnonzero((numbers < 0) | (numbers != np.floor(numbers)))
    if len(bad):
        raise ConfigError(
            f"{place} has {len(bad):,} targets that are no labels, the first is {targets[bad[0]]} in row {bad[0]}. Allowed: the labels 0 to n-1 "
            "of n classes, or `task: regression` for numbers."
        )
    _refuse_gap(numbers, place)
    return targets.astype(np.int64)


def _refuse_gap(labels: np.ndarray, place: str) -> None:
    """Raise ConfigError where a label below the largest label is missing."""
    present = np.unique(labels)
    if len(gaps := np.flatnonzero(present != np.arange(len(present)))):
        raise ConfigError(
            f"{place} has labels up to {present[-1]:.0f}, but no row has the label {gaps[0]}. Allowed: the labels 0 to n-1 of n classes, or "
            "`task: regression` for numbers."
        )


def _refuse_training_part(targets: np.ndarray, classes: tuple[str, ...], place: str) -> None:
    """Raise ConfigError where all targets of the training part are equal, or where the training part lacks a class."""
    if (targets == targets[0]).all():
        raise ConfigError(
            f"{place}: all training targets are {classes[targets[0]] if classes else targets[0]}. Allowed: at least two values."
        )
    if classes and len(missing := np.setdiff1d(np.arange(len(classes)), targets)):
        raise ConfigError(
            f"{place}: only the test part has the class {classes[missing[0]]!r}. Allowed: classes that the training part has."
        )
