"""Losses and metrics belong to a task, which the config or only the staged data say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs import assert_refused, config, sweep
from raysweep.config.load import validated
from raysweep.config.tasks import metrics_of, refusal_for_staged


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
    (with_task("clustering"), "datasets.own.task: 'clustering' is not allowed"),
]


@pytest.mark.parametrize(("given", "expected"), MISTAKES)
def test_mistakes(root: Path, given: dict[str, Any], expected: str) -> None:
    assert_refused(root, given, expected)


def test_staged_data_say_what_the_config_does_not() -> None:
    assert metrics_of(None) == ("accuracy", "loss", "train_loss", "rmse", "mae", "r2")
    assert refusal_for_staged("classification", "cross_entropy", ["accuracy", "loss"]) is None
    assert refusal_for_staged("regression", "mse_loss", ["rmse", "train_loss"]) is None
    assert refusal_for_staged("regression", "cross_entropy", ["loss"]) == (
        "loss",
        "'cross_entropy' is not allowed: the targets are numbers (task: regression). Allowed: mse_loss, l1_loss, smooth_l1_loss, huber_loss, "
        "or path/to/file.py:function",
    )
    assert refusal_for_staged("classification", "losses.py:mine", ["loss"]) is None
    assert refusal_for_staged("classification", "cross_entropy", ["loss", "r2"]) == (
        "metric",
        "'r2' is not allowed: the targets are classes (task: classification). Allowed: accuracy, loss, train_loss",
    )
