"""The plan of an epoch: which rows of the data each member of a stack takes in each step, and when its weights change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


class StepPlan(NamedTuple):
    """The way of all members through an epoch, in `steps` micro-batches of `size` rows."""

    rows: torch.Tensor  # of the data, int64 [steps, members, size], or [steps, size] where all members take the same rows
    weights: torch.Tensor  # of a row in its member's gradient, [steps, members, size]: 1 / rows of the batch; 0 where there is no row
    gates: torch.Tensor  # whether a member's batch is complete with this step, bool [steps, members]

    def to(self, device: torch.device, dtype: torch.dtype) -> StepPlan:
        """Return the plan with its tensors on `device` and its weights as `dtype`."""
        return StepPlan(self.rows.to(device), self.weights.to(device, dtype), self.gates.to(device))


def plan_steps(orders: Sequence[np.ndarray], batch_sizes: Sequence[int], size: int, shared: bool) -> StepPlan:
    """Plan an epoch of members that take the data in these orders, int64 [rows] each, in micro-batches of `size` rows.

    Where `size` does not divide a batch, the batch is filled up with rows of weight 0. `shared`: all members have the order of the first one, and batches of
    whole micro-batches, so that their rows are the same.
    """
    parts = [_plan_member(order, batch_size, size) for order, batch_size in zip(orders, batch_sizes, strict=True)]
    steps = max(len(gates) for _, _, gates in parts)
    weights = np.zeros((steps, len(parts), size))
    gates = np.zeros((steps, len(parts)), dtype=bool)
    rows = np.zeros((steps, len(parts), size), dtype=np.int64)
    for member, (member_rows, member_weights, member_gates) in enumerate(parts):
        weights[: len(member_gates), member], gates[: len(member_gates), member] = member_weights, member_gates
        rows[: len(member_gates), member] = member_rows
    return StepPlan(torch.from_numpy(parts[0][0] if shared else rows), torch.from_numpy(weights), torch.from_numpy(gates))


def _plan_member(order: np.ndarray, batch_size: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows and weights, [steps, size], and gates, [steps], of one member."""
    starts = np.arange(0, len(order), batch_size)[:, None] + np.arange(0, batch_size, size)
    ends = np.minimum(starts[:, :1] + batch_size, len(order))
    is_step = starts < ends
    is_last = is_step & (starts + size >= ends)
    ends = np.broadcast_to(ends, starts.shape)[is_step]
    batches = ends - np.broadcast_to(starts[:, :1], is_step.shape)[is_step]
    positions = starts[is_step][:, None] + np.arange(size)
    is_row = positions < ends[:, None]
    return order[np.where(is_row, positions, 0)], is_row / batches[:, None], is_last[is_step]
