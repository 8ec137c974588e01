"""Population based training: who takes over what, what the record keeps of it, and how a confirmation repeats it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from faults import part_of
from raysweep.common.typed_json import to_json
from raysweep.data.manifest import DatasetSpec
from raysweep.data.stage import stage
from raysweep.record.events import ScheduleStep
from raysweep.record.file import Record, read_sweep
from raysweep.training.spec import TrainingSpec
from raysweep.training.trainer import Trainer
from sweeping import Project, sweep_of, wait_until

NET = """
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(48, 10)

    def forward(self, x):
        return self.out(F.avg_pool2d(x, 8).flatten(1))
"""
OPTIONS = {"perturbation_interval": 1, "quantile_fraction": 0.5, "resample_probability": 0.25}


def recorded(folder: Path) -> Record:
    """Two trials: the first has come to epoch 3, where its checkpoint lies, the second to epoch 2."""
    record = Record(folder / "record.jsonl")
    record.write("session", sweep={}, host="h", pid=1, nodes=[])
    for index, epochs in enumerate((3, 2)):
        trial = f"{index:05d}"
        config = {"lr": 0.01 * (index + 1), "batch_size": 4, "net": {"width": 3, "rate": 0.5}, "noise": 1.0, "fixed": 3}
        record.write("trial", trial=trial, index=index, repeat=0, seed=index, config=config)
        record.write("start", trial=trial, node="n", from_epoch=0)
        for epoch in range(1, epochs + 1):
            score = epoch / 10 if index == 0 else 0.9 - epoch / 10
            record.write("result", trial=trial, epoch=epoch, metrics={"score": score}, time_s=float(epoch), node="n")
        path = folder / "tune" / trial / f"checkpoint_{epochs}"
        path.mkdir(parents=True)
        (path / "weights").write_text(trial)
        record.write("checkpoint", trial=trial, epoch=epochs, path=str(path.relative_to(folder)))
    return record


def test_the_record_keeps_by_which_configurations_weights_came_about(tmp_path: Path) -> None:
    with recorded(tmp_path) as record:
        first, second = record.sweep.trials.values()
        best = second.best("score", "max")
        assert best is not None
        assert best.epoch == 1
        record.write("take_over", trial="00001", donor="00000", epoch=3, config={"lr": 0.5}, path="copy")
        record.write("start", trial="00001", node="n", from_epoch=3)
        assert second.config == {"lr": 0.5}
        assert second.best("score", "max") is None  # what it inherited is not its own
        assert second.epochs == 3
        record.write("result", trial="00001", epoch=4, metrics={"score": 0.7}, time_s=4.0, node="n")
        best = second.best("score", "max")
        assert best is not None
        assert best.epoch == 4
        assert second.schedule == [ScheduleStep(0, first.config), ScheduleStep(3, {"lr": 0.5})]
        record.write("take_over", trial="00000", donor="00001", epoch=4, config={"lr": 0.6}, path="copy of the copy")
        assert [step.from_epoch for step in first.schedule] == [0, 3, 4]
        again = read_sweep(record.path).trials
        assert again["00000"].schedule == first.schedule
        assert [again["00000"].config_at(epoch) for epoch in (0, 3, 4)] == [step.config for step in first.schedule]
        assert again["00001"].results == second.results
        # Where no checkpoint is left it begins as the one did from which its weights come.
        record.write("start", trial="00000", node="n", from_epoch=0)
        assert (first.config, first.schedule, first.results) == (again["00000"].config_at(0), [], [])


def test_a_training_that_is_changed_on_the_way_is_the_one_that_took_over(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3 * 4 * 4, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layer(images.flatten(1))

    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(0, 256, (40, 3, 4, 4), dtype=np.uint8))
    labels = torch.from_numpy(generator.integers(0, 3, 40))
    first, then = {"lr": 0.1, "momentum": 0.9, "batch_size": 4}, {"lr": 0.02, "momentum": 0.5, "batch_size": 8}

    def trainer(config: dict[str, Any]) -> Trainer:
        return Trainer(Net, config, TrainingSpec("cross_entropy", "sgd", order_seed=0), seed=1, device=torch.device("cpu"))

    one = trainer(first)
    one.train_epoch(images, labels, 1)
    one.save(tmp_path, 1)
    other = trainer(then)
    assert other.load(tmp_path) == 1
    one.change(then)
    for each in (one, other):
        assert each.optimizer.param_groups[0]["lr"] == 0.02
        each.train_epoch(images, labels, 2)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_population_of_a_function_whose_driver_is_killed_after_a_take_over(project: Project) -> None:
    options = {"name": "pbt", **OPTIONS}
    project.configure(
        sweeps={
            "s": sweep_of(
                "rests",
                num_samples=4,
                max_epochs=6,
                scheduler=options,
                confirm={"seeds": 2},
                search_space={"x": {"uniform": [0, 1]}, "pause_s": 0.1, "free_epochs": 4},
            )
        }
    )
    process = project.start("run_sweep", "s")
    path = project.folder / "state/s/record.jsonl"
    wait_until(lambda: path.exists() and '"take_over"' in path.read_text(), "a trial takes over from another")
    driver = part_of(process, "driver")
    assert driver
    driver.kill()
    process.communicate()
    assert process.returncode != 0
    project.write("go", "")
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    trials = project.record("s").trials
    assert {trial.status for trial in trials.values()} == {"TERMINATED"}
    assert {trial.epochs for trial in trials.values()} == {6}
    changed = [trial for trial in trials.values() if trial.schedule]
    assert changed
    for trial in changed:
        assert trial.schedule[-1].config == trial.config
        own = [result for result in trial.results if not result.is_inherited]
        assert [result.metrics["score"] for result in own] == pytest.approx([trial.config["x"] * result.epoch for result in own])
    best = project.result("s", "best.yaml")
    winner = trials[best["trial_id"]]
    assert best.get("schedule", []) == to_json(winner.schedule)
    assert (project.folder / "results/s/model/epoch").read_text() == str(best["epochs"])
    # The confirmation of one that changed twice: whoever won, its schedule is now that of the test.
    best["schedule"] = [{"from_epoch": epoch, "config": {"x": x, "pause_s": 0.1}} for epoch, x in ((0, 0.2), (2, 0.4), (5, 0.7))]
    best |= {"config": best["schedule"][-1]["config"], "epochs": 6}
    (project.folder / "results/s/best.yaml").write_text(yaml.safe_dump(best))
    run = project.run("confirm", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    [path] = (project.folder / "state/s").glob("confirm-*/record.jsonl")
    for trial in read_sweep(path).trials.values():
        assert (trial.status, to_json(trial.schedule)) == ("TERMINATED", best["schedule"])
        assert [result.metrics["score"] for result in trial.results] == pytest.approx([0.2, 0.4, 1.2, 1.6, 2.0, 4.2])
    assert project.result("s", "confirmed.yaml")["mean"] == pytest.approx(4.2)


@pytest.mark.parametrize("fuse", ["off", "on"])
def test_a_population_of_a_model_and_its_confirmation(project: Project, fuse: str) -> None:
    project.write("net.py", NET)
    stage(
        DatasetSpec("generated", "synthetic", "none", validation_fraction=0.1, seed=0),
        project.folder,
        project.folder / "resources/data/generated",
    )
    sweep = {
        "dataset": "generated",
        "model": "net.py:Net",
        "search_space": {"lr": {"loguniform": [1e-4, 1e-1]}, "batch_size": {"choice": [32, 64]}},
        "metric": "accuracy",
        "num_samples": 4,
        "max_epochs": 3,
        "scheduler": {"name": "pbt", **OPTIONS},
        "allocation": {"cpus_per_node": 2},
        "confirm": {"seeds": 1},
        "fuse": fuse,
    }
    project.configure(datasets={"generated": {"source": "synthetic"}}, sweeps={"s": sweep})
    for rule in ("run_sweep", "confirm"):
        run = project.run(rule, "s")
        assert run.returncode == 0, run.stdout + run.stderr
    trials = project.record("s").trials
    assert {(trial.status, trial.epochs) for trial in trials.values()} == {("TERMINATED", 3)}
    assert any(trial.schedule for trial in trials.values())
    assert project.result("s", "confirmed.yaml")["n"] == 1
