"""Converts staged rows to the tensors on which a model trains, and the outputs of a model to metrics."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from raysweep.data.manifest import DataManifest, Figures


def normalized(images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return uint8 images [n, …] with values 0 … 255 as floats from −1 to 1 of type `dtype`, as `Normalize(0.5, 0.5)` after `ToTensor` does.

    The values are computed in float32 or in a more precise type.
    """
    return images.to(torch.promote_types(dtype, torch.float32)).div_(127.5).sub_(1).to(dtype)


@dataclass(frozen=True)
class DataFacts:
    """Contains the facts about a staged data set that training needs. The default facts are for images with labels."""

    row_shape: tuple[int, ...] = ()
    num_classes: int = 0
    inputs: Figures | None = None  # figures of float inputs; None for uint8
    target: Figures | None = None  # figures of the target of a regression; None for classes
    # Whether the data also determine arguments for which the model's constructor has a default value. For the images of earlier versions the default value
    # counts, so that the records of these versions stay valid.
    replaces_defaults: bool = False

    @classmethod
    def of(cls, manifest: DataManifest) -> DataFacts:
        """Return the facts in the manifest of a data set."""
        return cls(manifest.image_shape, len(manifest.classes), manifest.inputs, manifest.target, manifest.kind is not None)

    def arguments(self, model_class: Any, given: Mapping[str, Any]) -> dict[str, int]:
        """Return the arguments that the constructor of a model has, that are not `given`, and that the data determine."""
        if not self.row_shape:
            return {}
        values = {"in_features": math.prod(self.row_shape), "in_channels": self.row_shape[0]}
        values |= {"out_features": 1} if self.target else {"out_features": self.num_classes, "num_classes": self.num_classes}
        parameters = inspect.signature(model_class).parameters
        return {
            name: value
            for name, value in values.items()
            if name in parameters and name not in given and (self.replaces_defaults or parameters[name].default is inspect.Parameter.empty)
        }


class Preparation:
    """Converts the rows of a data set on one device."""

    def __init__(self, facts: DataFacts, device: torch.device) -> None:
        self.facts = facts
        self.is_regression = facts.target is not None
        self._inputs = _tensors(facts.inputs, facts.row_shape, device)
        self._target = _tensors(facts.target, (), device)

    def inputs(self, rows: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return staged inputs [n, …] as floats of type `dtype`. uint8 becomes −1 … 1, and floats are standardised with the figures of the training part."""
        if self._inputs is None:
            return normalized(rows, dtype)
        mean, deviation = self._inputs
        precise = torch.promote_types(rows.dtype, torch.promote_types(dtype, torch.float32))
        return ((rows.to(precise) - mean.to(precise)) / deviation.to(precise)).to(dtype)

    def targets(self, targets: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return labels as they are, and the targets of a regression scaled with the figures of the training part, in float32 or a more precise type."""
        if self._target is None:
            return targets
        mean, deviation = self._target
        return ((targets - mean) / deviation).to(torch.promote_types(dtype, torch.float32))

    def outputs(self, outputs: torch.Tensor, num_rows: int) -> torch.Tensor:
        """Return the outputs of a model for `num_rows` rows in one shape: [n, classes], or [n] for a regression.

        A loss would combine outputs [n, 1] and targets [n] of a regression to [n, n]. For two classes, a model may return one number for each row, the
        logit of the second class. The logit of the first class is then 0, so that the softmax of the two logits is the sigmoid of this number. A model
        that calls `squeeze()` returns [] for one row. Raises ValueError for other shapes.
        """
        is_number_per_row = outputs.numel() == num_rows and outputs.shape in ((num_rows,), (num_rows, 1), ())
        if self.is_regression and is_number_per_row:
            return outputs.reshape(num_rows)
        if self.facts.num_classes == 2 and is_number_per_row:
            return torch.nn.functional.pad(outputs.reshape(num_rows, 1), (1, 0))
        shape, classes = list(outputs.shape), self.facts.num_classes
        if self.is_regression:
            raise ValueError(f"the model returns {shape} for {num_rows} rows, and a regression needs one number for each row")
        if outputs.dim() != 2 or outputs.shape[1] < classes:
            raise ValueError(f"the model returns {shape} for {num_rows} rows, and {classes} classes need {classes} numbers for each row")
        return outputs

    def example(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Return two rows of prepared inputs, with which lazy layers get their shapes."""
        staged = torch.uint8 if self._inputs is None else torch.float32
        return self.inputs(torch.zeros(2, *self.facts.row_shape, dtype=staged, device=device), dtype)

    def predicted(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs for the metrics that need all rows. The outputs of a classification, [n, classes], become float32 or stay more precise.

        The outputs of a regression become numbers in the unit of the target, float64 [n].
        """
        if self._target is None:
            return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        mean, deviation = self._target
        return outputs.double() * deviation + mean

    def sums(self, outputs: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        """Return what `metrics` needs about a batch, float64 [sums]. The sums of several batches are added. `losses` is [n]."""
        loss = losses.double().sum()
        if self._target is None:
            return torch.stack([(outputs.argmax(1) == targets).sum().double(), loss])
        errors = (outputs.double() - targets.double()) * self._target[1]
        return torch.stack([errors.abs().sum(), errors.square().sum(), loss])

    def metrics(self, sums: list[float], targets: torch.Tensor) -> dict[str, float]:
        """Return the metrics of all rows, whose staged targets are `targets` [n]. The errors of a regression are in the unit of the target.

        `r2` is 0 where all targets are equal, as in scikit-learn.
        """
        num_rows = len(targets)
        if self._target is None:
            return {"accuracy": sums[0] / num_rows, "loss": sums[1] / num_rows}
        spread = (targets - targets.mean()).square().sum().item()
        r2 = 1 - sums[1] / spread if spread else 0.0
        return {"rmse": math.sqrt(sums[1] / num_rows), "mae": sums[0] / num_rows, "r2": r2, "loss": sums[2] / num_rows}


def _tensors(figures: Figures | None, row_shape: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the mean and the deviation, float64, in a shape that fits rows [n, *row_shape]."""
    if figures is None:
        return None
    shape = (-1, *[1] * (len(row_shape) - 1)) if row_shape else ()
    mean, deviation = (
        torch.tensor(values, dtype=torch.float64, device=device).reshape(shape) for values in (figures.mean, figures.deviation)
    )
    return mean, deviation
