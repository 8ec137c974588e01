"""Defines the recipe of a sweep that trains a `model`: the schedule of the learning rate and other settings that belong to no optimiser.

The rate is a pure function of the progress of the training, without the state of a scheduler. So plain training, stacked training and the confirmation
use the same rates, also after an interruption or a change of the batch size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from raysweep.common.typed_json import fields_to_json, from_json, to_json

# Settings of the one-cycle policy, which are the defaults of torch.optim.lr_scheduler.OneCycleLR (L. N. Smith and N. Topin,
# https://arxiv.org/abs/1708.07120). The momentum does not change.
ONE_CYCLE_RISE, ONE_CYCLE_START, ONE_CYCLE_END = 0.3, 1 / 25, 1 / 25 / 1e4


# Maps each optimiser to its class in torch.optim and to the keys of the search space that are its settings, beside `lr`.
OPTIMIZER_SETTINGS = {
    "sgd": ("SGD", ("weight_decay", "momentum", "nesterov")),
    "adam": ("Adam", ("weight_decay", "betas")),
    "adamw": ("AdamW", ("weight_decay", "betas")),
    "adadelta": ("Adadelta", ("weight_decay",)),
    "adafactor": ("Adafactor", ("weight_decay",)),
    "adagrad": ("Adagrad", ("weight_decay",)),
    "adamax": ("Adamax", ("weight_decay", "betas")),
    "asgd": ("ASGD", ("weight_decay",)),
    "nadam": ("NAdam", ("weight_decay", "betas")),
    "radam": ("RAdam", ("weight_decay", "betas")),
    "rmsprop": ("RMSprop", ("weight_decay", "momentum")),
    "rprop": ("Rprop", ()),
}
# Optimisers of PyTorch that copy `lr` into their state, and so do not obey a learning rate that changes (rprop), or obey it one step late (asgd).
FIXED_RATE_OPTIMIZERS = ("asgd", "rprop")
STACKED_OPTIMIZERS = ("sgd", "adam", "adamw")  # optimisers with which trials can be trained together


# Maps each operation of the augmentation to the defaults of its options.
AUGMENTATIONS: dict[str, dict[str, float]] = {
    "flip": {},
    "crop": {"padding": 4},
    "translate": {"fraction": 0.1},
    "cutout": {"size": 8},
    "mixup": {"alpha": 0.2},
}


def _between(start: float, end: float, fraction: np.ndarray) -> np.ndarray:
    """Return the values on half a period of a cosine from `start`, at the fraction 0, to `end`, at the fraction 1."""
    return end + (start - end) * (1 + np.cos(np.pi * fraction)) / 2


@dataclass(frozen=True)
class Schedule:
    """Describes how the learning rate changes during the training, without the warm-up."""

    name: Literal["constant", "cosine", "onecycle", "step", "exponential"] = "constant"
    # Length of the schedule, after which the rate stays constant; a constant rate needs no length. None is `max_epochs` of the first session (with_horizon).
    epochs: float | None = 0
    step_size: float | None = None  # epochs between two changes of the rate by the factor `gamma`; None is a third of the schedule
    gamma: float = 1

    def to_json(self) -> dict[str, Any]:
        """Return the name and the fields that differ from their defaults, so that a field that a later version adds changes no recorded schedule."""
        default = {each.name: each.default for each in fields(self)}
        return {key: value for key, value in fields_to_json(self).items() if key == "name" or value != default[key]}

    def rates(self, epochs: np.ndarray, length: float) -> np.ndarray:
        """Return the factor of the learning rate after `epochs`, at most `length`, epochs of a schedule whose length is `length` epochs."""
        if self.name == "step":
            return self.gamma ** np.floor(epochs / (self.step_size or length / 3))
        if self.name == "exponential":
            return self.gamma**epochs
        fraction = epochs / length if length else np.zeros_like(epochs)
        if self.name == "cosine":
            return _between(1, 0, fraction)
        if self.name == "onecycle":
            rise, fall = fraction / ONE_CYCLE_RISE, (fraction - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE)
            return np.where(rise < 1, _between(ONE_CYCLE_START, 1, rise), _between(1, ONE_CYCLE_END, fall))
        return np.ones_like(epochs)


@dataclass(frozen=True)
class Recipe:
    """Contains the settings of the training of a model that belong to no optimiser."""

    schedule: Schedule = field(default_factory=Schedule)
    warmup_epochs: float = 0  # epochs in which the learning rate grows linearly from 0
    label_smoothing: float = 0  # part of the target probability that is spread evenly over all classes
    clip_grad_norm: float | None = None  # largest norm of the gradient of a batch; None is no limit
    ema_decay: float = 0  # decay of the exponential moving average of the weights; 0 is no average
    class_weights: Literal["none", "balanced"] = "none"
    precision: Literal["float32", "bf16"] = "float32"
    augment: tuple[Any, ...] = ()  # operations: names, or maps of one name to options; `operations` returns them in one form

    def __str__(self) -> str:
        """Return the settings that differ from the defaults, such as `schedule cosine (epochs 10), label_smoothing 0.1`."""
        default = to_json(Recipe())
        given = {key: value for key, value in to_json(self).items() if value != default[key]}
        if given.pop("augment", None):
            given["augment"] = " and ".join(
                " ".join([name, *(f"{value:g}" for value in options.values())]) for name, options in self.operations.items()
            )
        if schedule := given.pop("schedule", None):
            options = ", ".join(f"{key} {value:g}" for key, value in schedule.items() if key != "name" and value is not None)
            given = {"schedule": f"{schedule['name']} ({options})" if options else schedule["name"], **given}
        return ", ".join(f"{key} {value}" for key, value in given.items())

    def with_horizon(self, epochs: float) -> Recipe:
        """Return the recipe with `epochs` as the length of a schedule that has no length."""
        return replace(self, schedule=replace(self.schedule, epochs=epochs)) if self.schedule.epochs is None else self

    @cached_property
    def operations(self) -> dict[str, dict[str, float]]:
        """Return the operations of the augmentation, as a map from the name of each operation to its options."""
        named = [operation if isinstance(operation, dict) else {operation: {}} for operation in self.augment]
        return {name: {**AUGMENTATIONS[name], **options} for each in named for name, options in each.items()}

    def with_values(self, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe with the searched `values`, nested as in the config, in the place of the values of this recipe."""
        given = to_json(self)
        schedule = {"schedule": {**given["schedule"], **values["schedule"]}} if "schedule" in values else {}
        return from_json(Recipe, {**given, **values, **schedule})

    def rates(self, epochs: np.ndarray) -> np.ndarray:
        """Return the factor by which the learning rate is multiplied after `epochs` epochs of training, float64 of the same shape.

        `epochs` need not be whole: (epoch - 1) + (rows of the epoch before the batch) / (rows of the epoch).
        """
        horizon = self.schedule.epochs or 0
        length = horizon - self.warmup_epochs
        after = np.clip(epochs - self.warmup_epochs, 0, max(length, 0) if horizon else None)
        rates = self.schedule.rates(after, length)
        return np.where(epochs < self.warmup_epochs, epochs / (self.warmup_epochs or 1), rates)
