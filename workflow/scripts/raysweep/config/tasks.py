"""Defines the two tasks for which the workflow trains a model, with the losses and the metrics of each task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raysweep.config.section import dataset_of
from raysweep.data.manifest import Task


def is_own_loss(loss: str) -> bool:
    """Return whether `loss` names a function of the user's own, as `path/to/file.py:function` or `package.module:function`."""
    return ":" in loss


@dataclass(frozen=True)
class TaskFacts:
    """Describes a task. `losses` are functions of torch.nn.functional, and the first loss is the default."""

    targets: str  # what the targets are, for messages
    losses: tuple[str, ...]
    metrics: tuple[str, ...]

    def refusal_of(self, loss: str) -> str | None:
        """Return why `loss` is not allowed for this task, or None where the loss is allowed."""
        if loss in self.losses or is_own_loss(loss):
            return None
        return f"{loss!r} is not allowed: {self.targets}. Allowed: {', '.join(self.losses)}, or path/to/file.py:function"


TASKS: dict[Task, TaskFacts] = {
    "classification": TaskFacts(
        "the targets are classes (task: classification)",
        ("cross_entropy", "nll_loss", "multi_margin_loss"),
        ("accuracy", "loss", "train_loss"),
    ),
    "regression": TaskFacts(
        "the targets are numbers (task: regression)",
        ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"),
        ("rmse", "mae", "r2", "loss", "train_loss"),
    ),
}
METRICS_TO_RAISE = ("accuracy", "r2")  # of these metrics, larger values are better


def task_of(sweep: Mapping[str, Any], config: dict[str, Any]) -> Task | None:
    """Return the task that the config says for the data set of a sweep, or None where only the staged data will say the task."""
    dataset = dataset_of(sweep, config)
    if dataset.get("source") in ("download", "synthetic"):
        return "classification"
    task = dataset.get("task")
    return task if task in ("classification", "regression") else None


def default_loss(task: Task | None, metric: Any) -> str:
    """Return the loss of a sweep whose config names none. Where the config says no task, a metric of one task only says the task."""
    if task is None:
        task = "regression" if metric in ("rmse", "mae", "r2") else "classification"
    return TASKS[task].losses[0]


def metrics_of(task: Task | None) -> tuple[str, ...]:
    """Return the metrics that a model reports for a task. None means all tasks."""
    return TASKS[task].metrics if task else tuple(dict.fromkeys(metric for facts in TASKS.values() for metric in facts.metrics))


def refusal_for_staged(task: Task, loss: str, metrics: Iterable[str]) -> tuple[str, str] | None:
    """Return the key and the reason where a sweep does not fit the task of the staged data. `metrics` are the metrics that the sweep uses."""
    facts = TASKS[task]
    if reason := facts.refusal_of(loss):
        return "loss", reason
    wrong = [metric for metric in metrics if metric not in facts.metrics]
    return ("metric", f"{wrong[0]!r} is not allowed: {facts.targets}. Allowed: {', '.join(facts.metrics)}") if wrong else None
