"""Loads the staged arrays of a data set as tensors on the device on which a model trains."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from raysweep.data.split import load_split


@functools.cache
def load_tensors(data_dir: Path | None, split: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images, uint8 [n, channels, height, width], and the labels, int64 [n], of a split.

    On a CPU the tensors are memory-mapped, so that the processes of a node share one copy in memory. On a GPU each process has a separate copy.
    """
    assert data_dir is not None  # The checks of the config require a data set for a sweep that trains a `model`.
    images, labels = load_split(data_dir, split)
    return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)


def read_image_shape(data_dir: Path | None) -> tuple[int, ...]:
    """Return the shape of one image of a data set, (channels, height, width)."""
    images, _ = load_tensors(data_dir, "train", torch.device("cpu"))  # memory-mapped, so this reads no image
    return tuple(images.shape[1:])
