"""What a model gets of staged rows, and what becomes of its outputs: standardised floats, scaled targets, metrics, arguments of the constructor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from raysweep.common.seeds import epoch_order
from raysweep.data.manifest import Figures
from raysweep.training.preparation import DataFacts, Preparation, normalized
from raysweep.training.spec import TrainingSpec
from raysweep.training.stacked.verification import reason_not_stackable
from raysweep.training.trainer import ARGUMENTS_KEY, MODEL_FILE, Trainer
from stacking import CPU, assert_same, stacked_trainer, trainers

FIGURES = Figures((100.0, -2.0, 0.5), (10.0, 4.0, 1.0))
REGRESSION = DataFacts((3,), 0, FIGURES, Figures((50.0,), (20.0,)), replaces_defaults=True)


class Regressor(nn.Module):
    """Returns [n, 1]."""

    def __init__(self, in_features: int, out_features: int = 7, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_features, width), nn.Tanh(), nn.Linear(width, out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Flat(Regressor):
    """Returns [n]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)[:, 0]


def table(rows: int = 130) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    x = generator.normal(FIGURES.mean, FIGURES.deviation, (rows, 3)).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(50 + x[:, 1] * 5.0 + generator.normal(0, 1, rows))


def trainer(model: type[nn.Module] = Regressor, loss: str = "mse_loss", facts: DataFacts = REGRESSION) -> Trainer:
    config = {"lr": 0.05, "batch_size": 16}
    return Trainer(model, config, TrainingSpec(loss, "sgd", order_seed=0), seed=1, device=CPU, facts=facts)


class TestInputs:
    def test_uint8_becomes_minus_one_to_one_and_floats_are_standardised(self) -> None:
        pixels = torch.tensor([[0, 255, 51]], dtype=torch.uint8)
        assert torch.equal(Preparation(DataFacts((3,)), CPU).inputs(pixels), normalized(pixels))
        rows = torch.tensor([[110.0, 2, 0], [100, -2, 0.5]])
        assert Preparation(REGRESSION, CPU).inputs(rows).tolist() == [[1, 1, -0.5], [0, 0, 0]]

    def test_the_figures_belong_to_the_first_axis_of_a_row_also_for_the_rows_of_several_members(self) -> None:
        prepare = Preparation(DataFacts((3, 2, 2), 0, FIGURES), CPU)
        rows = torch.arange(60.0).reshape(5, 3, 2, 2)
        expected = (rows - torch.tensor(FIGURES.mean)[:, None, None]) / torch.tensor(FIGURES.deviation)[:, None, None]
        assert torch.equal(prepare.inputs(rows), expected)
        assert torch.equal(prepare.inputs(rows[torch.tensor([[0, 1], [3, 4]])])[1], expected[3:])

    def test_large_values_in_double_precision_keep_their_differences(self) -> None:
        facts = DataFacts((1,), 0, Figures((1.7e9,), (1.0,)))
        moments = torch.tensor([[1.7e9 + 0.25], [1.7e9 - 1]], dtype=torch.float64)
        assert Preparation(facts, CPU).inputs(moments).tolist() == [[0.25], [-1]]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_the_type_is_that_of_the_model(self, dtype: torch.dtype) -> None:
        prepare = Preparation(REGRESSION, CPU)
        assert prepare.inputs(torch.zeros(2, 3), dtype).dtype == dtype
        assert prepare.example(CPU, dtype).shape == (2, 3)
        assert prepare.targets(torch.zeros(2).double(), dtype).dtype == torch.promote_types(dtype, torch.float32)
        labels = torch.tensor([1, 0])
        assert Preparation(DataFacts((3,), 2), CPU).targets(labels, dtype) is labels


