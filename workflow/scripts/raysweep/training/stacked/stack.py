"""Combines the weights and the optimiser states of trainers into one stack for an epoch, and returns them to the trainers after the epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from raysweep.training.stacked.optimizers import StepForm
from raysweep.training.stacked.state import StackState, Tensors, join_row, parameter_shapes, split_row
from raysweep.training.trainer import Trainer


class Stack:
    """Combines trainers into one StackState for one epoch. `unstack` writes the state back to the trainers.

    The stack has at least `filled_to` members, because a compiled step accepts only one number of members. Filler members, which are copies of the first
    trainer and never change, complete this number.
    """

    def __init__(self, trainers: Sequence[Trainer], filled_to: int = 0, form: StepForm | None = None) -> None:
        self.trainers = trainers
        members = [*trainers, *[trainers[0]] * (filled_to - len(trainers))]
        self.num_fillers = len(members) - len(trainers)
        self.device, self.dtype = trainers[0].device, trainers[0].dtype
        self.shapes = parameter_shapes(trainers[0].model)
        self.form = form or StepForm.of(members)
        params = torch.stack([join_row([param.detach() for param in member.model.parameters()]) for member in members])
        per_member = partial(torch.tensor, device=self.device, dtype=self.dtype)
        steps = per_member([_num_updates(member) for member in members])
        self.state = StackState(
            params,
            {name: torch.stack([m.model.get_buffer(name) for m in members]) for name, _ in trainers[0].model.named_buffers()},
            {
                key: torch.stack([join_row([_moment(member, key, param) for param in member.model.parameters()]) for member in members])
                for key in self.form.moments
            },
            steps,
            _settings(members, self.form),
            averages=torch.stack([join_row([param.detach() for param in member.evaluated_model.parameters()]) for member in members]),
            sums=torch.zeros_like(params),
            losses=torch.zeros_like(steps, dtype=torch.float64),
        )

    def unstack(self) -> None:
        """Write the weights and the optimiser state of each member to its trainer, as if the trainer had trained alone."""
        for member, trainer in enumerate(self.trainers):
            steps = self.state.steps[member].to("cpu", torch.float32)
            is_plain = self.form.optimizer == "sgd" and not trainer.optimizer.param_groups[0]["momentum"]
            moments = {} if is_plain else {key: split_row(rows[member], self.shapes) for key, rows in self.state.moments.items()}
            for name, values in split_row(self.state.params[member], self.shapes).items():
                param = trainer.model.get_parameter(name)
                param.data.copy_(values)
                param.grad = None
                optimizer_state = {key: parts[name].clone() for key, parts in moments.items()}
                if self.form.optimizer != "sgd":
                    optimizer_state["step"] = steps.clone()
                trainer.optimizer.state[param] = optimizer_state
            for name, buffers in self.state.buffers.items():
                trainer.model.get_buffer(name).copy_(buffers[member])
            if trainer.average is not None:
                for name, values in split_row(self.state.averages[member], self.shapes).items():
                    trainer.average.get_parameter(name).data.copy_(values)


def _settings(members: Sequence[Trainer], form: StepForm) -> Tensors:
    """Return the settings of the members' optimisers and recipes by key. Each setting is a tensor [members]."""
    groups = [member.optimizer.param_groups[0] for member in members]
    per_member = partial(torch.tensor, device=members[0].device, dtype=members[0].dtype)
    settings: Tensors = {key: per_member([float(group[key]) for group in groups]) for key in form.settings}
    recipes = [member.recipe for member in members]
    settings["label_smoothing"] = per_member([recipe.label_smoothing for recipe in recipes])
    settings["ema_decay"] = per_member([recipe.ema_decay for recipe in recipes])
    settings["clip_grad_norm"] = per_member([math.inf if recipe.clip_grad_norm is None else recipe.clip_grad_norm for recipe in recipes])
    if "betas" in groups[0]:
        settings |= {f"beta{i + 1}": per_member([group["betas"][i] for group in groups]) for i in range(2)}
    return settings


def _moment(trainer: Trainer, key: str, param: nn.Parameter) -> torch.Tensor:
    moment = trainer.optimizer.state[param].get(key)
    return torch.zeros_like(param) if moment is None else moment.detach()


def _num_updates(trainer: Trainer) -> float:
    """Return the number of updates that the trainer's optimiser has counted.

    The number is 0 before the first update. The number is always 0 for SGD, because SGD does not count updates.
    """
    return next((float(state["step"]) for state in trainer.optimizer.state.values() if "step" in state), 0.0)
