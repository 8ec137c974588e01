"""Training of a `model:` sweep's model on staged arrays, in this process, without data loaders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.nn import functional as F

from raysweep.common.seeds import epoch_order
from raysweep.config.space import TRAINING_KEYS

MODEL_FILE = "model.safetensors"
STATE_FILE = "training_state.pt"
EVALUATION_BATCH_SIZE = 1000
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def normalized(images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 [n, …] in 0 … 255 → float in −1 … 1, as `Normalize(0.5, 0.5)` after `ToTensor` does it."""
    return images.to(dtype).div_(127.5).sub_(1)


class Trainer:
    """A model in training: built from a configuration, it trains an epoch, evaluates, saves and loads.

    Images are uint8 [n, channels, height, width], labels int64 [n], both on `device`; a batch at a time becomes float.
    """

    def __init__(
        self,
        model_class: type[nn.Module],
        config: dict[str, Any],
        *,
        loss: str,
        optimizer: str,
        seed: int,
        order_seed: int,
        device: torch.device,
    ) -> None:
        torch.manual_seed(seed)
        self.model = model_class(**{k: v for k, v in config.items() if k not in TRAINING_KEYS}).to(device)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters(), **self._settings(config))
        self.batch_size = int(config["batch_size"])
        self.loss = getattr(F, loss)
        self.order_seed = order_seed
        self.device = device

    def _settings(self, config: dict[str, Any]) -> dict[str, Any]:
        """What the optimiser is to be set to."""
        self.settings = {k: v for k, v in config.items() if k in TRAINING_KEYS - {"batch_size"}}
        if "betas" in self.settings:
            self.settings["betas"] = tuple(self.settings["betas"])
        return self.settings

    def change(self, config: dict[str, Any]) -> None:
        """Go on with other settings of the training."""
        self.batch_size = int(config["batch_size"])
        for group in self.optimizer.param_groups:
            group.update(self._settings(config))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def train_epoch(self, images: torch.Tensor, labels: torch.Tensor, epoch: int) -> float:
        """Go through the data once, in the order of that epoch (counted from 1); returns the mean loss."""
        self.model.train()
        order = torch.from_numpy(epoch_order(self.order_seed, epoch, len(labels))).to(self.device)
        total = torch.zeros((), device=self.device, dtype=self.dtype)
        for rows in order.split(self.batch_size):
            loss = self.loss(self.model(normalized(images[rows], self.dtype)), labels[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * len(rows)
        return total.item() / len(labels)

    @torch.inference_mode()
    def evaluate(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """Accuracy (a fraction of 1) and mean loss."""
        self.model.eval()
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for x, y in zip(images.split(EVALUATION_BATCH_SIZE), labels.split(EVALUATION_BATCH_SIZE), strict=True):
            outputs = self.model(normalized(x, self.dtype))
            correct += (outputs.argmax(1) == y).sum()
            total += self.loss(outputs, y, reduction="sum")
        return {"accuracy": correct.item() / len(labels), "loss": total.item() / len(labels)}

    def save(self, folder: Path, epoch: int) -> None:
        """Write all that it takes to go on after `epoch` as if there had been no break."""
        save_model(self.model, str(folder / MODEL_FILE))
        state = {"epoch": epoch, "optimizer": self.optimizer.state_dict(), "rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        torch.save(state, folder / STATE_FILE)

    def load(self, folder: Path) -> int:
        """Go back to what `save` wrote, but with this trainer's settings, which may be others; returns its epoch."""
        load_model(self.model, str(folder / MODEL_FILE), device=str(self.device))
        state = torch.load(folder / STATE_FILE, weights_only=True, map_location=self.device)
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group.update(self.settings)
        torch.set_rng_state(state["rng"].cpu())
        if self.device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)
        return state["epoch"]
