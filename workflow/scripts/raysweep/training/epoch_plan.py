"""Plans an epoch: the order of the rows, their weights in the loss, their mixtures and the random draws of the augmentation.

Plain training, stacked training and the confirmation use this plan. All trials of a sweep have the same plan of an epoch, whatever their batch sizes are,
and also after an interruption. So the plan causes no difference between the trials.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from raysweep.common.seeds import augmentation_draws, epoch_order, mixup_draws
from raysweep.training.spec import TrainingSpec

NUM_DRAWS = 5  # number of draws for each row: flip, shift down, shift right, and row and column of the centre of the cut-out square


class EpochPlan(NamedTuple):
    """Contains the plan of one epoch. The rows of the data are counted from 0.

    A training row is a mixture of `mixed` rows of the data: of one row, or of two rows with mixup.
    """

    order: np.ndarray  # row numbers in the order of the training, int64 [rows]
    sources: np.ndarray  # numbers of the rows that are mixed to each training row, int64 [rows, mixed]; the first is the row itself
    parts: np.ndarray  # part of each of these rows in the mixture, float64 [rows, mixed]; the sum of a mixture is 1
    weights: np.ndarray  # weight of the loss for the target of each of these rows, float64 [rows, mixed]
    draws: np.ndarray  # draws of the augmentation for each row, int16 [rows, NUM_DRAWS], or [rows, 0] without augmentation


def plan_epoch(spec: TrainingSpec, epoch: int, labels: np.ndarray, image_shape: tuple[int, ...]) -> EpochPlan:
    """Return the plan of an epoch, which is counted from 1.

    Args:
        spec: the settings of the training.
        epoch: the epoch.
        labels: the labels of all rows, int64 [rows].
        image_shape: the shape of an image, (channels, height, width).
    """
    num_rows = len(labels)
    weights = balanced_weights(labels) if spec.recipe.class_weights == "balanced" else np.ones(num_rows)
    draws = _draws(spec, epoch, num_rows, image_shape) if spec.recipe.augment else np.zeros((num_rows, 0), np.int16)
    sources, parts = np.arange(num_rows)[:, None], np.ones((num_rows, 1))
    if "mixup" in spec.recipe.operations:
        partners, own_parts = mixup_draws(spec.order_seed, epoch, num_rows, spec.recipe.operations["mixup"]["alpha"])
        sources, parts = np.stack([sources[:, 0], partners], axis=1), np.stack([own_parts, 1 - own_parts], axis=1)
    return EpochPlan(epoch_order(spec.order_seed, epoch, num_rows), sources, parts, parts * weights[sources], draws)


def balanced_weights(labels: np.ndarray) -> np.ndarray:
    """Return a weight for each row, float64 [rows], so that the weights of each class have the same sum. The mean of all weights is 1.

    The formula is that of `class_weight="balanced"` in scikit-learn.
    """
    _, class_numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights: np.ndarray = (len(labels) / (len(counts) * counts))[class_numbers]
    return weights


def _draws(spec: TrainingSpec, epoch: int, num_rows: int, image_shape: tuple[int, ...]) -> np.ndarray:
    """Return the draws of the augmentation. A draw depends on the seed, the epoch and the row, and not on the other operations of the augmentation."""
    height, width = image_shape[-2:]
    draws = np.zeros((num_rows, NUM_DRAWS), np.int16)
    uniform = augmentation_draws(spec.order_seed, epoch, num_rows, NUM_DRAWS)
    operations = spec.recipe.operations
    if "flip" in operations:
        draws[:, 0] = uniform[:, 0] < 0.5
    for column, side in ((1, height), (2, width)):
        limit = operations.get("crop", {}).get("padding", 0) + round(operations.get("translate", {}).get("fraction", 0) * side)
        draws[:, column] = np.floor(uniform[:, column] * (2 * limit + 1)) - limit
    if "cutout" in operations:
        draws[:, 3:] = np.floor(uniform[:, 3:] * (height, width))
    return draws
