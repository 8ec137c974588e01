"""Trains the model of a sweep that has the key `model`, on staged arrays, in this process, without data loaders."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.nn import functional as F

from raysweep.common.seeds import epoch_order
from raysweep.common.weights_file import ARGUMENTS_KEY, LAZY_LAYERS_KEY
from raysweep.config.space import TRAINING_KEYS
from raysweep.training.layers import has_batch_norm, lazy_layers, materialize, split_rows
from raysweep.training.preparation import DataFacts, Preparation, without_column
from raysweep.training.private import is_refused_by_batch_norm
from raysweep.training.spec import TrainingSpec

MODEL_FILE = "model.safetensors"
STATE_FILE = "training_state.pt"
EVALUATION_BATCH_SIZE = 1000
HALF_TYPES = (torch.float16, torch.bfloat16)
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def loss_function(name: str) -> Callable[..., torch.Tensor]:
    """Return the loss function `name` of torch.nn.functional. The loss is computed in float32 where the model returns a 16-bit float type."""
    function = getattr(F, name)

    def loss(outputs: torch.Tensor, labels: torch.Tensor, **options: str) -> torch.Tensor:
        if labels.is_floating_point():
            outputs = without_column(outputs, labels)
        # A 16-bit float type has 8 or 11 significant bits, which are too few for comparing losses in early stopping.
        result: torch.Tensor = function(outputs.float() if outputs.dtype in HALF_TYPES else outputs, labels, **options)
        return result

    return loss


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
    ) -> None:
        """Build the model and the optimiser. The constructor of the model receives all keys of `config` except the keys in TRAINING_KEYS, and the arguments
        that the data determine.

        `seed` sets torch's global random number generator, with which the initial weights are sampled. Lazy layers get their shapes from the shape of a
        row in `facts`.
        """
        self.preparation = Preparation(facts, device)
        given = {k: v for k, v in config.items() if k not in TRAINING_KEYS}
        self.arguments = facts.arguments(model_class, given)
        torch.manual_seed(seed)
        self.model = model_class(**given, **self.arguments).to(device)
        self.lazy_layers = lazy_layers(self.model)
        if self.lazy_layers:
            # Lazy layers need their shapes before the optimiser is made, and before `load` compares the shapes of the weights.
            materialize(self.model, self.preparation.example(device, self.dtype))
        self.joins_last_row = has_batch_norm(self.model)
        self.optimizer: torch.optim.Optimizer = OPTIMIZERS[spec.optimizer](self.model.parameters(), **self._settings(config))
        self.batch_size = int(config["batch_size"])
        self.loss = loss_function(spec.loss)
        self.order_seed = spec.order_seed
        self.device = device

    def _settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of the optimiser in `config`, and store these settings for `load`."""
        self.settings = {k: v for k, v in config.items() if k in TRAINING_KEYS - {"batch_size"}}
        if "betas" in self.settings:
            self.settings["betas"] = tuple(self.settings["betas"])
        return self.settings

    def change(self, config: Mapping[str, Any]) -> None:
        """Change the batch size and the settings of the optimiser to the values in `config`. The weights do not change."""
        self.batch_size = int(config["batch_size"])
        for group in self.optimizer.param_groups:
            group.update(self._settings(config))

    @property
    def dtype(self) -> torch.dtype:
        """Return the data type of the model's weights."""
        return next(self.model.parameters()).dtype

    def train_epoch(self, images: torch.Tensor, labels: torch.Tensor, epoch: int) -> float:
        """Train on all rows once, in the order of `epoch`, which is counted from 1. Return the mean loss of the rows.

        Raises ValueError where batch normalisation gets a batch of only one row, and this row cannot be joined to another batch.
        """
        self.model.train()
        order = torch.from_numpy(epoch_order(self.order_seed, epoch, len(labels))).to(self.device)
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        for rows in split_rows(order, self.batch_size, self.joins_last_row):
            try:
                outputs = self.model(self.preparation.inputs(images[rows], self.dtype))
            except ValueError as error:
                if len(rows) > 1 or not is_refused_by_batch_norm(error):
                    raise
                raise ValueError(
                    f"BatchNorm cannot train on a batch of one row: batch_size is {self.batch_size}, and there are {len(labels)} training rows. "
                    "Give batch_size values of at least 2, or use GroupNorm in the place of BatchNorm"
                ) from error
            loss = self.loss(outputs, self.preparation.targets(labels[rows], self.dtype))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.detach().double() * len(rows)
        return float(total.item()) / len(labels)

    def evaluate(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """Return the metrics of the rows: the mean loss, and the accuracy, which is a fraction from 0 to 1, or the errors of a regression."""
        self.model.eval()
        sums = torch.zeros((), dtype=torch.float64, device=self.device)
        with torch.inference_mode():
            parts = (split_rows(tensor, EVALUATION_BATCH_SIZE, self.joins_last_row) for tensor in (images, labels))
            for x, y in zip(*parts, strict=True):
                outputs, targets = self.model(self.preparation.inputs(x, self.dtype)), self.preparation.targets(y, self.dtype)
                sums = sums + self.preparation.sums(outputs, targets, self.loss(outputs, targets, reduction="none"))
        return self.preparation.metrics(sums.tolist(), labels)

    def save(self, folder: Path, epoch: int) -> None:
        """Write the complete state of training to `folder`, so that training continues after `epoch` as if training had not been interrupted."""
        metadata = {LAZY_LAYERS_KEY: ", ".join(self.lazy_layers)} if self.lazy_layers else {}
        metadata |= {ARGUMENTS_KEY: json.dumps(self.arguments)} if self.arguments else {}
        save_model(self.model, str(folder / MODEL_FILE), metadata=metadata or None)
        state = {"epoch": epoch, "optimizer": self.optimizer.state_dict(), "rng": torch.get_rng_state()}
        if self.device.type != "cpu":
            state[f"{self.device.type}_rng"] = torch.get_device_module(self.device).get_rng_state(self.device)
        torch.save(state, folder / STATE_FILE)

    def load(self, folder: Path) -> int:
        """Restore the state that `save` wrote to `folder`, and return the epoch of this state.

        The trainer keeps its settings of the optimiser, which may differ from the saved settings.
        """
        load_model(self.model, str(folder / MODEL_FILE), device=str(self.device))
        state = torch.load(folder / STATE_FILE, weights_only=True, map_location=self.device)
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group.update(self.settings)
        torch.set_rng_state(state["rng"].cpu())
        if f"{self.device.type}_rng" in state:
            torch.get_device_module(self.device).set_rng_state(state[f"{self.device.type}_rng"].cpu(), self.device)
        return int(state["epoch"])
