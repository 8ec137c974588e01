"""Defines the settings of training that are equal in all trials of a sweep.

This module does not import PyTorch, so the driver and the stages may import this module.
"""

from __future__ import annotations

from dataclasses import dataclass

from raysweep.config.model import SweepConfig


@dataclass(frozen=True)
class TrainingSpec:
    """Contains the settings of training that are equal in all trials of a sweep."""

    loss: str  # name of a function in torch.nn.functional
    optimizer: str  # key of trainer.OPTIMIZERS
    order_seed: int  # seed of the order of the training rows in each epoch

    @classmethod
    def of(cls, sweep: SweepConfig) -> TrainingSpec:
        """Return the spec of a sweep that trains a `model`."""
        assert sweep.loss is not None  # The checks of the config set both the loss and the optimiser.
        assert sweep.optimizer is not None
        return cls(sweep.loss, sweep.optimizer, sweep.seed)
