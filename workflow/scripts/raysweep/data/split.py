"""Chooses which rows belong to each split of a data set, and opens the arrays of a split for a trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raysweep.common.errors import ConfigError, logger
from raysweep.data.manifest import read_manifest
from raysweep.data.mapped import Inputs

SPLITS = ("train", "validation", "test")

# (inputs [n, …], for images uint8 [n, 3, height, width]; targets [n], which are labels, int64, or the numbers of a regression, float64)
Arrays = tuple[Inputs, np.ndarray]


def load_split(data_dir: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs [n, …] and the targets [n] of the split "train", "validation" or "test". Images are uint8 [n, 3, height, width].

    The arrays are memory-mapped, so all trials of a node share one copy in memory. The mode is copy-on-write, because torch.from_numpy expects
    writable arrays.
    """
    if split not in SPLITS:
        raise ValueError(f"no split is called {split!r}: there are {', '.join(SPLITS)}")
    read_manifest(data_dir)  # This call raises WorldError where the data set is not complete.
    images, labels = (np.load(data_dir / split / f"{name}.npy", mmap_mode="c") for name in ("images", "labels"))
    return images, labels


def fold_dir(data_dir: Path, fold: int) -> Path:
    """Return the folder with the splits of fold number `fold`, from 0. The folder of the data set itself has the splits of fold 0."""
    return data_dir / f"fold-{fold}" if fold else data_dir


def rows_of(arrays: Arrays, mask: np.ndarray) -> Arrays:
    """Return the rows for which `mask`, bool [n], is true."""
    return arrays[0][mask], arrays[1][mask]


@dataclass(frozen=True)
class Rows:
    """Describes the rows that are divided into parts, and the rule by which the rows are divided.

    Without groups and without an order of time, each part gets the same share of each label.
    """

    labels: np.ndarray  # int64 [n]; 0 for all rows of a regression, and for rows in the order of time
    groups: np.ndarray | None = None  # number of the group of each row, int64 [n]; None where rows are divided one by one
    is_in_order_of_time: bool = False  # the last rows are set aside

    @classmethod
    def of(cls, targets: np.ndarray, groups: np.ndarray | None, is_in_order_of_time: bool) -> Rows:
        """Return the description of rows with these targets, which are labels, int64 [n], or the numbers of a regression, float64 [n]."""
        has_labels = targets.dtype.kind == "i" and not is_in_order_of_time
        return cls(targets if has_labels else np.zeros(len(targets), np.int64), groups, is_in_order_of_time)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, mask: np.ndarray) -> Rows:
        """Return the rows for which `mask`, bool [n], is true."""
        return Rows(self.labels[mask], None if self.groups is None else self.groups[mask], self.is_in_order_of_time)


def refuse_small_classes(labels: np.ndarray, classes: Sequence[str], num_parts: int, parts: str, config_key: str) -> None:
    """Raise ConfigError where a class has fewer rows than the number of parts that are sampled from these rows. `parts` names the parts.

    The error's message begins with `config_key`.
    """
    numbers, counts = np.unique(labels, return_counts=True)
    small = [(classes[number], count) for number, count in zip(numbers, counts, strict=True) if count < num_parts]
    if small:
        few = ", ".join(f"{name!r} ({count})" for name, count in small[:3]) + (f" and {len(small) - 3} more" if len(small) > 3 else "")
        raise ConfigError(
            f"{config_key}: each class needs at least {num_parts} rows, one for each of {parts}. Too few rows have: {few}. "
            "Add rows to these classes, or take the classes away."
        )


