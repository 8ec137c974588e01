"""The metrics that a sweep lists, compared with scikit-learn, and the predictions that the report shows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn_metrics
from torch import nn

from raysweep.common.seeds import epoch_order
from raysweep.config.tasks import LISTED, TASKS
from raysweep.data.manifest import Figures
from raysweep.record.results import Predictions
from raysweep.training.metrics import listed_metrics, predictions_of
from raysweep.training.preparation import DataFacts, Preparation, normalized
from raysweep.training.spec import TrainingSpec
from raysweep.training.stacked.verification import reason_not_stackable
from raysweep.training.trainer import Trainer
from stacking import CPU, Dense, some_data, stacked_trainer, trainers

pytestmark = pytest.mark.slow  # because the import of torchmetrics takes several seconds
CLASSES, NUMBERS = (tuple(facts.listed) for facts in TASKS.values())


def some_outputs(num_outputs: int, rows: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs for rows of three classes, and the classes."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, rows)
    outputs = generator.normal(0, 1, (rows, num_outputs)) + 1.5 * np.eye(3, num_outputs)[labels]
    return torch.from_numpy(outputs).float(), torch.from_numpy(labels)


def expected_of_classes(outputs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    scores, y = outputs.softmax(1).numpy(), labels.numpy()
    predicted = scores.argmax(1)
    macro: dict[str, Any] = {"average": "macro", "labels": [0, 1, 2], "zero_division": 0}
    confidence, is_right = scores.max(1), predicted == y
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = [
        abs(confidence[bins == number].mean() - is_right[bins == number].mean()) * (bins == number).mean() for number in np.unique(bins)
    ]
    return {
        "balanced_accuracy": sklearn_metrics.recall_score(y, predicted, **macro),
        "f1": sklearn_metrics.f1_score(y, predicted, **macro),
        "precision": sklearn_metrics.precision_score(y, predicted, **macro),
        "recall": sklearn_metrics.recall_score(y, predicted, **macro),
        "matthews_corrcoef": sklearn_metrics.matthews_corrcoef(y, predicted),
        "cohen_kappa": sklearn_metrics.cohen_kappa_score(y, predicted),
        "auroc": np.mean([sklearn_metrics.roc_auc_score(y == number, scores[:, number]) for number in range(3)]),
        "average_precision": np.mean([sklearn_metrics.average_precision_score(y == number, scores[:, number]) for number in range(3)]),
        "calibration_error": sum(gaps),
    }


@pytest.mark.parametrize("num_outputs", [3, 5])
@pytest.mark.filterwarnings("ignore:.*No positive samples.*", "ignore:.*were `nan`.*")
def test_the_metrics_of_classes_are_those_of_scikit_learn(num_outputs: int) -> None:
    """With five outputs, the model has outputs for classes that the data do not contain, and these classes have no part in a mean."""
    outputs, labels = some_outputs(num_outputs)
    assert listed_metrics(CLASSES, outputs, labels) == pytest.approx(expected_of_classes(outputs, labels), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*No negative samples.*", "ignore:.*No positive samples.*")
def test_rows_of_one_class_have_no_roc_curve() -> None:
    outputs, labels = some_outputs(3)
    values = listed_metrics(("auroc", "f1"), outputs, labels * 0)
    assert math.isnan(values["auroc"])
    assert values["f1"] > 0


@pytest.mark.parametrize("unit", [1.0, 1e-9])
def test_the_metrics_of_numbers_are_those_of_scikit_learn(unit: float) -> None:
    generator = np.random.default_rng(0)
    y = unit * generator.normal(50, 20, 200)
    predicted = y + unit * generator.normal(3, 10, 200)
    assert listed_metrics(NUMBERS, torch.from_numpy(predicted), torch.from_numpy(y)) == pytest.approx(
        {
            "mape": sklearn_metrics.mean_absolute_percentage_error(y, predicted),
            "explained_variance": sklearn_metrics.explained_variance_score(y, predicted),
            "pearson_corrcoef": stats.pearsonr(y, predicted).statistic,
            "spearman_corrcoef": stats.spearmanr(y, predicted).statistic,
        },
        rel=1e-9,
    )


def test_the_correlation_of_ranks_is_right_for_many_equal_numbers() -> None:
    generator = np.random.default_rng(0)
    y = generator.random(100_000) * (np.arange(100_000) >= 70_000)
    predicted = y + generator.normal(0, 0.1, 100_000)
    values = listed_metrics(("spearman_corrcoef",), torch.from_numpy(predicted), torch.from_numpy(y))
    assert values["spearman_corrcoef"] == pytest.approx(stats.spearmanr(y, predicted).statistic)


@pytest.mark.filterwarnings("ignore:The variance of predictions or target is close to zero")
def test_predictions_that_are_all_equal_have_no_correlation() -> None:
    values = listed_metrics(NUMBERS, torch.ones(9).double(), torch.arange(9).double())
    assert [name for name, value in values.items() if math.isnan(value)] == ["pearson_corrcoef", "spearman_corrcoef"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_whose_outputs_are_not_finite_has_no_metrics_and_no_error(value: float) -> None:
    outputs, labels = some_outputs(3)
    outputs[7, 1] = value
    values = listed_metrics(CLASSES, outputs, labels)
    assert list(values) == list(CLASSES)
    assert all(map(math.isnan, values.values()))


def test_a_stack_reports_the_metrics_that_each_model_reports_alone() -> None:
    images, labels = some_data(250)
    group = trainers(Dense, facts=DataFacts((3, 2, 2), 10), metrics=CLASSES)
    stacked = stacked_trainer(2)
    assert reason_not_stackable(stacked, group, images, labels) is None
    stacked.train_epoch(group, [1, 1, 1], images, labels)
    for metrics, trainer in zip(stacked.evaluate(group, images, labels), group, strict=True):
        assert list(metrics) == ["accuracy", "loss", *CLASSES]
        assert metrics == pytest.approx(trainer.evaluate(images, labels), rel=1e-8)
        assert metrics == pytest.approx(metrics | listed_metrics(CLASSES, trainer.predict(images, labels), labels), rel=1e-8)


def test_a_stack_of_regressions_does_so_too() -> None:
    facts = DataFacts((4,), 0, Figures((0.0,) * 4, (1.0,) * 4), Figures((50.0,), (20.0,)))
    generator = np.random.default_rng(0)
    x = generator.normal(0, 1, (250, 4)).astype(np.float32)
    rows, targets = torch.from_numpy(x), torch.from_numpy(50 + 20.0 * x[:, 0] + generator.normal(0, 1, 250))

    class Net(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 1)

    group = trainers(Net, loss="mse_loss", facts=facts, metrics=NUMBERS)
    for metrics, trainer in zip(stacked_trainer(2).evaluate(group, rows, targets), group, strict=True):
        assert metrics == pytest.approx(trainer.evaluate(rows, targets), rel=1e-8)
        predicted = trainer.model(rows.double())[:, 0] * 20 + 50
        assert torch.allclose(trainer.predict(rows, targets), predicted)
        assert metrics["pearson_corrcoef"] == pytest.approx(np.corrcoef(predicted.detach(), targets)[0, 1])


def test_bf16_outputs_are_compared_in_float32() -> None:
    preparation = Preparation(DataFacts((3, 2, 2), 10), CPU)
    assert preparation.predicted(torch.zeros(2, 10, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_model_with_too_few_outputs_for_the_classes_is_refused_in_one_line() -> None:
    images, labels = some_data(20)
    spec = TrainingSpec("cross_entropy", "sgd", 0, metrics=("auroc",))
    one_output = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    trainer = Trainer(lambda: one_output, {"lr": 0.1, "batch_size": 4}, spec, seed=1, device=CPU, facts=DataFacts((3, 2, 2), 10))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^the model returns \[4, 1\] for 4 rows, and 10 classes need 10 numbers for each row$"):
        trainer.train_epoch(images, labels, 1)


@pytest.mark.parametrize("squeezes", [False, True])
def test_one_output_for_two_classes_is_the_logit_of_the_second_class(squeezes: bool) -> None:
    images, labels = some_data(33)[0], torch.arange(33) % 2
    model: type[nn.Module] = Squeezed if squeezes else Column
    together, alone = (trainers(model, facts=DataFacts((3, 2, 2), 2), metrics=("auroc",)) for _ in range(2))
    plain = Column().double()
    plain.load_state_dict(alone[0].model.state_dict())
    losses = stacked_trainer(2).train_epoch(together, [1] * 3, images, labels)
    assert losses == pytest.approx([each.train_epoch(images, labels, 1) for each in alone], rel=1e-9)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.02)
    for rows in torch.from_numpy(epoch_order(0, 1, 33)).split(2):
        optimizer.zero_grad()
        outputs = plain(normalized(images[rows], torch.float64))[:, 0]
        nn.functional.binary_cross_entropy_with_logits(outputs, labels[rows].double()).backward()
        optimizer.step()
    for ours, theirs in zip(alone[0].model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    outputs = plain(normalized(images, torch.float64))[:, 0]
    metrics = alone[0].evaluate(images, labels)
    assert metrics["accuracy"] == pytest.approx(((outputs > 0) == (labels == 1)).double().mean().item())
    assert metrics["auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, outputs.detach()))


class Column(nn.Module):
    """Returns [n, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1))


