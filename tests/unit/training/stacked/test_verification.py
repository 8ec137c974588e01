from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raysweep.training.stacked.verification import reason_not_stackable
from stacking import Convolutional, Dense, some_data, stacked_trainer, trainers


class Dropout(Dense):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(super().forward(x), 0.5, self.training)


class Normalised(nn.Module):
    def __init__(self, track: bool = True) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(12, track_running_stats=track), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(x.flatten(1)))


class Untracked(Normalised):
    def __init__(self) -> None:
        super().__init__(track=False)


class Branching(Dense):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Deciding(Dense):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if self.out.bias.sum() > 0 else -x)


@pytest.mark.parametrize("model", [Dense, Convolutional])
def test_a_model_that_can_be_stacked_passes_and_its_trainers_do_not_change(model: type[nn.Module]) -> None:
    images, labels = some_data(200, 4 if model is Convolutional else 2)
    group = trainers(model, double=False)
    before = copy.deepcopy([trainer.model.state_dict() for trainer in group])
    assert reason_not_stackable(stacked_trainer(2), group, images, labels) is None
    for trainer, state in zip(group, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in trainer.model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Dropout, "the model draws random numbers in training, such as for dropout"),
        (Normalised, "the model changes its buffers in training, as batch normalisation does"),
        (Untracked, "the model has batch normalisation, in which each row of a batch depends on the others"),
        (Branching, "the weights differ from those of plain training"),
        (Deciding, "torch.func.vmap cannot run the model: the model decides by the values of tensors"),
    ],
)
def test_a_model_that_cannot_be_stacked_gets_the_reason(model: type[nn.Module], reason: str) -> None:
    assert reason_not_stackable(stacked_trainer(2), trainers(model, double=False), *some_data(200)) == reason


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_loss_of_the_users_own_needs_a_value_for_each_row(reduction: str) -> None:
    group = trainers(Dense, double=False, own_loss=lambda outputs, targets: F.cross_entropy(outputs, targets, reduction=reduction) ** 2)
    reason = reason_not_stackable(stacked_trainer(2), group, *some_data(200))
    expected = {"none": None, "mean": "the loss function returns one value for a batch, and a stack needs a value for each row"}
    assert reason == expected[reduction]


def test_weights_of_two_bytes_are_trained_one_by_one() -> None:
    group = trainers(Dense, double=False)
    for trainer in group:
        trainer.model.bfloat16()
    reason = reason_not_stackable(stacked_trainer(2), group, *some_data(200))
    assert reason == "the weights are bfloat16, and a stack needs float32 alone or float64 alone"


def test_batch_normalisation_without_statistics_is_refused_though_each_batch_is_whole() -> None:
    reason = reason_not_stackable(stacked_trainer(10), trainers(Untracked, batch_sizes=(10, 10), double=False), *some_data(130))
    assert reason == "the model has batch normalisation, in which each row of a batch depends on the others"
