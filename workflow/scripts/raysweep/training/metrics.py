"""Computes the metrics that the key `metrics` of a sweep lists, and the predictions of a model that the report shows.

`predicted` is a tensor that Preparation.predicted returns for the evaluated rows. `targets` contains the staged targets of these rows, [n].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from raysweep.config.tasks import LISTED, ListedMetric
from raysweep.record.results import Predictions

MAX_CLASSES = 20  # largest number of classes of a confusion matrix
MAX_ROWS = 500  # largest number of rows whose true and predicted numbers the report compares


def listed_metrics(names: Sequence[str], predicted: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Return the metrics `names`, which are keys of LISTED. A metric is NaN where a prediction is not finite, or where the formula has no value."""
    if not predicted.isfinite().all():
        return dict.fromkeys(names, math.nan)
    return {name: _value(LISTED[name], predicted, targets) for name in names}


def _value(metric: ListedMetric, predicted: torch.Tensor, targets: torch.Tensor) -> float:
    # torchmetrics is imported here, because the import takes seconds and most sweeps list no metrics.
    from torchmetrics.functional import classification, regression

    if metric.compares == "ranks":
        predicted, targets = _ranks(predicted), _ranks(targets)
    if metric.compares in ("numbers", "ranks"):
        # The formulas do not depend on the unit, but the constant 1e-6, which torchmetrics uses against a division by 0, would change small numbers.
        unit = float(targets.abs().mean()) or 1.0
        return float(getattr(regression, metric.function)(predicted / unit, targets / unit))
    present = targets.unique()
    if metric.needs_two_classes and len(present) == 1:
        return math.nan  # torchmetrics returns 0
    options: dict[str, Any] = {"num_classes": predicted.shape[1]} | ({"average": "none"} if metric.is_mean_of_classes else {})
    compared = predicted.softmax(1) if metric.compares == "probabilities" else predicted.argmax(1)
    value: torch.Tensor = getattr(classification, metric.function)(compared, targets, **options)
    # A model may have outputs for classes that the data do not contain. Such a class has no value, and torchmetrics counts some such classes as 0.
    return float(value[present].mean() if metric.is_mean_of_classes else value)


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the rank of each value, float64 [n]. Equal values have the mean of their ranks.

    The function spearman_corrcoef of torchmetrics 1.9 is not used, because the function adds ranks as int32, and the sum of 66,000 ranks is too large.
    """
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1).double() / 2)[inverse]


def predictions_of(predicted: torch.Tensor, targets: torch.Tensor, num_classes: int) -> Predictions | None:
    """Return the predictions that the report shows: the confusion matrix, or the numbers of at most MAX_ROWS rows at even steps.

    `num_classes` is the number of classes of the data. Returns None where the data have more than MAX_CLASSES classes.
    """
    if targets.is_floating_point():
        num_rows = min(len(targets), MAX_ROWS)
        rows = torch.arange(num_rows, device=targets.device) * (len(targets) - 1) // max(num_rows - 1, 1)
        return Predictions(true=_rounded(targets[rows]), predicted=_rounded(predicted[rows]))
    if num_classes > MAX_CLASSES:
        return None
    classes = predicted.argmax(1)
    num_columns = max(num_classes, int(classes.max()) + 1)  # the model may have outputs for more classes than the data have
    counts = torch.bincount(targets * num_columns + classes, minlength=num_classes * num_columns).reshape(num_classes, num_columns)
    return Predictions(confusion=tuple(map(tuple, counts.tolist())))


def _rounded(values: torch.Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values.tolist())
