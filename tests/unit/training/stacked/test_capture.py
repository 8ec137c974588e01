from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from raysweep.config.recipe import Recipe, Schedule
from raysweep.training.stacked import capture
from raysweep.training.stacked.trainer import StackedTrainer
from raysweep.training.stacked.verification import prepare
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

RECIPE = Recipe(
    Schedule("cosine", epochs=3),
    label_smoothing=0.1,
    clip_grad_norm=0.05,
    ema_decay=0.8,
    class_weights="balanced",
    augment=("flip", "crop"),
)


@pytest.mark.parametrize("recipe", [Recipe(), RECIPE])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_step_that_a_fake_capture_replays_is_the_same(optimizer: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA graph is fake: the step itself is replayed. The way of states into the tensors of the capture and out of them is real."""
    captures = []

    def capture_graph(action: Callable[[], None]) -> Callable[[], None]:
        captures.append(action)
        for _ in range(3):
            action()
        return action

    monkeypatch.setattr(capture, "capture_graph", capture_graph)
    monkeypatch.setattr(StackedTrainer, "captures", lambda self, device: self.settings.prepared_for > 0)
    data = some_data(35)
    group = trainers(Dense, optimizer, recipe=recipe)
    stacked = prepare(stacked_trainer(2, share_rows=False), group, *data)
    assert isinstance(stacked, StackedTrainer), stacked
    before = len(captures)
    assert_members_come_and_go(stacked, group, trainers(Dense, optimizer, recipe=recipe), data)
    assert len(captures) == before + 1, "a member that leaves and a member that enters need no other capture"


@pytest.mark.slow  # compiles
@pytest.mark.parametrize(("optimizer", "recipe"), [("sgd", Recipe()), ("adamw", RECIPE)])
def test_a_compiled_step_is_the_same(optimizer: str, recipe: Recipe) -> None:
    images, labels = some_data(19, 4)
    group, alone = (trainers(Convolutional, optimizer, recipe=recipe) for _ in range(2))
    stacked = prepare(stacked_trainer(2), group, images, labels)
    if " " in sys.prefix:  # PyTorch 2.13 puts the path of its headers into the compiler's command as it is: trials are then trained eager
        assert stacked == "CppCompileError: C++ compile error"
        return
    assert isinstance(stacked, StackedTrainer), stacked
    stacked.train_epoch(group[:2], [1, 1], images, labels)
    stacked.train_epoch(group, [2, 2, 1], images, labels)
    for ours, theirs, epochs in zip(group, alone, ((1, 2), (1, 2), (1,)), strict=True):
        for epoch in epochs:
            theirs.train_epoch(images, labels, epoch)
        assert_same(ours, theirs)


@pytest.mark.slow  # compiles
def test_compiled_steps_of_two_forms_with_dropout_and_batch_normalisation_are_the_same() -> None:
    images, labels = some_data(19, 4)
    widths = [{"width": width} for width in (4, 6, 4)]
    group, alone = (trainers(Normalised, "adamw", (4, 4, 4), recipe=RECIPE, arguments=widths) for _ in range(2))
    stacked = prepare(stacked_trainer(None, has_forms=True), group, images, labels)
    if " " in sys.prefix:  # as above
        assert stacked == "CppCompileError: C++ compile error"
        return
    assert isinstance(stacked, StackedTrainer), stacked
    for ours, theirs, loss in zip(group, alone, stacked.train_epoch(group, [1] * 3, images, labels), strict=True):
        assert loss == pytest.approx(theirs.train_epoch(images, labels, 1), rel=1e-7)
        assert_same(ours, theirs)


@pytest.mark.slow  # compiles
def test_more_steps_can_be_compiled_than_torch_compile_compiles_of_one_function() -> None:
    def make_step(size: int) -> Any:
        offset = torch.ones(size)
        return lambda state, batch: state.add_(batch * offset)

    if " " not in sys.prefix:  # as above
        for size in range(1, 10):
            state = torch.zeros(size)
            capture.compile_step(make_step(size), threads=1)(state, torch.ones(size))  # type: ignore[arg-type]
            assert state.tolist() == [1] * size


@pytest.mark.slow  # compiles
def test_the_reason_why_a_step_cannot_be_compiled_is_returned() -> None:
    assert prepare(stacked_trainer(2), trainers(Dense), *some_data(19)) == "NotImplementedError: Cannot access storage of TensorWrapper"


@pytest.mark.parametrize(("model", "size"), [(Dropped, 2), (Normalised, None)])
def test_a_fake_capture_replays_dropout_batch_normalisation_and_two_forms(
    model: type[nn.Module], size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CUDA graph is fake, as above."""

    def capture_graph(action: Callable[[], None]) -> Callable[[], None]:
        for _ in range(3):
            action()
        return action

    monkeypatch.setattr(capture, "capture_graph", capture_graph)
    monkeypatch.setattr(StackedTrainer, "captures", lambda self, device: self.settings.prepared_for > 0)
    data = some_data(19, side=4 if model is Normalised else 2)
    widths = [{"width": width} for width in (4, 8, 4)]
    group, alone = (trainers(model, "adam", (4, 4, 16), recipe=RECIPE, arguments=widths) for _ in range(2))
    stacked = prepare(stacked_trainer(size, has_forms=True), group, *data)
    assert isinstance(stacked, StackedTrainer), stacked
    assert_members_come_and_go(stacked, group, alone, data)
