"""The splits of a data set: which rows belong to each, and how a trial opens one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raysweep.common.errors import ConfigError
from raysweep.data.manifest import read_manifest

logger = logging.getLogger("raysweep")

SPLITS = ("train", "validation", "test")

Arrays = tuple[np.ndarray, np.ndarray]  # images, uint8 [n, 3, height, width], and labels, int64 [n]


def load_split(data_dir: Path, split: str) -> Arrays:
    """Return the images, uint8 [n, 3, height, width], and the labels, int64 [n], of "train", "validation" or "test".

    The arrays are memory-mapped, so all trials of a node share one copy. The mode is copy-on-write, because torch.from_numpy expects arrays
    that can be written to.
    """
    if split not in SPLITS:
        raise ValueError(f"no split is called {split!r}: there are {', '.join(SPLITS)}")
    read_manifest(data_dir)  # raises where the data set is not complete
    images, labels = (np.load(data_dir / split / f"{name}.npy", mmap_mode="c") for name in ("images", "labels"))
    return images, labels


def refuse_small_classes(labels: np.ndarray, classes: Sequence[str], splits: Sequence[str], config_key: str) -> None:
    """Raise ConfigError, which begins with `config_key`, where a class has fewer rows than there are splits to be drawn from these rows."""
    numbers, counts = np.unique(labels, return_counts=True)
    small = [(classes[number], count) for number, count in zip(numbers, counts, strict=True) if count < len(splits)]
    if small:
        few = ", ".join(f"{name!r} ({count})" for name, count in small[:3]) + (f" and {len(small) - 3} more" if len(small) > 3 else "")
        raise ConfigError(
            f"{config_key}: each class needs at least {len(splits)} images, one for each of {', '.join(splits)}. Too few images have: {few}. "
            "Add images to these classes, or take the classes away."
        )


def set_rows_aside(
    arrays: Arrays, fraction: float, seed: int, config_key: str, names: tuple[str, str], num_kept: int = 1
) -> tuple[Arrays, Arrays]:
    """Divide arrays into the rows that remain and the rows that are set aside. `names` are the two splits that result.

    Of each class at least one row is set aside and at least `num_kept` rows remain, whatever the fraction, so each class needs `num_kept` + 1
    rows. Raises ConfigError, which begins with `config_key`, where the fraction leaves one of the two splits empty.
    """
    images, labels = arrays
    classes, counts = np.unique(labels, return_counts=True)
    take = _apportion(counts, fraction)
    if not 0 < take.sum() < len(labels):
        empty, change = (names[0], "smaller") if take.any() else (names[1], "larger")
        raise ConfigError(f"{config_key}: {fraction} of {len(labels)} images leaves {empty} without any. Give a {change} fraction.")
    bounded = np.clip(take, 1, counts - num_kept)
    if num_changed := int((bounded != take).sum()):
        logger.info(
            "%s: %d of %d classes are too small for the fraction %g: at least one image of each class is in %s, and at least %d in %s",
            config_key, num_changed, len(classes), fraction, names[1], num_kept, names[0],
        )  # fmt: skip
    aside = _choose(labels, classes, bounded, seed)
    return (images[~aside], labels[~aside]), (images[aside], labels[aside])


def rows_set_aside(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return which rows are set aside for validation or test, bool [n].

    They are `fraction` of all rows, rounded, and of each class as near to that fraction as the total allows.
    """
    classes, counts = np.unique(labels, return_counts=True)
    return _choose(labels, classes, _apportion(counts, fraction), seed)


def _apportion(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Return how many rows of each class are set aside, int64 [classes]; `counts` has the rows of each class."""
    exact = counts * fraction
    take: np.ndarray = np.floor(exact).astype(np.int64)
    largest_remainders = np.argsort(take - exact, kind="stable")
    take[largest_remainders[: round(int(counts.sum()) * fraction) - int(take.sum())]] += 1
    return take


def _choose(labels: np.ndarray, classes: np.ndarray, take: np.ndarray, seed: int) -> np.ndarray:
    """Return the rows that are chosen, bool [n]: `take` rows of each class.

    Rows are chosen by sorting random keys, because numpy keeps PCG64's raw output the same in all versions, but not the methods of its Generator.
    """
    keys = np.asarray(np.random.PCG64(seed).random_raw(len(labels)))
    chosen = np.zeros(len(labels), dtype=bool)
    for label, n in zip(classes, take, strict=True):
        rows = np.flatnonzero(labels == label)
        chosen[rows[np.argsort(keys[rows], kind="stable")[:n]]] = True
    return chosen
