"""Defines the settings of training that are equal in all trials of a sweep.

This module does not import PyTorch, so the driver and the stages may import this module.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from raysweep.config.model import SweepConfig
from raysweep.config.recipe import Recipe
from raysweep.config.tasks import LISTED


@dataclass(frozen=True)
class TrainingSpec:
    """Contains the settings of training that are equal in all trials of a sweep."""

    loss: str  # name of a function in torch.nn.functional, or of a function of the user's own
    optimizer: str  # key of trainer.OPTIMIZERS
    order_seed: int  # seed of the order of the training rows in each epoch
    recipe: Recipe = field(default_factory=Recipe)  # a configuration may contain other values for numbers of the recipe
    metrics: tuple[str, ...] = ()  # keys of config.tasks.LISTED: further metrics of each evaluation

    @classmethod
    def of(cls, sweep: SweepConfig) -> TrainingSpec:
        """Return the spec of a sweep that trains a `model`."""
        assert sweep.loss is not None  # Reading the config sets the loss, the optimiser and the recipe.
        assert sweep.optimizer is not None
        assert sweep.training is not None
        return cls(sweep.loss, sweep.optimizer, sweep.seed, sweep.training, tuple(name for name in sweep.metrics if name in LISTED))
