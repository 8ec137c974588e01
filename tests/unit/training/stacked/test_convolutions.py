from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from raysweep.models.lenet import LeNet
from raysweep.training.stacked.convolutions import UnfoldedConvolutions
from raysweep.training.stacked.verification import with_unfolded_convolutions
from stacking import Convolutional, Dense, assert_same, some_data, stacked_trainer, trainers


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"dilation": (1, 2), "bias": False}, {"padding": "same"}, {"groups": 3}]
)
def test_a_convolution_as_a_matrix_product_is_that_convolution(options: dict[str, Any]) -> None:
    layer, images = nn.Conv2d(3, 6, (3, 2), dtype=torch.float64, **options), torch.randn(5, 3, 9, 8, dtype=torch.float64)
    with UnfoldedConvolutions():
        unfolded = layer(images)
    torch.testing.assert_close(unfolded, layer(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share_rows", [False, True])
@pytest.mark.parametrize(("model", "side"), [(Convolutional, 4), (LeNet, 32)])
def test_a_stack_with_convolutions_as_matrix_products_trains_as_each_model_alone(
    model: type[nn.Module], side: int, share_rows: bool
) -> None:
    images, labels = some_data(35, side)
    together, alone = (trainers(model) for _ in range(2))
    stacked = with_unfolded_convolutions(stacked_trainer(2, share_rows), together, images, labels)
    assert stacked is not None
    assert stacked.settings.unfolds
    for epoch in (1, 2):
        stacked.train_epoch(together, [epoch] * 3, images, labels)
        for trainer in alone:
            trainer.train_epoch(images, labels, epoch)
    for ours, theirs in zip(together, alone, strict=True):
        assert_same(ours, theirs)


def test_a_model_without_convolutions_has_nothing_to_unfold() -> None:
    assert with_unfolded_convolutions(stacked_trainer(2), trainers(Dense), *some_data(19)) is None
