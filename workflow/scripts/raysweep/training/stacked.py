"""Trials trained together: models of one form as one stacked computation, each with its own weights, learning rate, batch size and optimiser state.

`torch.func.vmap` makes one large operation of many small ones, whatever the model is: no kernel here knows it. The stack goes through the data in
micro-batches of one size. Gradients of a member add up until its own batch is complete; then, and only then, its weights change. So one stack has members of
all batch sizes, and each member's weights are those that it would have had by itself: `why_not` looks whether that is so before a sweep relies on it.
Members at the same epoch see the same data in the same order (seeds.epoch_order), so that their first layer can take it in as one.

Sources: functional optimisers as in torch.optim of PyTorch (BSD licence), written again for members with settings of their own; model ensembling with
torch.func, https://pytorch.org/tutorials/intermediate/ensembling.html.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from raysweep.common.seeds import epoch_order
from raysweep.training.trainer import Trainer, normalized

FEW_ROWS = 130  # of the data, to look whether and how well it goes; of most batch sizes the last batch is then a small one
EVALUATION_ROWS = 100  # of each member at a time: the same for stacks of all sizes, which so round alike
LEAST_MEASURED_S = 0.2
COMPILED_TOLERANCE = 1e-3  # of weights in the model's own precision: compiled code rounds otherwise
TOLERANCE = 1e-9  # of weights in float64, relative: between the stack and a plain loop, after a few steps
logger = logging.getLogger("raysweep")
Tensors = dict[str, torch.Tensor]


class Plan(NamedTuple):
    """How members go through an epoch, in `steps` micro-batches of `size` rows."""

    rows: torch.Tensor  # of the data, int64 [steps, members, size], or [steps, size] where they are the same for all
    weights: torch.Tensor  # of a row in its member's gradient, [steps, members, size]: one part of its batch; 0 where there is no row
    gates: torch.Tensor  # whether a member's batch is complete with this step, bool [steps, members]

    @property
    def is_shared(self) -> bool:
        return self.rows.dim() == 2


def plan(
    orders: Sequence[np.ndarray], batch_sizes: Sequence[int], size: int, device: torch.device, dtype: torch.dtype, shared: bool
) -> Plan:
    """Lay out an epoch of members that take their data in these orders. What divides no batch evenly is filled up with rows that weigh nothing.

    `shared`: they all have the first one's order, and batches of whole steps, so that their rows are the same.
    """
    parts = [_plan_of_one(order, batch_size, size) for order, batch_size in zip(orders, batch_sizes, strict=True)]
    steps = max(len(gates) for _, _, gates in parts)
    weights = np.zeros((steps, len(parts), size))
    gates = np.zeros((steps, len(parts)), dtype=bool)
    rows = np.zeros((steps, len(parts), size), dtype=np.int64)
    for member, (its_rows, its_weights, its_gates) in enumerate(parts):
        weights[: len(its_gates), member], gates[: len(its_gates), member] = its_weights, its_gates
        rows[: len(its_gates), member] = its_rows
    found = torch.from_numpy(parts[0][0] if shared else rows)
    return Plan(found.to(device), torch.from_numpy(weights).to(device, dtype), torch.from_numpy(gates).to(device))


def _plan_of_one(order: np.ndarray, batch_size: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and weights, [steps, size], and gates, [steps], of one member."""
    starts = np.arange(0, len(order), batch_size)[:, None] + np.arange(0, batch_size, size)
    ends = np.minimum(starts[:, :1] + batch_size, len(order))
    is_step = starts < ends
    is_last = is_step & (starts + size >= ends)
    ends = np.broadcast_to(ends, starts.shape)[is_step]
    batches = ends - np.broadcast_to(starts[:, :1], is_step.shape)[is_step]
    at = starts[is_step][:, None] + np.arange(size)
    valid = at < ends[:, None]
    return order[np.where(valid, at, 0)], valid / batches[:, None], is_last[is_step]


