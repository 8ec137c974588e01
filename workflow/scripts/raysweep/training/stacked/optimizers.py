"""Implements SGD, Adam and AdamW of torch.optim for a stack. One update changes all members, although each member has separate settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from raysweep.training.stacked.state import StackState
from raysweep.training.trainer import Trainer


class StepForm(NamedTuple):
    """Describes the form of a step, which is the optimiser and the terms of the loss and of the update that are computed."""

    optimizer: str  # name of the optimiser: sgd, adam or adamw
    has_momentum: bool  # whether the momentum of SGD is computed
    decays: bool  # whether the weight decay is computed; for AdamW the weight decay is always computed
    smooths: bool  # whether the label smoothing is computed
    clips: bool  # whether the norm of the gradient is limited
    averages: bool  # whether the average of the weights is computed

    @classmethod
    def of(cls, trainers: Sequence[Trainer]) -> StepForm:
        """Return the form with the fewest terms that all trainers can use. The optimisers of all trainers must be of one class."""
        optimizer = type(trainers[0].optimizer).__name__.lower()
        groups = [trainer.optimizer.param_groups[0] for trainer in trainers]
        recipes = [trainer.recipe for trainer in trainers]
        return cls(
            optimizer,
            has_momentum=any(group.get("momentum") for group in groups),
            decays=any(group["weight_decay"] for group in groups),
            smooths=any(recipe.label_smoothing for recipe in recipes),
            clips=any(recipe.clip_grad_norm is not None for recipe in recipes),
            averages=any(recipe.ema_decay for recipe in recipes),
        )

    def joined(self, other: StepForm | None) -> StepForm:
        """Return a form that the members of both forms can use. A member that does not use a term has a setting with which the term changes nothing."""
        return self if other is None else StepForm(self.optimizer, *(a or b for a, b in zip(self[1:], other[1:], strict=True)))

    @property
    def moments(self) -> tuple[str, ...]:
        """Return the keys of the tensors that the optimiser stores for each parameter. These keys also occur in the optimiser's state_dict()."""
        if self.optimizer == "sgd":
            return ("momentum_buffer",) if self.has_momentum else ()
        return ("exp_avg", "exp_avg_sq")

    @property
    def settings(self) -> tuple[str, ...]:
        """Return the keys of those settings of the optimiser that are single numbers."""
        return ("lr", "weight_decay", *(("momentum", "nesterov") if self.optimizer == "sgd" else ("eps",)))


def update(state: StackState, form: StepForm, gradients: torch.Tensor, rate: torch.Tensor, gate: torch.Tensor | None) -> None:
    """Update the weights of the members whose gate is 1. `gradients` has the shape [members, weights].

    `rate` is the factor of the learning rate, [members]. `gate` is float [members]. None means that the gates of all members are 1.
    """
    settings = {key: values[:, None] for key, values in state.settings.items()}
    settings["lr"] = settings["lr"] * rate[:, None]
    lr, weight_decay = settings["lr"], settings["weight_decay"]
    gate = torch.ones_like(lr) if gate is None else gate[:, None]
    state.steps.add_(gate[:, 0])
    if form.clips:
        # The formula is that of torch.nn.utils.clip_grad_norm_.
        gradients = gradients * (settings["clip_grad_norm"] / (gradients.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)
    if form.optimizer == "adamw":
        state.params.mul_(1 - gate * lr * weight_decay)
    elif form.decays:
        gradients = gradients + state.params * weight_decay
    if form.optimizer == "sgd":
        _update_sgd(state, form, settings, gradients, gate)
    else:
        _update_adam(state, settings, gradients, gate)
    if form.averages:
        state.averages.add_((state.params - state.averages) * (gate * (1 - settings["ema_decay"])))


def _update_sgd(state: StackState, form: StepForm, settings: dict[str, torch.Tensor], gradients: torch.Tensor, gate: torch.Tensor) -> None:
    if form.has_momentum:
        momentum, nesterov = settings["momentum"], settings["nesterov"]
        velocity = state.moments["momentum_buffer"]
        velocity.mul_(1 + gate * (momentum - 1)).addcmul_(gradients, gate)
        gradients = velocity + nesterov * (gradients + (momentum - 1) * velocity)
    state.params.addcmul_(gradients, -gate * settings["lr"])


def _update_adam(state: StackState, settings: dict[str, torch.Tensor], gradients: torch.Tensor, gate: torch.Tensor) -> None:
    beta1, beta2 = settings["beta1"], settings["beta2"]
    # The number of updates is at least 1 here, to avoid a division by zero. A member without an update has the gate 0, so its weights do not change.
    steps = state.steps.clamp(min=1)[:, None]
    mean, square = state.moments["exp_avg"], state.moments["exp_avg_sq"]
    mean.add_((gradients - mean) * (gate * (1 - beta1)))
    square.mul_(1 - gate * (1 - beta2)).addcmul_(gradients * gradients, gate * (1 - beta2))
    denominator = square.sqrt() / (1 - beta2**steps).sqrt() + settings["eps"]
    state.params.addcmul_(mean / denominator, -gate * settings["lr"] / (1 - beta1**steps))
