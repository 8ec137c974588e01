"""A small network that the Trainer of PyTorch Lightning trains. After each epoch, Ray's callback reports the metrics and a checkpoint."""

import logging
import os
from contextlib import nullcontext
from pathlib import Path

import pytorch_lightning as pl
import torch
from ray import tune
from ray.tune.integration.pytorch_lightning import TuneReportCheckpointCallback
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, DistributedSampler, TensorDataset, random_split

CHECKPOINT_FILE = "model.ckpt"
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # the Trainer logs several lines for each trial and each checkpoint


class Classifier(pl.LightningModule):
    def __init__(self, lr, width):
        super().__init__()
        self.save_hyperparameters()  # Classifier.load_from_checkpoint(…) then needs no arguments
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))

    def training_step(self, batch, _):
        rows, labels = batch
        return nn.functional.cross_entropy(self.layers(rows), labels)

    def validation_step(self, batch, _):
        rows, labels = batch
        self.log("accuracy", (self.layers(rows).argmax(dim=1) == labels).float().mean())

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def load_rows():
    """Two spirals: rows for training, for comparing trials, and for the test. Read your own rows here."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(3072) % 2
    angles = torch.rand(3072, generator=draw) * 6
    turned = angles + torch.pi * labels
    rows = torch.stack([turned.cos(), turned.sin()], dim=1) * angles[:, None] / 6
    rows += 0.03 * torch.randn(rows.shape, generator=draw)
    return random_split(TensorDataset(rows, labels), [2048, 512, 512], generator=draw)


def shuffled(rows, seed):
    """Batches in an order that the seed and the epoch determine, also in a trial that goes on. The Trainer tells the sampler the epoch."""
    return DataLoader(rows, batch_size=32, sampler=DistributedSampler(rows, num_replicas=1, rank=0, seed=seed))


def make_trainer(epochs, **options):
    """A Trainer that writes nothing, because the workflow keeps the reports and the checkpoints. `devices=1` is the GPU of the trial, or the CPU."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(max_epochs=epochs, accelerator="auto", devices=1, **quiet, **options)


def train(config):
    """Train one trial. A trial that was interrupted goes on from its last checkpoint."""
    seed = int(os.environ["RAYSWEEP_SEED"])
    pl.seed_everything(seed, verbose=False)
    rows, validation, _ = load_rows()
    report = TuneReportCheckpointCallback("accuracy", CHECKPOINT_FILE)
    trainer = make_trainer(int(os.environ["RAYSWEEP_MAX_EPOCHS"]), callbacks=[report])
    checkpoint = tune.get_checkpoint()
    with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
        path = Path(folder) / CHECKPOINT_FILE if folder else None
        trainer.fit(Classifier(**config), shuffled(rows, seed), DataLoader(validation, batch_size=512), ckpt_path=path)


def confirm(config, seed, epochs):
    """Train the best configuration once more, with a new seed, on all rows except the test rows. Only this function uses the test rows."""
    pl.seed_everything(seed, verbose=False)
    rows, validation, test = load_rows()
    model, trainer = Classifier(**config), make_trainer(epochs)
    trainer.fit(model, shuffled(ConcatDataset([rows, validation]), seed))
    [result] = trainer.test(model, DataLoader(test, batch_size=512), verbose=False)
    return {"accuracy": result["accuracy"]}