def set_rows_aside(rows: Rows, fraction: float, seed: int, config_key: str, names: tuple[str, str], num_kept: int = 1) -> np.ndarray:
    """Divide `rows` into two parts, and return a mask, bool [n], of the rows of the second part. `names` are the names of the two parts.

    The second part receives about `fraction` of the rows. For every fraction, the second part receives at least one row of each class, and the first
    part keeps at least `num_kept` rows of each class. So each class needs at least `num_kept` + 1 rows. The rows of a regression count as one class.
    Where the rows have groups, the same holds for the number of groups. Raises ConfigError, whose message begins with `config_key`, where the fraction
    alone would leave one of the two parts empty.
    """
    if rows.groups is not None:
        return _choose_groups(rows.groups, fraction, seed, num_kept)
    classes, counts = np.unique(rows.labels, return_counts=True)
    take = _apportion(counts, fraction)
    if not 0 < take.sum() < len(rows):
        empty, change = (names[0], "smaller") if take.any() else (names[1], "larger")
        raise ConfigError(f"{config_key}: {fraction} of {len(rows)} rows leaves {empty} without any. Give a {change} fraction.")
    bounded = np.clip(take, 1, counts - num_kept)
    if num_changed := int((bounded != take).sum()):
        logger.info(
            "%s: %d of %d classes are too small for the fraction %g: at least one row of each class is in %s, and at least %d in %s",
            config_key, num_changed, len(classes), fraction, names[1], num_kept, names[0],
        )  # fmt: skip
    if rows.is_in_order_of_time:
        mask: np.ndarray = np.arange(len(rows)) >= len(rows) - bounded[0]
        return mask
    return _choose(rows.labels, classes, bounded, seed)


def fold_numbers(rows: Rows, folds: int, seed: int) -> np.ndarray:
    """Return the number of the fold of each row, int64 [n], from 0 to `folds` - 1.

    The numbers of rows of two folds differ by at most one, in total and for each class. Where the rows have groups, the largest group is assigned first,
    and each group is assigned to the fold with the fewest rows so far.
    """
    if rows.groups is None:
        numbers = np.empty(len(rows), np.int64)
        numbers[np.lexsort((_random_keys(seed, len(rows)), rows.labels))] = np.arange(len(rows)) % folds
        return numbers
    _, members, sizes = np.unique(rows.groups, return_inverse=True, return_counts=True)
    fold_of_group, rows_of_fold = np.empty(len(sizes), np.int64), np.zeros(folds, np.int64)
    for group in np.lexsort((_random_keys(seed, len(sizes)), -sizes)):
        fold_of_group[group] = np.argmin(rows_of_fold)
        rows_of_fold[fold_of_group[group]] += sizes[group]
    return fold_of_group[members]


def _choose_groups(groups: np.ndarray, fraction: float, seed: int, num_kept: int) -> np.ndarray:
    """Return a mask, bool [n], of the rows of sampled groups. Each sampled group brings the number of sampled rows nearer to `fraction` of all rows."""
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    is_chosen, missing = np.zeros(len(sizes), dtype=bool), fraction * len(groups)
    for group in np.argsort(_random_keys(seed, len(sizes)), kind="stable"):
        if 2 * missing > sizes[group] and np.count_nonzero(is_chosen) < len(sizes) - num_kept:
            is_chosen[group] = True
            missing -= sizes[group]
    if not is_chosen.any():
        is_chosen[np.argmin(sizes)] = True
    mask: np.ndarray = is_chosen[members]
    return mask


def _apportion(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Return the number of rows to sample from each class, int64 [classes]. `counts` contains the number of rows of each class."""
    exact = counts * fraction
    take: np.ndarray = np.floor(exact).astype(np.int64)
    largest_remainders = np.argsort(take - exact, kind="stable")
    take[largest_remainders[: round(int(counts.sum()) * fraction) - int(take.sum())]] += 1
    return take


def _choose(labels: np.ndarray, classes: np.ndarray, take: np.ndarray, seed: int) -> np.ndarray:
    """Return a mask, bool [n], of the sampled rows. `take` contains the number of rows to sample from each class."""
    keys = _random_keys(seed, len(labels))
    chosen = np.zeros(len(labels), dtype=bool)
    for label, n in zip(classes, take, strict=True):
        rows = np.flatnonzero(labels == label)
        chosen[rows[np.argsort(keys[rows], kind="stable")[:n]]] = True
    return chosen


def _random_keys(seed: int, count: int) -> np.ndarray:
    """Return random numbers, uint64 [count], whose order is a random order.

    All versions of numpy give equal raw output of PCG64, but may change the methods of its Generator.
    """
    return np.asarray(np.random.PCG64(seed).random_raw(count))
