"""Trials trained together are trained as by themselves: in float64, after hundreds of steps, their weights are the same to 1e-10."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raysweep.models.lenet import LeNet
from raysweep.training import stacked as fused
from raysweep.training.stacked import Company, Unfolded, plan, prepared, unfolded, why_not
from raysweep.training.trainer import Trainer
from raysweep.tune.slots.fusing import micro_batch_size

CPU = torch.device("cpu")
# Gentle ones: training that is chaotic makes of each rounding a difference that grows.
SGD = [{"lr": 0.02}, {"lr": 0.003, "momentum": 0.9}, {"lr": 0.005, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}]
ADAM = [{"lr": 0.001}, {"lr": 0.002, "betas": [0.8, 0.9]}, {"lr": 0.001, "weight_decay": 0.1}]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As a trial on one CPU has: of several threads each would sum up a part, and the parts depend on how many members there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Dense(nn.Module):
    """Weights that two layers share, a buffer that stays, and layers of normalisation that look at one row."""

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


def some_data(rows: int, side: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(0, 256, (rows, 3, side, side), dtype=np.uint8))
    return images, torch.from_numpy(generator.integers(0, 10, rows))


def trainer(
    model: type[nn.Module],
    batch_size: int,
    settings: dict[str, Any],
    seed: int,
    optimizer: str = "sgd",
    loss: str = "cross_entropy",
    double: bool = True,
) -> Trainer:
    config = {"batch_size": batch_size, **settings}
    made = Trainer(model, config, loss=loss, optimizer=optimizer, seed=seed, order_seed=0, device=CPU)
    if double:
        made.model.double()
    return made


def trainers(model: type[nn.Module], optimizer: str = "sgd", batch_sizes: tuple[int, ...] = (2, 4, 16), **options: Any) -> list[Trainer]:
    settings = SGD if optimizer == "sgd" else ADAM
    return [trainer(model, size, settings[i % 3], seed=i, optimizer=optimizer, **options) for i, size in enumerate(batch_sizes)]


def assert_same(ours: Trainer, theirs: Trainer, tolerance: float = 1e-10) -> None:
    for (name, a), (_, b) in zip(ours.model.state_dict().items(), theirs.model.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda said, name=name: f"{name}: {said}")
    mine, its = ours.optimizer.state_dict(), theirs.optimizer.state_dict()
    assert mine["param_groups"] == its["param_groups"]
    for number, state in its["state"].items():
        for key, value in state.items():
            if value is not None:
                # It moves as the gradients do, several times as far as the weights.
                torch.testing.assert_close(mine["state"][number][key], value, rtol=100 * tolerance, atol=100 * tolerance)


@pytest.mark.parametrize(
    ("rows", "batch_sizes", "size"), [(11, (2, 4, 8), 2), (11, (3, 5), 3), (8, (8, 2), 2), (5, (16, 2), 2), (1, (2, 4), 2)]
)
def test_a_plan_gives_each_member_its_batches_in_order(rows: int, batch_sizes: tuple[int, ...], size: int) -> None:
    orders = [np.random.default_rng(member).permutation(rows) for member in range(len(batch_sizes))]
    laid = plan(orders, batch_sizes, size, CPU, torch.float64, shared=False)
    for member, (order, batch_size) in enumerate(zip(orders, batch_sizes, strict=True)):
        batches: list[list[int]] = [[]]
        for its_rows, weights, gate in zip(laid.rows[:, member], laid.weights[:, member], laid.gates[:, member], strict=True):
            batches[-1] += its_rows[weights > 0].tolist()
            if gate:
                assert weights.max().item() == pytest.approx(1 / len(batches[-1]))
                batches.append([])
        assert batches[:-1] == [order[start : start + batch_size].tolist() for start in range(0, rows, batch_size)]
        assert batches[-1] == []


def test_members_of_one_order_share_their_rows() -> None:
    order = np.random.default_rng(0).permutation(11)
    apart, shared = (plan([order, order], (2, 4), 2, CPU, torch.float64, shared=shared) for shared in (False, True))
    assert torch.equal(apart.rows[:, 0] * (apart.weights[:, 0] > 0), shared.rows * (shared.weights[:, 0] > 0))
    assert shared.rows.shape == (6, 2)
    assert torch.equal(apart.gates, shared.gates)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("share_rows", [False, True])
@pytest.mark.parametrize("batch_sizes", [(2, 4, 16), (3, 5, 7), (8, 8, 8), (1, 2, 50)])
def test_five_hundred_steps_together_are_those_of_each_alone(optimizer: str, share_rows: bool, batch_sizes: tuple[int, ...]) -> None:
    images, labels = some_data(33)
    company = Company(micro_batch_size(list(batch_sizes)), share_rows)
    together, alone = (trainers(Dense, optimizer, batch_sizes) for _ in range(2))
    epochs = -(-500 // -(-33 // min(batch_sizes)))
    for epoch in range(1, epochs + 1):
        losses = company.train_epoch(together, [epoch] * 3, images, labels)
        assert losses == pytest.approx([one.train_epoch(images, labels, epoch) for one in alone], rel=1e-7)
    for ours, theirs in zip(together, alone, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("loss", ["cross_entropy", "multi_margin_loss"])
@pytest.mark.parametrize(("model", "side"), [(Convolutional, 4), (LeNet, 32)])
def test_models_with_convolutions(model: type[nn.Module], side: int, loss: str) -> None:
    images, labels = some_data(35, side)
    together, alone = (trainers(model, loss=loss) for _ in range(2))
    for epoch in (1, 2):
        Company(2, share_rows=True).train_epoch(together, [epoch] * 3, images, labels)
        for one in alone:
            one.train_epoch(images, labels, epoch)
    for ours, theirs in zip(together, alone, strict=True):
        assert_same(ours, theirs)
    expected = [one.evaluate(images, labels) for one in alone]
    for found, its in zip(Company(2, share_rows=True).evaluate(together, images, labels), expected, strict=True):
        assert found == pytest.approx(its, rel=1e-9)


@pytest.mark.parametrize("share_rows", [False, True])
@pytest.mark.parametrize(("model", "side"), [(Convolutional, 4), (LeNet, 32)])
def test_convolutions_as_matrix_products(model: type[nn.Module], side: int, share_rows: bool) -> None:
    images, labels = some_data(35, side)
    together, alone = (trainers(model) for _ in range(2))
    company = unfolded(Company(2, share_rows), together, images, labels)
    assert company is not None
    assert company.unfolds
    for epoch in (1, 2):
        company.train_epoch(together, [epoch] * 3, images, labels)
        for one in alone:
            one.train_epoch(images, labels, epoch)
    for ours, theirs in zip(together, alone, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"dilation": (1, 2), "bias": False}, {"padding": "same"}, {"groups": 3}]
)
def test_a_convolution_as_a_matrix_product_is_that_convolution(options: dict[str, Any]) -> None:
    layer, images = nn.Conv2d(3, 6, (3, 2), dtype=torch.float64, **options), torch.randn(5, 3, 9, 8, dtype=torch.float64)
    with Unfolded():
        found = layer(images)
    torch.testing.assert_close(found, layer(images), rtol=1e-12, atol=1e-12)


def test_without_convolutions_there_is_nothing_to_unfold() -> None:
    assert unfolded(Company(2, share_rows=True), trainers(Dense), *some_data(19)) is None


def assert_they_come_and_go(
    company: Company, group: list[Trainer], alone: list[Trainer], images: torch.Tensor, labels: torch.Tensor
) -> None:
    """One leaves, another enters, epochs differ; and after two epochs each is as it is alone."""
    first, second, third = group
    company.train_epoch([first, second], [1, 1], images, labels)
    company.train_epoch([second, third], [2, 1], images, labels)
    company.train_epoch([third, first], [2, 2], images, labels)
    for ours, theirs in zip(group, alone, strict=True):
        for epoch in (1, 2):
            theirs.train_epoch(images, labels, epoch)
        assert_same(ours, theirs)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_step_that_a_fake_capture_replays_is_the_same(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA graph is made up: what is replayed is the step itself. What is real is how stacks go in and out of the tensors of the capture."""
    captures = []

    def captured(act: Callable[[], None]) -> Callable[[], None]:
        captures.append(act)
        for _ in range(3):
            act()
        return act

    monkeypatch.setattr(fused, "captured", captured)
    monkeypatch.setattr(Company, "captures", lambda self, device: self.prepared_for > 0)
    images, labels = some_data(35)
    group = trainers(Dense, optimizer)
    company = prepared(Company(2, share_rows=False), group, images, labels)
    assert isinstance(company, Company), company
    before = len(captures)
    assert_they_come_and_go(company, group, trainers(Dense, optimizer), images, labels)
    assert len(captures) == before + 1, "one that leaves, and one that enters, need no other"


