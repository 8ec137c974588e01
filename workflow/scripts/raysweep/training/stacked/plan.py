"""Plans an epoch of a stack. The plan says which rows of the data each member uses in each step, and in which steps the member's weights change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from raysweep.common.seeds import dropout_keys
from raysweep.config.recipe import Recipe
from raysweep.training.epoch_plan import EpochPlan
from raysweep.training.layers import split_rows


class StepPlan(NamedTuple):
    """Contains the plan of all members for an epoch, which consists of `steps` micro-batches of `size` rows."""

    # Indices of the rows in the data, int64 [steps, members, size, mixed], or [steps, size, mixed] where all members use the same rows. `mixed` is the
    # number of rows that are mixed to one training row, see EpochPlan.
    rows: torch.Tensor
    draws: torch.Tensor  # draws of the augmentation for each row, int16, the shape of `rows` and a last dimension, see EpochPlan
    # Part of each row in its mixture, the shape of `rows`. All parts of a filler row, which only completes a micro-batch, are 0.
    parts: torch.Tensor
    # Weight of each row in the gradient of a member, [steps, members, size, mixed]. The weight is the part of the row in the weights of the batch, which is
    # 1 / (number of rows of the batch) without class weights and mixtures. The weight of a filler row is 0.
    weights: torch.Tensor
    # Gate of a member, [steps, members]. The gate is 1 (open) where the member's batch is complete after a step, else 0 (closed). Only behind an open gate
    # the member's weights change.
    gates: torch.Tensor
    rates: torch.Tensor  # factor of the learning rate of a member in a step, [steps, members]
    keys: torch.Tensor  # key of a member's batch for the masks of dropout, int64 [steps, members], see seeds.dropout_keys
    positions: torch.Tensor  # position of the first row of a member's micro-batch in the member's batch, int64 [steps, members]

    def to(self, device: torch.device, dtype: torch.dtype) -> StepPlan:
        """Return the plan with its tensors on `device`. Whole numbers keep their types, and the other tensors get the type `dtype`."""
        return StepPlan(*(tensor.to(device, dtype if tensor.is_floating_point() else None) for tensor in self))

    def step(self, number: int) -> StepPlan:
        """Return the part of the plan for one step. The tensors of this part have no dimension `steps`."""
        return StepPlan(*(tensor[number] for tensor in self))


class MemberEpoch(NamedTuple):
    """Describes the epoch of one member."""

    plan: EpochPlan
    batch_size: int
    epoch: int  # counted from 1
    recipe: Recipe
    seed: int  # seed of the member's trial
    first_row: int = 0  # number of rows of the epoch that are before the rows in the order of `plan`
    first_batch: int = 0  # number of batches of the epoch that are before these rows


def plan_steps(members: Sequence[MemberEpoch], size: int, shared: bool) -> StepPlan:
    """Return the plan of an epoch with micro-batches of `size` rows.

    Where the number of rows of a batch is not a multiple of `size`, filler rows of weight 0 complete the last micro-batch. Where `shared` is true, all
    members must have the order of the first member and batch sizes that are multiples of `size`, so that all members use the same rows in each step.
    """
    parts = [_plan_member(member, size) for member in members]
    arrays = []
    for member_arrays in zip(*parts, strict=True):  # the rows of all members, then their draws, and so on
        array = np.zeros((max(map(len, member_arrays)), len(parts), *member_arrays[0].shape[1:]), member_arrays[0].dtype)
        for number, values in enumerate(member_arrays):
            array[: len(values), number] = values
        arrays.append(torch.from_numpy(array))
    if shared:
        arrays[:3] = map(torch.from_numpy, parts[0][:3])
    return StepPlan(*arrays)


def plan_whole_batches(members: Sequence[MemberEpoch], joins_last_row: bool, shared: bool) -> list[StepPlan]:
    """Return the plan of an epoch with one step for each batch. All members must have the same batch size.

    The last batch has a separate plan where its number of rows differs from the batch size. `joins_last_row` is as for layers.split_rows.
    """
    num_rows = len(members[0].plan.order)
    sizes = [len(batch) for batch in split_rows(torch.arange(num_rows), members[0].batch_size, joins_last_row)]
    num_equal = sizes.count(sizes[0])
    plans = []
    for batch, start, end in ((0, 0, num_equal * sizes[0]), (num_equal, num_equal * sizes[0], num_rows)):
        if start < end:
            parts = [
                MemberEpoch(EpochPlan(plan.order[start:end], *plan[1:]), sizes[batch], epoch, recipe, seed, start, batch)
                for plan, _, epoch, recipe, seed, *_ in members
            ]
            plans.append(plan_steps(parts, sizes[batch], shared))
    return plans


def _plan_member(member: MemberEpoch, size: int) -> tuple[np.ndarray, ...]:
    """Return the arrays of StepPlan for one member, without the dimension `members`."""
    (order, sources, parts, row_weights, draws), batch_size = member.plan, member.batch_size
    starts = np.arange(0, len(order), batch_size)[:, None] + np.arange(0, batch_size, size)
    ends = np.minimum(starts[:, :1] + batch_size, len(order))
    is_step = starts < ends
    is_last = is_step & (starts + size >= ends)
    ends = np.broadcast_to(ends, starts.shape)[is_step]
    batch_starts = np.broadcast_to(starts[:, :1], is_step.shape)[is_step]
    rates = member.recipe.rates(member.epoch - 1 + (member.first_row + batch_starts) / len(sources))
    batches = member.first_batch + batch_starts // batch_size
    keys = dropout_keys(member.seed, member.epoch, batches[-1] + 1)[batches]
    positions = starts[is_step][:, None] + np.arange(size)
    is_row = positions < ends[:, None]
    rows = order[np.where(is_row, positions, 0)]
    # sum of the weights of all rows before a position in the order
    weights_before = np.concatenate([[0.0], np.cumsum(row_weights[order].sum(1))])
    weights = is_row[..., None] * row_weights[rows] / (weights_before[ends] - weights_before[batch_starts])[:, None, None]
    mixed = sources[rows]
    return (
        mixed,
        draws[mixed],
        is_row[..., None] * parts[rows],
        weights,
        is_last[is_step].astype(float),
        rates,
        keys,
        starts[is_step] - batch_starts,
    )
