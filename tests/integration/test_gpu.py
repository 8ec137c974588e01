"""What only a real GPU can show, where PyTorch has one: trials as a CUDA graph, and several on one GPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from raysweep.models.lenet import LeNet
from raysweep.training.spec import TrainingSpec
from raysweep.training.stacked.trainer import StackedTrainer, StackSettings
from raysweep.training.stacked.verification import prepare
from raysweep.training.trainer import Trainer
from sweeping import Project, ours, sweep_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use")

TRAINABLES = """
import os
import torch
from ray import tune

def sees_none(config):
    tune.report({"score": int(torch.cuda.is_available())})

def small(config):
    torch.ones(1_000_000, device="cuda")
    tune.report({"score": config["x"]})

def grows(config):
    # The first trial says little of the others: two of those do not fit.
    total = torch.cuda.get_device_properties(0).total_memory
    size = 0.05 if os.environ["RAYSWEEP_SEED"] == open("first").read() else 0.4
    held = torch.empty(int(size * total), dtype=torch.uint8, device="cuda")
    for epoch in range(3):
        held.fill_(epoch)
        torch.cuda.synchronize()
        tune.report({"score": config["x"]})
"""
ALLOCATION = {"cpus_per_node": 4, "gpus_per_node": 1}
MODEL = {
    "dataset": "generated",
    "model": "raysweep.models.lenet:LeNet",
    "search_space": {"lr": {"loguniform": [1e-4, 1e-2]}, "batch_size": {"choice": [32, 64, 128]}, "momentum": 0.9},
    "metric": "accuracy",
    "num_samples": 6,
    "max_epochs": 2,
    "trial_resources": {"cpu": 0.5, "gpu": "auto"},
    "allocation": ALLOCATION,
}


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path / "a project")
    project.write("user.py", TRAINABLES)
    yield project
    assert ours(project.folder) == [], "processes were left behind"


def trained(project: Project, sweep: dict[str, object]) -> str:
    """Run the sweep `s`; returns its log."""
    project.configure(datasets={"generated": {"source": "synthetic"}}, sweeps={"s": sweep})
    run = project.snakemake("results/s/report.html", cores=4)
    assert run.returncode == 0, run.stdout + run.stderr
    return (project.folder / "logs/run_sweep/s.log").read_text()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("share_rows", [True, False])
def test_a_captured_stack_trains_as_each_model_by_itself(optimizer: str, share_rows: bool) -> None:
    device = torch.device("cuda")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8, generator=generator).to(device)
    labels = torch.randint(0, 10, (256,), generator=generator).to(device)

    def trainer(number: int) -> Trainer:
        config = {"lr": 1e-3, "batch_size": (4, 8, 16)[number % 3]} | ({"momentum": 0.9} if optimizer == "sgd" else {})
        made = Trainer(LeNet, config, TrainingSpec("cross_entropy", optimizer, order_seed=0), seed=number, device=device)
        made.model.double()  # so that nothing but a fault makes a difference
        return made

    together = [trainer(number) for number in range(4)]
    alone = copy.deepcopy(together)
    stacked = prepare(StackedTrainer(StackSettings(4, share_rows)), together, images, labels)
    assert isinstance(stacked, StackedTrainer), stacked
    assert stacked.captures(device)
    for epoch in (1, 2):
        stacked.train_epoch(together, [epoch] * len(together), images, labels)
        for one in alone:
            one.train_epoch(images, labels, epoch)
        if epoch == 1:  # one leaves, another enters
            together[2] = trainer(5)
            alone[2] = copy.deepcopy(together[2])
    metrics = stacked.evaluate(together, images, labels)
    for one, other, found in zip(alone, together, metrics, strict=True):
        for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
        assert found == pytest.approx(one.evaluate(images, labels), rel=1e-6)


def test_a_sweep_as_a_cuda_graph_goes_on_and_is_confirmed(project: Project) -> None:
    said = trained(project, MODEL | {"fuse": "on"})
    assert "as a CUDA graph" in said
    before = project.record("s").trials
    assert {(trial.status, trial.epochs) for trial in before.values()} == {("TERMINATED", 2)}
    trained(project, MODEL | {"fuse": "on", "num_samples": 9, "confirm": {"seeds": 1}})
    after = project.record("s").trials
    assert len(after) == 9
    assert {(trial.status, trial.epochs) for trial in after.values()} == {("TERMINATED", 2)}
    assert {trial_id: after[trial_id].results for trial_id in before} == {trial_id: trial.results for trial_id, trial in before.items()}
    assert project.result("s", "confirmed.yaml")["n"] == 1


def test_one_by_one_they_come_to_the_same(project: Project, tmp_path: Path) -> None:
    other = Project(tmp_path / "another project")
    trained(project, MODEL | {"fuse": "on"})
    trained(other, MODEL | {"fuse": "off"})
    pairs = [(project.record("s").trials[trial_id], trial) for trial_id, trial in other.record("s").trials.items()]
    assert len(pairs) == 6
    for one, same in pairs:
        assert one.config == same.config
        assert one.results[-1].metrics["loss"] == pytest.approx(same.results[-1].metrics["loss"], rel=0.02)


def test_how_many_share_the_gpu_is_what_the_first_trial_says(project: Project) -> None:
    resources = {"trial_resources": {"cpu": 0.5, "gpu": "auto"}, "allocation": ALLOCATION}
    project.configure(sweeps={"s": sweep_of("small", num_samples=6, search_space={"x": {"uniform": [0, 1]}}, **resources)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "MB of its GPU: up to" in run.stdout + run.stderr
    record = project.record("s")
    assert record.gpu_share is not None
    assert record.gpu_share <= 0.2
    assert record.gpu_memory_mb is not None
    used_mb, total_mb = record.gpu_memory_mb
    assert 0 < used_mb < 0.2 * total_mb
    assert total_mb == pytest.approx(torch.cuda.get_device_properties(0).total_memory / 2**20, rel=0.1)
    assert {trial.status for trial in record.trials.values()} == {"TERMINATED"}


def test_trials_that_find_no_room_on_the_gpu_get_more_of_it(project: Project) -> None:
    from raysweep.common.seeds import trial_seed

    project.write("first", str(trial_seed(0, 0, 0)))
    resources = {"trial_resources": {"cpu": 0.5, "gpu": "auto"}, "allocation": ALLOCATION}
    project.configure(sweeps={"s": sweep_of("grows", num_samples=5, search_space={"x": {"uniform": [0, 1]}}, max_epochs=3, **resources)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    record = project.record("s")
    assert {trial.status for trial in record.trials.values()} == {"TERMINATED"}
    assert record.is_crowded
    assert record.gpu_share is not None
    assert record.gpu_share >= 0.1  # of about 0.06 that the first one takes, doubled at least once


def test_a_trial_that_asks_for_no_gpu_sees_none(project: Project) -> None:
    resources = {"trial_resources": {"cpu": 0.5, "gpu": 0}, "allocation": ALLOCATION}
    project.configure(sweeps={"s": sweep_of("sees_none", num_samples=2, **resources)})
    assert project.run("run_sweep", "s").returncode == 0
    assert {trial.results[0].metrics["score"] for trial in project.record("s").trials.values()} == {0}


def test_a_plan_times_steps_on_the_gpu(project: Project) -> None:
    project.configure(datasets={"generated": {"source": "synthetic"}}, sweeps={"s": MODEL})
    run = project.snakemake("plan", cores=4)
    assert run.returncode == 0, run.stdout + run.stderr
    said = run.stdout + run.stderr
    assert torch.cuda.get_device_name() in said
    assert "GPU-hours" in said
