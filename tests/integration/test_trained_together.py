"""Sweeps whose trials are trained together, on a real Ray: the same trials as one by one, none of which has a process of its own."""

from __future__ import annotations

import csv
import math
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from raysweep.config.model import read_config
from raysweep.data.manifest import DatasetSpec
from raysweep.data.stage import stage
from raysweep.record.events import FusionPlan, NotFused
from raysweep.record.trials import Trial
from raysweep.stages.stage import with_horizon
from raysweep.training.arrays import load_tensors, read_facts
from raysweep.training.spec import TrainingSpec
from raysweep.training.trainer import Trainer
from sweeping import SLOW_NET, Project, ours, wait_until

MODELS = (
    SLOW_NET
    + """
class Dropped(Net):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.1, self.training))

class Normalised(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.hidden, self.out = nn.BatchNorm2d(3), nn.Linear(48, width), nn.Linear(width, 10)

    def forward(self, x):
        return self.out(F.relu(self.hidden(F.avg_pool2d(self.norm(x), 8).flatten(1))))

class Noisy(Net):
    def forward(self, x):
        return super().forward(x + torch.rand_like(x))
"""
)


FOCAL_LOSS = """
from torch.nn import functional as F

def focal(outputs, targets):
    losses = F.cross_entropy(outputs, targets, reduction="none")
    return (1 - (-losses).exp()) ** 2 * losses
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path / "a project")
    project.write("net.py", MODELS)
    project.write("losses.py", FOCAL_LOSS)
    stage(
        DatasetSpec("generated", "synthetic", "none", validation_fraction=0.1, seed=0),
        tmp_path,
        project.folder / "resources" / "data" / "generated",
    )
    yield project
    assert ours(project.folder) == [], "processes were left behind"


def sweep_with(**values: Any) -> dict[str, Any]:
    space = {"lr": {"loguniform": [1e-3, 1e-1]}, "batch_size": {"choice": [16, 32, 64]}}
    sweep = {
        "dataset": "generated",
        "model": "net.py:Net",
        "metric": "accuracy",
        "num_samples": 6,
        "max_epochs": 2,
        "allocation": {"cpus_per_node": 1},
        **values,
    }
    return sweep | {"search_space": space | values.get("search_space", {})}


def configure(project: Project, **sweeps: dict[str, Any]) -> None:
    project.configure(datasets={"generated": {"source": "synthetic"}}, sweeps=sweeps)


def succeeds(project: Project, name: str) -> str:
    """What a run said that brought the sweep to its end."""
    run = project.run("run_sweep", name)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stderr


def engines(project: Project) -> list[psutil.Process]:
    """The processes in which trials of this project are trained together."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::EngineProcess") and process.cwd() == str(project.folder):
                found.append(process)
        except psutil.Error:  # it ended just now
            continue
    return found


def test_the_same_trials_as_one_by_one(project: Project) -> None:
    common = {
        "model": "net.py:Dropped",
        "allocation": {"cpus_per_node": 2},
        "search_space": {"training": {"label_smoothing": {"uniform": [0, 0.2]}}},
        "training": {"schedule": "cosine", "warmup_epochs": 0.5, "ema_decay": 0.9, "augment": ["flip", {"crop": {"padding": 2}}]},
    }
    configure(project, together=sweep_with(fuse="on", **common), alone=sweep_with(fuse="off", **common))
    said = succeeds(project, "together")
    assert "together: trials are trained together, up to 3 in each of 2 processes, " in said
    assert "trained" not in succeeds(project, "alone")
    together, alone = project.record("together"), project.record("alone")
    assert isinstance(together.fused, FusionPlan)
    assert (together.fused.processes, together.fused.slots) == (2, 3)
    assert alone.fused is None
    for trial, other in zip(together.trials.values(), alone.trials.values(), strict=True):
        assert (trial.config, trial.seed, trial.status, trial.epochs) == (other.config, other.seed, "TERMINATED", 2)
        for result, its in zip(trial.results, other.results, strict=True):
            assert result.metrics == pytest.approx(its.metrics, rel=1e-3)
    assert (project.folder / "results/together/model/model.safetensors").is_file()
    assert len(list((project.folder / "state/together/checkpoints").iterdir())) == 1
    with (project.folder / "results/together/trials.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epochs"] for row in rows] == ["2"] * 6
    assert all(0 <= float(row["config/training/label_smoothing"]) < 0.2 for row in rows)


