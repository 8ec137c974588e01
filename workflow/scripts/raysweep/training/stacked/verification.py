"""Verifies that a stack trains its members as plain training of each trainer alone does, and that faster steps agree with eager steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from raysweep.common.errors import logger
from raysweep.training.private import compiler_error, is_data_dependent
from raysweep.training.stacked.trainer import StackedTrainer
from raysweep.training.trainer import Trainer

VERIFICATION_ROWS = 131  # number of rows for the verification, a prime number, so that the last batch is smaller than the other batches
# Largest relative and absolute difference between float64 weights after a few steps of a stack and of plain training.
TOLERANCE = 1e-9
# The term `eps` of Adam in the verification. With PyTorch's 1e-8, Adam makes visible updates from rounding errors, where the true gradient is 0, as for a bias
# before batch normalisation.
VERIFICATION_EPS = 1e-3
# Largest relative and absolute difference between weights, in the model's precision, after compiled and eager steps. Compiled code rounds differently.
COMPILED_TOLERANCE = 1e-3
MAX_REASON_LENGTH = 200  # largest number of characters of a reason


def reason_not_stackable(stacked: StackedTrainer, trainers: Sequence[Trainer], images: torch.Tensor, labels: torch.Tensor) -> str | None:
    """Return the reason why these trainers cannot be trained together, or None where they can.

    The function trains copies of the trainers for a few steps, both together and alone, and compares the weights and the metrics in float64. The trainers
    do not change. Where the trials of the sweep have different batch sizes, at least two of the trainers should have different batch sizes.
    """
    dtypes = {str(param.dtype).removeprefix("torch.") for param in trainers[0].model.parameters()}
    if dtypes not in ({"float32"}, {"float64"}):
        return f"the weights are {' and '.join(sorted(dtypes))}, and a stack needs float32 alone or float64 alone"
    images, labels = images[:VERIFICATION_ROWS], labels[:VERIFICATION_ROWS]
    alone, together = ([copy.deepcopy(trainer) for trainer in trainers] for _ in range(2))
    for trainer in (*alone, *together):
        trainer.double()
        [group] = trainer.optimizer.param_groups
        group.update({key: VERIFICATION_EPS for key in group if key == "eps"})
        # The listed metrics follow from the outputs, as the accuracy and the loss do. Their ranks and bins can differ where outputs differ by 1e-16.
        trainer.spec = replace(trainer.spec, metrics=())
    try:
        if reason := _reason_of_plain_epoch(alone, images, labels):
            return reason
        stacked.train_epoch(together, [1] * len(together), images, labels)
        metrics = stacked.evaluate(together, images, labels)
    except Exception as error:  # A user's model may raise every type of exception.
        cause = str(error).strip().partition("\n")[0] or type(error).__name__
        if is_data_dependent(error):
            cause = "the model decides by the values of tensors"
        return f"torch.func.vmap cannot run the model: {cause[:MAX_REASON_LENGTH]}"
    if not _have_same_weights(alone, together, TOLERANCE):
        return "the weights differ from those of plain training"
    for trainer, stacked_metrics in zip(alone, metrics, strict=True):
        expected = trainer.evaluate(images, labels)
        if not all(math.isclose(stacked_metrics[key], expected[key], rel_tol=1e-6, abs_tol=1e-9) for key in expected):
            return "the validation metrics differ from those of plain training"
    return None


def _reason_of_plain_epoch(trainers: Sequence[Trainer], images: torch.Tensor, labels: torch.Tensor) -> str | None:
    """Train each trainer alone for one epoch. Return the operation of the models in training that a stack cannot do, or None where no such operation exists."""
    random_before = _random_states(trainers[0].device)
    for trainer in trainers:
        trainer.train_epoch(images, labels, 1)
    if not all(torch.equal(*states) for states in zip(random_before, _random_states(trainers[0].device), strict=True)):
        return "the model draws random numbers in training other than those of dropout"
    if trainers[0].loss.own is not None and trainers[0].has_mean_loss(images, labels):
        return "the loss function returns one value for a batch, and a stack needs a value for each row"
    return None


def prepare(
    stacked: StackedTrainer, trainers: Sequence[Trainer], images: torch.Tensor, labels: torch.Tensor, threads: int = 1
) -> StackedTrainer | str:
    """Return a stacked trainer whose step is compiled on a CPU, or captured on a GPU, for stacks with the number of members in `trainers`.

    Returns the reason as text where the step cannot be compiled or captured, or where the faster step and the eager step give different weights. The
    trainers do not change. The compiler uses at most `threads` threads.
    """
    # The number of rows is small, because with a large learning rate rounding differences grow with every step.
    rows = 2 * max(trainer.batch_size for trainer in trainers)
    images, labels = images[:rows], labels[:rows]
    faster = StackedTrainer(replace(stacked.settings, prepared_for=len(trainers), compiler_threads=threads))
    eager_copies, faster_copies = ([copy.deepcopy(trainer) for trainer in trainers] for _ in range(2))
    try:
        faster.train_epoch(faster_copies, [1] * len(trainers), images, labels)
    except Exception as error:  # The compiler may be broken, or may not support the model.
        logger.debug("the step could not be prepared", exc_info=True)
        return compiler_error(error)[:MAX_REASON_LENGTH]
    stacked.train_epoch(eager_copies, [1] * len(trainers), images, labels)
    if not _have_same_weights(eager_copies, faster_copies, COMPILED_TOLERANCE, equal_nan=True):
        return "the weights differ from those of the eager step"
    return faster


def with_unfolded_convolutions(
    stacked: StackedTrainer, trainers: Sequence[Trainer], images: torch.Tensor, labels: torch.Tensor
) -> StackedTrainer | None:
    """Return a stacked trainer that computes convolutions as matrix products.

    Returns None where the model has no two-dimensional convolutions, or where the weights would differ from those of plain training. The trainers do not
    change.
    """
    unfolded = StackedTrainer(replace(stacked.settings, unfolds=True, prepared_for=0))
    has_convolutions = any(isinstance(module, nn.Conv2d) for module in trainers[0].model.modules())
    return unfolded if has_convolutions and reason_not_stackable(unfolded, trainers, images, labels) is None else None


def _have_same_weights(some: Sequence[Trainer], others: Sequence[Trainer], tolerance: float, equal_nan: bool = False) -> bool:
    return all(
        torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=equal_nan)
        for trainer, other in zip(some, others, strict=True)
        for a, b in zip(_tensors(trainer), _tensors(other), strict=True)
    )


def _random_states(device: torch.device) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *([torch.get_device_module(device).get_rng_state(device)] if device.type != "cpu" else [])]


def _tensors(trainer: Trainer) -> list[torch.Tensor]:
    return [*trainer.model.parameters(), *trainer.model.buffers()]