class Stack:
    """The members' weights, buffers and optimiser states for one epoch, tensors [members, …]; `unstack` gives them back.

    A member's weights lie in one row, [members, weights], and so do all that the optimiser keeps of them: an update is a few operations, however many
    parameters there are. `filled_to`: so many members, the missing ones copies of the first, which never change: a compiled step takes one number of them.
    """

    def __init__(self, trainers: Sequence[Trainer], filled_to: int = 0, form: Form | None = None) -> None:
        self.trainers = trainers
        members = [*trainers, *[trainers[0]] * (filled_to - len(trainers))]
        self.device, self.dtype = trainers[0].device, trainers[0].dtype
        self.shapes = shapes_of(trainers[0].model)
        self.params = torch.stack([_row([param.detach() for param in member.model.parameters()]) for member in members])
        self.buffers: Tensors = {
            name: torch.stack([m.model.get_buffer(name) for m in members]) for name, _ in trainers[0].model.named_buffers()
        }
        groups = [member.optimizer.param_groups[0] for member in members]
        self.form = form or Form.of(members)
        self.moments: Tensors = {
            key: torch.stack([_row([_moment(member, key, param) for param in member.model.parameters()]) for member in members])
            for key in self.form.moments
        }
        per_member = partial(torch.tensor, device=self.device, dtype=self.dtype)
        self.steps = per_member([_updates_of(member) for member in members])
        self.settings: Tensors = {key: per_member([float(group[key]) for group in groups]) for key in self.form.settings}
        if "betas" in groups[0]:
            self.settings |= {f"beta{i + 1}": per_member([group["betas"][i] for group in groups]) for i in range(2)}
        self.sums = torch.zeros_like(self.params)
        self.losses = torch.zeros_like(self.steps)

    def unstack(self) -> None:
        """Give each trainer its weights and its optimiser's state, as if it had trained by itself."""
        for member, trainer in enumerate(self.trainers):
            steps = self.steps[member].to("cpu", torch.float32)
            is_plain = self.form.optimizer == "sgd" and not trainer.optimizer.param_groups[0]["momentum"]
            moments = {} if is_plain else {key: parts_of(rows[member], self.shapes) for key, rows in self.moments.items()}
            for name, values in parts_of(self.params[member], self.shapes).items():
                param = trainer.model.get_parameter(name)
                param.data.copy_(values)
                param.grad = None
                state = {key: parts[name].clone() for key, parts in moments.items()}
                if self.form.optimizer != "sgd":
                    state["step"] = steps.clone()
                trainer.optimizer.state[param] = state


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Of each parameter, in the order in which they lie in a row."""
    return {name: param.shape for name, param in model.named_parameters()}


def parts_of(row: torch.Tensor, shapes: dict[str, torch.Size]) -> Tensors:
    """A row, [weights], as the parameters that it holds: views."""
    parts = row.split([shape.numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _row(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


class Form(NamedTuple):
    """What a step is made for, beside the model."""

    optimizer: str
    has_momentum: bool
    decays: bool

    @classmethod
    def of(cls, trainers: Sequence[Trainer]) -> Form:
        optimizer = type(trainers[0].optimizer).__name__.lower()
        groups = [trainer.optimizer.param_groups[0] for trainer in trainers]
        return cls(optimizer, any(group.get("momentum") for group in groups), any(group["weight_decay"] for group in groups))

    def joined(self, other: Form | None) -> Form:
        """One that is good for the members of both: what a member does not use is 0 with it."""
        return self if other is None else Form(self.optimizer, self.has_momentum or other.has_momentum, self.decays or other.decays)

    @property
    def moments(self) -> tuple[str, ...]:
        if self.optimizer == "sgd":
            return ("momentum_buffer",) if self.has_momentum else ()
        return ("exp_avg", "exp_avg_sq")

    @property
    def settings(self) -> tuple[str, ...]:
        return ("lr", "weight_decay", *(("momentum", "nesterov") if self.optimizer == "sgd" else ("eps",)))


class Unfolded(TorchFunctionMode):
    """Within, two-dimensional convolutions are matrix products of unfolded images. Of a stack they are else convolutions in groups, which are slow on some
    devices."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.conv2d:
            return self.convolved(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def convolved(
        self,
        images: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> torch.Tensor:
        if groups != 1 or isinstance(padding, str) or images.dim() != 4:
            return F.conv2d(images, weight, bias, stride, padding, dilation, groups)
        pairs = [value if isinstance(value, tuple) else (value, value) for value in (stride, padding, dilation)]
        (height, width), kernel = images.shape[2:], weight.shape[2:]
        columns = F.unfold(images, kernel, dilation=pairs[2], padding=pairs[1], stride=pairs[0])  # [rows, channels · kernel, places]
        size = [
            (whole + 2 * pad - dil * (edge - 1) - 1) // step + 1
            for whole, edge, step, pad, dil in zip((height, width), kernel, *pairs, strict=True)
        ]
        out = (weight.flatten(1) @ columns).unflatten(2, size)
        return out if bias is None else out + bias.view(-1, 1, 1)


class Step:
    """What changes a stack: one micro-batch through the models and back, and an update where that is due."""

    def __init__(self, model: nn.Module, loss: Callable[..., torch.Tensor], form: Form, share_rows: bool, unfolds: bool) -> None:
        self.model, self.loss, self.form, self.shapes = model, loss, form, shapes_of(model)
        self.convolutions = Unfolded if unfolds else contextlib.nullcontext
        data_dim = None if share_rows else 0
        self.gradients = vmap(grad(self._loss, has_aux=True), in_dims=(0, 0, data_dim, data_dim, 0))

    def _loss(
        self, row: torch.Tensor, buffers: Tensors, x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What one member minimises, and its loss summed over the rows of data that there are."""
        with self.convolutions():
            outputs = functional_call(self.model, (parts_of(row, self.shapes), buffers), (x,))
        losses = self.loss(outputs, y, reduction="none")
        return (losses * weights).sum(), (losses * (weights > 0)).sum()

    def masked(self, stack: dict[str, Any], x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, gate: torch.Tensor) -> None:
        """Without a look at the gates, float [members]: to be compiled."""
        found, losses = self.gradients(stack["params"], stack["buffers"], x, y, weights)
        stack["losses"].add_(losses)
        found = stack["sums"] + found
        self._update(stack, found, gate)
        stack["sums"].copy_(found * (1 - gate)[:, None])

    def eager(
        self,
        stack: dict[str, Any],
        x: torch.Tensor,
        y: torch.Tensor,
        weights: torch.Tensor,
        gate: torch.Tensor,
        is_open: bool,
        are_all: bool,
    ) -> None:
        """The same without what is not needed where no gate is open, or all are."""
        found, losses = self.gradients(stack["params"], stack["buffers"], x, y, weights)
        stack["losses"].add_(losses)
        if stack["has_sums"]:
            found = stack["sums"].add_(found)
        if is_open:
            self._update(stack, found, None if are_all else gate)
        stack["has_sums"] = not are_all
        if not are_all:
            stack["sums"] = found * (1 - gate)[:, None] if is_open else found

    def _update(self, stack: dict[str, Any], g: torch.Tensor, gate: torch.Tensor | None) -> None:
        """Change the weights of the members whose gate is 1 by their gradients; None means all."""
        settings, form = {key: values[:, None] for key, values in stack["settings"].items()}, self.form
        param, lr, weight_decay = stack["params"], settings["lr"], settings["weight_decay"]
        one = torch.ones_like(lr) if gate is None else gate[:, None]
        stack["steps"].add_(one[:, 0])
        if form.optimizer == "adamw":
            param.mul_(1 - one * lr * weight_decay)
        elif form.decays:
            g = g + param * weight_decay
        if form.optimizer == "sgd":
            if form.has_momentum:
                momentum, nesterov = settings["momentum"], settings["nesterov"]
                velocity = stack["moments"]["momentum_buffer"]
                velocity.mul_(1 + one * (momentum - 1)).addcmul_(g, one)
                g = velocity + nesterov * (g + (momentum - 1) * velocity)
            param.addcmul_(g, -one * lr)
        else:
            beta1, beta2 = settings["beta1"], settings["beta2"]
            steps = stack["steps"].clamp(min=1)[:, None]  # of a member without any the gate is closed
            mean, square = stack["moments"]["exp_avg"], stack["moments"]["exp_avg_sq"]
            mean.add_((g - mean) * (one * (1 - beta1)))
            square.mul_(1 - one * (1 - beta2)).addcmul_(g * g, one * (1 - beta2))
            denominator = square.sqrt() / (1 - beta2**steps).sqrt() + settings["eps"]
            param.addcmul_(mean / denominator, -one * lr / (1 - beta1**steps))


def _moment(trainer: Trainer, key: str, param: nn.Parameter) -> torch.Tensor:
    found = trainer.optimizer.state[param].get(key)
    return torch.zeros_like(param) if found is None else found.detach()


def _updates_of(trainer: Trainer) -> float:
    """How often its optimiser has changed its weights, as Adam counts it."""
    return next((float(state["step"]) for state in trainer.optimizer.state.values() if "step" in state), 0.0)


class Captured:
    """A step as a CUDA graph, which one launch replays, the choice of its rows included.

    Its tensors lie where they lay at the capture, so `run` copies a stack in and out: trials come and go without another capture. Raises RuntimeError where
    PyTorch cannot capture it.
    """

    def __init__(self, step: Any, held: dict[str, Any], laid: Plan, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.most_steps = 2 * len(laid.rows)  # other batch sizes may take some more
        self.held = tree_map(torch.clone, held)
        self.rows, self.weights = (tensor.new_zeros(self.most_steps, *tensor.shape[1:]) for tensor in (laid.rows, laid.weights))
        self.gates = laid.weights.new_zeros(self.most_steps, *laid.gates.shape[1:])
        self.number = torch.zeros(1, dtype=torch.int64, device=images.device)

        def act() -> None:
            rows, weights, gate = (tensor.index_select(0, self.number)[0] for tensor in (self.rows, self.weights, self.gates))
            step(self.held, normalized(images[rows], weights.dtype), labels[rows], weights, gate)
            self.number.add_(1).remainder_(self.most_steps)

        self.replay = captured(act)

    def run(self, held: dict[str, Any], laid: Plan) -> None:
        """Take the stack through all steps of an epoch."""
        self._copy(self.held, held)
        steps = len(laid.rows)
        for buffer, values in ((self.rows, laid.rows), (self.weights, laid.weights), (self.gates, laid.gates)):
            buffer[:steps].copy_(values)
        self.number.zero_()
        for _ in range(steps):
            self.replay()
        self._copy(held, self.held)

    @staticmethod
    def _copy(to: dict[str, Any], of: dict[str, Any]) -> None:
        for target, source in zip(tree_leaves(to), tree_leaves(of), strict=True):
            target.copy_(source)


def captured(act: Callable[[], None]) -> Callable[[], None]:
    """What does on the GPU whatever `act` does, as one launch. `act` is called a few times before.

    As https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs has it; other threads may use the GPU meanwhile.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            act()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        act()
    return graph.replay


class Company:
    """Trainers that go through their epochs together, in micro-batches of one size. Who is in it may differ from epoch to epoch.

    They must have models of one form (the same arguments of the constructor) and optimisers of one kind, and go through the data in the same order in the
    same epoch; all else may differ.

    `share_rows`: those at the same epoch form a stack of their own, which fetches its data once. It is the faster way where trials keep step, but rounds
    otherwise than the other; so a sweep goes one way from its beginning to its end. Either way a trainer's numbers do not depend on who else is there, to
    the last bit on one CPU.

    `prepared_for`: for stacks of that many members the step is compiled, or captured as a CUDA graph on a GPU; 0: eager. `unfolds`: see Unfolded.
    """

    def __init__(self, micro_batch_size: int, share_rows: bool, unfolds: bool = False, prepared_for: int = 0) -> None:
        self.micro_batch_size, self.share_rows, self.unfolds, self.prepared_for = micro_batch_size, share_rows, unfolds, prepared_for
        self.form: Form | None = None  # grows with who comes: when one leaves the step stays as it is
        self._model: nn.Module | None = None
        self._step_functions: dict[tuple[Form, bool], Any] = {}
        self._captured: dict[tuple[Form, bool, int], Captured] = {}

    def train_epoch(self, trainers: Sequence[Trainer], epochs: Sequence[int], images: torch.Tensor, labels: torch.Tensor) -> list[float]:
        """Have each trainer go through its epoch (counted from 1), as Trainer.train_epoch does; returns their mean losses."""
        groups: dict[int | None, list[int]] = {}
        for number, (trainer, epoch) in enumerate(zip(trainers, epochs, strict=True)):
            is_whole = trainer.batch_size % self.micro_batch_size == 0
            groups.setdefault(epoch if self.share_rows and is_whole else None, []).append(number)
        losses = [math.nan] * len(trainers)
        for shared_epoch, numbers in groups.items():
            group = [trainers[number] for number in numbers]
            its_epochs = [epochs[number] for number in numbers]
            for number, loss in zip(numbers, self._train(group, its_epochs, images, labels, shared_epoch is not None), strict=True):
                losses[number] = loss
        return losses

    @torch.no_grad()
    def _train(
        self, trainers: Sequence[Trainer], epochs: Sequence[int], images: torch.Tensor, labels: torch.Tensor, shared: bool
    ) -> list[float]:
        self.form = Form.of(trainers).joined(self.form)
        # A stack of one would round otherwise than one of more.
        stack = Stack(trainers, filled_to=max(2, self.prepared_for), form=self.form)
        fillers = len(stack.steps) - len(trainers)
        orders = {epoch: epoch_order(trainers[0].order_seed, epoch, len(labels)) for epoch in set(epochs)}
        laid = plan(
            [orders[epoch] for epoch in [*epochs, *[epochs[0]] * fillers]],
            [trainer.batch_size for trainer in [*trainers, *[trainers[0]] * fillers]],
            self.micro_batch_size,
            stack.device,
            stack.dtype,
            shared,
        )
        laid.gates[:, len(trainers) :] = False
        step = self._step(stack.form, shared, trainers[0])
        held: dict[str, Any] = {key: getattr(stack, key) for key in ("params", "buffers", "moments", "steps", "settings", "sums", "losses")}
        if self.captures(stack.device):
            key = stack.form, shared, len(labels)
            if key not in self._captured or self._captured[key].most_steps < len(laid.rows):
                self._captured[key] = Captured(step, held, laid, images, labels)
            self._captured[key].run(held, laid)
        else:
            self._go_through(step, held, laid, images, labels)
        stack.unstack()
        return (stack.losses / len(labels)).tolist()[: len(trainers)]

    def captures(self, device: torch.device) -> bool:
        """Whether steps on that device are replayed."""
        return self.prepared_for > 0 and device.type == "cuda"

    def _go_through(self, step: Any, held: dict[str, Any], laid: Plan, images: torch.Tensor, labels: torch.Tensor) -> None:
        any_gate, all_gates = laid.gates.any(1).tolist(), laid.gates.all(1).tolist()
        gates = laid.gates.to(laid.weights.dtype)
        if not self.prepared_for:
            held["has_sums"] = False
        for number, rows in enumerate(laid.rows):
            data = normalized(images[rows], laid.weights.dtype), labels[rows], laid.weights[number], gates[number]
            if self.prepared_for:
                step(held, *data)
            else:
                step(held, *data, any_gate[number], all_gates[number])

    def _step(self, form: Form, shared: bool, trainer: Trainer) -> Any:
        if self._model is None:
            self._model = copy.deepcopy(trainer.model).train()
        if (form, shared) not in self._step_functions:
            step = Step(self._model, trainer.loss, form, shared, self.unfolds)
            found: Any = step.masked if self.prepared_for else step.eager
            if self.prepared_for and not self.captures(trainer.device):
                found = torch.compile(found, fullgraph=True, dynamic=False)  # else a second form of stack is compiled for all sizes
            self._step_functions[form, shared] = found
        return self._step_functions[form, shared]

    @torch.inference_mode()
    def evaluate(self, trainers: Sequence[Trainer], images: torch.Tensor, labels: torch.Tensor) -> list[dict[str, float]]:
        """Of each trainer what Trainer.evaluate says."""
        stack = Stack(trainers, filled_to=2)
        model, loss = copy.deepcopy(trainers[0].model).eval(), trainers[0].loss
        outputs = vmap(lambda row, buffers, x: functional_call(model, (parts_of(row, stack.shapes), buffers), (x,)), in_dims=(0, 0, None))
        correct = torch.zeros(len(stack.steps), dtype=torch.int64, device=stack.device)
        total = torch.zeros(len(stack.steps), dtype=torch.float64, device=stack.device)
        for x, y in zip(images.split(EVALUATION_ROWS), labels.split(EVALUATION_ROWS), strict=True):
            out = outputs(stack.params, stack.buffers, normalized(x, stack.dtype))
            correct += (out.argmax(2) == y).sum(1)
            total += torch.stack([loss(each, y, reduction="sum") for each in out])
        found = zip(correct.tolist(), total.tolist(), strict=True)
        return [{"accuracy": right / len(labels), "loss": lost / len(labels)} for right, lost in found][: len(trainers)]


def why_not(company: Company, trainers: Sequence[Trainer], images: torch.Tensor, labels: torch.Tensor) -> str | None:
    """Why these trainers cannot be trained together, in a few words; None where they can: in float64 a few steps of them come to the same weights.

    They are not touched. At least two should differ in batch size where the sweep's trials do.
    """
    dtypes = {str(param.dtype).removeprefix("torch.") for param in trainers[0].model.parameters()}
    if dtypes not in ({"float32"}, {"float64"}):
        return f"its weights are {' and '.join(sorted(dtypes))}: a stack is of float32 alone, or of float64"
    images, labels = images[:FEW_ROWS], labels[:FEW_ROWS]
    alone, together = ([copy.deepcopy(trainer) for trainer in trainers] for _ in range(2))
    for trainer in (*alone, *together):
        trainer.model.double()
    try:
        before = _random_states(trainers[0].device), _copies(alone[0].model.named_buffers())
        for trainer in alone:
            trainer.train_epoch(images, labels, 1)
        if not all(torch.equal(*states) for states in zip(before[0], _random_states(trainers[0].device), strict=True)):
            return "it draws random numbers in training, such as for dropout"
        if any(not torch.equal(buffer, before[1][name]) for name, buffer in alone[0].model.named_buffers()):
            return "it changes its buffers in training, as batch normalisation does"
        company.train_epoch(together, [1] * len(together), images, labels)
        metrics = company.evaluate(together, images, labels)
    except Exception as error:  # whatever a user's model may raise
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        if "data-dependent control flow" in first:
            first = "what it does depends on the values of tensors"
        return f"it does not go with torch.func.vmap: {first[:200]}"
    for one, other in zip(alone, together, strict=True):
        pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
        if not all(torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE) for a, b in pairs):
            return "its weights become others than in training by itself"
    for one, found in zip(alone, metrics, strict=True):
        expected = one.evaluate(images, labels)
        if not all(math.isclose(found[key], expected[key], rel_tol=1e-6, abs_tol=1e-9) for key in expected):
            return "its validation metrics become others than by itself"
    return None


def bytes_of_member(trainer: Trainer, images: torch.Tensor, labels: torch.Tensor, size: int) -> int:
    """About how much memory one member takes: its weights, gradients, their sums and optimiser states, in its trainer and in the stack, and what a step of
    `size` rows, or an evaluation, keeps for its gradient, with as much again for the gradient's own."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    rows = max(size, EVALUATION_ROWS)
    model = copy.deepcopy(trainer.model).train()
    weights = sum(param.nbytes for param in model.parameters())
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        trainer.loss(model(normalized(images[:rows], trainer.dtype)), labels[:rows])
    return 10 * weights + 2 * sum(kept.values())


def seconds_per_row(company: Company, trainers: Sequence[Trainer], images: torch.Tensor, labels: torch.Tensor) -> float:
    """How long it takes these trainers to go through one row of the data together. They are not touched."""
    group = [copy.deepcopy(trainer) for trainer in trainers]
    rows, took_s = FEW_ROWS, 0.0
    while not took_s or (took_s < LEAST_MEASURED_S and rows < len(labels)):  # so that what a round costs beside its steps counts for little
        rows = min(4 * rows, len(labels))
        act = partial(company.train_epoch, group, [1] * len(group), images[:rows], labels[:rows])
        took_s = _seconds(act, group[0].device)
    return took_s / rows


def seconds_per_row_alone(trainers: Sequence[Trainer], images: torch.Tensor, labels: torch.Tensor) -> float:
    """The same for one after the other."""
    rows = min(len(labels), 4 * FEW_ROWS)
    alone = {trainer.batch_size: copy.deepcopy(trainer) for trainer in trainers}  # of each batch size one stands for all
    took_s = {size: _seconds(partial(one.train_epoch, images[:rows], labels[:rows], 1), one.device) for size, one in alone.items()}
    return sum(took_s[trainer.batch_size] for trainer in trainers) / rows


def prepared(company: Company, trainers: Sequence[Trainer], images: torch.Tensor, labels: torch.Tensor, threads: int = 1) -> Company | str:
    """The same company for stacks of as many trainers as these, its step compiled, or captured on a GPU; or why not. They are not touched."""
    from torch._inductor import config as inductor

    inductor.compile_threads = threads
    # Channels last, a stack's pooling and what lies around it is not vectorised: 113 to 94 µs for an image of the reference job.
    inductor.layout_optimization = False
    inductor.cpp.vec_isa_ok = True  # else it tries the compiler on each instruction set that the CPU has, which takes 4 s of 20
    rows = 2 * max(trainer.batch_size for trainer in trainers)  # few: with a large learning rate all differences grow
    images, labels = images[:rows], labels[:rows]
    faster = Company(company.micro_batch_size, company.share_rows, company.unfolds, prepared_for=len(trainers))
    eager, others = ([copy.deepcopy(trainer) for trainer in trainers] for _ in range(2))
    try:
        faster.train_epoch(others, [1] * len(others), images, labels)
    except Exception as error:  # of a compiler that is not as it should be, and of models that it cannot read
        logger.debug("the step could not be prepared", exc_info=True)
        lines = [line for line in str(error).splitlines() if line.strip() and not line.endswith(" raised:")]
        return lines[0][:200] if lines else type(error).__name__
    company.train_epoch(eager, [1] * len(eager), images, labels)
    for one, other in zip(eager, others, strict=True):
        for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
            if not torch.allclose(a, b, rtol=COMPILED_TOLERANCE, atol=COMPILED_TOLERANCE, equal_nan=True):
                return "its weights become others"
    return faster


def unfolded(company: Company, trainers: Sequence[Trainer], images: torch.Tensor, labels: torch.Tensor) -> Company | None:
    """The same company with convolutions as matrix products, where the model has any and that comes to the same. The trainers are not touched."""
    found = Company(company.micro_batch_size, company.share_rows, unfolds=True)
    has_any = any(isinstance(module, nn.Conv2d) for module in trainers[0].model.modules())
    return found if has_any and why_not(found, trainers, images, labels) is None else None


def _seconds(act: Callable[[], object], device: torch.device) -> float:
    """The better of two runs: in the first one buffers are allocated, and kernels chosen."""
    times = []
    for _ in range(2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times)


def _random_states(device: torch.device) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _copies(tensors: Iterable[tuple[str, torch.Tensor]]) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors}
