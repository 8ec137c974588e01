"""Runs a step of a stack, which computes the gradients of all members for one micro-batch and updates the members whose batch is complete."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from raysweep.training.preparation import Preparation
from raysweep.training.stacked.convolutions import UnfoldedConvolutions
from raysweep.training.stacked.optimizers import OptimizerForm, update
from raysweep.training.stacked.state import StackState, Tensors, parameter_shapes, split_row


class MicroBatch(NamedTuple):
    """Contains the data of one step."""

    images: torch.Tensor  # prepared inputs, [members, size, …], or [size, …] where all members use the same rows
    labels: torch.Tensor  # labels, int64, or scaled targets, [members, size], or [size] where all members use the same rows
    weights: torch.Tensor  # weights of the rows, [members, size], see StepPlan
    # Gate of each member, float [members]. The gate is 1 (open) where the member's batch is complete after this step, else 0 (closed).
    gate: torch.Tensor

    @classmethod
    def of(cls, prepare: Preparation, images: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, gate: torch.Tensor) -> MicroBatch:
        """Return the data of one step from staged rows."""
        return cls(prepare.inputs(images, weights.dtype), prepare.targets(labels, weights.dtype), weights, gate)


class StackStep:
    """Runs the step of all stacks of one form. `share_rows` says whether all members use the same rows."""

    def __init__(
        self, model: nn.Module, loss: Callable[..., torch.Tensor], form: OptimizerForm, *, share_rows: bool, unfolds: bool
    ) -> None:
        self.model, self.loss, self.form, self.shapes = model, loss, form, parameter_shapes(model)
        self.convolutions = UnfoldedConvolutions if unfolds else contextlib.nullcontext
        data_dim = None if share_rows else 0
        self.gradients = vmap(grad(self._loss, has_aux=True), in_dims=(0, 0, data_dim, data_dim, 0))

    def _loss(
        self, row: torch.Tensor, buffers: Tensors, x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weighted loss that one member minimises, and the sum of this member's losses over all rows that are not filler rows."""
        with self.convolutions():
            outputs = functional_call(self.model, (split_row(row, self.shapes), buffers), (x,))
        losses = self.loss(outputs, y, reduction="none")
        return (losses * weights).sum(), (losses.double() * (weights > 0)).sum()

    def run_masked(self, state: StackState, batch: MicroBatch) -> None:
        """Run the step without control flow that depends on the values of the gates, so that the step can be compiled or captured."""
        gradients, losses = self.gradients(state.params, state.buffers, batch.images, batch.labels, batch.weights)
        state.losses.add_(losses)
        gradients = state.sums + gradients
        update(state, self.form, gradients, batch.gate)
        state.sums.copy_(gradients * (1 - batch.gate)[:, None])

    def run_eager(self, state: StackState, batch: MicroBatch, is_any_open: bool, are_all_open: bool) -> None:
        """Run the same step as `run_masked`, but omit the operations that are not needed where no gate is open or where all gates are open."""
        gradients, losses = self.gradients(state.params, state.buffers, batch.images, batch.labels, batch.weights)
        state.losses.add_(losses)
        if state.has_sums:
            gradients = state.sums.add_(gradients)
        if is_any_open:
            update(state, self.form, gradients, None if are_all_open else batch.gate)
        state.has_sums = not are_all_open
        if not are_all_open:
            state.sums = gradients * (1 - batch.gate)[:, None] if is_any_open else gradients