class TestOutputs:
    def test_a_column_of_outputs_fits_targets_without_a_second_axis(self) -> None:
        outputs, prepare = torch.tensor([[1.0], [2.0]]), Preparation(REGRESSION, CPU)
        assert prepare.outputs(outputs, 2).tolist() == [1, 2]
        assert prepare.outputs(outputs[:, 0], 2).tolist() == [1, 2]
        assert prepare.outputs(outputs[:1].squeeze(), 1).tolist() == [1], "a model that calls squeeze() for its last batch of one row"

    @pytest.mark.parametrize("shape", [(2, 2), (1,), (2, 1, 1), ()])
    def test_outputs_of_another_shape_are_refused_and_never_broadcast(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"^the model returns \[.*\] for 2 rows, and a regression needs one number for each row$"):
            Preparation(REGRESSION, CPU).outputs(torch.zeros(shape), 2)

    def test_the_metrics_of_a_regression_are_in_the_unit_of_the_target(self) -> None:
        x, y = table()
        ours = trainer()
        metrics = ours.evaluate(x, y)
        with torch.no_grad():
            predicted = ours.model(ours.preparation.inputs(x)).double().flatten() * 20 + 50
        errors = (predicted - y).numpy()
        assert list(metrics) == ["rmse", "mae", "r2", "loss"]
        assert metrics["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-6)
        assert metrics["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-6)
        assert metrics["r2"] == pytest.approx(1 - (errors**2).mean() / y.numpy().var(), rel=1e-6)
        assert metrics["loss"] == pytest.approx((errors**2).mean() / 20**2, rel=1e-6), "the loss is that of the scaled target"
        assert ours.evaluate(x[:3], torch.full((3,), 50.0).double())["r2"] == 0


class TestArguments:
    def test_those_that_the_constructor_has_and_the_config_has_not_follow_from_the_data(self) -> None:
        assert REGRESSION.arguments(Regressor, {}) == {"in_features": 3, "out_features": 1}
        assert REGRESSION.arguments(Regressor, {"in_features": 5}) == {"out_features": 1}
        images = DataFacts((3, 8, 4), 10)

        class Net(nn.Module):
            def __init__(self, in_channels: int, in_features: int, num_classes: int, out_features: int = 4) -> None:
                super().__init__()

        assert images.arguments(Net, {}) == {"in_channels": 3, "in_features": 96, "num_classes": 10}, "the default counts for images"
        assert DataFacts().arguments(Net, {}) == {}
        assert images.arguments(nn.Identity, {}) == {}

    def test_they_stand_in_the_weights_file(self, tmp_path: Path) -> None:
        ours = trainer()
        assert ours.model.layers[2].out_features == 1
        ours.save(tmp_path, 1)
        with safe_open(tmp_path / MODEL_FILE, "pt") as weights:
            assert json.loads(weights.metadata()[ARGUMENTS_KEY]) == {"in_features": 3, "out_features": 1}


@pytest.mark.parametrize(
    ("model", "loss"),
    [(Regressor, "mse_loss"), (Flat, "mse_loss"), (Regressor, "l1_loss"), (Regressor, "smooth_l1_loss"), (Regressor, "huber_loss")],
)
def test_an_epoch_of_a_regression_is_that_of_a_plain_loop(model: type[nn.Module], loss: str) -> None:
    x, y = table()
    ours, theirs = trainer(model, loss), trainer(model, loss)
    mean_loss = ours.train_epoch(x, y, 1)
    inputs = (x - torch.tensor(FIGURES.mean)) / torch.tensor(FIGURES.deviation)
    targets = ((y - 50) / 20).float()
    optimizer = torch.optim.SGD(theirs.model.parameters(), lr=0.05)
    losses = []
    for rows in torch.from_numpy(epoch_order(0, 1, len(y))).split(16):
        value = getattr(F, loss)(theirs.model(inputs[rows]).reshape(-1), targets[rows])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item() * len(rows))
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert mean_loss == pytest.approx(sum(losses) / len(y), rel=1e-5)


@pytest.mark.parametrize(
    ("model", "loss", "share_rows"), [(Regressor, "mse_loss", True), (Regressor, "huber_loss", False), (Flat, "l1_loss", True)]
)
def test_a_stack_of_regressions_trains_and_evaluates_as_each_model_alone(model: type[nn.Module], loss: str, share_rows: bool) -> None:
    data = table()
    group, alone = (trainers(model, batch_sizes=(2, 4, 16), loss=loss, facts=REGRESSION) for _ in range(2))
    stacked = stacked_trainer(2, share_rows)
    assert reason_not_stackable(stacked, group, *data) is None
    losses = stacked.train_epoch(group, [1, 1, 1], *data)
    assert losses == pytest.approx([each.train_epoch(*data, 1) for each in alone], rel=1e-10)
    for ours, theirs in zip(group, alone, strict=True):
        assert_same(ours, theirs)
    for metrics, theirs in zip(stacked.evaluate(group, *data), alone, strict=True):
        assert metrics == pytest.approx(theirs.evaluate(*data), rel=1e-10)


def test_classes_of_floats_are_stacked_too() -> None:
    x, y = table()
    facts = DataFacts((3,), 2, FIGURES, replaces_defaults=True)
    labels = (y > 50).long()
    group, alone = (trainers(Regressor, loss="cross_entropy", facts=facts) for _ in range(2))
    stacked = stacked_trainer(2)
    stacked.train_epoch(group, [1, 1, 1], x, labels)
    for ours, theirs in zip(group, alone, strict=True):
        theirs.train_epoch(x, labels, 1)
        assert_same(ours, theirs)
    assert stacked.evaluate(group, x, labels)[0] == pytest.approx(alone[0].evaluate(x, labels))


def test_the_weights_of_images_have_no_new_metadata(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self, num_classes: int = 10) -> None:
            super().__init__()
            self.out = nn.Linear(12, num_classes)

    Trainer(Net, {"batch_size": 2}, TrainingSpec("cross_entropy", "sgd", 0), seed=1, device=CPU, facts=DataFacts((3, 2, 2), 5)).save(
        tmp_path, 1
    )
    with safe_open(tmp_path / MODEL_FILE, "pt") as stored:
        assert stored.metadata() in (None, {"format": "pt"})
        assert stored.get_tensor("out.weight").shape == (10, 12)