@pytest.mark.parametrize("share_rows", [False, True])
def test_one_leaves_and_another_enters_and_epochs_differ(share_rows: bool) -> None:
    images, labels = some_data(19)
    assert_they_come_and_go(Company(2, share_rows), trainers(Dense, "adam"), trainers(Dense, "adam"), images, labels)


def test_what_was_trained_together_is_saved_and_goes_on_alone(tmp_path: Any) -> None:
    images, labels = some_data(19)
    together, alone = (trainers(Dense, "sgd") for _ in range(2))
    Company(2, share_rows=True).train_epoch(together, [1] * 3, images, labels)
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


def test_one_that_diverges_leaves_the_others_alone() -> None:
    images, labels = some_data(33)
    together, alone = (trainers(Dense) for _ in range(2))
    for group in (together, alone):
        group[1].optimizer.param_groups[0]["lr"] = 1e300
    losses = Company(2, share_rows=True).train_epoch(together, [1] * 3, images, labels)
    assert not np.isfinite(losses[1])
    for number in (0, 2):
        alone[number].train_epoch(images, labels, 1)
        assert_same(together[number], alone[number])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_compiled_it_is_the_same(optimizer: str) -> None:
    images, labels = some_data(19, 4)
    group, alone = (trainers(Convolutional, optimizer) for _ in range(2))
    company = prepared(Company(2, share_rows=True), group, images, labels)
    if " " in sys.prefix:  # PyTorch 2.13 puts the path of its headers into the compiler's command as it is: trials are then trained eager
        assert company == "CppCompileError: C++ compile error"
        return
    assert isinstance(company, Company), company
    company.train_epoch(group[:2], [1, 1], images, labels)
    company.train_epoch(group, [2, 2, 1], images, labels)
    for ours, theirs, epochs in zip(group, alone, ((1, 2), (1, 2), (1,)), strict=True):
        for epoch in epochs:
            theirs.train_epoch(images, labels, epoch)
        assert_same(ours, theirs)