def test_a_scheduler_stops_them_one_by_one_and_others_take_their_seats(project: Project) -> None:
    asha = {"name": "asha", "grace_period": 1, "reduction_factor": 2}
    space = {"width": {"choice": [8, 16]}, "batch_size": {"choice": [32, 64]}}
    own = {"model": "net.py:Normalised", "loss": "losses.py:focal", "search_space": space}
    configure(project, s=sweep_with(fuse="on", num_samples=10, max_epochs=4, max_concurrent=4, scheduler=asha, **own))
    assert "up to 4 in one process" in succeeds(project, "s")
    focal_losses = [result.metrics["loss"] for trial in project.record("s").trials.values() for result in trial.results]
    assert 0 < min(focal_losses) < max(focal_losses) < 0.9**2 * math.log(10) * 1.2, (
        "below the cross entropy of a guess, by about the factor of the focal loss"
    )
    trials = list(project.record("s").trials.values())
    assert {trial.status for trial in trials} == {"STOPPED", "TERMINATED"}
    assert all(len(trial.attempts) == 1 for trial in trials)
    assert all(trial.epochs == 4 for trial in trials if trial.status == "TERMINATED")
    starts, ends = sorted(trial.started or "" for trial in trials), sorted(trial.ended or "" for trial in trials)
    assert all(start >= end for start, end in zip(starts[4:], ends, strict=False)), "no more than four at a time"


def test_hyperband_pauses_them(project: Project) -> None:
    configure(project, s=sweep_with(fuse="on", num_samples=6, max_epochs=3, scheduler={"name": "hyperband", "reduction_factor": 3}))
    succeeds(project, "s")
    assert {trial.status for trial in project.record("s").trials.values()} <= {"STOPPED", "TERMINATED"}


def test_when_their_process_is_killed_they_go_on_in_another_one(project: Project) -> None:
    configure(project, s=sweep_with(fuse="on", max_epochs=8, max_failures=0, search_space={"pause_s": 0.004}))
    process = project.start("run_sweep", "s")
    wait_until(lambda: sum(bool(trial.checkpoints) for trial in project.record("s").trials.values()) == 6, "each has saved something")
    (engine,) = engines(project)
    engine.kill()
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "The process in which trials are trained together has ended" in said
    for trial in project.record("s").trials.values():
        assert (trial.status, [result.epoch for result in trial.results]) == ("TERMINATED", list(range(1, 9)))
        assert {failure.error for failure in trial.failures} <= {"the process in which it trained with others ended"}
        assert trial.num_failures == 0
        assert trial.attempts[-1].from_epoch >= 1


def test_what_was_interrupted_goes_on_one_by_one_and_together_again(project: Project) -> None:
    recipe = {"schedule": "cosine", "warmup_epochs": 0.5, "ema_decay": 0.9}
    sweep = sweep_with(fuse="on", max_epochs=8, search_space={"pause_s": 0.004}, training=recipe)
    configure(project, s=sweep)
    saved = lambda: sum(max(trial.checkpoints, default=0) for trial in project.record("s").trials.values())  # noqa: E731
    for fuse in ("on", "off"):
        configure(project, s=sweep | {"fuse": fuse})
        before = saved()
        process = project.start("run_sweep", "s")
        wait_until(lambda: saved() > before, "it goes on, and saves that")  # noqa: B023
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=180)
    configure(project, s=sweep)
    succeeds(project, "s")
    for trial in project.record("s").trials.values():
        assert (trial.status, [result.epoch for result in trial.results]) == ("TERMINATED", list(range(1, 9)))
    gone_on = [trial for trial in project.record("s").trials.values() if trial.attempts[-1].from_epoch]
    trial = max(gone_on, key=lambda trial: int(trial.config["batch_size"]))
    losses = [result.metrics["loss"] for result in trial.results[: trial.attempts[-1].from_epoch + 1]]
    assert losses == pytest.approx(undisturbed_losses(project, trial, len(losses)), rel=1e-3), "the rates are those of the true progress"


