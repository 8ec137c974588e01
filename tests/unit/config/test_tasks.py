"""Losses and metrics belong to a task, which the config or only the staged data say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from configs import ROOT, assert_refused, check, config, own, sweep
from raysweep.config.load import validated
from raysweep.config.model import Config
from raysweep.config.tasks import LISTED, metrics_of, refusal_for_staged
from raysweep.training.spec import TrainingSpec


def with_task(task: str | None, **changes: Any) -> dict[str, Any]:
    return {"datasets": {"own": {"source": "train.py", "task": task}}, "sweeps": {"s": sweep(dataset="own", **changes)}}


@pytest.mark.parametrize(
    ("given", "loss"),
    [
        (config(), "cross_entropy"),
        (with_task(None), "cross_entropy"),
        (with_task("classification"), "cross_entropy"),
        (with_task("regression", metric="loss", mode="min"), "mse_loss"),
        (with_task(None, metric="rmse", mode="min"), "mse_loss"),
        (with_task(None, metric="r2"), "mse_loss"),
        (with_task("regression", metric="mae", mode="min", loss="huber_loss"), "huber_loss"),
        (with_task(None, metric="mape", metrics=["mape"], mode="min"), "mse_loss"),
    ],
)
def test_the_default_loss_follows_from_the_task_or_the_metric(root: Path, given: dict[str, Any], loss: str) -> None:
    assert validated(given, [], root)["sweeps"]["s"]["loss"] == loss


MISTAKES = [
    (with_task("regression"), "metric: 'accuracy' is not allowed with model: one of rmse, mae, r2, loss, train_loss"),
    (with_task("classification", metric="r2"), "metric: 'r2' is not allowed with model: one of accuracy, loss, train_loss"),
    (config(metric="rmse", mode="min"), "metric: 'rmse' is not allowed with model: one of accuracy, loss, train_loss"),
    (with_task(None, metric="rmse"), "mode: 'max' is not allowed with metric rmse, of which less is better: write mode: min"),
    (
        with_task("regression", metric="r2", stop={"accuracy": {"at_least": 1}}),
        "stop.accuracy: 'accuracy' is not allowed: one of rmse, mae, r2",
    ),
    (
        with_task("regression", metric="r2", loss="nll_loss"),
        "loss: 'nll_loss' is not allowed: the targets are numbers (task: regression). Allowed: mse_loss, l1_loss, smooth_l1_loss, huber_loss",
    ),
    (
        config(loss="mse_loss"),
        "loss: 'mse_loss' is not allowed: the targets are classes (task: classification). Allowed: cross_entropy, nll_loss",
    ),
    (config(metrics="f1"), "metrics: 'f1' is not allowed: a list"),
    (config(metrics=[1]), "metrics.0: 1 is not allowed: the name of a metric"),
    (
        config(metrics=["loss", "f2"]),
        "metrics.1: 'f2' is not allowed. Did you mean f1? Allowed: accuracy, loss, train_loss, balanced_accuracy, f1",
    ),
    (config(metrics=["f1_score"]), "metrics.0: 'f1_score' is not allowed. Did you mean f1? Allowed: "),
    (config(metrics=["MAE"]), "metrics.0: 'MAE' is not allowed. Allowed: accuracy"),
    (config(metrics=["mape"]), "metrics.0: 'mape' is not allowed: the targets are classes (task: classification). Allowed: accuracy, loss"),
    (with_task("regression", metric="r2", metrics=["f1"]), "metrics.0: 'f1' is not allowed: the targets are numbers (task: regression)"),
    (
        config(metrics=["f1", "auroc"], loss="multi_margin_loss"),
        "metrics.1: 'auroc' is not allowed with loss multi_margin_loss, which gives no probabilities: loss cross_entropy or nll_loss",
    ),
    (own(metrics=["f1"]), "metrics: ['f1'] is not allowed beside trainable: it belongs to model"),
    (
        config(metric="auroc", metrics=["f1"]),
        "'auroc' is not allowed with model: one of accuracy, loss, train_loss, f1. To compute auroc, write metrics: [f1, auroc]",
    ),
    (config(stop={"f1": {"at_least": 1}}), "loss, train_loss, which model reports. To compute f1, write metrics: [f1]"),
    (
        config(metric="calibration_error", metrics=["calibration_error"]),
        "mode: 'max' is not allowed with metric calibration_error, of which less is better: write mode: min",
    ),
    (with_task("clustering"), "datasets.own.task: 'clustering' is not allowed"),
]


@pytest.mark.parametrize(("given", "expected"), MISTAKES)
def test_mistakes(root: Path, given: dict[str, Any], expected: str) -> None:
    assert_refused(root, given, expected)


def test_a_listed_metric_may_be_the_metric_and_have_bounds(root: Path) -> None:
    bounds = {"stop": {"auroc": {"at_least": 0.9}}, "constraint": {"calibration_error": {"at_most": 0.1}}}
    given = config(metric="f1", metrics=["f1", "accuracy", "auroc", "calibration_error"], **bounds)
    read = Config.of(check(root, given)).sweeps["s"]
    assert (read.metric, read.mode, read.metrics) == ("f1", "max", ("f1", "accuracy", "auroc", "calibration_error"))
    assert TrainingSpec.of(read).metrics == ("f1", "auroc", "calibration_error")


def test_the_document_names_each_metric_with_its_function() -> None:
    rows = re.findall(r"(?m)^\| `(\w+)` \| `(\w+)` \| (.*) \|$", (ROOT / "docs" / "own-models.md").read_text(encoding="utf-8"))
    assert [(name, function) for name, function, _ in rows] == [(name, metric.function) for name, metric in LISTED.items()]
    for name, _, meaning in rows:
        assert meaning.endswith("Smaller values are better") == (LISTED[name].better == "smaller")
        assert meaning.startswith("the mean of the classes: ") == LISTED[name].is_mean_of_classes


def test_staged_data_say_what_the_config_does_not() -> None:
    assert metrics_of(None) == ("accuracy", "loss", "train_loss", "rmse", "mae", "r2")
    assert refusal_for_staged("classification", "cross_entropy", {"metric": ["accuracy"], "metrics": ["f1"], "stop": {"loss": {}}}) is None
    assert refusal_for_staged("regression", "mse_loss", {"metric": ["rmse"], "stop": ["train_loss"]}) is None
    assert refusal_for_staged("regression", "cross_entropy", {"metric": ["loss"]}) == (
        "loss",
        "'cross_entropy' is not allowed: the targets are numbers (task: regression). Allowed: mse_loss, l1_loss, smooth_l1_loss, huber_loss, "
        "or path/to/file.py:function",
    )
    assert refusal_for_staged("classification", "losses.py:mine", {"metric": ["loss"]}) is None
    refusal = refusal_for_staged("classification", "cross_entropy", {"metric": ["loss"], "metrics": ["f1", "mape"]})
    assert refusal is not None
    assert refusal[0] == "metrics"
    assert refusal[1].startswith(
        "'mape' is not allowed: the targets are classes (task: classification). Allowed: accuracy, loss, train_loss"
    )
