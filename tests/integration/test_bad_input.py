"""Mistakes in a config end Snakemake before anything starts, with a line for each: file, key, value, what is allowed."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from project import Project

HERE = "config/config.yaml: sweeps.lenet"

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": (
        {"num_sample": 5},
        f"{HERE}.num_sample: unknown key. Did you mean num_samples? Allowed: dataset, model, loss, optimizer, training, trainable, search_space,"
        " points_to_evaluate, metric, mode, objectives, choose, metrics, num_samples, max_epochs, stop, constraint, repeats, search_algorithm, scheduler, seed,"
        " max_concurrent, time_budget, max_gpu_hours, warm_start, end_when, trial_timeout, max_failures, keep_checkpoints, fuse, tensorboard, mlflow, wandb,"
        " resume, trial_resources, allocation, confirm",
    ),
    "a wrong type": ({"max_epochs": "ten"}, f"{HERE}.max_epochs: 'ten' is not allowed: a whole number, at least 1"),
    "no samples": ({"num_samples": 0}, f"{HERE}.num_samples: 0 is not allowed: a whole number, at least 1"),
    "loguniform from 0": (
        {"search_space": {"lr": {"loguniform": [0, 0.1]}, "batch_size": 4}},
        f"{HERE}.search_space.lr.loguniform: [0, 0.1] is not allowed: the bounds of loguniform must be above 0",
    ),
    "loguniform upside down": (
        {"search_space": {"lr": {"loguniform": ["1e-1", "1e-4"]}, "batch_size": 4}},
        f"{HERE}.search_space.lr.loguniform: [0.1, 0.0001] is not allowed: the lower bound of loguniform must be below the upper one",
    ),
    "an empty choice": (
        {"search_space": {"lr": 0.1, "batch_size": {"choice": []}}},
        f"{HERE}.search_space.batch_size.choice: [] is not allowed: choice takes a list of at least one value",
    ),
    "a date": (
        {"search_space": {"lr": 0.1, "batch_size": 4, "start": datetime.date(2024, 1, 31)}},
        f"{HERE}.search_space.start: 2024-01-31 is not allowed: YAML reads 2024-01-31 as a date. Write '2024-01-31' with the quotes",
    ),
    "batch sizes with a fraction": (
        {"search_space": {"lr": 0.1, "batch_size": {"uniform": [2, 16]}}},
        f"{HERE}.search_space.batch_size: uniform is not allowed here: whole numbers of at least 1, from randint, lograndint, choice, grid, or"
        " quniform or qloguniform with a whole step",
    ),
    "no time": (
        {"time_budget": "0s"},
        f"{HERE}.time_budget: '0s' is not allowed: minutes above 0, a time such as 90s, 3h or 1d12h, or null",
    ),
    "the most loss": ({"metric": "loss"}, f"{HERE}.mode: 'max' is not allowed with metric loss, of which less is better: write mode: min"),
    "a model file that does not exist": (
        {"model": "nets/small.py:Net"},
        f"{HERE}.model: 'nets/small.py:Net' is not allowed: there is no file nets/small.py (paths are relative to the folder where Snakemake runs)",
    ),
    "a model module that does not exist": (
        {"model": "raysweep.models.vgg:VGG"},
        f"{HERE}.model: 'raysweep.models.vgg:VGG' is not allowed: there is no module raysweep.models.vgg in this folder or in workflow/scripts",
    ),
    "a name that the file does not define": (
        {"trainable": "train.py:trian", "model": None},
        f"{HERE}.trainable: 'train.py:trian' is not allowed: train.py does not define trian (it defines helper, train)",
    ),
    "an unknown mode": ({"mode": "maximum"}, f"{HERE}.mode: 'maximum' is not allowed: one of max, min. Did you mean max?"),
    "an unknown scheduler option": (
        {"scheduler": {"name": "asha", "grace_periods": 2}},
        f"{HERE}.scheduler.grace_periods: unknown option of asha. Did you mean grace_period? Allowed: grace_period, reduction_factor",
    ),
    "an unknown scheduler": (
        {"scheduler": "ahsa"},
        f"{HERE}.scheduler.name: 'ahsa' is not allowed: one of none, asha, hyperband, median, pbt. Did you mean asha?",
    ),
    "population based training without a setting that can change": (
        {"scheduler": "pbt", "search_space": {"lr": 0.1, "batch_size": 4}},
        f"{HERE}.scheduler.name: 'pbt' is not allowed: it changes settings in the middle of a training, and nothing that is searched can change then."
        " Allowed: a distribution for lr, batch_size or the like",
    ),
    "more CPUs than a node has": (
        {"trial_resources": {"cpu": 12, "gpu": 0}},
        f"{HERE}.trial_resources.cpu: 12 is not allowed: a trial runs on one node, so at most allocation.cpus_per_node, 10",
    ),
    "more GPUs than a node has": (
        {"trial_resources": {"cpu": 1, "gpu": 2}},
        f"{HERE}.trial_resources.gpu: 2 is not allowed: a trial runs on one node, so at most allocation.gpus_per_node, 1",
    ),
}


def refusals(checkout: Project, *arguments: str) -> list[str]:
    """Return the lines with which a real run ends that has made no file."""
    before = checkout.files()
    done = checkout.snakemake("--cores", "1", *arguments)
    assert done.returncode == 1
    assert checkout.files() == before
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert all(line.startswith("Error: ") for line in lines)
    return [line.removeprefix("Error: ") for line in lines]


def refusal(checkout: Project, *arguments: str) -> str:
    """Return the one line with which a real run ends that has made no file."""
    [line] = refusals(checkout, *arguments)
    return line


@pytest.mark.parametrize(("changes", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_a_sweep(checkout: Project, changes: dict[str, Any], message: str) -> None:
    # It raises when it is imported, so it is not: it is only read.
    checkout.write("train.py", "raise RuntimeError\ndef train(config): pass\ndef helper(): pass\n")
    config = checkout.read_config()
    sweep = config["sweeps"]["lenet"] | changes
    config["sweeps"]["lenet"] = {key: value for key, value in sweep.items() if value is not None}
    checkout.write_config(config)
    assert refusal(checkout) == message


def test_a_syntax_error_in_a_file_that_the_trainable_imports(checkout: Project) -> None:
    checkout.write("train.py", "from helper import f\ndef train(config): pass\n")
    checkout.write("helper.py", "def f(:\n")
    checkout.write_config({"sweeps": {"own": {"trainable": "train.py:train", "search_space": {"x": 1}, "metric": "m"}}})
    assert refusal(checkout) == (
        f"config/config.yaml: sweeps.own.trainable: 'train.py:train' is not allowed: {checkout.root}/helper.py is not Python that can be read:"
        " invalid syntax (line 1)"
    )


ALLOWED_NAME = "a name of letters, digits, and . _ - that starts with a letter or digit and holds no '..'"


@pytest.mark.parametrize("name", ["a/b", "-rf", "..", "lenet\n"])
def test_a_sweeps_name_is_a_plain_folder(checkout: Project, name: str) -> None:
    config = checkout.read_config()
    config["sweeps"] = {name: config["sweeps"]["lenet"]}
    checkout.write_config(config)
    assert refusal(checkout) == " ".join(f"config/config.yaml: sweeps.{name}: the name {name!r} is not allowed: {ALLOWED_NAME}".split())


def test_two_sweeps_in_one_folder(checkout: Project) -> None:
    sweep = '{trainable: "train.py:train", search_space: {x: 1}, metric: m}'
    checkout.write("train.py", "def train(config): pass\n")
    checkout.write("config/config.yaml", f"sweeps:\n  a: {sweep}\n  a: {sweep}\n")
    assert refusal(checkout) == (
        "config/config.yaml: sweeps.a: stands twice in one map (line 2 and after), and the second would silently replace the first. Allowed: each name"
        " once, so that no two sweeps write to one folder"
    )
    checkout.write("config/config.yaml", f"sweeps:\n  a: {sweep}\n  A: {sweep}\n")
    assert refusal(checkout) == (
        "config/config.yaml: sweeps.A: the name 'A' is not allowed: where capitals do not count it would write to the folder of 'a'"
    )


def test_a_missing_requirements_file_or_lock(checkout: Project) -> None:
    config = checkout.read_config() | {"env": {"requirements": "own.in"}}
    checkout.write_config(config)
    assert refusal(checkout) == (
        f"config/config.yaml: env.requirements: {checkout.root}/own.in is missing, the requirements file (env.requirements): name one that exists;"
        " its lock lies beside it, as .txt"
    )
    checkout.write("own.in", "ray[tune]\n")
    assert refusal(checkout) == (
        f"config/config.yaml: env.requirements: {checkout.root}/own.txt is missing, the lock of env.requirements: make it with"
        f" `uv pip compile --universal {checkout.root}/own.in -o {checkout.root}/own.txt`"
    )


def test_a_mistake_in_another_configfile(checkout: Project) -> None:
    checkout.write("mine.yaml", "sweep: {}\n")
    assert refusal(checkout, "--configfile", "mine.yaml") == (
        "mine.yaml: sweep: unknown key. Did you mean sweeps? Allowed: results_dir, state_dir, resources_dir, datasets, env, ray, sweeps"
    )


def test_mistakes_in_two_files_and_two_sweeps_are_reported_together(checkout: Project) -> None:
    checkout.write("train.py", "def train(config): pass\n")
    own = {"trainable": "train.py:train", "search_space": {"x": {"uniform": [1, 0]}, "y": {"choice": []}}, "metric": "m"}
    checkout.write_config({"sweeps": {"one": own, "two": own | {"search_space": {"x": 1}, "mode": "least"}}}, "base.yaml")
    checkout.write("more.yaml", "sweeps: {one: {num_samples: 0}, two: {fuse: on}}\n")
    assert refusals(checkout, "--configfile", "base.yaml", "more.yaml") == [
        "base.yaml: sweeps.one.search_space.x.uniform: [1, 0] is not allowed: the lower bound of uniform must be below the upper one",
        "base.yaml: sweeps.one.search_space.y.choice: [] is not allowed: choice takes a list of at least one value",
        "more.yaml: sweeps.one.num_samples: 0 is not allowed: a whole number, at least 1",
        "base.yaml: sweeps.two.mode: 'least' is not allowed: one of max, min",
        "more.yaml: sweeps.two.fuse: 'on' is not allowed: auto or off with a trainable, since only trials of a model can be trained together",
    ]


def test_a_folder_that_cannot_be_written_to_ends_the_run_before_the_first_job(checkout: Project) -> None:
    checkout.write("a file", "")
    checkout.write_config(checkout.read_config() | {"state_dir": "a file/below"})
    run = checkout.snakemake("--cores", "1", "--until", "stage_data")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        "Error: state_dir: a file/below cannot be written to: Not a directory. Name another folder, or change this one"
    )
    assert "Traceback" not in run.stderr
    assert not (checkout.root / "resources").exists()
