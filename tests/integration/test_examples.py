"""The worked examples, as `make new-sweep` copies them: each runs as it is, from nothing to its report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import psutil
import pytest
import torch
import xgboost
import yaml

from raysweep.config.schema import PATH_TO_SCHEMA
from raysweep.data.split import load_split
from sweeping import ENV, REPOSITORY, Project, ours, user_environment, wait_until

NEW_SWEEP = REPOSITORY / "workflow/scripts/new_sweep.py"


def begin(project: Project, name: str, like: str) -> subprocess.CompletedProcess[str]:
    return project.finished([sys.executable, str(NEW_SWEEP), "--name", name, "--like", like])


def prepare(project: Project, like: str, **sweep: Any) -> list[str]:
    """Begin a sweep `mine` like that example, and return the command that runs it in the environment of the tests. `sweep` replaces keys of the sweep."""
    begun = begin(project, "mine", like)
    assert begun.returncode == 0, begun.stderr
    command = "snakemake --cores all --configfile sweeps/mine/config.yaml"
    assert begun.stdout.splitlines()[2].strip() == command
    project.write("env.yaml", yaml.safe_dump({"env": ENV} | ({"sweeps": {"mine": sweep}} if sweep else {})))
    argv = [sys.executable, "-m", *command.split(), "--snakefile", str(REPOSITORY / "Snakefile")]
    return [*argv[:-2], "env.yaml", *argv[-2:]]


def run(project: Project, like: str, **sweep: Any) -> dict[str, Any]:
    """Begin a sweep `mine` like that example and run it; what best.yaml holds."""
    return finish(project, prepare(project, like, **sweep))


def finish(project: Project, command: list[str]) -> dict[str, Any]:
    """Run the command of `prepare` and return the content of best.yaml."""
    done = project.finished(command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project.folder / "results/mine/report.html").stat().st_size > 10_000
    assert ours(project.folder) == []
    assert {trial["status"] for trial in project.trials("mine")} <= {"TERMINATED", "STOPPED"}
    return project.result("mine", "best.yaml")


def test_a_model_on_a_folder_of_images(project: Project) -> None:
    best = run(project, "images")
    assert best["metric"]["value"] > 0.8  # of three shapes
    assert load_split(project.folder / "resources/data/mine", "train")[0].shape == (288, 3, 32, 32)
    assert (project.folder / "results/mine/model/model.safetensors").is_file()
    confirmed = project.result("mine", "confirmed.yaml")
    assert (confirmed["n"], confirmed["evaluated_on"]) == (3, "test")


def test_scikit_learn_on_a_table(project: Project) -> None:
    best = run(project, "tabular")
    assert best["metric"]["value"] > 0.9
    model = joblib.load(project.folder / "results/mine/model/model.joblib")
    assert model.n_iter_ == best["epochs"] * 10
    confirmed = project.result("mine", "confirmed.yaml")
    assert (confirmed["n"], confirmed["evaluated_on"]) == (3, "test")


def test_a_function_of_ray_tune_with_data_of_its_own(project: Project) -> None:
    best = run(project, "function")
    assert best["metric"]["value"] < 0.2
    assert project.result("mine", "confirmed.yaml")["evaluated_on"] == "validation"


def test_two_workers_of_ray_train_train_one_network(project: Project) -> None:
    best = run(project, "distributed", num_samples=1, search_space={"lr": 0.1, "width": 8}, max_epochs=4, confirm={"seeds": 1})
    assert best["metric"]["value"] > 0.7  # of two spirals
    state = torch.load(project.folder / "results/mine/model/state.pt")
    assert state["epoch"] == best["epochs"]
    confirmed = project.result("mine", "confirmed.yaml")
    assert (confirmed["n"], confirmed["evaluated_on"]) == (1, "test")


# Lines that a test appends to train.py. Each trial waits after its second report until the file `go` exists.
HOLD = """
import os, time

