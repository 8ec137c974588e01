"""Trials trained together are trained as each is alone: in float64, after hundreds of steps, their weights are the same to 1e-10."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raysweep.config.recipe import Recipe, Schedule
from raysweep.models.lenet import LeNet
from raysweep.training.preparation import normalized
from raysweep.training.stacked.trainer import StackedTrainer
from raysweep.training.stacked.verification import reason_not_stackable
from raysweep.training.trainer import Trainer
from raysweep.tune.slots.fusion import micro_batch_size
from stacking import (
    Convolutional,
    Dense,
    Dropped,
    Normalised,
    assert_members_come_and_go,
    assert_same,
    some_data,
    stacked_trainer,
    trainers,
)


# The arithmetic of an optimizer does not depend on the sizes of the batches, so only one choice of sizes is tried with all optimizers.
@pytest.mark.slow
@pytest.mark.parametrize("share_rows", [False, True])
@pytest.mark.parametrize(
    ("optimizer", "batch_sizes"),
    [*((name, (3, 5, 7)) for name in ("sgd", "adam", "adamw")), *(("adam", sizes) for sizes in [(2, 4, 16), (8, 8, 8), (1, 2, 50)])],
)
def test_five_hundred_steps_together_are_those_of_each_alone(optimizer: str, share_rows: bool, batch_sizes: tuple[int, ...]) -> None:
    images, labels = some_data(33)
    stacked = stacked_trainer(micro_batch_size(list(batch_sizes)), share_rows)
    together, alone = (trainers(Dense, optimizer, batch_sizes) for _ in range(2))
    epochs = -(-500 // -(-33 // min(batch_sizes)))
    for epoch in range(1, epochs + 1):
        losses = stacked.train_epoch(together, [epoch] * 3, images, labels)
        assert losses == pytest.approx([trainer.train_epoch(images, labels, epoch) for trainer in alone], rel=1e-7)
    for ours, theirs in zip(together, alone, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("loss", ["cross_entropy", "multi_margin_loss"])
@pytest.mark.parametrize(("model", "side"), [(Convolutional, 4), (LeNet, 32)])
def test_models_with_convolutions(model: type[nn.Module], side: int, loss: str) -> None:
    images, labels = some_data(35, side)
    together, alone = (trainers(model, loss=loss) for _ in range(2))
    for epoch in (1, 2):
        stacked_trainer(2).train_epoch(together, [epoch] * 3, images, labels)
        for trainer in alone:
            trainer.train_epoch(images, labels, epoch)
    for ours, theirs in zip(together, alone, strict=True):
        assert_same(ours, theirs)
    expected = [trainer.evaluate(images, labels) for trainer in alone]
    for metrics, alone_metrics in zip(stacked_trainer(2).evaluate(together, images, labels), expected, strict=True):
        assert metrics == pytest.approx(alone_metrics, rel=1e-9)


# What the members of a stack may have each for itself: no limit of the norm beside one that always holds, no smoothing beside much of it.
RECIPES = [
    {"ema_decay": 0.9},
    {"warmup_epochs": 1.5, "clip_grad_norm": 0.01},
    {"label_smoothing": 0.3, "schedule": {"gamma": 0.5}, "ema_decay": 0.5},
]


def assert_epochs_are_those_of_each_alone(
    stacked: StackedTrainer,
    together: list[Trainer],
    alone: list[Trainer],
    rounds: Sequence[list[int]],
    data: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Assert that rounds of epochs, one epoch for each trainer, give the losses and weights that each trainer has alone."""
    for epochs in rounds:
        losses = stacked.train_epoch(together, epochs, *data)
        assert losses == pytest.approx([each.train_epoch(*data, epoch) for each, epoch in zip(alone, epochs, strict=True)], rel=1e-9)
    for ours, theirs in zip(together, alone, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("share_rows", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle", "step", "exponential"])
def test_a_recipe_together_is_that_of_each_alone(schedule: Any, optimizer: str, share_rows: bool) -> None:
    images, labels = some_data(33)
    recipe = Recipe(Schedule(schedule, epochs=4, gamma=0.8))
    together, alone = (trainers(Dense, optimizer, (2, 4, 16), recipes=RECIPES, recipe=recipe) for _ in range(2))
    stacked = stacked_trainer(2, share_rows)
    assert_epochs_are_those_of_each_alone(stacked, together, alone, ([1, 1, 1], [2, 2, 2], [3, 9, 4]), (images, labels))
    expected = [trainer.evaluate(images, labels) for trainer in alone]
    for metrics, alone_metrics in zip(stacked.evaluate(together, images, labels), expected, strict=True):
        assert metrics == pytest.approx(alone_metrics, rel=1e-9)


@pytest.mark.parametrize("share_rows", [False, True])
@pytest.mark.parametrize("mixup", [(), ("mixup",)], ids=["", "mixup"])
def test_augmentation_and_weights_of_classes_together_are_those_of_each_alone(share_rows: bool, mixup: tuple[str, ...]) -> None:
    images, labels = some_data(35, side=4)
    recipe = Recipe(class_weights="balanced", label_smoothing=0.1, augment=("flip", "crop", {"cutout": {"size": 2}}, *mixup))
    together, alone = (trainers(Convolutional, batch_sizes=(3, 4, 16), recipe=recipe) for _ in range(2))
    stacked = stacked_trainer(2, share_rows)
    assert_epochs_are_those_of_each_alone(stacked, together, alone, ([1, 1, 1], [2, 2, 2], [3, 1, 3]), (images, labels))


def test_bfloat16_together_is_that_of_each_alone_but_for_rounding() -> None:
    images, labels = some_data(33, side=4)
    recipe = Recipe(precision="bf16", label_smoothing=0.1)
    together, alone = (trainers(Convolutional, recipe=recipe, double=False) for _ in range(2))
    precise = trainers(Convolutional, recipe=Recipe(label_smoothing=0.1), double=False)
    losses = stacked_trainer(2).train_epoch(together, [1] * 3, images, labels)
    alone_losses, precise_losses = ([each.train_epoch(images, labels, 1) for each in group] for group in (alone, precise))
    assert losses == pytest.approx(alone_losses, rel=1e-3)
    assert losses != pytest.approx(precise_losses, rel=1e-5), "the model computes in bfloat16"
    for ours, theirs in zip(together, alone, strict=True):
        assert_same(ours, theirs, tolerance=1e-3)
    for ours, theirs in zip(
        stacked_trainer(2).evaluate(together, images, labels), [each.evaluate(images, labels) for each in alone], strict=True
    ):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


def test_a_loss_of_the_users_own_is_computed_outside_the_autocast_of_bfloat16() -> None:
    """In autocast, CUDA refuses functions such as F.binary_cross_entropy."""

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert outputs.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        return F.cross_entropy(outputs, targets, reduction="none")

    images, labels = some_data(33, side=4)
    group = trainers(Convolutional, recipe=Recipe(precision="bf16"), double=False, own_loss=loss)
    stacked_trainer(2).train_epoch(group, [1] * 3, images, labels)
    stacked_trainer(2).evaluate(group, images, labels)
    group[0].train_epoch(images, labels, 2)
    group[0].evaluate(images, labels)


@pytest.mark.parametrize("share_rows", [False, True])
def test_a_trainer_leaves_and_another_enters_and_epochs_differ(share_rows: bool) -> None:
    assert_members_come_and_go(stacked_trainer(2, share_rows), trainers(Dense, "adam"), trainers(Dense, "adam"), some_data(19))


def test_a_trainer_that_was_trained_together_is_saved_and_continues_alone(tmp_path: Path) -> None:
    images, labels = some_data(19)
    together, alone = (trainers(Dense, "sgd") for _ in range(2))
    stacked_trainer(2).train_epoch(together, [1] * 3, images, labels)
    for number, (ours, theirs) in enumerate(zip(together, alone, strict=True)):
        folder = tmp_path / str(number)
        folder.mkdir()
        ours.save(folder, 1)
        resumed = trainers(Dense, "sgd")[number]
        assert resumed.load(folder) == 1
        for epoch in (1, 2):
            theirs.train_epoch(images, labels, epoch)
        resumed.train_epoch(images, labels, 2)
        assert_same(resumed, theirs)


def test_a_trainer_that_diverges_does_not_change_the_others() -> None:
    images, labels = some_data(33)
    together, alone = (trainers(Dense) for _ in range(2))
    for group in (together, alone):
        group[1].optimizer.param_groups[0]["lr"] = 1e300
    losses = stacked_trainer(2).train_epoch(together, [1] * 3, images, labels)
    assert not np.isfinite(losses[1])
    for number in (0, 2):
        alone[number].train_epoch(images, labels, 1)
        assert_same(together[number], alone[number])


@pytest.mark.parametrize("share_rows", [False, True])
def test_the_other_members_make_no_difference_to_the_last_bit(share_rows: bool) -> None:
    images, labels = some_data(35, 32)
    runs = []
    for companions in ((4,), (16, 2, 2, 8, 4, 4, 16), (2, 2, 16)):
        group = trainers(LeNet, batch_sizes=(4, *companions), double=False)
        stacked = stacked_trainer(2, share_rows)
        for epoch in (1, 2):
            stacked.train_epoch(group, [epoch, *(1 + number % 2 for number in range(len(companions)))], images, labels)
        runs.append((group[0].model.state_dict(), stacked.evaluate(group, images, labels)[0]))
    (first_weights, first_metrics), *other_runs = runs
    for weights, metrics in other_runs:
        assert all(torch.equal(first_weights[key], value) for key, value in weights.items())
        assert metrics["accuracy"] == first_metrics["accuracy"]


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LazyConv2d(4, 1), nn.Tanh(), nn.Flatten(), nn.LazyLinear(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_models_with_lazy_layers_train_together_as_each_does_alone() -> None:
    images, labels = some_data(19)
    assert reason_not_stackable(stacked_trainer(2), trainers(Lazy, double=False), images, labels) is None
    together, alone = (trainers(Lazy) for _ in range(2))
    stacked_trainer(2).train_epoch(together, [1] * 3, images, labels)
    for ours, theirs in zip(together, alone, strict=True):
        theirs.train_epoch(images, labels, 1)
        assert_same(ours, theirs)


def test_losses_in_single_precision_are_summed_in_double_precision() -> None:
    images, labels = some_data(19_997)
    group = trainers(Dense, batch_sizes=(64, 64), double=False)
    for trainer in group:
        trainer.optimizer.param_groups[0]["lr"] = 0.0
    with torch.no_grad():
        expected = [
            F.cross_entropy(trainer.model(normalized(images)), labels, reduction="none").double().mean().item() for trainer in group
        ]
    stacked = stacked_trainer(64)
    assert stacked.train_epoch(group, [1, 1], images, labels) == pytest.approx(expected, rel=1e-8)
    assert [metrics["loss"] for metrics in stacked.evaluate(group, images, labels)] == pytest.approx(expected, rel=1e-8)
    assert [trainer.evaluate(images, labels)["loss"] for trainer in group] == pytest.approx(expected, rel=1e-8)


def test_outputs_of_a_half_type_have_losses_of_single_precision_together_as_alone() -> None:
    class Rounded(Dense):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).bfloat16()

    images, labels = some_data(130)
    together, alone = (trainers(Rounded, batch_sizes=(2, 4), double=False) for _ in range(2))
    losses = stacked_trainer(2).train_epoch(together, [1, 1], images, labels)
    assert losses == pytest.approx([trainer.train_epoch(images, labels, 1) for trainer in alone], rel=1e-3)
    metrics = stacked_trainer(2).evaluate(together, images, labels)
    assert [row["loss"] for row in metrics] == pytest.approx([trainer.evaluate(images, labels)["loss"] for trainer in together], rel=1e-3)


# Models of which a stack needs the masks of dropout, or whole batches, with the number of rows in a step.
KINDS = [(Dropped, 2), (Dropped, None), (Normalised, None)]
FULL = Recipe(Schedule("cosine", epochs=3), label_smoothing=0.1, ema_decay=0.8, class_weights="balanced", augment=("flip", "mixup"))


@pytest.mark.parametrize("share_rows", [False, True])
@pytest.mark.parametrize(("model", "size"), KINDS)
@pytest.mark.parametrize(("optimizer", "recipe"), [("sgd", Recipe()), ("adamw", FULL)])
def test_dropout_and_batch_normalisation_together_are_those_of_each_alone(
    model: type[nn.Module], size: int | None, optimizer: str, recipe: Recipe, share_rows: bool
) -> None:
    data = some_data(33, side=4 if model is Normalised else 2)
    together, alone = (trainers(model, optimizer, (4, 16, 4, 16, 2), recipes=RECIPES, recipe=recipe) for _ in range(2))
    stacked = stacked_trainer(size, share_rows)
    assert_epochs_are_those_of_each_alone(stacked, together, alone, ([1] * 5, [2] * 5, [3, 1, 3, 3, 2]), data)
    expected = [trainer.evaluate(*data) for trainer in alone]
    for metrics, alone_metrics in zip(stacked.evaluate(together, *data), expected, strict=True):
        assert metrics == pytest.approx(alone_metrics, rel=1e-9)


@pytest.mark.parametrize(("model", "size"), KINDS)
def test_members_with_dropout_and_batch_normalisation_come_and_go(model: type[nn.Module], size: int | None) -> None:
    data = some_data(19, side=4 if model is Normalised else 2)
    assert_members_come_and_go(stacked_trainer(size), *(trainers(model, "adam", (4, 4, 16)) for _ in range(2)), data)


@pytest.mark.parametrize(("model", "size"), KINDS)
def test_a_stack_goes_on_from_checkpoints_with_the_masks_and_statistics_of_each_alone(
    model: type[nn.Module], size: int | None, tmp_path: Path
) -> None:
    data = some_data(19, side=4 if model is Normalised else 2)
    first, alone, resumed = (trainers(model, "adam", (4, 4, 2)) for _ in range(3))
    stacked_trainer(size).train_epoch(first, [1] * 3, *data)
    for number, trainer in enumerate(first):
        folder = tmp_path / str(number)
        folder.mkdir()
        trainer.save(folder, 1)
        assert resumed[number].load(folder) == 1
    torch.manual_seed(12345)  # the other process has drawn other numbers
    stacked_trainer(size).train_epoch(resumed, [2] * 3, *data)
    for ours, theirs in zip(resumed, alone, strict=True):
        for epoch in (1, 2):
            theirs.train_epoch(*data, epoch)
        assert_same(ours, theirs)


@pytest.mark.parametrize("share_rows", [False, True])
@pytest.mark.parametrize(("model", "size"), [(Dense, 2), *KINDS])
def test_models_of_several_forms_train_together_as_each_does_alone(model: type[nn.Module], size: int | None, share_rows: bool) -> None:
    data = some_data(33, side=4 if model is Normalised else 2)
    widths = [{"width": width} for width in (4, 8, 4, 8, 6)]
    together, alone = (trainers(model, batch_sizes=(4, 4, 4, 4, 4), arguments=widths) for _ in range(2))
    stacked = stacked_trainer(size, share_rows, has_forms=True)
    assert_epochs_are_those_of_each_alone(stacked, together, alone, ([1] * 5, [2] * 5), data)
    expected = [trainer.evaluate(*data) for trainer in alone]
    for metrics, alone_metrics in zip(stacked.evaluate(together, *data), expected, strict=True):
        assert metrics == pytest.approx(alone_metrics, rel=1e-9)


@pytest.mark.parametrize(("model", "size"), [(Dense, 2), *KINDS])
def test_members_of_several_forms_come_and_go(model: type[nn.Module], size: int | None) -> None:
    """While members come and go, a form has one member, and then another member of the form enters."""
    data = some_data(19, side=4 if model is Normalised else 2)
    widths = [{"width": width} for width in (4, 8, 4)]
    together, alone = (trainers(model, "adam", (4, 4, 4), arguments=widths) for _ in range(2))
    assert_members_come_and_go(stacked_trainer(size, has_forms=True), together, alone, data)


def test_a_model_without_another_of_its_form_trains_alone_to_the_last_bit() -> None:
    data = some_data(33)
    widths = [{"width": width} for width in (4, 8, 4)]
    together, alone = (trainers(Dense, batch_sizes=(4, 4, 4), arguments=widths, double=False) for _ in range(2))
    stacked = stacked_trainer(2, has_forms=True)
    assert stacked.train_epoch(together, [1] * 3, *data)[1] == alone[1].train_epoch(*data, 1)
    assert all(torch.equal(a, b) for a, b in zip(together[1].model.parameters(), alone[1].model.parameters(), strict=True))
    assert stacked.evaluate(together, *data)[1] == alone[1].evaluate(*data)
