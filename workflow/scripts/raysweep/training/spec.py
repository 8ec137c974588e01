"""The part of a training that all trials of a sweep share. Needs no PyTorch, so the driver and the stages may import this module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainingSpec:
    """The part of a training that all trials of a sweep share."""

    loss: str  # name of a function in torch.nn.functional
    optimizer: str  # a key of trainer.OPTIMIZERS
    order_seed: int  # decides the order of the training data in each epoch

    @classmethod
    def of(cls, sweep: Mapping[str, Any]) -> TrainingSpec:
        """Return the spec of a sweep, given as the sweep's section of the validated config."""
        return cls(sweep["loss"], sweep["optimizer"], sweep["seed"])