def hold():
    assert os.environ["OMP_NUM_THREADS"] == "1", "not the CPUs of the trial"
    while not os.path.exists(os.path.join(os.path.dirname(os.path.abspath(__file__)), "go")):
        time.sleep(0.05)
"""
HELD = {
    "lightning": """
class Held(Classifier):
    def on_train_epoch_start(self):
        if self.current_epoch == 2:
            hold()

Classifier = Held
""",
    "xgboost": """
class Held(ReportEachTenTrees):
    def before_iteration(self, model, epoch, evals_log):
        if model.num_boosted_rounds() == 2 * TREES_PER_REPORT:
            hold()

ReportEachTenTrees = Held
""",
}


def trained_epochs(like: str, model_dir: Path) -> float:
    """Return the number of epochs that trained the published model of an example."""
    if like == "xgboost":
        return xgboost.Booster(model_file=model_dir / "model.ubj").num_boosted_rounds() / 10  # trees of an epoch
    return torch.load(model_dir / "model.ckpt", weights_only=True)["global_step"] / (2048 / 32)  # batches of an epoch


def has_checkpoint(project: Project, epoch: int) -> bool:
    """Return whether the record contains the checkpoint of a trial after `epoch`."""
    record = project.folder / "state/mine/record.jsonl"
    return record.exists() and any(epoch in trial.checkpoints for trial in project.record("mine").trials.values())


@pytest.mark.parametrize(
    ("like", "rate", "other", "metric"),
    [("lightning", "lr", {"width": 16}, "accuracy"), ("xgboost", "eta", {"max_depth": 3, "subsample": 0.8}, "logloss")],
)
def test_a_trial_of_a_framework_goes_on_after_a_kill(project: Project, like: str, rate: str, other: dict[str, Any], metric: str) -> None:
    configs = [{rate: 0.05, **other}, {rate: 1e-6, **other}]  # the second trial learns nothing
    command = prepare(
        project,
        like,
        search_algorithm="grid",
        num_samples=1,
        max_epochs=4,
        max_concurrent=1,
        scheduler={"name": "asha", "grace_period": 3, "reduction_factor": 2},
        confirm={"seeds": 1},
    )
    config = yaml.safe_load((project.folder / "sweeps/mine/config.yaml").read_text())
    config["sweeps"]["mine"]["search_space"] = {rate: {"grid": [config[rate] for config in configs]}, **other}
    project.write("sweeps/mine/config.yaml", yaml.safe_dump(config))
    with (project.folder / "sweeps/mine/train.py").open("a") as stream:
        stream.write(HOLD + HELD[like])
    process = subprocess.Popen(
        command, cwd=project.folder, env=user_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_until(lambda: process.poll() is not None or has_checkpoint(project, 2), "the second checkpoint")
    assert process.poll() is None, process.communicate()[0]
    [launcher] = [child for child in psutil.Process(process.pid).children(recursive=True) if "/run_sweep.py" in " ".join(child.cmdline())]
    launcher.kill()
    process.communicate(timeout=180)
    assert process.returncode != 0
    (project.folder / "sweeps/mine/go").touch()
    best = finish(project, command)
    first, second = project.record("mine").trials.values()
    assert [first.config, second.config] == configs
    assert [(trial.status, [result.epoch for result in trial.results]) for trial in (first, second)] == [
        ("TERMINATED", [1, 2, 3, 4]),
        ("STOPPED", [1, 2, 3]),
    ]
    assert [attempt.from_epoch for attempt in first.attempts] == [0, 2]
    assert (best["trial_id"], trained_epochs(like, project.folder / "results/mine/model")) == (first.trial_id, best["epochs"])
    confirmed = project.result("mine", "confirmed.yaml")
    assert (confirmed["metric"]["name"], confirmed["n"], confirmed["evaluated_on"]) == (metric, 1, "test")


@pytest.mark.parametrize("like", sorted(path.name for path in (REPOSITORY / "examples").iterdir()))
def test_the_examples_themselves_are_valid_where_they_lie(like: str, checkout: Any) -> None:
    if like == "images":  # as the first line of the example's config says
        subprocess.run([sys.executable, "examples/images/draw_pictures.py"], cwd=checkout.root, check=True)
    done = checkout.snakemake("-n", "--configfile", f"examples/{like}/config.yaml")
    assert done.returncode == 0, done.stderr
    assert f"results/{like}/report.html" in done.stdout + done.stderr


def test_mistakes_are_one_line_and_nothing_is_written_over(project: Project) -> None:
    assert begin(project, "mine", "function").returncode == 0
    (project.folder / "sweeps/mine/train.py").write_text("mine")
    for name, like, message in (
        ("mine", "function", "NAME: sweeps/mine exists already. Give another name, or take it away."),
        ("", "images", "NAME: '' is not allowed: give a name of letters, digits"),
        ("../up", "images", "NAME: '../up' is not allowed"),
        ("other", "pictures", "LIKE: there is no example 'pictures'. Allowed: distributed, function, images, lightning, tabular, xgboost."),
    ):
        done = begin(project, name, like)
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert line.startswith(f"Error: {message}")
    assert (project.folder / "sweeps/mine/train.py").read_text() == "mine"
    assert sorted(path.name for path in (project.folder / "sweeps").iterdir()) == ["mine"]


def test_two_sweeps_share_no_data_and_a_name_that_yaml_takes_for_a_number_is_one(project: Project) -> None:
    configs = []
    for name in ("2024", "on"):
        assert begin(project, name, "images").returncode == 0
        configs.append(yaml.safe_load((project.folder / "sweeps" / name / "config.yaml").read_text()))
    assert [list(config["sweeps"]) for config in configs] == [["2024"], ["on"]]
    for name, config in zip(("2024", "on"), configs, strict=True):
        assert list(config["datasets"]) == [name] == [config["sweeps"][name]["dataset"]]
        assert config["datasets"][name]["source"] == f"sweeps/{name}/pictures"
    first_line = (project.folder / "sweeps/on/config.yaml").read_text(encoding="utf-8").splitlines()[0]
    path_to_schema = project.folder / "sweeps/on" / first_line.removeprefix("# yaml-language-server: $schema=")
    assert path_to_schema.resolve() == PATH_TO_SCHEMA.resolve()


def test_pictures_that_were_drawn_for_the_example_are_not_copied(checkout: Any) -> None:
    checkout.write("examples/images/pictures/circle/mine.png", "")
    argv = [sys.executable, "workflow/scripts/new_sweep.py", "--name", "mine", "--like", "images"]
    subprocess.run(argv, cwd=checkout.root, check=True, capture_output=True)
    assert not (checkout.root / "sweeps/mine/pictures/circle/mine.png").exists()
    assert len(list((checkout.root / "sweeps/mine/pictures").rglob("*.png"))) == 3 * 150


def test_what_could_not_be_drawn_leaves_no_half_sweep_behind(checkout: Any) -> None:
    argv = [sys.executable, "workflow/scripts/new_sweep.py", "--name", "mine", "--like", "images"]
    drawing = checkout.root / "examples/images/draw_pictures.py"
    text = drawing.read_text()
    drawing.write_text(text.replace("picture.save(", "raise OSError(28, 'No space left on device', "))
    run = subprocess.run(argv, cwd=checkout.root, check=False, capture_output=True, text=True)
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1
    assert list((checkout.root / "sweeps").iterdir()) == []
    drawing.write_text(text)
    subprocess.run(argv, cwd=checkout.root, check=True, capture_output=True)


@pytest.mark.parametrize("path", ["examples/images/pictures/x.png", "sweeps/mine/config.yaml"])
def test_what_the_examples_leave_is_not_committed(path: str) -> None:
    assert subprocess.run(["git", "check-ignore", path], cwd=REPOSITORY, capture_output=True).returncode == 0
