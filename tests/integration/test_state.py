"""The state folder: who may write there, who works on it, what is believed of what lies in it, and how much that is. With a real Ray."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from raysweep.cluster.lock import Lock
from raysweep.models.lenet import LeNet
from raysweep.training.spec import TrainingSpec
from raysweep.training.trainer import MODEL_FILE, STATE_FILE, Trainer
from sweeping import Project, sweep_of, wait_until

COUNTS = """
import os, tempfile
from ray import tune

HERE = os.path.dirname(os.path.abspath(__file__))  # each trial has its own working directory

def counts(config):
    "Leaves how many files and folders the state of its sweep has."
    with tempfile.TemporaryDirectory() as folder:
        open(os.path.join(folder, "weights"), "w").close()
        tune.report({"score": config["x"]}, checkpoint=tune.Checkpoint.from_directory(folder))
    with open(os.path.join(HERE, "counted"), "a") as stream:
        print(sum(len(folders) + len(files) for _, folders, files in os.walk(os.path.join(HERE, "state/s"))), file=stream)
    tune.report({"score": config["x"]})
"""


class Runs:
    """What a pickle brings that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", [STATE_FILE, MODEL_FILE])
@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_a_checkpoint_that_was_exchanged_for_one_with_code_is_refused(tmp_path: Path, name: str, write: Any) -> None:
    spec = TrainingSpec("cross_entropy", "sgd", order_seed=0)
    trainer = Trainer(LeNet, {"lr": 0.1, "batch_size": 2}, spec, seed=0, device=torch.device("cpu"))
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    trainer.save(folder, 3)
    assert trainer.load(folder) == 3
    with (folder / name).open("wb") as stream:
        write(Runs(tmp_path / "it ran"), stream)
    with pytest.raises(Exception, match=r"[Ww]eights.only|header|HeaderTooLarge|deserializ"):
        trainer.load(folder)
    assert not (tmp_path / "it ran").exists()
    pickle.loads(pickle.dumps(Runs(tmp_path / "it ran")))
    assert (tmp_path / "it ran").exists(), "elsewhere it would have run"


def test_a_folder_that_others_can_write_to_is_refused_in_one_line(project: Project) -> None:
    project.configure(sweeps={"s": sweep_of("climb", max_epochs=1)})
    (project.folder / "state" / "s").mkdir(parents=True)
    (project.folder / "state" / "s").chmod(0o777)
    run = project.run("run_sweep", "s")
    assert run.returncode == 1
    assert run.stderr.splitlines() == [line for line in run.stderr.splitlines() if line.startswith("Error: ")]
    assert "can be written to by others (mode 777)" in run.stderr
    assert list((project.folder / "state" / "s").iterdir()) == []


def test_a_second_run_is_refused_with_the_name_of_the_first_which_goes_on(project: Project) -> None:
    project.configure(sweeps={"s": sweep_of("climb", max_epochs=10**4, search_space={"x": 1, "pause_s": 0.2})})
    first = project.start("run_sweep", "s")
    wait_until(lambda: (project.folder / "state/s/record.jsonl").exists(), "the first one is at work")
    second = project.run("run_sweep", "s")
    assert second.returncode == 1
    [line] = second.stderr.splitlines()
    assert line.startswith(f"Error: sweep s: another run is at work on it: process {first.pid} on {os.uname().nodename}.")
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=180)
    assert not (project.folder / "state/s/lock").exists()


def test_a_second_command_leaves_the_config_of_the_first_alone(project: Project) -> None:
    project.configure(sweeps={"s": sweep_of("climb", max_epochs=1)})
    assert project.snakemake("--until", "build_env").returncode == 0
    path = project.folder / "state/.config/s.yaml"
    of_the_first = path.read_text()
    project.configure(sweeps={"s": sweep_of("climb", max_epochs=2)})
    with Lock(project.folder / "state/s", "sweep s"):  # by this process, which is alive
        second = project.snakemake("results/s/best.yaml")
        assert second.returncode == 1
        assert "Error: sweep s: another run is at work on it: process" in second.stdout + second.stderr
        assert path.read_text() == of_the_first
    assert project.snakemake("--until", "build_env", "-R", "build_env").returncode == 0
    assert path.read_text() != of_the_first


def test_files_do_not_grow_with_the_number_of_trials(project: Project) -> None:
    project.write("counts.py", COUNTS)
    trainable = {"trainable": "counts.py:counts", "search_space": {"x": {"uniform": [0, 1]}}, "max_epochs": 2}
    project.configure(sweeps={"s": sweep_of("", num_samples=24, **trainable, trial_resources={"cpu": 0.5})})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stderr
    counted = [int(line) for line in (project.folder / "counted").read_text().split()]
    assert len(counted) == 24
    # With four at a time some have not been removed yet; that each left one thing behind would be twenty between the first and the last.
    assert max(counted) - min(counted) <= 16, counted
    left = sorted(str(path.relative_to(project.folder / "state/s")) for path in (project.folder / "state/s").rglob("*"))
    assert len([path for path in left if path.startswith("checkpoints/")]) == 2, "the best one's folder, and its file"
    assert {path for path in left if "/" not in path} == {"best.yaml", "checkpoints", "optuna.journal", "record.jsonl", "trials.csv"}
