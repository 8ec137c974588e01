"""Loads the staged arrays of a data set as tensors on the device on which a model trains."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from raysweep.data.manifest import read_manifest
from raysweep.data.split import load_split
from raysweep.training.preparation import DataFacts


@functools.lru_cache(maxsize=3)  # the splits of one fold; with all folds, a process on a GPU would hold the data several times
def load_tensors(data_dir: Path | None, split: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images, uint8 [n, channels, height, width], or other inputs [n, …], and the labels, int64 [n], or other targets [n], of a split.

    On a CPU the tensors are memory-mapped, so that the processes of a node share one copy in memory. On a GPU each process has a separate copy.
    """
    assert data_dir is not None  # The checks of the config require a data set for a sweep that trains a `model`.
    images, labels = load_split(data_dir, split)
    return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)


@functools.cache
def read_facts(data_dir: Path | None) -> DataFacts:
    """Return the facts about a data set that training needs."""
    assert data_dir is not None  # The checks of the config require a data set for a sweep that trains a `model`.
    return DataFacts.of(read_manifest(data_dir))