def undisturbed_losses(project: Project, trial: Trial, epochs: int) -> list[float]:
    """Train a trial in this process without an interruption, and return the loss on validation after each of the first `epochs` epochs."""
    known: dict[str, Any] = {}
    exec(MODELS, known)
    data_dir = project.folder / "resources" / "data" / "generated"
    sweep = read_config(project.folder / "results/s/config.yaml").sweeps["s"]
    spec = TrainingSpec.of(with_horizon(sweep, project.folder / "state/s/record.jsonl"))
    config = {**trial.config, "pause_s": 0.0}
    trainer = Trainer(known["Net"], config, spec, seed=trial.seed, device=torch.device("cpu"), facts=read_facts(data_dir))
    train, validation = (load_tensors(data_dir, split, trainer.device) for split in ("train", "validation"))
    losses = []
    for epoch in range(1, epochs + 1):
        trainer.train_epoch(*train, epoch)
        losses.append(trainer.evaluate(*validation)["loss"])
    return losses


def test_one_that_diverges_fails_alone(project: Project) -> None:
    lr = {"grid": [0.01, 1e30, 0.02]}
    configure(project, s=sweep_with(fuse="on", metric="loss", mode="min", num_samples=1, max_failures=1, search_space={"lr": lr}))
    succeeds(project, "s")
    trials = list(project.record("s").trials.values())
    assert [trial.status for trial in trials] == ["TERMINATED", "ERROR", "TERMINATED"]
    assert trials[1].error is not None
    assert trials[1].error.startswith("FloatingPointError: reported loss = ")
    assert (trials[1].num_failures, trials[0].failures) == (2, [])


def test_a_model_that_cannot_be_is_trained_one_by_one_or_refused(project: Project) -> None:
    why = "the model draws random numbers in training other than those of dropout"
    sweep = sweep_with(model="net.py:Noisy", num_samples=2, max_epochs=1, max_concurrent=2)
    configure(project, auto=sweep, forced=sweep | {"fuse": "on"})
    assert f"auto: trials are trained one by one: {why}." in succeeds(project, "auto")
    assert project.record("auto").fused == NotFused(why)
    refused = project.run("run_sweep", "forced")
    assert refused.returncode == 1
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("Error: ")]
    assert line == f"Error: forced: trials cannot be trained together, as `fuse: on` asks: {why}. Set sweeps.forced.fuse to auto"


def test_where_no_two_are_left_there_is_nothing_to_refuse(project: Project) -> None:
    configure(project, s=sweep_with(fuse="on", num_samples=1, max_epochs=1))
    assert "s: trials are trained one by one: no two of 1 share a device." in succeeds(project, "s")


def test_what_hangs_is_ended_with_its_process(project: Project) -> None:
    configure(project, s=sweep_with(fuse="on", num_samples=2, max_epochs=50, max_failures=0, trial_timeout="5s"))
    process = project.start("run_sweep", "s")
    wait_until(lambda: sum(trial.epochs for trial in project.record("s").trials.values()) > 0, "it has begun")
    project.write("hang", "")
    said, _ = process.communicate(timeout=300)
    trials = project.record("s").trials.values()
    # For how long they were waited for depends on how much faster they are together, which was measured.
    errors = [trial.error for trial in trials if trial.status == "ERROR"]
    assert len(errors) == len(trials), said
    assert all(re.fullmatch(r"it reported nothing for (\d+m)?\d+s \(trial_timeout\), so it was ended", error or "") for error in errors)
