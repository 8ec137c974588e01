from __future__ import annotations

import shutil
from pathlib import Path

import torch

from raysweep.data.manifest import DatasetSpec
from raysweep.data.stage import stage
from raysweep.training.arrays import load_tensors, read_facts
from raysweep.training.preparation import DataFacts


def test_the_arrays_of_a_split_are_loaded_once_per_process(tmp_path: Path) -> None:
    stage(DatasetSpec("some", "synthetic", "none", validation_fraction=0.1, seed=0), tmp_path, tmp_path / "data")
    images, labels = load_tensors(tmp_path / "data", "validation", torch.device("cpu"))
    assert (images.dtype, labels.dtype, len(images)) == (torch.uint8, torch.int64, len(labels))
    again, _ = load_tensors(tmp_path / "data", "validation", torch.device("cpu"))
    assert again is images


def test_the_facts_are_those_of_the_manifest(tmp_path: Path) -> None:
    stage(DatasetSpec("some", "synthetic", "none", validation_fraction=0.1, seed=0), tmp_path, tmp_path / "data")
    images, _ = load_tensors(tmp_path / "data", "train", torch.device("cpu"))
    assert read_facts(tmp_path / "data") == DataFacts((3, 32, 32), 10)
    assert read_facts(tmp_path / "data").row_shape == images.shape[1:] == (3, 32, 32)


def test_the_trials_of_a_process_read_the_facts_of_a_data_set_once(tmp_path: Path) -> None:
    stage(DatasetSpec("some", "synthetic", "none", validation_fraction=0.1, seed=0), tmp_path, tmp_path / "data")
    shape = read_facts(tmp_path / "data").row_shape
    shutil.rmtree(tmp_path / "data")
    assert read_facts(tmp_path / "data").row_shape == shape
