"""Trains the model of a sweep that has the key `model`, on staged arrays, in this process, without data loaders."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.nn import functional as F

from raysweep.common.seeds import dropout_keys
from raysweep.config.recipe import OPTIMIZER_SETTINGS
from raysweep.config.space import OPTIMIZER_KEYS, TRAINING_KEYS
from raysweep.training.augmentation import cut_out, shifted
from raysweep.training.dropout import DropoutMasks
from raysweep.training.epoch_plan import plan_epoch
from raysweep.training.layers import calls_layers, has_batch_norm, lazy_layers, materialize, split_rows
from raysweep.training.metrics import listed_metrics
from raysweep.training.preparation import DataFacts, Preparation
from raysweep.training.private import is_refused_by_batch_norm
from raysweep.training.spec import TrainingSpec

MODEL_FILE = "model.safetensors"
# Keys of the metadata of MODEL_FILE, which training/load.py reads: the names of the lazy layers, and the arguments of the model's constructor that the data
# determine, as JSON.
LAZY_LAYERS_KEY, ARGUMENTS_KEY = "lazy_layers", "arguments"
STATE_FILE = "training_state.pt"
EVALUATION_BATCH_SIZE = 1000
HALF_TYPES = (torch.float16, torch.bfloat16)
OPTIMIZERS = {name: getattr(torch.optim, class_name) for name, (class_name, _) in OPTIMIZER_SETTINGS.items()}


class Loss:
    """Computes the loss of a batch, with a function of torch.nn.functional, or with a function of the user's own.

    The user's function gets the outputs of the model and the targets, and returns a value for each row, [n], or one value for the batch, [].
    """

    def __init__(self, name: str, own: Callable[..., torch.Tensor] | None = None) -> None:
        self.name, self.own = name, own

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        """Return the mean loss of the rows, or with the reduction "none" the loss of each row, [n].

        `outputs` are as Preparation.outputs returns them. Raises ValueError where the user's function returns something else than a value for each row
        or for the batch.
        """
        # A 16-bit float type has 8 or 11 significant bits, which are too few for comparing losses in early stopping.
        outputs = outputs.float() if outputs.dtype in HALF_TYPES else outputs
        if self.own is None:
            result: torch.Tensor = getattr(F, self.name)(outputs, targets, reduction=reduction)
            return result
        values = self.own_values(outputs, targets)
        return values.mean() if reduction == "mean" else values.expand(len(targets))

    def own_values(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return what the user's function returns for a batch, [n] or []. Raises ValueError where the function returns something else."""
        assert self.own is not None
        values = self.own(outputs, targets)
        if not isinstance(values, torch.Tensor) or values.shape not in (targets.shape, ()):
            got = f"a tensor {list(values.shape)}" if isinstance(values, torch.Tensor) else repr(values)
            raise ValueError(
                f"{self.name} returned {got} for {len(targets)} rows. Allowed: a tensor with a value for each row, or one value"
            )
        return values


def losses_of_mixtures(
    loss: Callable[..., torch.Tensor], outputs: torch.Tensor, targets: torch.Tensor, smoothing: float | torch.Tensor | None
) -> torch.Tensor:
    """Return the loss of each row for each of its targets, [n, mixed]. `targets` is [n, mixed], see EpochPlan.

    If `smoothing` is not None, `outputs` is [n, classes], and this part of each target is spread evenly over all classes. The formula is that of
    F.cross_entropy, whose argument `label_smoothing` cannot differ between the members of a stack.
    """
    losses = torch.stack([loss(outputs, each, reduction="none") for each in targets.unbind(1)], dim=1)
    if smoothing is None:
        return losses
    uniform = -F.log_softmax(outputs.to(losses.dtype), dim=1).mean(1, keepdim=True)
    return losses + smoothing * (uniform - losses)