class Squeezed(Column):
    """Returns [n], and [] for one row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).squeeze()


class TestPredictions:
    def test_the_confusion_matrix_has_a_column_for_each_class_that_the_model_predicts(self) -> None:
        outputs = torch.eye(4)[[0, 0, 1, 3, 0]]
        assert predictions_of(outputs, torch.tensor([0, 0, 1, 1, 1]), 2) == Predictions(confusion=((2, 0, 0, 0), (1, 1, 0, 1)))
        assert predictions_of(outputs[:3], torch.tensor([0, 0, 1]), 2) == Predictions(confusion=((2, 0), (0, 1)))

    def test_many_classes_have_no_matrix(self) -> None:
        assert predictions_of(torch.eye(21), torch.arange(21), 21) is None
        assert predictions_of(torch.eye(20), torch.arange(20), 20) is not None

    def test_the_rows_of_a_regression_are_chosen_at_even_steps(self) -> None:
        targets = torch.arange(10_001).double()
        compared = predictions_of(targets + 1 / 3, targets, 0)
        assert compared is not None
        assert len(compared.true) == len(compared.predicted) == 500
        assert (compared.true[0], compared.true[1], compared.true[-1]) == (0, 20, 10_000)
        assert compared.predicted[1] == 20.3333
        few = predictions_of(targets[:1], targets[:1], 0)
        assert few == Predictions(true=(0.0,), predicted=(0.0,))


def test_each_function_of_torchmetrics_belongs_to_one_task() -> None:
    assert {*CLASSES, *NUMBERS} == set(LISTED)
    assert len(LISTED) == len(CLASSES) + len(NUMBERS)
