"""Defines the state of a stack, which is the set of tensors that the steps of the stack read and change."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

Tensors = dict[str, torch.Tensor]


@dataclass
class StackState:
    """Contains the members' weights, buffers and optimiser states for one epoch. All tensors have the shape [members, …].

    All weights of a member are in one row of `params`. The tensors that the optimiser stores for the weights have the same layout. So an update needs
    only a few operations, whatever the number of parameters of the model is.
    """

    params: torch.Tensor  # weights, [members, weights]
    buffers: Tensors  # buffers of the model by name, [members, …]
    moments: Tensors  # tensors that the optimiser stores, [members, weights], by key, see StepForm.moments
    steps: torch.Tensor  # number of updates of each member, [members]; Adam needs this number
    settings: Tensors  # settings of the optimiser by key, [members]
    averages: torch.Tensor  # averages of the weights, [members, weights]; equal to `params` without an average
    sums: torch.Tensor  # sums of the gradients since the last update, [members, weights]
    losses: torch.Tensor  # sums of the losses of all rows of the epoch that are already used, float64 [members]
    has_sums: bool = False  # whether `sums` may differ from 0; only eager steps use this flag

    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors of the state. All states of one form return their tensors in the same order."""
        groups = (self.buffers, self.moments, self.settings)
        named = [tensor for group in groups for tensor in group.values()]
        return [self.params, self.steps, self.averages, self.sums, self.losses, *named]

    def copy_from(self, other: StackState) -> None:
        """Copy the values of another state of the same form into the tensors of this state."""
        for target, source in zip(self.tensors(), other.tensors(), strict=True):
            target.copy_(source)

    def clone(self) -> StackState:
        """Return a copy of this state with new tensors."""
        buffers, moments, settings = (
            {key: tensor.clone() for key, tensor in group.items()} for group in (self.buffers, self.moments, self.settings)
        )
        return replace(
            self,
            params=self.params.clone(),
            buffers=buffers,
            moments=moments,
            steps=self.steps.clone(),
            settings=settings,
            averages=self.averages.clone(),
            sums=self.sums.clone(),
            losses=self.losses.clone(),
        )


def parameter_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shape of each parameter by name, in the order of the parameters in a row of StackState.params."""
    return {name: param.shape for name, param in model.named_parameters()}


def join_row(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return the values of all tensors as one row, [weights]."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def split_row(row: torch.Tensor, shapes: dict[str, torch.Size]) -> Tensors:
    """Return the parameters in `row`, [weights], by name. The parameters are views of `row`."""
    parts = row.split([shape.numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
