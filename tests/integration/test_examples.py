"""The worked examples, as `make new-sweep` copies them: each runs as it is, from nothing to its report."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import joblib
import pytest
import torch
import yaml

from raysweep.config.schema import PATH_TO_SCHEMA
from raysweep.data.split import load_split
from sweeping import ENV, REPOSITORY, Project, ours, user_environment

NEW_SWEEP = REPOSITORY / "workflow/scripts/new_sweep.py"


def begin(project: Project, name: str, like: str) -> subprocess.CompletedProcess[str]:
    return project.finished([sys.executable, str(NEW_SWEEP), "--name", name, "--like", like])


def run(project: Project, like: str, **sweep: Any) -> dict[str, Any]:
    """Begin a sweep `mine` like that example and run it in the environment of the tests; what best.yaml holds. `sweep` replaces keys of the sweep."""
    begun = begin(project, "mine", like)
    assert begun.returncode == 0, begun.stderr
    command = "snakemake --cores all --configfile sweeps/mine/config.yaml"
    assert begun.stdout.splitlines()[2].strip() == command
    project.write("env.yaml", yaml.safe_dump({"env": ENV} | ({"sweeps": {"mine": sweep}} if sweep else {})))
    argv = [sys.executable, "-m", *command.split(), "--snakefile", str(REPOSITORY / "Snakefile")]
    done = subprocess.run(
        [*argv[:-2], "env.yaml", *argv[-2:]], cwd=project.folder, env=user_environment(), capture_output=True, text=True, timeout=900
    )
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


@pytest.mark.parametrize("like", ["images", "tabular", "function", "distributed"])
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
        ("other", "pictures", "LIKE: there is no example 'pictures'. Allowed: distributed, function, images, tabular."),
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
