"""A small network of PyTorch that the workers of Ray Train train together, each on its own part of the rows."""

import os
import tempfile
from pathlib import Path

import ray.train
import torch
from ray import tune
from ray.train.torch import TorchTrainer, get_device, prepare_model
from ray.tune.integration.ray_train import TuneReportCallback
from torch import nn

STATE_FILE = "state.pt"


def load_rows():
    """Two spirals: rows for training, for comparing trials, and for the test. Read your own rows here."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(3072) % 2
    angles = torch.rand(3072, generator=draw) * 6
    turned = angles + torch.pi * labels
    rows = torch.stack([turned.cos(), turned.sin()], dim=1) * angles[:, None] / 6
    rows += 0.03 * torch.randn(rows.shape, generator=draw)
    return (rows[:2048], labels[:2048]), (rows[2048:2560], labels[2048:2560]), (rows[2560:], labels[2560:])


def train_worker(config):
    """What each worker does. A trial that was interrupted goes on from its last checkpoint."""
    train, validation, test = load_rows()
    if config["is_confirmed"]:
        train, validation = [torch.cat(parts) for parts in zip(train, validation, strict=True)], test
    train, validation = ([part.to(get_device()) for part in split] for split in (train, validation))
    torch.manual_seed(config["seed"])
    layers = [nn.Linear(2, config["width"]), nn.Tanh(), nn.Linear(config["width"], config["width"]), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(config["width"], 2)).to(get_device())
    optimizer, first = torch.optim.Adam(model.parameters(), lr=config["lr"]), 1
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / STATE_FILE, map_location=get_device())
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"] + 1
    shared = prepare_model(model)  # each step takes the mean of the workers' gradients
    rank, workers = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    for epoch in range(first, config["epochs"] + 1):
        order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(epoch))
        for batch in order[rank::workers].split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(shared(train[0][batch]), train[1][batch]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = (model(validation[0]).argmax(dim=1) == validation[1]).float().mean().item()
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if rank == 0:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, Path(folder) / STATE_FILE)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"accuracy": accuracy}, checkpoint=checkpoint)


def run_workers(config, **options):
    """Start as many workers as `trial_resources.workers` of the config says, and wait for their end."""
    _, *workers = tune.get_context().get_trial_resources().bundles
    scaling = ray.train.ScalingConfig(num_workers=len(workers), resources_per_worker=workers[0], use_gpu="GPU" in workers[0])
    return TorchTrainer(train_worker, train_loop_config=config, scaling_config=scaling, run_config=ray.train.RunConfig(**options)).fit()


def train(config):
    """What a trial does."""
    facts = {"seed": int(os.environ["RAYSWEEP_SEED"]), "epochs": int(os.environ["RAYSWEEP_MAX_EPOCHS"]), "is_confirmed": False}
    run_workers(config | facts, callbacks=[TuneReportCallback()])


def confirm(config, seed, epochs):
    """The best configuration once more, with a new seed, on all rows that are not of the test; the only place where those are looked at."""
    result = run_workers(config | {"seed": seed, "epochs": epochs, "is_confirmed": True})
    return {"accuracy": result.metrics["accuracy"]}
