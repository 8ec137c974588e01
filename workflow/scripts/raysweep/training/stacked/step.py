"""Runs a step of a stack, which computes the gradients of all members for one micro-batch and updates the members whose batch is complete."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from raysweep.training.dropout import DropoutMasks
from raysweep.training.stacked.convolutions import UnfoldedConvolutions
from raysweep.training.stacked.optimizers import StepForm, update
from raysweep.training.stacked.plan import StepPlan
from raysweep.training.stacked.state import StackState, Tensors, parameter_shapes, split_row
from raysweep.training.trainer import Trainer, losses_of_mixtures


class MicroBatch(NamedTuple):
    """Contains the data of one step."""

    images: torch.Tensor  # prepared inputs, [members, size, …], or [size, …] where all members use the same rows
    labels: torch.Tensor  # labels, int64, or scaled targets, [members, size, mixed], or [size, mixed] where all members use the same rows
    parts: torch.Tensor  # parts of the rows in their mixtures, the shape of `labels`, see StepPlan
    weights: torch.Tensor  # weights of the rows, [members, size, mixed], see StepPlan
    gate: torch.Tensor  # gate of each member, [members], see StepPlan
    rate: torch.Tensor  # factor of the learning rate of each member, [members]
    keys: torch.Tensor  # keys for the masks of dropout, [members], see StepPlan
    positions: torch.Tensor  # positions of the first rows in the members' batches, [members], see StepPlan


def micro_batch(trainer: Trainer, images: torch.Tensor, labels: torch.Tensor, step: StepPlan) -> MicroBatch:
    """Return the data of one step. `images` and `labels` contain all rows of the data, and `step` is the part of the plan for this step.

    `trainer` is any member of the stack, because all members prepare the rows in the same way.
    """
    rows, draws, parts, weights, *others = step
    targets = trainer.preparation.targets(labels[rows], weights.dtype)
    return MicroBatch(trainer.training_inputs(images[rows], draws, parts, weights.dtype), targets, parts, weights, *others)


class StackStep:
    """Runs the step of all stacks of one form.

    `trainer` is the trainer of any member of a stack, of which only the loss, the autocast and the preparation are used. `share_rows` says whether all
    members use the same rows.
    """

    def __init__(self, model: nn.Module, trainer: Trainer, form: StepForm, *, share_rows: bool, unfolds: bool) -> None:
        self.model, self.form, self.shapes = model, form, parameter_shapes(model)
        self.loss, self.autocast, self.preparation = trainer.loss, trainer.autocast, trainer.preparation
        self.convolutions = UnfoldedConvolutions if unfolds else contextlib.nullcontext
        data_dim = None if share_rows else 0
        self._gradients = vmap(grad(self._loss, has_aux=True), in_dims=(0, (0, 0, 0, 0), data_dim, (data_dim, data_dim, 0)))

    def _loss(
        self,
        row: torch.Tensor,
        member: tuple[Tensors, torch.Tensor, torch.Tensor, torch.Tensor],
        x: torch.Tensor,
        goal: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weighted loss that one member minimises, and the sum of this member's losses over all rows that are not filler rows.

        `row` contains the member's weights. `member` contains the member's buffers, label smoothing, and the key and
        the position for the masks of dropout. `goal` contains the labels, parts and weights.
        """
        (buffers, smoothing, key, position), (y, parts, weights) = member, goal
        with self.convolutions(), DropoutMasks(key, position, len(x)), self.autocast():
            outputs = functional_call(self.model, (split_row(row, self.shapes), buffers), (x,))
        outputs = self.preparation.outputs(outputs, len(x))
        losses = losses_of_mixtures(self.loss, outputs, y, smoothing if self.form.smooths else None)
        return (losses * weights).sum(), (losses.double() * parts).sum()

    def gradients(self, state: StackState, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of all members, [members, weights], and the sums of their losses, float64 [members]."""
        members = (state.buffers, state.settings["label_smoothing"], batch.keys, batch.positions)
        gradients, losses = self._gradients(state.params, members, batch.images, (batch.labels, batch.parts, batch.weights))
        return gradients, losses

    def run_masked(self, state: StackState, batch: MicroBatch) -> None:
        """Run the step without control flow that depends on the values of the gates, so that the step can be compiled or captured."""
        gradients, losses = self.gradients(state, batch)
        state.losses.add_(losses)
        gradients = state.sums + gradients
        update(state, self.form, gradients, batch.rate, batch.gate)
        state.sums.copy_(gradients * (1 - batch.gate)[:, None])

    def run_eager(self, state: StackState, batch: MicroBatch, is_any_open: bool, are_all_open: bool) -> None:
        """Run the same step as `run_masked`, but omit the operations that are not needed where no gate is open or where all gates are open."""
        gradients, losses = self.gradients(state, batch)
        state.losses.add_(losses)
        if state.has_sums:
            gradients = state.sums.add_(gradients)
        if is_any_open:
            update(state, self.form, gradients, batch.rate, None if are_all_open else batch.gate)
        state.has_sums = not are_all_open
        if not are_all_open:
            state.sums = gradients * (1 - batch.gate)[:, None] if is_any_open else gradients
