"""The splits of a data set: which rows belong to each, and how a trial opens one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raysweep.common.errors import ConfigError
from raysweep.data.manifest import read_manifest

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


def set_rows_aside(arrays: Arrays, fraction: float, seed: int, config_key: str, names: tuple[str, str]) -> tuple[Arrays, Arrays]:
    """Divide arrays into the rows that remain and the rows that are set aside. `names` are the two splits that result.

    Raises ConfigError, which begins with `config_key`, where one of the two would be empty.
    """
    images, labels = arrays
    aside = rows_set_aside(labels, fraction, seed)
    if not 0 < aside.sum() < len(labels):
        raise ConfigError(f"{config_key}: {fraction} of {len(labels)} images leaves {names[0] if aside.any() else names[1]} without any.")
    return (images[~aside], labels[~aside]), (images[aside], labels[aside])


def rows_set_aside(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return which rows are set aside for validation or test, bool [n].

    They are `fraction` of all rows, rounded, and of each class as near to that fraction as the total allows. Rows are chosen by sorting random
    keys, because numpy keeps PCG64's raw output the same in all versions, but not the methods of its Generator.
    """
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * fraction
    take = np.floor(exact).astype(np.int64)
    largest_remainders = np.argsort(take - exact, kind="stable")
    take[largest_remainders[: round(len(labels) * fraction) - int(take.sum())]] += 1

    keys = np.asarray(np.random.PCG64(seed).random_raw(len(labels)))
    chosen = np.zeros(len(labels), dtype=bool)
    for label, n in zip(classes, take, strict=True):
        rows = np.flatnonzero(labels == label)
        chosen[rows[np.argsort(keys[rows], kind="stable")[:n]]] = True
    return chosen
