"""Trains and evaluates several trainers together as one stack."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call, vmap

from raysweep.training.epoch_plan import plan_epoch
from raysweep.training.metrics import listed_metrics
from raysweep.training.stacked.capture import CapturedStep, MaskedStep, compile_step
from raysweep.training.stacked.optimizers import StepForm
from raysweep.training.stacked.plan import MemberEpoch, StepPlan, plan_steps, plan_whole_batches
from raysweep.training.stacked.stack import Stack
from raysweep.training.stacked.state import StackState, split_row
from raysweep.training.stacked.step import MicroBatch, StackStep, micro_batch
from raysweep.training.trainer import Trainer

# Number of rows of a batch in an evaluation. The number is equal for stacks of all sizes, so that rounding errors are equal in all stacks.
EVALUATION_ROWS = 100


@dataclass(frozen=True)
class StackSettings:
    """Contains the settings with which trainers are trained together.

    Where `share_rows` is true, the members at one epoch form a separate stack, which fetches its data once for all its members. Sharing rows is faster
    where trials are at the same epoch, but the results are rounded differently. So a sweep does not change this setting.
    """

    # Number of rows of a micro-batch. None means that each step has a whole batch, so that only members with one batch size form a stack.
    micro_batch_size: int | None
    share_rows: bool
    # Whether trials form several stacks. A trial without another trial of its form then trains alone, because a stack of two would take longer.
    has_forms: bool = False
    unfolds: bool = False  # whether convolutions are computed as matrix products, see UnfoldedConvolutions
    # Number of members for which the step is compiled on a CPU or captured as a CUDA graph on a GPU. 0 means that steps are eager.
    prepared_for: int = 0
    compiler_threads: int = 1  # largest number of threads of the compiler


class StepKey(NamedTuple):
    """Identifies the step of all stacks of one form."""

    model_form: str  # see Trainer.model_form
    form: StepForm
    shared: bool  # whether all members use the same rows


class StackedTrainer:
    """Trains and evaluates trainers together, in micro-batches of one size or in whole batches. Each epoch may have different trainers.

    Trainers whose models have one form (equal arguments of the constructor) form a stack, with whole batches only if their batch sizes are equal too. All
    trainers must have optimisers of one class, and the same order of the data in the same epoch. All other properties may differ. The results of a trainer
    do not depend on the other trainers of the stack. On one CPU not even the last bit of a result depends on the other trainers, unless trials have several
    forms: then a trainer without company trains alone, and the results are rounded differently.
    """

    def __init__(self, settings: StackSettings) -> None:
        self.settings = settings
        # The form gains the terms that new trainers need and never loses a term. So the step does not change when a trainer leaves.
        self.form: StepForm | None = None
        self._models: dict[str, nn.Module] = {}
        self._eager_steps: dict[StepKey, StackStep] = {}
        self._masked_steps: dict[StepKey, MaskedStep] = {}
        self._captured: dict[tuple[StepKey, torch.Size, int], CapturedStep] = {}

    def captures(self, device: torch.device) -> bool:
        """Return whether steps on `device` are replayed as a CUDA graph."""
        return self.settings.prepared_for > 0 and device.type == "cuda"

    def train_epoch(self, trainers: Sequence[Trainer], epochs: Sequence[int], images: torch.Tensor, labels: torch.Tensor) -> list[float]:
        """Train each trainer for one epoch, as Trainer.train_epoch does. Return the mean loss of each trainer.

        `epochs` contains the epoch of each trainer, counted from 1.
        """
        size, groups = self.settings.micro_batch_size, dict[tuple[str, int, int | None], list[int]]()
        for number, (trainer, epoch) in enumerate(zip(trainers, epochs, strict=True)):
            has_whole_steps = size is None or trainer.batch_size % size == 0
            shared_epoch = epoch if self.settings.share_rows and has_whole_steps else None
            groups.setdefault((trainer.model_form, size or trainer.batch_size, shared_epoch), []).append(number)
        losses = [math.nan] * len(trainers)
        for (_, _, shared_epoch), numbers in groups.items():
            group, group_epochs = [trainers[number] for number in numbers], [epochs[number] for number in numbers]
            if self._trains_alone(group):
                losses[numbers[0]] = group[0].train_epoch(images, labels, group_epochs[0])
                continue
            with torch.no_grad():
                group_losses = self._train_group(group, group_epochs, images, labels, shared_epoch is not None)
            for number, loss in zip(numbers, group_losses, strict=True):
                losses[number] = loss
        return losses

    def _trains_alone(self, group: Sequence[Trainer]) -> bool:
        """Return whether the trainers of one form are a single trainer, which trains and is evaluated alone."""
        return len(group) == 1 and self.settings.has_forms and not self.settings.prepared_for

    def _train_group(
        self, trainers: Sequence[Trainer], epochs: Sequence[int], images: torch.Tensor, labels: torch.Tensor, shared: bool
    ) -> list[float]:
        """Train the trainers of one stack for one epoch and return their mean losses. `shared` says whether all use the same rows in each step."""
        self.form = StepForm.of(trainers).joined(self.form)
        # The stack has at least two members, because a stack of one member would have other rounding errors than a stack of more members.
        stack = Stack(trainers, filled_to=max(2, self.settings.prepared_for), form=self.form)
        plan, *last_batch = self._plans(stack, epochs, images, labels, shared)
        batch_of, key = partial(micro_batch, trainers[0], images, labels), StepKey(trainers[0].model_form, self.form, shared)
        if not self.settings.prepared_for:
            self._run_eager(self._step(key, trainers[0]), stack.state, plan, batch_of)
        elif self.captures(stack.device):
            captured = self._captured.get((key, plan.rows.shape[1:], len(labels)))
            if captured is None or captured.max_steps < len(plan.rows):
                captured = CapturedStep(self._masked_step(key, trainers[0]), stack.state, plan, batch_of)
                self._captured[key, plan.rows.shape[1:], len(labels)] = captured
            captured.run(stack.state, plan)
        else:
            step = self._masked_step(key, trainers[0])
            for number in range(len(plan.rows)):
                step(stack.state, batch_of(plan.step(number)))
        for each in last_batch:  # one step of another size, for which no step is compiled or captured
            self._run_eager(self._step(key, trainers[0]), stack.state, each, batch_of)
        stack.unstack()
        losses: list[float] = (stack.state.losses / len(labels)).tolist()
        return losses[: len(trainers)]

    def _plans(self, stack: Stack, epochs: Sequence[int], images: torch.Tensor, labels: torch.Tensor, shared: bool) -> list[StepPlan]:
        """Return the plan of the stack's epoch, and with whole batches the plan of a last batch of another size, if there is one.

        The gates of the filler members stay closed, so that these members never change.
        """
        trainers, spec = stack.trainers, stack.trainers[0].spec
        plans = {epoch: plan_epoch(spec, epoch, labels.cpu().numpy(), tuple(images.shape[1:])) for epoch in set(epochs)}
        members = [
            MemberEpoch(plans[epoch], trainer.batch_size, epoch, trainer.recipe, trainer.seed)
            for trainer, epoch in zip(trainers, epochs, strict=True)
        ]
        members += members[:1] * stack.num_fillers
        size = self.settings.micro_batch_size
        parts = [plan_steps(members, size, shared)] if size else plan_whole_batches(members, trainers[0].joins_last_row, shared)
        parts = [part.to(stack.device, stack.dtype) for part in parts]
        for part in parts:
            part.gates[:, len(trainers) :] = 0
        return parts

    def _run_eager(self, step: StackStep, state: StackState, plan: StepPlan, batch_of: Callable[[StepPlan], MicroBatch]) -> None:
        is_any_open, are_all_open = plan.gates.any(1).tolist(), plan.gates.all(1).tolist()
        for number in range(len(plan.rows)):
            step.run_eager(state, batch_of(plan.step(number)), is_any_open[number], are_all_open[number])

    def _step(self, key: StepKey, trainer: Trainer) -> StackStep:
        """Return the step for stacks of the given form. The first call for a form makes this step.

        All steps for one form of the model use one copy of the first trainer's model.
        """
        if key.model_form not in self._models:
            self._models[key.model_form] = copy.deepcopy(trainer.model).train()
        if key not in self._eager_steps:
            model = self._models[key.model_form]
            self._eager_steps[key] = StackStep(model, trainer, key.form, share_rows=key.shared, unfolds=self.settings.unfolds)
        return self._eager_steps[key]

    def _masked_step(self, key: StepKey, trainer: Trainer) -> MaskedStep:
        """Return the masked step for stacks of the given form. This step is compiled where steps on this device are not captured."""
        if key not in self._masked_steps:
            step = self._step(key, trainer).run_masked
            is_captured = self.captures(trainer.device)
            self._masked_steps[key] = step if is_captured else compile_step(step, self.settings.compiler_threads)
        return self._masked_steps[key]

    def evaluate(self, trainers: Sequence[Trainer], images: torch.Tensor, labels: torch.Tensor) -> list[dict[str, float]]:
        """Return the metrics of each trainer, which are the metrics that Trainer.evaluate returns."""
        by_form: dict[str, list[int]] = {}
        for number, trainer in enumerate(trainers):
            by_form.setdefault(trainer.model_form, []).append(number)
        metrics: dict[int, dict[str, float]] = {}
        for numbers in by_form.values():
            metrics |= zip(numbers, self._evaluate_form([trainers[number] for number in numbers], images, labels), strict=True)
        return [metrics[number] for number in range(len(trainers))]

    def _evaluate_form(self, trainers: Sequence[Trainer], images: torch.Tensor, labels: torch.Tensor) -> list[dict[str, float]]:
        """Return the metrics of each trainer. All trainers have models of one form."""
        if self._trains_alone(trainers):
            return [trainers[0].evaluate(images, labels)]
        with torch.inference_mode():
            sums, predicted = self._evaluate(trainers, images, labels)
        names, preparation, num_trainers = trainers[0].spec.metrics, trainers[0].preparation, len(trainers)
        metrics = [preparation.metrics(each, labels) for each in sums[:num_trainers].tolist()]
        if predicted:
            outputs = torch.cat(predicted, 1)[:num_trainers]
            metrics = [each | listed_metrics(names, member, labels) for each, member in zip(metrics, outputs, strict=True)]
        return metrics

    def _evaluate(self, trainers: Sequence[Trainer], images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the sums of each member, float64 [members, sums], see Preparation.sums, and the outputs of each batch, [members, …].

        The list of outputs is empty where the spec lists no metrics, see Preparation.predicted.
        """
        stack = Stack(trainers, filled_to=2)
        state = stack.state
        model, loss, prepare = copy.deepcopy(trainers[0].model).eval(), trainers[0].loss, trainers[0].preparation
        outputs = vmap(lambda row, buffers, x: functional_call(model, (split_row(row, stack.shapes), buffers), (x,)), in_dims=(0, 0, None))
        sums, predicted = torch.zeros((), dtype=torch.float64, device=stack.device), []
        for x, y in zip(images.split(EVALUATION_ROWS), labels.split(EVALUATION_ROWS), strict=True):
            with trainers[0].autocast():
                out = outputs(state.averages, state.buffers, prepare.inputs(x, stack.dtype))
            out, targets = [prepare.outputs(each, len(x)) for each in out], prepare.targets(y, stack.dtype)
            sums = sums + torch.stack([prepare.sums(each, targets, loss(each, targets, reduction="none")) for each in out])
            if trainers[0].spec.metrics:
                predicted.append(torch.stack([*map(prepare.predicted, out)]))
        return sums, predicted
