"""Defines the two tasks for which the workflow trains a model, with the losses and the metrics of each task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raysweep.config.section import dataset_of
from raysweep.data.manifest import Task


def is_own_loss(loss: str) -> bool:
    """Return whether `loss` names a function of the user's own, as `path/to/file.py:function` or `package.module:function`."""
    return ":" in loss


@dataclass(frozen=True)
class ListedMetric:
    """Describes a metric that a model reports only if the key `metrics` of the sweep lists the metric."""

    function: str  # name of a function of torchmetrics.functional.classification or torchmetrics.functional.regression
    compares: Literal["classes", "probabilities", "numbers", "ranks"]  # predictions that the function compares with the targets
    is_mean_of_classes: bool = False  # whether the metric is the mean of the values of all classes that the targets contain
    needs_two_classes: bool = False  # whether the metric has no value where all targets belong to one class
    better: Literal["larger", "smaller"] = "larger"  # which values are better


@dataclass(frozen=True)
class TaskFacts:
    """Describes a task. `losses` are functions of torch.nn.functional, and the first loss is the default."""

    targets: str  # what the targets are, for messages
    losses: tuple[str, ...]
    metrics: tuple[str, ...]  # metrics that each model reports
    listed: Mapping[str, ListedMetric]  # further metrics, by the names that the key `metrics` may contain

    def refusal_of(self, loss: str) -> str | None:
        """Return why `loss` is not allowed for this task, or None where the loss is allowed."""
        if loss in self.losses or is_own_loss(loss):
            return None
        return f"{loss!r} is not allowed: {self.targets}. Allowed: {', '.join(self.losses)}, or path/to/file.py:function"

    def refusal_of_metric(self, metric: str) -> str | None:
        """Return why `metric` is not allowed for this task, or None where a model can report the metric."""
        names = (*self.metrics, *self.listed)
        return None if metric in names else f"{metric!r} is not allowed: {self.targets}. Allowed: {', '.join(names)}"


TASKS: dict[Task, TaskFacts] = {
    "classification": TaskFacts(
        "the targets are classes (task: classification)",
        ("cross_entropy", "nll_loss", "multi_margin_loss"),
        ("accuracy", "loss", "train_loss"),
        {
            "balanced_accuracy": ListedMetric("multiclass_accuracy", "classes", is_mean_of_classes=True),
            "f1": ListedMetric("multiclass_f1_score", "classes", is_mean_of_classes=True),
            "precision": ListedMetric("multiclass_precision", "classes", is_mean_of_classes=True),
            "recall": ListedMetric("multiclass_recall", "classes", is_mean_of_classes=True),
            "matthews_corrcoef": ListedMetric("multiclass_matthews_corrcoef", "classes"),
            "cohen_kappa": ListedMetric("multiclass_cohen_kappa", "classes"),
            "auroc": ListedMetric("multiclass_auroc", "probabilities", is_mean_of_classes=True, needs_two_classes=True),
            "average_precision": ListedMetric("multiclass_average_precision", "probabilities", is_mean_of_classes=True),
            "calibration_error": ListedMetric("multiclass_calibration_error", "probabilities", better="smaller"),
        },
    ),
    "regression": TaskFacts(
        "the targets are numbers (task: regression)",
        ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"),
        ("rmse", "mae", "r2", "loss", "train_loss"),
        {
            "mape": ListedMetric("mean_absolute_percentage_error", "numbers", better="smaller"),
            "explained_variance": ListedMetric("explained_variance", "numbers"),
            "pearson_corrcoef": ListedMetric("pearson_corrcoef", "numbers"),
            "spearman_corrcoef": ListedMetric("pearson_corrcoef", "ranks"),
        },
    ),
}
LISTED = {name: metric for facts in TASKS.values() for name, metric in facts.listed.items()}
# Of these metrics, larger values are better.
METRICS_TO_RAISE = ("accuracy", "r2", *(name for name, metric in LISTED.items() if metric.better == "larger"))


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
        task = "regression" if metric in ("rmse", "mae", "r2", *TASKS["regression"].listed) else "classification"
    return TASKS[task].losses[0]


def metrics_of(task: Task | None) -> tuple[str, ...]:
    """Return the metrics that each model reports for a task. None means all tasks."""
    return TASKS[task].metrics if task else tuple(dict.fromkeys(metric for facts in TASKS.values() for metric in facts.metrics))


def listed_metrics_of(task: Task | None) -> tuple[str, ...]:
    """Return the metrics that a model reports only if the key `metrics` lists them. None means all tasks."""
    return tuple(TASKS[task].listed if task else LISTED)


def refusal_for_staged(task: Task, loss: str, metrics: Mapping[str, Iterable[str]]) -> tuple[str, str] | None:
    """Return the key and the reason where a sweep does not fit the task of the staged data. `metrics` are the names of metrics below each key."""
    facts = TASKS[task]
    if reason := facts.refusal_of(loss):
        return "loss", reason
    refusals = ((key, facts.refusal_of_metric(metric)) for key, names in metrics.items() for metric in names)
    return next(((key, reason) for key, reason in refusals if reason), None)
