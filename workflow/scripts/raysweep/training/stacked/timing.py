"""Measures the time of training together and of training alone, and estimates the memory of one member of a stack."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from raysweep.training.stacked.trainer import EVALUATION_ROWS, StackedTrainer
from raysweep.training.trainer import Trainer

MIN_MEASURED_S = 0.2  # A measurement that takes less time, in seconds, is repeated with more rows.
FIRST_ROWS = 4 * 130  # number of rows in the first measurement


def seconds_per_row(stacked: StackedTrainer, trainers: Sequence[Trainer], images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the time in seconds that all `trainers`, trained together, need for one row of the data. The trainers do not change."""
    group = [copy.deepcopy(trainer) for trainer in trainers]
    rows, took_s = FIRST_ROWS // 4, 0.0
    # The number of rows grows until the time for work outside the steps, such as making the stack, is a small part of the measured time.
    while not took_s or (took_s < MIN_MEASURED_S and rows < len(labels)):
        rows = min(4 * rows, len(labels))
        train = partial(stacked.train_epoch, group, [1] * len(group), images[:rows], labels[:rows])
        took_s = _seconds(train, group[0].device)
    return took_s / rows


def seconds_per_row_alone(trainers: Sequence[Trainer], images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the time in seconds that all `trainers`, trained one after the other, need for one row of the data. The trainers do not change."""
    rows = min(len(labels), FIRST_ROWS)
    # Only one trainer of each form and batch size is measured, because such trainers need about the same time.
    alone = {(trainer.model_form, trainer.batch_size): copy.deepcopy(trainer) for trainer in trainers}
    took_s = {
        kind: _seconds(partial(trainer.train_epoch, images[:rows], labels[:rows], 1), trainer.device) for kind, trainer in alone.items()
    }
    return sum(took_s[trainer.model_form, trainer.batch_size] for trainer in trainers) / rows


def bytes_per_member(trainer: Trainer, images: torch.Tensor, labels: torch.Tensor, num_rows: int) -> int:
    """Return an estimate of the memory of one member of a stack with `num_rows` rows of each member in a step, in bytes.

    The estimate includes the member's weights, gradients, sums of gradients and optimiser states, both in the trainer and in the stack. The estimate also
    includes the tensors that a step or an evaluation stores for the gradient, and an equal amount for the tensors that the gradient computation makes.
    """
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    rows = max(num_rows, EVALUATION_ROWS)
    model = copy.deepcopy(trainer.model).train()
    weights: int = sum(param.nbytes for param in model.parameters())
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        prepare = trainer.preparation
        trainer.loss(model(prepare.inputs(images[:rows], trainer.dtype)), prepare.targets(labels[:rows], trainer.dtype))
    return 10 * weights + 2 * sum(kept.values())


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    """Return the shorter time of two runs of `action`, in seconds. The first run also allocates buffers and chooses kernels, so it often takes longer."""
    times = []
    synchronize = torch.get_device_module(device).synchronize
    for _ in range(2):
        synchronize(device)
        began = time.perf_counter()
        action()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times)
