"""Plans an epoch of a stack. The plan says which rows of the data each member uses in each step, and in which steps the member's weights change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


class StepPlan(NamedTuple):
    """Contains the plan of all members for an epoch, which consists of `steps` micro-batches of `size` rows."""

    # Indices of the rows in the data, int64 [steps, members, size], or [steps, size] where all members use the same rows.
    rows: torch.Tensor
    # Weight of each row in the gradient of a member, [steps, members, size]. The weight is 1 / (number of rows of the batch). The weight of a filler row,
    # which only completes a micro-batch, is 0.
    weights: torch.Tensor
    # Whether the batch of a member is complete after a step, bool [steps, members]. Only then the gate is open and the member's weights change.
    gates: torch.Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> StepPlan:
        """Return the plan with its tensors on `device` and its weights with the type `dtype`."""
        return StepPlan(self.rows.to(device), self.weights.to(device, dtype), self.gates.to(device))


def plan_steps(orders: Sequence[np.ndarray], batch_sizes: Sequence[int], size: int, shared: bool) -> StepPlan:
    """Return the plan of an epoch with micro-batches of `size` rows. `orders` contains the order of the data, int64 [rows], for each member.

    Where the number of rows of a batch is not a multiple of `size`, filler rows of weight 0 complete the last micro-batch. Where `shared` is true, all
    members must have the order of the first member and batch sizes that are multiples of `size`, so that all members use the same rows in each step.
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
    """Return the rows, [steps, size], the weights, [steps, size], and the gates, [steps], of one member, see StepPlan."""
    starts = np.arange(0, len(order), batch_size)[:, None] + np.arange(0, batch_size, size)
    ends = np.minimum(starts[:, :1] + batch_size, len(order))
    is_step = starts < ends
    is_last = is_step & (starts + size >= ends)
    ends = np.broadcast_to(ends, starts.shape)[is_step]
    batches = ends - np.broadcast_to(starts[:, :1], is_step.shape)[is_step]
    positions = starts[is_step][:, None] + np.arange(size)
    is_row = positions < ends[:, None]
    return order[np.where(is_row, positions, 0)], is_row / batches[:, None], is_last[is_step]