def test_what_cannot_be_compiled_says_why() -> None:
    images, labels = some_data(19)
    assert (
        prepared(Company(2, share_rows=True), trainers(Dense), images, labels)
        == "NotImplementedError: Cannot access storage of TensorWrapper"
    )


@pytest.mark.parametrize("share_rows", [False, True])
def test_to_the_last_bit_it_makes_no_difference_who_else_is_there(share_rows: bool) -> None:
    images, labels = some_data(35, 32)
    found = []
    for companions in ((4,), (16, 2, 2, 8, 4, 4, 16), (2, 2, 16)):
        group = trainers(LeNet, batch_sizes=(4, *companions), double=False)
        company = Company(2, share_rows)
        for epoch in (1, 2):
            company.train_epoch(group, [epoch, *(1 + number % 2 for number in range(len(companions)))], images, labels)
        found.append((group[0].model.state_dict(), company.evaluate(group, images, labels)[0]))
    (first, its_metrics), *others = found
    for other, metrics in others:
        assert all(torch.equal(first[key], value) for key, value in other.items())
        assert metrics["accuracy"] == its_metrics["accuracy"]


@pytest.mark.parametrize("model", [Dense, Convolutional])
def test_a_model_that_can_be_fused_is(model: type[nn.Module]) -> None:
    images, labels = some_data(200, 4 if model is Convolutional else 2)
    group = trainers(model, double=False)
    before = copy.deepcopy([one.model.state_dict() for one in group])
    assert why_not(Company(2, share_rows=True), group, images, labels) is None
    for one, state in zip(group, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in one.model.state_dict().items()), "it was not touched"


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Dropout, "it draws random numbers in training, such as for dropout"),
        (Normalised, "it changes its buffers in training, as batch normalisation does"),
        (Untracked, "its weights become others than in training by itself"),
        (Branching, "its weights become others than in training by itself"),
        (
            Deciding,
            "it does not go with torch.func.vmap: what it does depends on the values of tensors",
        ),
    ],
)
def test_a_model_that_cannot_be_fused_is_told_why(model: type[nn.Module], why: str) -> None:
    images, labels = some_data(200)
    assert (why_not(Company(2, share_rows=True), trainers(model, double=False), images, labels) or "").startswith(why)


def test_weights_of_two_bytes_are_trained_one_by_one() -> None:
    images, labels = some_data(200)
    group = trainers(Dense, double=False)
    for one in group:
        one.model.bfloat16()
    assert (
        why_not(Company(2, share_rows=True), group, images, labels)
        == "its weights are bfloat16: a stack is of float32 alone, or of float64"
    )
