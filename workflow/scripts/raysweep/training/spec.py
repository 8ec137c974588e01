"""The part of a training that all trials of a sweep share. Needs no PyTorch, so the driver and the stages may import this module."""

from __future__ import annotations

from dataclasses import dataclass

from raysweep.config.model import SweepConfig


@dataclass(frozen=True)
class TrainingSpec:
    """The part of a training that all trials of a sweep share."""

    loss: str  # name of a function in torch.nn.functional
    optimizer: str  # a key of trainer.OPTIMIZERS
    order_seed: int  # decides the order of the training data in each epoch

    @classmethod
    def of(cls, sweep: SweepConfig) -> TrainingSpec:
        """Return the spec of a sweep that trains a `model`."""
        assert sweep.loss is not None  # the checks of the config fill in both
        assert sweep.optimizer is not None
        return cls(sweep.loss, sweep.optimizer, sweep.seed)
