"""The staged arrays of a data set as tensors on the device that trains."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from raysweep.data.split import load_split


def read_image_shape(data_dir: Path | None) -> tuple[int, ...]:
    """Return the shape of one image of a data set, (channels, height, width)."""
    assert data_dir is not None  # the config requires a data set of a model
    images, _ = load_split(data_dir, "train")
    return tuple(images.shape[1:])


@functools.cache
def load_tensors(data_dir: Path | None, split: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images, uint8 [n, channels, height, width], and labels, int64 [n], of a split.

    On a CPU the tensors are memory-mapped, so that the processes of a node share one copy. A GPU gets one copy for each process.
    """
    assert data_dir is not None  # the config requires a data set of a model
    images, labels = load_split(data_dir, split)
    return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
