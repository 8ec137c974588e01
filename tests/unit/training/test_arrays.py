from __future__ import annotations

from pathlib import Path

import torch

from raysweep.data.manifest import DatasetSpec
from raysweep.data.stage import stage
from raysweep.training.arrays import load_tensors


def test_the_arrays_of_a_split_are_loaded_once_per_process(tmp_path: Path) -> None:
    stage(DatasetSpec("some", "synthetic", "none", validation_fraction=0.1, seed=0), tmp_path, tmp_path / "data")
    images, labels = load_tensors(tmp_path / "data", "validation", torch.device("cpu"))
    assert (images.dtype, labels.dtype, len(images)) == (torch.uint8, torch.int64, len(labels))
    again, _ = load_tensors(tmp_path / "data", "validation", torch.device("cpu"))
    assert again is images
