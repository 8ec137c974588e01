"""The tensors of a stack that its steps change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

Tensors = dict[str, torch.Tensor]


@dataclass
class StackState:
    """The members' weights, buffers and optimiser states for one epoch, tensors [members, …].

    The weights of a member lie in one row, and so do all tensors that the optimiser keeps for the weights. So an update is a few operations, however many
    parameters the model has.
    """

    params: torch.Tensor  # [members, weights]
    buffers: Tensors
    moments: Tensors  # [members, weights] each, see OptimizerForm.moments
    steps: torch.Tensor  # [members]: updates so far, as Adam counts them
    settings: Tensors  # of the optimiser, [members] each
    sums: torch.Tensor  # [members, weights]: gradients since the last update
    losses: torch.Tensor  # float64 [members]: sums over the rows of the epoch so far
    has_sums: bool = False  # whether `sums` counts; only eager steps ask

    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors, in an order that is the same for all states of one form."""
        groups = (self.buffers, self.moments, self.settings)
        named = [tensor for group in groups for tensor in group.values()]
        return [self.params, self.steps, self.sums, self.losses, *named]

    def copy_from(self, other: StackState) -> None:
        """Copy the values of another state of the same form into the tensors of this one."""
        for target, source in zip(self.tensors(), other.tensors(), strict=True):
            target.copy_(source)

    def clone(self) -> StackState:
        """Return a state with tensors of its own."""
        buffers, moments, settings = (
            {key: tensor.clone() for key, tensor in group.items()} for group in (self.buffers, self.moments, self.settings)
        )
        return StackState(
            self.params.clone(), buffers, moments, self.steps.clone(), settings, self.sums.clone(), self.losses.clone(), self.has_sums
        )


def parameter_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shape of each parameter, in the order in which the parameters lie in a row."""
    return {name: param.shape for name, param in model.named_parameters()}


def join_row(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return the tensors as one row, [weights]."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def split_row(row: torch.Tensor, shapes: dict[str, torch.Size]) -> Tensors:
    """Return the parameters that lie in a row, [weights], as views."""
    parts = row.split([shape.numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
