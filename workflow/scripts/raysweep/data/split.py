"""Chooses which rows belong to each split of a data set, and opens the arrays of a split for a trial."""

from __future__ import annotations

from collections.abc import Sequence
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


def refuse_small_classes(labels: np.ndarray, classes: Sequence[str], splits: Sequence[str], config_key: str) -> None:
    """Raise ConfigError where a class has fewer rows than the number of `splits` that are sampled from these rows.

    The error's message begins with `config_key`.
    """
    numbers, counts = np.unique(labels, return_counts=True)
    small = [(classes[number], count) for number, count in zip(numbers, counts, strict=True) if count < len(splits)]
    if small:
        few = ", ".join(f"{name!r} ({count})" for name, count in small[:3]) + (f" and {len(small) - 3} more" if len(small) > 3 else "")
        raise ConfigError(
            f"{config_key}: each class needs at least {len(splits)} rows, one for each of {', '.join(splits)}. Too few rows have: {few}. "
            "Add rows to these classes, or take the classes away."
        )


def set_rows_aside(
    arrays: Arrays, fraction: float, seed: int, config_key: str, names: tuple[str, str], num_kept: int = 1
) -> tuple[Arrays, Arrays]:
    """Divide the rows of `arrays` into two splits, and return the first split and the second split. `names` are the names of the two splits.

    The second split receives about `fraction` of the rows. For every fraction, the second split receives at least one row of each class, and the first
    split keeps at least `num_kept` rows of each class. So each class needs at least `num_kept` + 1 rows. The rows of a regression count as one class.
    Raises ConfigError, whose message begins with `config_key`, where the fraction alone would leave one of the two splits empty.
    """
    inputs, targets = arrays
    labels = targets if targets.dtype.kind == "i" else np.zeros(len(targets), np.int64)
    classes, counts = np.unique(labels, return_counts=True)
    take = _apportion(counts, fraction)
    if not 0 < take.sum() < len(labels):
        empty, change = (names[0], "smaller") if take.any() else (names[1], "larger")
        raise ConfigError(f"{config_key}: {fraction} of {len(labels)} rows leaves {empty} without any. Give a {change} fraction.")
    bounded = np.clip(take, 1, counts - num_kept)
    if num_changed := int((bounded != take).sum()):
        logger.info(
            "%s: %d of %d classes are too small for the fraction %g: at least one row of each class is in %s, and at least %d in %s",
            config_key, num_changed, len(classes), fraction, names[1], num_kept, names[0],
        )  # fmt: skip
    aside = _choose(labels, classes, bounded, seed)
    return (inputs[~aside], targets[~aside]), (inputs[aside], targets[aside])


def _apportion(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Return the number of rows to sample from each class, int64 [classes]. `counts` contains the number of rows of each class."""
    exact = counts * fraction
    take: np.ndarray = np.floor(exact).astype(np.int64)
    largest_remainders = np.argsort(take - exact, kind="stable")
    take[largest_remainders[: round(int(counts.sum()) * fraction) - int(take.sum())]] += 1
    return take


def _choose(labels: np.ndarray, classes: np.ndarray, take: np.ndarray, seed: int) -> np.ndarray:
    """Return a mask, bool [n], of the sampled rows. `take` contains the number of rows to sample from each class.

    Rows are sampled by sorting random keys. All versions of numpy give equal raw output of PCG64, but may change the methods of its Generator.
    """
    keys = np.asarray(np.random.PCG64(seed).random_raw(len(labels)))
    chosen = np.zeros(len(labels), dtype=bool)
    for label, n in zip(classes, take, strict=True):
        rows = np.flatnonzero(labels == label)
        chosen[rows[np.argsort(keys[rows], kind="stable")[:n]]] = True
    return chosen
