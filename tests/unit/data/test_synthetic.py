from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

import cifar_layout
from raysweep.data import synthetic

Parts = dict[str, tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def parts() -> Parts:
    return synthetic.generate()


def test_has_cifar10s_shape_and_types(parts: Parts) -> None:
    for part, n in (("train", synthetic.NUM_TRAIN), ("test", synthetic.NUM_TEST)):
        images, labels = parts[part]
        assert (images.dtype, images.shape) == (np.uint8, (n, 3, 32, 32))
        assert (labels.dtype, labels.shape) == (np.int64, (n,))
        assert sorted(set(labels.tolist())) == list(range(10))


def test_the_bytes_are_the_same_everywhere(parts: Parts) -> None:
    found = hashlib.sha256()
    for part in ("train", "test"):
        for array in parts[part]:
            found.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    assert found.hexdigest() == "8d615232e6e5a9f068dd7477d3cae61abd61b761ad3ba8a007ddbb5007e108f2"


def test_no_image_occurs_twice(parts: Parts) -> None:
    images = [image.tobytes() for part in parts.values() for image in part[0]]
    assert len(set(images)) == len(images)


def test_classes_do_not_pretend_to_be_cifar10s() -> None:
    assert len(synthetic.CLASSES) == 10
    assert all("synthetic" in name for name in synthetic.CLASSES)
    assert not set(synthetic.CLASSES) & set(cifar_layout.CLASSES)


def train_lenet(parts: Parts, lr: float) -> float:
    """Accuracy on the test part after one epoch of plain SGD with the bundled model's layers, at batch size 4."""
    import torch
    from torch import nn

    def tensors(part: str) -> tuple[Any, Any]:
        images, labels = parts[part]
        return torch.from_numpy(images).float() / 127.5 - 1, torch.from_numpy(labels)

    torch.manual_seed(0)
    lenet = nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )
    optimizer = torch.optim.SGD(lenet.parameters(), lr)
    images, labels = tensors("train")
    for rows in torch.randperm(len(images)).split(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(lenet(images[rows]), labels[rows]).backward()
        optimizer.step()
    images, labels = tensors("test")
    with torch.no_grad():
        return float((lenet(images).argmax(1) == labels).float().mean())


@pytest.mark.slow
def test_it_can_be_learned_but_not_at_any_learning_rate(parts: Parts) -> None:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert train_lenet(parts, lr=1e-4) < 0.2
        assert 0.4 < train_lenet(parts, lr=1e-2) < 0.9
    finally:
        torch.set_num_threads(threads)
