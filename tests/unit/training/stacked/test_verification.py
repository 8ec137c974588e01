from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raysweep.training.stacked.verification import reason_not_stackable
from stacking import Convolutional, Dense, Dropped, Normalised, some_data, stacked_trainer, trainers

RANDOM = "the model draws random numbers in training other than those of dropout"


class Noisy(Dense):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x) * self.training)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2)
        return self.out(self.attention(x, x, x, need_weights=False)[0].flatten(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(x.flatten(2))[0].flatten(1))


class DropPath(Dense):
    """Leaves out a branch for some rows, with random numbers of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = torch.rand(len(x), 1, 1, 1) > 0.5 if self.training else 1
        return super().forward(x) + super().forward(x * kept)


class Counting(Dense):
    """Computes with a buffer that gets another value in training. functional_call does not keep this value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.shift = self.shift * 0.9
        return super().forward(x)


class Untracked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(12, track_running_stats=False), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(x.flatten(1)))


class Cumulative(Untracked):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12, momentum=None)


class Branching(Dense):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Deciding(Dense):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if self.out.bias.sum() > 0 else -x)


@pytest.mark.parametrize(
    ("model", "size"), [(Dense, 2), (Convolutional, 2), (Dropped, 2), (Normalised, None)], ids=lambda value: str(value)
)
def test_a_model_that_can_be_stacked_passes_and_its_trainers_do_not_change(model: type[nn.Module], size: int | None) -> None:
    images, labels = some_data(200, 4 if model in (Convolutional, Normalised) else 2)
    group = trainers(model, batch_sizes=(4, 8, 16, 8), double=False)
    before = copy.deepcopy([trainer.model.state_dict() for trainer in group])
    assert reason_not_stackable(stacked_trainer(size), group, images, labels) is None
    for trainer, state in zip(group, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in trainer.model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Noisy, RANDOM),
        (Attention, RANDOM),
        (Recurrent, RANDOM),
        (DropPath, RANDOM),
        (Counting, "the weights differ from those of plain training"),
        (Untracked, "the weights differ from those of plain training"),
        (Branching, "the weights differ from those of plain training"),
        (Deciding, "torch.func.vmap cannot run the model: the model decides by the values of tensors"),
    ],
)
def test_a_model_that_cannot_be_stacked_in_micro_batches_gets_the_reason(model: type[nn.Module], reason: str) -> None:
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


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Noisy, RANDOM),
        (Counting, "the weights differ from those of plain training"),
        (Untracked, "the validation metrics differ from those of plain training"),
        (Cumulative, "torch.func.vmap cannot run the model: the model decides by the values of tensors"),
    ],
)
def test_a_model_that_cannot_be_stacked_in_whole_batches_gets_the_reason(model: type[nn.Module], reason: str) -> None:
    assert reason_not_stackable(stacked_trainer(None), trainers(model, double=False), *some_data(200)) == reason


class Biased(Untracked):
    """Has a bias whose true gradient is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(12, 12), nn.BatchNorm1d(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.first(x.flatten(1)))


def test_rounding_errors_of_a_gradient_of_0_are_no_reason() -> None:
    group = trainers(Biased, "adam", batch_sizes=(8, 8, 8), double=False)
    for trainer in group:
        trainer.optimizer.param_groups[0]["lr"] = 0.1
    assert reason_not_stackable(stacked_trainer(None), group, *some_data(200)) is None
    assert group[0].optimizer.param_groups[0]["eps"] == 1e-8


def test_micro_batches_that_are_whole_but_for_the_last_batch_are_no_whole_batches() -> None:
    group = trainers(Normalised, batch_sizes=(10, 10), double=False)
    assert reason_not_stackable(stacked_trainer(10), group, *some_data(200, 4)) == "the weights differ from those of plain training"
