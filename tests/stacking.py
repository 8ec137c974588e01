"""Models, data and trainers for the tests of stacked training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from raysweep.config.recipe import Recipe
from raysweep.training.preparation import DataFacts
from raysweep.training.spec import TrainingSpec
from raysweep.training.stacked.trainer import StackedTrainer, StackSettings
from raysweep.training.trainer import Trainer

CPU = torch.device("cpu")
# Gentle settings, because chaotic training turns each rounding into a difference that grows.
SGD = [{"lr": 0.02}, {"lr": 0.003, "momentum": 0.9}, {"lr": 0.005, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}]
ADAM = [{"lr": 0.001}, {"lr": 0.002, "betas": [0.8, 0.9]}, {"lr": 0.001, "weight_decay": 0.1}]


class Dense(nn.Module):
    """Has weights that two layers share, a buffer that does not change, and a layer of normalisation that looks at one row."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.norm, self.again, self.out = (
            nn.Linear(12, width),
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.Linear(width, 10),
        )
        self.tied = self.again
        self.register_buffer("shift", torch.linspace(0, 1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(torch.tanh(self.first(x.flatten(1))) + self.shift)
        return self.out(self.tied(F.gelu(self.again(x))))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.GroupNorm(2, 4)
        self.depthwise, self.out = nn.Conv2d(4, 8, 1, groups=2), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.adaptive_avg_pool2d(F.silu(self.depthwise(self.norm(self.conv(x)))), 1).flatten(1))


class Dropped(Dense):
    """Has dropout of inputs, of hidden values and of outputs."""

    def __init__(self, width: int = 8, p: float = 0.3) -> None:
        super().__init__(width)
        self.drop, self.channels = nn.Dropout(p), nn.Dropout2d(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.drop(torch.tanh(self.first(self.channels(x).flatten(1)))) + self.shift)
        return F.dropout(self.out(self.tied(self.again(hidden))), 0.1, self.training)


class Normalised(nn.Module):
    """Has batch normalisation of images and of hidden values, and dropout."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm, self.conv, self.images = nn.BatchNorm2d(3), nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.hidden, self.rows, self.out = nn.Linear(16 * width, 6, bias=False), nn.BatchNorm1d(6, momentum=0.3), nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.images(self.conv(self.norm(x)))).flatten(1)
        return self.out(F.dropout(self.rows(self.hidden(x)), 0.3, self.training))


def some_data(rows: int, side: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(0, 256, (rows, 3, side, side), dtype=np.uint8))
    return images, torch.from_numpy(generator.integers(0, 10, rows))


def stacked_trainer(micro_batch_size: int | None, share_rows: bool = True, has_forms: bool = False) -> StackedTrainer:
    return StackedTrainer(StackSettings(micro_batch_size, share_rows, has_forms))


def trainers(
    model: type[nn.Module],
    optimizer: str = "sgd",
    batch_sizes: tuple[int, ...] = (2, 4, 16),
    loss: str = "cross_entropy",
    double: bool = True,
    recipes: Sequence[dict[str, Any]] = ({},),
    recipe: Recipe | None = None,
    facts: DataFacts = DataFacts((3, 2, 2)),  # noqa: B008
    own_loss: Any = None,
    metrics: tuple[str, ...] = (),
    arguments: Sequence[dict[str, Any]] = ({},),
) -> list[Trainer]:
    """Return a trainer for each batch size, with seeds 0, 1, …, settings that differ, and the `recipes` in turn as changes of `recipe`.

    The constructors of the models get the `arguments` in turn.
    """
    settings: list[dict[str, Any]] = SGD if optimizer == "sgd" else ADAM  # type: ignore[assignment]
    spec = TrainingSpec(loss, optimizer, 0, recipe or Recipe(), metrics)
    made = [
        Trainer(
            model,
            {"batch_size": size, **settings[seed % 3], "training": recipes[seed % len(recipes)], **arguments[seed % len(arguments)]},
            spec,
            seed=seed,
            device=CPU,
            facts=facts,
            own_loss=own_loss,
        )
        for seed, size in enumerate(batch_sizes)
    ]
    for trainer in made if double else []:
        trainer.double()
    return made


def assert_same(ours: Trainer, theirs: Trainer, tolerance: float = 1e-10) -> None:
    """Assert that two trainers have the same weights, optimiser states and settings."""
    for (name, a), (_, b) in zip(ours.model.state_dict().items(), theirs.model.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")
    for mean, other in zip(ours.evaluated_model.parameters(), theirs.evaluated_model.parameters(), strict=True):
        torch.testing.assert_close(mean, other, rtol=tolerance, atol=tolerance)
    our_state, their_state = ours.optimizer.state_dict(), theirs.optimizer.state_dict()
    assert our_state["param_groups"] == their_state["param_groups"]
    for number, state in their_state["state"].items():
        for key, value in state.items():
            if value is not None:
                # The moments move as the gradients do, several times as far as the weights.
                torch.testing.assert_close(our_state["state"][number][key], value, rtol=100 * tolerance, atol=100 * tolerance)


def assert_members_come_and_go(
    stacked: StackedTrainer, group: list[Trainer], alone: list[Trainer], data: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Assert that a trainer may leave, another may enter and epochs may differ; after two epochs each is as it is alone."""
    first, second, third = group
    stacked.train_epoch([first, second], [1, 1], *data)
    stacked.train_epoch([second, third], [2, 1], *data)
    stacked.train_epoch([third, first], [2, 2], *data)
    for ours, theirs in zip(group, alone, strict=True):
        for epoch in (1, 2):
            theirs.train_epoch(*data, epoch)
        assert_same(ours, theirs)
