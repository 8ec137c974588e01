from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from raysweep.common.seeds import epoch_order
from raysweep.config.recipe import OPTIMIZER_SETTINGS, Recipe, Schedule
from raysweep.models.lenet import LeNet
from raysweep.training.augmentation import cut_out, shifted
from raysweep.training.epoch_plan import plan_epoch
from raysweep.training.preparation import DataFacts, normalized
from raysweep.training.spec import TrainingSpec
from raysweep.training.stacked.plan import MemberEpoch, plan_steps
from raysweep.training.trainer import EVALUATION_BATCH_SIZE, MODEL_FILE, Trainer

CPU = torch.device("cpu")


class Small(nn.Module):
    """Has dropout, whose masks have to be the same after a break."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.hidden, self.drop, self.out = nn.Linear(12, width), nn.Dropout(0.5), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.drop(F.relu(self.hidden(x.flatten(1)))))


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.integers(0, 256, (30, 3, 2, 2), dtype=np.uint8)), torch.from_numpy(generator.integers(0, 10, 30))


def trainer(
    config: dict[str, object],
    optimizer: str = "sgd",
    seed: int = 1,
    model: type[nn.Module] = Small,
    loss: str = "cross_entropy",
    own_loss: Any = None,
) -> Trainer:
    spec = TrainingSpec(loss, optimizer, order_seed=0)
    return Trainer(model, config, spec, seed=seed, device=CPU, facts=DataFacts((3, 2, 2)), own_loss=own_loss)


def weights(of: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in of.model.parameters()])


def test_lenet_is_the_published_one() -> None:
    assert sum(p.numel() for p in LeNet().parameters()) == 62_006
    assert LeNet()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_pixels_become_minus_one_to_one() -> None:
    assert normalized(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


@pytest.mark.parametrize("batch_size", [1, 7, 30, 100])
@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}), ("adam", {"betas": [0.8, 0.9]}), ("adamw", {"weight_decay": 0.1})],
)
def test_an_epoch_is_what_a_plain_loop_computes(
    data: tuple[torch.Tensor, torch.Tensor], batch_size: int, optimizer: str, settings: dict[str, object]
) -> None:
    class Plain(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(F.relu(self.hidden(x.flatten(1))))

    ours = trainer({"lr": 0.05, "batch_size": batch_size, **settings}, optimizer, model=Plain)
    ours.train_epoch(*data, epoch=3)

    torch.manual_seed(1)
    model = Plain()
    theirs = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer](
        model.parameters(), lr=0.05, **settings
    )
    order = epoch_order(0, 3, 30)
    for images, labels in DataLoader(TensorDataset(data[0][order], data[1][order]), batch_size=batch_size):
        theirs.zero_grad()
        F.cross_entropy(model((images / 255 - 0.5) / 0.5), labels).backward()
        theirs.step()
    torch.testing.assert_close(weights(ours), torch.cat([p.detach().flatten() for p in model.parameters()]), rtol=1e-4, atol=1e-5)


def test_evaluation_counts_all_images_and_leaves_the_model_as_it_is(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours = trainer({"lr": 0.1, "batch_size": 4})
    before = weights(ours)
    metrics = ours.evaluate(*data)
    ours.model.eval()
    outputs = ours.model(normalized(data[0]))
    assert metrics["accuracy"] == pytest.approx((outputs.argmax(1) == data[1]).double().mean().item())
    assert metrics["loss"] == pytest.approx(F.cross_entropy(outputs, data[1]).item(), rel=1e-5)
    assert torch.equal(weights(ours), before)


COSINE = Recipe(Schedule("cosine", epochs=3), warmup_epochs=1, label_smoothing=0.1, clip_grad_norm=0.5)


def with_recipe(config: dict[str, object], recipe: Recipe, seed: int = 1) -> Trainer:
    spec = TrainingSpec("cross_entropy", "sgd", order_seed=0, recipe=recipe)
    return Trainer(Small, config, spec, seed=seed, device=CPU)


def test_an_epoch_with_a_recipe_is_what_a_plain_loop_computes(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours = with_recipe({"lr": 0.3, "batch_size": 7, "momentum": 0.9, "training": {"label_smoothing": 0.2}}, COSINE)
    ours.model.drop.p = 0.0
    losses = [ours.train_epoch(*data, epoch) for epoch in (1, 2, 3)]

    torch.manual_seed(1)
    model = Small()
    model.drop.p = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    norms = []
    for epoch in (1, 2, 3):
        total, order = 0.0, epoch_order(0, epoch, 30)
        for start in range(0, 30, 7):
            rows = order[start : start + 7]
            done = epoch - 1 + start / 30
            optimizer.param_groups[0]["lr"] = 0.3 * (done if done < 1 else (1 + math.cos(math.pi * (done - 1) / 2)) / 2)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(normalized(data[0][rows])), data[1][rows], label_smoothing=0.2)
            loss.backward()
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
            optimizer.step()
            total += loss.item() * len(rows)
        assert losses[epoch - 1] == pytest.approx(total / 30, rel=1e-5)
    assert min(norms) < 0.5 < max(norms), "the limit of the norm has an effect in some steps, and none in others"
    torch.testing.assert_close(weights(ours), torch.cat([p.detach().flatten() for p in model.parameters()]), rtol=1e-4, atol=1e-5)
    outputs = model.eval()(normalized(data[0]))
    assert ours.evaluate(*data)["loss"] == pytest.approx(F.cross_entropy(outputs, data[1]).item(), rel=1e-4), "without smoothing"


def test_a_schedule_goes_on_after_a_break_and_a_change_of_the_settings(data: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    config = {"lr": 0.3, "batch_size": 7}
    changed = {"lr": 0.2, "batch_size": 4, "training": {"warmup_epochs": 0.5}}
    whole = with_recipe(config, COSINE)
    whole.train_epoch(*data, 1)
    whole.change(changed)
    whole.train_epoch(*data, 2)

    broken = with_recipe(config, COSINE)
    broken.train_epoch(*data, 1)
    broken.save(tmp_path, 1)
    resumed = with_recipe(changed, COSINE)
    assert resumed.load(tmp_path) == 1
    resumed.train_epoch(*data, 2)
    assert torch.equal(weights(resumed), weights(whole))


def test_an_epoch_that_is_cut_off_and_begun_again_has_the_same_rates_to_the_step(
    data: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    config = {"lr": 0.3, "batch_size": 7}
    rates: list[float] = []

    def recorded(trainer: Trainer, most_steps: int = 99) -> Trainer:
        """Make each step write its learning rate to `rates`, and end the training like a fault before step `most_steps`."""

        def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if len(rates) == most_steps:
                raise KeyboardInterrupt
            rates.append(optimizer.param_groups[0]["lr"])

        trainer.optimizer.register_step_pre_hook(hook)
        return trainer

    whole = recorded(with_recipe(config, COSINE))
    for epoch in (1, 2):
        whole.train_epoch(*data, epoch)
    undisturbed, rates[:] = list(rates), []
    broken = recorded(with_recipe(config, COSINE), most_steps=7)
    broken.train_epoch(*data, 1)
    broken.save(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        broken.train_epoch(*data, 2)
    assert rates == undisturbed[:7], "the fault occurs in the middle of the second epoch, which has five steps"
    rates[:] = []
    resumed = recorded(with_recipe(config, COSINE, seed=99))
    resumed.load(tmp_path)
    resumed.train_epoch(*data, 2)
    assert rates == undisturbed[5:]
    factors = COSINE.rates(1 + np.arange(0, 30, 7) / 30)
    assert rates == pytest.approx((0.3 * factors).tolist(), rel=1e-15)
    labels = data[1].numpy()
    member = MemberEpoch(plan_epoch(whole.spec, 2, labels, (3, 2, 2)), 7, 2, COSINE, seed=1)
    assert plan_steps([member], 7, shared=False).rates[:, 0].tolist() == factors.tolist(), "a stack has the same rates"


def test_balanced_classes_and_augmentation_are_what_a_plain_loop_computes(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    recipe = Recipe(class_weights="balanced", augment=("flip", {"crop": {"padding": 1}}, {"cutout": {"size": 1}}))
    ours = with_recipe({"lr": 0.1, "batch_size": 7}, recipe)
    ours.model.drop.p = 0.0
    loss = ours.train_epoch(*data, 2)

    images, labels = data
    plan = plan_epoch(ours.spec, 2, labels.numpy(), (3, 2, 2))
    changed = cut_out(normalized(shifted(images, torch.from_numpy(plan.draws))), torch.from_numpy(plan.draws), 1)
    torch.manual_seed(1)
    model = Small()
    model.drop.p = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    counts = torch.bincount(labels, minlength=10)
    total = 0.0
    for start in range(0, 30, 7):
        rows = plan.order[start : start + 7]
        optimizer.zero_grad()
        outputs = model(changed[rows])
        F.cross_entropy(outputs, labels[rows], weight=30 / ((counts > 0).sum() * counts)).backward()
        optimizer.step()
        total += F.cross_entropy(outputs, labels[rows], reduction="sum").item()
    assert loss == pytest.approx(total / 30, rel=1e-5)
    torch.testing.assert_close(weights(ours), torch.cat([p.detach().flatten() for p in model.parameters()]), rtol=1e-4, atol=1e-5)


def test_mixup_is_the_cross_entropy_with_soft_targets_on_mixed_images(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours = with_recipe({"lr": 0.1, "batch_size": 7}, Recipe(augment=("flip", {"mixup": {"alpha": 1.0}}), label_smoothing=0.2))
    ours.model.drop.p = 0.0
    loss = ours.train_epoch(*data, 2)

    images, labels = data
    plan = plan_epoch(ours.spec, 2, labels.numpy(), (3, 2, 2))
    parts, partners = torch.from_numpy(plan.parts).float(), plan.sources[:, 1]
    changed, targets = normalized(shifted(images, torch.from_numpy(plan.draws))), F.one_hot(labels, 10).float()
    changed = parts[:, 0, None, None, None] * changed + parts[:, 1, None, None, None] * changed[partners]
    targets = parts[:, :1] * targets + parts[:, 1:] * targets[partners]
    torch.manual_seed(1)
    model = Small()
    model.drop.p = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total = 0.0
    for start in range(0, 30, 7):
        rows = plan.order[start : start + 7]
        optimizer.zero_grad()
        batch_loss = F.cross_entropy(model(changed[rows]), targets[rows], label_smoothing=0.2)
        batch_loss.backward()
        optimizer.step()
        total += batch_loss.item() * len(rows)
    assert loss == pytest.approx(total / 30, rel=1e-5)
    torch.testing.assert_close(weights(ours), torch.cat([p.detach().flatten() for p in model.parameters()]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_loss_of_the_users_own_trains_as_the_same_loss_of_pytorch(data: tuple[torch.Tensor, torch.Tensor], reduction: str) -> None:
    ours = trainer({"lr": 0.1, "batch_size": 7}, own_loss=lambda outputs, targets: F.cross_entropy(outputs, targets, reduction=reduction))
    theirs = trainer({"lr": 0.1, "batch_size": 7})
    ours.model.drop.p = theirs.model.drop.p = 0.0
    assert ours.train_epoch(*data, 1) == pytest.approx(theirs.train_epoch(*data, 1))
    torch.testing.assert_close(weights(ours), weights(theirs))
    assert ours.evaluate(*data) == pytest.approx(theirs.evaluate(*data))


@pytest.mark.parametrize(("returned", "told"), [(torch.zeros(7, 10), r"a tensor \[7, 10\]"), (0.5, "0.5"), (None, "None")])
def test_a_loss_that_returns_something_else_is_an_error(data: tuple[torch.Tensor, torch.Tensor], returned: Any, told: str) -> None:
    with pytest.raises(
        ValueError, match=f"^losses.py:mine returned {told} for 7 rows. Allowed: a tensor with a value for each row, or one"
    ):
        trainer({"lr": 0.1, "batch_size": 7}, loss="losses.py:mine", own_loss=lambda *_: returned).train_epoch(*data, 1)


def test_the_average_of_the_weights_is_evaluated_and_published_and_goes_on_after_a_break(
    data: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    spec = TrainingSpec("cross_entropy", "sgd", 0, Recipe(ema_decay=0.7))
    made = [Trainer(Normalised, {"lr": 0.1, "batch_size": 10}, spec, seed=seed, device=CPU) for seed in (1, 1, 2)]
    ours, plain, resumed = made
    plain.average = None
    average = weights(plain)
    for start in range(0, 30, 10):  # the average after each update of an epoch
        for trainer in (plain,):
            rows = torch.from_numpy(epoch_order(0, 1, 30))[start : start + 10]
            trainer.model.train()
            trainer.optimizer.zero_grad()
            F.cross_entropy(trainer.model(normalized(data[0][rows])), data[1][rows]).backward()
            trainer.optimizer.step()
        average = 0.7 * average + 0.3 * weights(plain)
    ours.train_epoch(*data, 1)
    assert torch.equal(weights(ours), weights(plain)), "training itself does not change"
    averaged = torch.cat([p.detach().flatten() for p in ours.evaluated_model.parameters()])
    torch.testing.assert_close(averaged, average)

    model = copy.deepcopy(plain.model).eval()
    nn.utils.vector_to_parameters(average, model.parameters())
    expected = F.cross_entropy(model(normalized(data[0])), data[1]).item()
    assert ours.evaluate(*data)["loss"] == pytest.approx(expected, rel=1e-5), "with the running statistics of the trained model"

    ours.save(tmp_path, 1)
    with safe_open(tmp_path / MODEL_FILE, "pt") as file:
        assert torch.equal(file.get_tensor("out.weight"), ours.evaluated_model.get_parameter("out.weight"))
    assert resumed.load(tmp_path) == 1
    for trainer in (ours, resumed):
        trainer.train_epoch(*data, 2)
    assert torch.equal(weights(resumed), weights(ours))
    assert ours.evaluate(*data) == resumed.evaluate(*data)

    ours.save(tmp_path, 2)
    published = Trainer(Normalised, {"lr": 0.1, "batch_size": 10}, spec, seed=7, device=CPU)
    published.load_published(tmp_path)
    assert published.evaluate(*data) == ours.evaluate(*data)


def test_an_average_begins_when_the_settings_ask_for_one_and_ends_with_them(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours = with_recipe({"lr": 0.1, "batch_size": 10}, Recipe())
    ours.train_epoch(*data, 1)
    ours.change({"lr": 0.1, "batch_size": 10, "training": {"ema_decay": 0.9}})
    before = weights(ours)
    assert ours.average is not None
    assert torch.equal(torch.cat([p.detach().flatten() for p in ours.average.parameters()]), before)
    ours.change({"lr": 0.1, "batch_size": 10})
    assert ours.evaluated_model is ours.model


def test_a_model_computes_in_bfloat16_where_the_recipe_says_so(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    whole, half = (with_recipe({"lr": 0.1, "batch_size": 10}, Recipe(precision=name)) for name in ("float32", "bf16"))  # type: ignore[arg-type]
    for each in (whole, half):
        each.model.drop.p = 0.0
        each.train_epoch(*data, 1)
    assert half.dtype == torch.float32
    assert not torch.equal(weights(whole), weights(half))
    torch.testing.assert_close(weights(half), weights(whole), rtol=0.05, atol=0.01)
    assert half.evaluate(*data)["loss"] == pytest.approx(whole.evaluate(*data)["loss"], rel=0.02)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZER_SETTINGS))
def test_each_optimizer_trains_with_its_settings_and_goes_on_after_a_break(
    data: tuple[torch.Tensor, torch.Tensor], tmp_path: Path, optimizer: str
) -> None:
    values = {"weight_decay": 0.01, "momentum": 0.9, "nesterov": True, "betas": [0.8, 0.9]}
    config: dict[str, object] = {"lr": 0.01, "batch_size": 7} | {key: values[key] for key in OPTIMIZER_SETTINGS[optimizer][1]}
    whole, resumed = trainer(config, optimizer), trainer(config, optimizer, seed=9)
    whole.model.drop.p = resumed.model.drop.p = 0.0
    assert type(whole.optimizer).__name__ == OPTIMIZER_SETTINGS[optimizer][0]
    before = weights(whole)
    whole.train_epoch(*data, 1)
    assert not torch.equal(weights(whole), before)
    whole.save(tmp_path, 1)
    resumed.load(tmp_path)
    for each in (whole, resumed):
        each.train_epoch(*data, 2)
    assert torch.equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_going_on_from_a_checkpoint_is_as_if_there_had_been_no_break(
    data: tuple[torch.Tensor, torch.Tensor], tmp_path: Path, optimizer: str
) -> None:
    config = {"lr": 0.05, "batch_size": 7} | ({"momentum": 0.9} if optimizer == "sgd" else {})
    whole = trainer(config, optimizer)
    for epoch in (1, 2, 3):
        whole.train_epoch(*data, epoch)

    broken = trainer(config, optimizer)
    broken.train_epoch(*data, 1)
    broken.save(tmp_path, 1)
    torch.manual_seed(12345)  # another process has drawn other numbers since
    resumed = trainer(config, optimizer)
    assert resumed.load(tmp_path) == 1
    for epoch in (2, 3):
        resumed.train_epoch(*data, epoch)
    assert torch.equal(weights(resumed), weights(whole))


def test_the_seed_decides_the_first_weights_and_the_constructor_gets_the_other_keys() -> None:
    config = {"lr": 0.1, "batch_size": 4, "width": 6}
    assert torch.equal(weights(trainer(config, seed=5)), weights(trainer(config, seed=5)))
    assert not torch.equal(weights(trainer(config, seed=5)), weights(trainer(config, seed=6)))
    assert trainer(config).model.hidden.out_features == 6


def test_a_checkpoint_holds_no_pickled_code(data: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    trainer({"lr": 0.1, "batch_size": 4}).save(tmp_path, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [MODEL_FILE, "training_state.pt"]

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "written"),))

    torch.save({"epoch": 1, "optimizer": Evil(), "rng": torch.get_rng_state()}, tmp_path / "training_state.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        trainer({"lr": 0.1, "batch_size": 4}).load(tmp_path)
    assert not (tmp_path / "written").exists()


class Normalised(nn.Module):
    def __init__(self, track: bool = True) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(12, track_running_stats=track), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(x.flatten(1)))


def rows(data: tuple[torch.Tensor, torch.Tensor], number: int) -> tuple[torch.Tensor, torch.Tensor]:
    return data[0][:number], data[1][:number]


@pytest.mark.parametrize("number", [29, 15, 8])
def test_a_last_batch_of_one_row_joins_the_batch_before_it_where_the_model_has_batch_normalisation(
    data: tuple[torch.Tensor, torch.Tensor], number: int
) -> None:
    images, labels = rows(data, number)
    ours = trainer({"lr": 0.05, "batch_size": 7}, model=Normalised)
    loss = ours.train_epoch(images, labels, epoch=1)

    torch.manual_seed(1)
    model = Normalised()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    order = torch.from_numpy(epoch_order(0, 1, number))
    total = 0.0
    for batch in [*(order[:-8].split(7) if number > 8 else ()), order[-8:]]:
        optimizer.zero_grad()
        expected = F.cross_entropy(model(normalized(images[batch])), labels[batch])
        expected.backward()
        optimizer.step()
        total += expected.item() * len(batch)
    assert torch.equal(weights(ours), torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert loss == pytest.approx(total / number, rel=1e-12)


@pytest.mark.parametrize(("batch_size", "number"), [(1, 30), (7, 1)])
def test_batch_normalisation_with_batches_of_one_row_alone_is_refused_in_one_line(
    data: tuple[torch.Tensor, torch.Tensor], batch_size: int, number: int
) -> None:
    ours = trainer({"lr": 0.05, "batch_size": batch_size}, model=Normalised)
    expected = (
        f"BatchNorm cannot train on a batch of one row: batch_size is {batch_size}, and there are {number} training rows. "
        "Give batch_size values of at least 2, or use GroupNorm in the place of BatchNorm"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        ours.train_epoch(*rows(data, number), epoch=1)


def test_batch_normalisation_over_many_pixels_trains_on_one_row(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    class OfImages(Normalised):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.norm(x).flatten(1))

    ours = trainer({"lr": 0.05, "batch_size": 1}, model=OfImages)
    assert 0 < ours.train_epoch(*data, epoch=1) < 100


def test_another_error_of_the_model_stays_as_it_is(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    class Failing(Normalised):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("of the user")

    with pytest.raises(ValueError, match=r"^of the user$"):
        trainer({"lr": 0.05, "batch_size": 1}, model=Failing).train_epoch(*data, epoch=1)


def test_an_evaluation_gives_batch_normalisation_without_statistics_no_batch_of_one_row() -> None:
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(0, 256, (EVALUATION_BATCH_SIZE + 1, 3, 2, 2), dtype=np.uint8))
    labels = torch.from_numpy(generator.integers(0, 10, len(images)))
    ours = trainer({"lr": 0.05, "batch_size": 7, "track": False}, model=Normalised)
    outputs = ours.model.eval()(normalized(images))
    assert ours.evaluate(images, labels)["loss"] == pytest.approx(F.cross_entropy(outputs, labels).item(), rel=1e-5)


class Half(nn.Module):
    """Is of the type that its argument names, from its constructor on."""

    def __init__(self, dtype: str = "bfloat16") -> None:
        super().__init__()
        self.out = nn.Linear(12, 10)
        self.to(getattr(torch, dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x.flatten(1))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_losses_are_those_of_single_precision_at_least_whatever_the_type_of_the_model(dtype: str) -> None:
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(0, 256, (4000, 3, 2, 2), dtype=np.uint8))
    labels = torch.from_numpy(generator.integers(0, 10, len(images)))
    ours = trainer({"lr": 0.0, "batch_size": 4, "dtype": dtype}, model=Half)
    outputs = ours.model(normalized(images, ours.dtype)).double()
    expected = F.cross_entropy(outputs, labels).item()
    precision = {"float64": 1e-12, "float32": 1e-6}.get(dtype, 1e-4)  # a half type's matrix products round in another way in other batches
    assert ours.train_epoch(images, labels, 1) == pytest.approx(expected, rel=precision)
    assert ours.evaluate(images, labels)["loss"] == pytest.approx(expected, rel=precision)


def test_outputs_of_a_half_type_of_a_model_in_single_precision_have_losses_of_single_precision(
    data: tuple[torch.Tensor, torch.Tensor],
) -> None:
    class Mixed(Half):
        def __init__(self) -> None:
            super().__init__("float32")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    ours = trainer({"lr": 0.0, "batch_size": 7}, model=Mixed)
    outputs = ours.model(normalized(data[0]))
    assert outputs.dtype == torch.bfloat16
    expected = F.cross_entropy(outputs.double(), data[1]).item()
    assert ours.train_epoch(*data, 1) == pytest.approx(expected, rel=1e-6)
    assert ours.evaluate(*data)["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pixels_of_a_half_type_are_rounded_once(dtype: torch.dtype) -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(normalized(pixels, dtype), normalized(pixels).to(dtype))


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.LazyLinear(8), nn.LazyLinear(10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Sized(Lazy):
    """The same layers with their sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 8), nn.Linear(8, 10)
        )