class Trainer:
    """Builds a model from a configuration, trains the model for an epoch, evaluates the model, and saves and loads its state.

    Images are uint8 [n, channels, height, width], or other inputs [n, …]. Labels are int64 [n], or the targets of a regression, float64 [n]. Images and
    labels are on `device`. Only the rows of the current batch are converted.
    """

    def __init__(
        self,
        model_class: type[nn.Module],
        config: Mapping[str, Any],
        spec: TrainingSpec,
        *,
        seed: int,
        device: torch.device,
        facts: DataFacts = DataFacts(),  # noqa: B008 -- a frozen dataclass
        own_loss: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        """Build the model and the optimiser. The constructor of the model receives all keys of `config` except the keys in TRAINING_KEYS, and the arguments
        that the data determine.

        `seed` sets torch's global random number generator, with which the initial weights are sampled. The masks of dropout are a function of `seed` too, see
        DropoutMasks. Lazy layers get their shapes from the shape of a row in `facts`. `own_loss` is the loss function of the user's own, or None where
        `spec` names a function of torch.nn.functional.
        """
        self.preparation = Preparation(facts, device)
        given = {k: v for k, v in config.items() if k not in TRAINING_KEYS}
        self.arguments = facts.arguments(model_class, given)
        self.seed = seed
        # Whether the model uses the masks of DropoutMasks. None before the first batch, because only a computation shows the calls of dropout.
        self.has_dropout: bool | None = None
        # Arguments of the constructor as text. Only models of one form can be stacked.
        self.model_form = json.dumps([given, self.arguments], sort_keys=True)
        torch.manual_seed(seed)
        self.spec = spec
        self.model = model_class(**given, **self.arguments).to(device)
        self.lazy_layers = lazy_layers(self.model)
        if self.lazy_layers:
            # Lazy layers need their shapes before the optimiser is made, and before `load` compares the shapes of the weights.
            materialize(self.model, self.preparation.example(device, self.dtype))
        self.joins_last_row = has_batch_norm(self.model)
        self.optimizer: torch.optim.Optimizer = OPTIMIZERS[spec.optimizer](self.model.parameters(), **self._settings(config))
        self.batch_size = int(config["batch_size"])
        self.loss = Loss(spec.loss, own_loss)
        self.device = device
        self.average = self._first_average()

    def _settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of the optimiser in `config`, and store these settings for `load`. Also store the recipe of `config`."""
        self.recipe = self.spec.recipe.with_values(config.get("training", {}))
        self.settings = {k: v for k, v in config.items() if k in OPTIMIZER_KEYS}
        if "betas" in self.settings:
            self.settings["betas"] = tuple(self.settings["betas"])
        return self.settings

    def change(self, config: Mapping[str, Any]) -> None:
        """Change the batch size, the recipe and the settings of the optimiser to the values in `config`. The weights do not change."""
        self.batch_size = int(config["batch_size"])
        for group in self.optimizer.param_groups:
            group.update(self._settings(config))
        self.average = self.average if self.average is not None and self.recipe.ema_decay else self._first_average()

    def _first_average(self) -> nn.Module | None:
        """Return a model whose weights are the average of one update, the present weights, or None where the recipe has no average."""
        return copy.deepcopy(self.model) if self.recipe.ema_decay else None

    @property
    def evaluated_model(self) -> nn.Module:
        """Return the model that is evaluated and published: the average of the weights where the recipe has one, with the buffers of the trained model."""
        if self.average is None:
            return self.model
        for name, buffer in self.model.named_buffers():
            self.average.get_buffer(name).copy_(buffer)
        return self.average

    def double(self) -> None:
        """Convert the weights and their average to float64."""
        for model in (self.model, self.average):
            if model is not None:
                model.double()

    @property
    def dtype(self) -> torch.dtype:
        """Return the data type of the model's weights."""
        return next(self.model.parameters()).dtype

    def train_epoch(self, images: torch.Tensor, labels: torch.Tensor, epoch: int) -> float:
        """Train on all rows once, in the order of `epoch`, which is counted from 1. Return the mean loss of the rows.

        Raises ValueError where batch normalisation gets a batch of only one row, and this row cannot be joined to another batch.
        """
        self.model.train()
        plan = plan_epoch(self.spec, epoch, labels.cpu().numpy(), tuple(images.shape[1:]))
        order, sources, parts, weights, draws = (torch.from_numpy(array).to(self.device) for array in plan)
        batches = split_rows(order, self.batch_size, self.joins_last_row)
        num_rows_before = np.cumsum([0, *map(len, batches)])[:-1]
        rates = self.recipe.rates(epoch - 1 + num_rows_before / len(labels)).tolist()
        [group] = self.optimizer.param_groups
        lr = group["lr"]
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        keys = dropout_keys(self.seed, epoch, len(batches)).tolist()
        for rows, rate, key in zip(batches, rates, keys, strict=True):
            mixed = sources[rows]
            inputs = self.training_inputs(images[mixed], draws[mixed], parts[rows], self.dtype)
            targets = self.preparation.targets(labels[mixed], self.dtype)
            try:
                summed = self._set_gradients(inputs, (targets, parts[rows], weights[rows]), DropoutMasks(key))
            except ValueError as error:
                if len(rows) > 1 or not is_refused_by_batch_norm(error):
                    raise
                raise ValueError(
                    f"BatchNorm cannot train on a batch of one row: batch_size is {self.batch_size}, and there are {len(labels)} training rows. "
                    "Give batch_size values of at least 2, or use GroupNorm in the place of BatchNorm"
                ) from error
            if self.recipe.clip_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad_norm)
            group["lr"] = lr * rate
            self.optimizer.step()
            self._update_average()
            total += summed
        group["lr"] = lr
        return float(total.item()) / len(labels)

    def _set_gradients(
        self, inputs: torch.Tensor, goal: tuple[torch.Tensor, torch.Tensor, torch.Tensor], masks: DropoutMasks
    ) -> torch.Tensor:
        """Set the gradients of the weights for a batch, and return the sum of the losses of the rows, as `_training_loss` returns it.

        `goal` contains the targets, parts and weights of the rows.
        """
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()} if self.has_dropout is None else {}
        # The context of the masks makes each operation slower, so a model without dropout is computed without this context.
        with masks if self.has_dropout is not False else contextlib.nullcontext():
            with self.autocast():
                outputs = self.model(inputs)
            loss, summed = self._training_loss(self.preparation.outputs(outputs, len(inputs)), *goal)
        self.optimizer.zero_grad()
        if self.has_dropout is not None:
            loss.backward()
            return summed
        # A layer may be computed again in the backward pass, as torch.utils.checkpoint does. This context does not apply there, so the layer would have
        # other masks.
        self.has_dropout = not calls_layers(self.model, loss.backward) and masks.calls > 0
        if self.has_dropout or not masks.calls:
            return summed
        with torch.no_grad():  # the statistics of batch normalisation must not count the batch twice
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])
        return self._set_gradients(inputs, goal, masks)

    def training_inputs(self, rows: torch.Tensor, draws: torch.Tensor, parts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return staged rows [n, mixed, …] as the model gets them in training, [n, …].

        `draws` [n, mixed, …] contains the draws of the augmentation, and `parts` [n, mixed] the parts of the rows in their mixture, see EpochPlan. The
        arguments may have more than one dimension in the place of n.
        """
        rows_dim = parts.dim() - 1
        if not self.spec.recipe.augment:
            return self.preparation.inputs(rows.select(rows_dim, 0), dtype)
        inputs = self.preparation.inputs(shifted(rows, draws), dtype)
        if cutout := self.spec.recipe.operations.get("cutout"):
            inputs = cut_out(inputs, draws, int(cutout["size"]))
        if inputs.shape[rows_dim] == 1:
            return inputs.squeeze(rows_dim)
        return (inputs * parts.to(dtype)[..., None, None, None]).sum(rows_dim)

    def _training_loss(
        self, outputs: torch.Tensor, targets: torch.Tensor, parts: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss that training minimises for a batch, and the sum of the losses of the rows, float64, without their weights.

        `targets`, `parts` and `weights` are [n, mixed], see EpochPlan.
        """
        if not self.recipe.label_smoothing and self.recipe.class_weights == "none" and targets.shape[1] == 1:
            loss = self.loss(outputs, targets[:, 0])
            return loss, loss.detach().double() * len(targets)
        losses = losses_of_mixtures(self.loss, outputs, targets, self.recipe.label_smoothing or None)
        weights = weights.to(losses.dtype)
        return (losses * weights).sum() / weights.sum(), (losses.detach().double() * parts).sum()

    def has_mean_loss(self, images: torch.Tensor, labels: torch.Tensor) -> bool:
        """Return whether the user's own loss function returns one value for a batch. `images` and `labels` contain at least two rows."""
        with torch.no_grad():
            outputs = self.preparation.outputs(self.model.eval()(self.preparation.inputs(images[:2], self.dtype)), 2)
            return not self.loss.own_values(outputs, self.preparation.targets(labels[:2], self.dtype)).shape

    def autocast(self) -> torch.autocast:
        """Return the context in which the model computes, which for the precision `bf16` converts the inputs of large operations to bfloat16."""
        # PyTorch's cache of converted weights is not used, because a CUDA graph must not contain tensors of the cache.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16", cache_enabled=False)

    def _update_average(self) -> None:
        """Add the present weights to the average of the weights, after an update."""
        if self.average is not None:
            with torch.no_grad():
                for average, param in zip(self.average.parameters(), self.model.parameters(), strict=True):
                    average.add_((param - average) * (1 - self.recipe.ema_decay))

    def evaluate(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """Return the metrics of the rows: the mean loss, the accuracy, which is a fraction from 0 to 1, or the errors of a regression, and the metrics
        that the spec lists.
        """
        sums, predicted = self._evaluated(images, labels, keeps_outputs=bool(self.spec.metrics))
        metrics = self.preparation.metrics(sums.tolist(), labels)
        return metrics | listed_metrics(self.spec.metrics, torch.cat(predicted), labels) if predicted else metrics

    def predict(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the evaluated model for the rows, as Preparation.predicted returns them."""
        return torch.cat(self._evaluated(images, labels, keeps_outputs=True)[1])

    def _evaluated(self, images: torch.Tensor, labels: torch.Tensor, keeps_outputs: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the sums of the rows, float64 [sums], see Preparation.sums, and the outputs of each batch, see Preparation.predicted."""
        model = self.evaluated_model.eval()
        sums, predicted = torch.zeros((), dtype=torch.float64, device=self.device), []
        with torch.inference_mode():
            parts = (split_rows(tensor, EVALUATION_BATCH_SIZE, self.joins_last_row) for tensor in (images, labels))
            for x, y in zip(*parts, strict=True):
                with self.autocast():
                    outputs = model(self.preparation.inputs(x, self.dtype))
                outputs = self.preparation.outputs(outputs, len(x))
                targets = self.preparation.targets(y, self.dtype)
                sums = sums + self.preparation.sums(outputs, targets, self.loss(outputs, targets, reduction="none"))
                if keeps_outputs:
                    predicted.append(self.preparation.predicted(outputs))
        return sums, predicted

    def save(self, folder: Path, epoch: int) -> None:
        """Write the complete state of training to `folder`, so that training continues after `epoch` as if training had not been interrupted."""
        metadata = {LAZY_LAYERS_KEY: ", ".join(self.lazy_layers)} if self.lazy_layers else {}
        metadata |= {ARGUMENTS_KEY: json.dumps(self.arguments)} if self.arguments else {}
        save_model(self.evaluated_model, str(folder / MODEL_FILE), metadata=metadata or None)
        state = {"epoch": epoch, "optimizer": self.optimizer.state_dict(), "rng": torch.get_rng_state()}
        if self.average is not None:
            state["model"] = self.model.state_dict()  # the weights that training changes; MODEL_FILE contains their average
        if self.device.type != "cpu":
            state[f"{self.device.type}_rng"] = torch.get_device_module(self.device).get_rng_state(self.device)
        torch.save(state, folder / STATE_FILE)

    def load_published(self, folder: Path) -> None:
        """Load the weights in `folder` for an evaluation. Where the recipe has an average of the weights, these weights are the average already."""
        load_model(self.model, str(folder / MODEL_FILE), device=str(self.device))
        self.average = None

    def load(self, folder: Path) -> int:
        """Restore the state that `save` wrote to `folder`, and return the epoch of this state.

        The trainer keeps its settings of the optimiser, which may differ from the saved settings.
        """
        load_model(self.model, str(folder / MODEL_FILE), device=str(self.device))
        state = torch.load(folder / STATE_FILE, weights_only=True, map_location=self.device)
        self.average = self._first_average()
        if "model" in state:
            self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group.update(self.settings)
        torch.set_rng_state(state["rng"].cpu())
        if f"{self.device.type}_rng" in state:
            torch.get_device_module(self.device).set_rng_state(state[f"{self.device.type}_rng"].cpu(), self.device)
        return int(state["epoch"])