def test_a_model_with_lazy_layers_trains_as_the_model_with_their_sizes(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    config = {"lr": 0.05, "batch_size": 7}
    lazy, sized = trainer(config, model=Lazy), trainer(config, model=Sized)
    assert torch.equal(weights(lazy), weights(sized))
    losses = []
    for ours in (lazy, sized):
        torch.manual_seed(3)
        losses.append(ours.train_epoch(*data, 1))
    assert torch.equal(weights(lazy), weights(sized))
    assert losses[0] == losses[1]
    assert lazy.evaluate(*data) == sized.evaluate(*data)


def test_a_model_with_lazy_layers_is_loaded_and_goes_on(data: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    config = {"lr": 0.05, "batch_size": 7}
    whole = trainer(config, "adam", model=Lazy)
    whole.train_epoch(*data, 1)
    whole.save(tmp_path, 1)
    resumed = trainer(config, "adam", model=Lazy)
    assert resumed.load(tmp_path) == 1
    assert resumed.evaluate(*data) == whole.evaluate(*data)
    whole.train_epoch(*data, 2)
    resumed.train_epoch(*data, 2)
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize(("model", "metadata"), [(Lazy, {"lazy_layers": "layers.0, layers.1, layers.5, layers.6"}), (Sized, None)])
def test_a_checkpoint_names_the_lazy_layers(tmp_path: Path, model: type[nn.Module], metadata: dict[str, str] | None) -> None:
    trainer({"lr": 0.1, "batch_size": 4}, model=model).save(tmp_path, 1)
    with safe_open(tmp_path / MODEL_FILE, "pt") as file:
        assert file.metadata() == metadata


def test_a_training_that_is_changed_on_the_way_is_the_one_that_took_over(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3 * 4 * 4, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layer(images.flatten(1))

    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(0, 256, (40, 3, 4, 4), dtype=np.uint8))
    labels = torch.from_numpy(generator.integers(0, 3, 40))
    first, then = {"lr": 0.1, "momentum": 0.9, "batch_size": 4}, {"lr": 0.02, "momentum": 0.5, "batch_size": 8}

    def trainer(config: dict[str, Any]) -> Trainer:
        return Trainer(Net, config, TrainingSpec("cross_entropy", "sgd", order_seed=0), seed=1, device=torch.device("cpu"))

    one = trainer(first)
    one.train_epoch(images, labels, 1)
    one.save(tmp_path, 1)
    other = trainer(then)
    assert other.load(tmp_path) == 1
    one.change(then)
    for each in (one, other):
        assert each.optimizer.param_groups[0]["lr"] == 0.02
        each.train_epoch(images, labels, 2)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


class Computed(Small):
    """Computes the layer with dropout once more in the backward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = checkpoint(lambda x: self.drop(torch.tanh(self.hidden(x))), x.flatten(1), use_reentrant=False)
        return self.out(hidden)


class Drawing(Small):
    """Is the same model, with the masks of PyTorch's generator, and without a second computation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.dropout(torch.tanh(self.hidden(x.flatten(1))), 0.5, self.training))


def test_the_masks_of_dropout_are_those_of_the_seed_and_not_of_pytorchs_generator(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    runs = []
    for seed, state in ((1, 5), (1, 6), (2, 5)):
        ours = trainer({"lr": 0.05, "batch_size": 7})
        ours.seed = seed
        torch.manual_seed(state)
        ours.train_epoch(*data, 1)
        runs.append(weights(ours))
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2])


def test_dropout_in_a_part_that_is_computed_twice_has_the_masks_of_pytorchs_generator(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    runs = []
    for model in (Computed, Drawing):
        ours = trainer({"lr": 0.05, "batch_size": 7}, model=model)
        torch.manual_seed(5)
        ours.train_epoch(*data, 1)
        assert not ours.has_dropout
        runs.append(weights(ours))
    torch.testing.assert_close(*runs)


class ComputedAndNormalised(Computed):
    """Has batch normalisation before the part that is computed twice."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(x))


def test_the_search_for_dropout_leaves_the_statistics_of_batch_normalisation_alone(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours = trainer({"lr": 0.0001, "batch_size": len(data[1])}, model=ComputedAndNormalised)
    ours.train_epoch(*data, 1)
    inputs = ours.preparation.inputs(data[0], torch.float32)
    assert ours.model.norm.num_batches_tracked == 1
    torch.testing.assert_close(ours.model.norm.running_mean, 0.1 * inputs.mean((0, 2, 3)))
