"""The whole workflow through Snakemake, with a model, on generated images: from nothing to the report."""

from __future__ import annotations

import csv
import json
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from raysweep.data.split import load_split
from raysweep.record.events import FusionPlan
from raysweep.training.preparation import normalized
from sweeping import REPOSITORY, Project, ours

TIMES = ("time_s", "node", "started", "ended")
SWEEP = {
    "dataset": "generated",
    "model": "raysweep.models.lenet:LeNet",
    "search_space": {"lr": {"loguniform": [1e-3, 1e-1]}, "batch_size": {"choice": [16, 32]}},
    "metric": "accuracy",
    "num_samples": 3,
    "max_epochs": 2,
    "confirm": {"seeds": 2},
    "allocation": {"cpus_per_node": 1},
}
CONFIG: dict[str, Any] = {
    "datasets": {"generated": {"source": "synthetic"}},
    # `two` is run again and compared to the last digit: how its trials are trained is not to hang on what was measured.
    "sweeps": {"one": SWEEP, "two": {**SWEEP, "num_samples": 2, "seed": 1, "fuse": "off"}},
}
MEETS = """
import os, time
from ray import tune

HERE = os.path.dirname(os.path.abspath(__file__))  # each trial has its own working directory

def meets(config):
    "Waits for a trial of the other sweep."
    open(os.path.join(HERE, config["mine"]), "w").close()
    end = time.monotonic() + 120
    while not os.path.exists(os.path.join(HERE, config["other"])):
        assert time.monotonic() < end, "the other sweep does not run"
        time.sleep(0.1)
    tune.report({"score": 1})
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two sweeps that were run side by side, from nothing to their reports."""
    project = Project(tmp_path_factory.mktemp("a project"))
    project.configure(**CONFIG)
    run = project.snakemake()
    assert run.returncode == 0, run.stdout + run.stderr
    assert ours(project.folder) == []
    return project


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(stream)]


def test_trials_csv_has_the_columns_that_were_promised(project: Project) -> None:
    (first, *_) = project.trials("one")
    columns = "trial_id,status,config/lr,config/batch_size,seed,repeat,accuracy,epoch_of_metric,epochs,time_s,node,started,ended,error"
    assert ",".join(first) == columns
    assert (first["trial_id"], first["status"], first["repeat"], first["epochs"], first["error"]) == ("00000", "TERMINATED", "0", "2", "")
    assert first["started"] < first["ended"]
    assert first["ended"].endswith("Z")


def test_best_yaml_is_the_best_row_and_says_where_it_came_from(project: Project) -> None:
    best, trials = project.result("one", "best.yaml"), project.trials("one")
    winner = max(trials, key=lambda row: float(row["accuracy"]))
    assert (best["sweep"], best["trial_id"], best["num_trials"], best["num_errors"]) == ("one", winner["trial_id"], 3, 0)
    assert best["config"] == {"lr": float(winner["config/lr"]), "batch_size": int(winner["config/batch_size"])}
    assert best["metric"] == {"name": "accuracy", "mode": "max", "value": float(winner["accuracy"])}
    assert best["epochs"] == best["model_epoch"] == int(winner["epoch_of_metric"])
    provenance = best["provenance"]
    manifest = yaml.safe_load((project.folder / "resources/data/generated/manifest.yaml").read_text())
    assert provenance["data_sha256"] == manifest["data_sha256"]
    assert provenance["identity"] == project.record("one").header.identity
    assert provenance["environment_sha256"]
    assert provenance["workflow_version"]


def test_the_published_model_has_the_winners_accuracy_on_validation_and_the_reported_one_on_test(project: Project) -> None:
    model = runpy.run_path(str(project.folder / "results/one/model/load.py"))["model"]
    accuracies = {}
    for split in ("validation", "test"):
        images, labels = map(torch.from_numpy, load_split(project.folder / "resources/data/generated", split))
        with torch.inference_mode():
            accuracies[split] = (model(normalized(images)).argmax(1) == labels).double().mean().item()
    assert accuracies["validation"] == pytest.approx(project.result("one", "best.yaml")["metric"]["value"])
    assert accuracies["test"] == pytest.approx(project.result("one", "confirmed.yaml")["published_model"]["accuracy"])


def test_the_programs_of_the_page_on_the_time_after_a_sweep_run(project: Project) -> None:
    page = (REPOSITORY / "docs/after-the-sweep.md").read_text(encoding="utf-8")
    program = "\n".join(re.findall(r"(?s)```python\n(.*?)```", page)).replace("/mine/", "/one/").replace("/cifar10/", "/generated/")
    run = subprocess.run([sys.executable, "-c", program], cwd=project.folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    [point] = yaml.safe_load(run.stdout[run.stdout.index("points_to_evaluate") :])["points_to_evaluate"]
    assert point == project.result("one", "best.yaml")["config"]
    (project.folder / "continued.pt").unlink()


def test_confirmation_used_new_seeds_on_the_test_set(project: Project) -> None:
    confirmed = project.result("one", "confirmed.yaml")
    assert (confirmed["evaluated_on"], confirmed["n"], len(confirmed["seeds"])) == ("test", 2, 2)
    assert not {entry["seed"] for entry in confirmed["seeds"]} & {int(row["seed"]) for row in project.trials("one")}
    values = [entry["value"] for entry in confirmed["seeds"]]
    assert confirmed["mean"] == pytest.approx(sum(values) / 2)
    assert confirmed["standard_deviation"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    confusion = np.array(confirmed["predictions"]["confusion"])
    assert confusion.trace() / confusion.sum() == pytest.approx(confirmed["published_model"]["accuracy"])


def test_the_report_is_one_page_without_the_network_that_calls_the_data_synthetic(project: Project) -> None:
    page = (project.folder / "results/one/report.html").read_text()
    assert len(page) < 3_000_000
    assert "synthetic" in page
    assert project.result("one", "best.yaml")["trial_id"] in page


def test_the_merged_config_lies_beside_the_results(project: Project) -> None:
    config = project.result("one", "config.yaml")
    assert list(config["sweeps"]) == ["one"]
    assert config["sweeps"]["one"]["num_samples"] == 3
    assert config["sweeps"]["one"]["max_failures"] == 2  # a default


def test_the_log_has_the_progress_and_nothing_was_left_beside_state_and_results(project: Project) -> None:
    log = (project.folder / "logs/run_sweep/one.log").read_text()
    assert "best accuracy" in log
    left = {path.name for path in (project.folder / "state/one").iterdir()}
    written = {"record.jsonl", "checkpoints", "trials.csv", "best.yaml", "optuna.journal"}
    assert {name for name in left if not name.startswith("confirm-")} == written
    assert [p.name for p in (project.folder / "state/one/checkpoints").iterdir()] == [
        f"{project.result('one', 'best.yaml')['trial_id']}-epoch{project.result('one', 'best.yaml')['epochs']}"
    ]


def test_the_same_config_gives_the_same_trials_on_another_day(project: Project, tmp_path: Path) -> None:
    other = Project(tmp_path / "again")
    other.configure(**CONFIG)
    run = other.snakemake("results/two/best.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    assert rows(other.folder / "results/two/trials.csv") == rows(project.folder / "results/two/trials.csv")


def test_two_sweeps_run_side_by_side(tmp_path: Path) -> None:
    project = Project(tmp_path / "a project")
    project.write("meets.py", MEETS)
    function = {"trainable": "meets.py:meets", "metric": "score", "num_samples": 1, "max_failures": 0, "allocation": {"cpus_per_node": 1}}
    spaces = {"one": {"mine": "a", "other": "b"}, "two": {"mine": "b", "other": "a"}}
    project.configure(sweeps={name: function | {"search_space": space} for name, space in spaces.items()})
    run = project.snakemake("results/one/best.yaml", "results/two/best.yaml")
    assert run.returncode == 0, run.stdout + run.stderr


def test_snakemakes_own_report_has_the_results_with_their_captions(project: Project) -> None:
    run = project.snakemake("--report", "report.zip")
    assert run.returncode == 0, run.stdout + run.stderr
    with zipfile.ZipFile(project.folder / "report.zip") as archive:
        page = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("report.html") and name.count("/") <= 1)
        names = {Path(name).name for name in archive.namelist()}
    assert {"trials.csv", "best.yaml", "confirmed.yaml", "report.html", "model.safetensors"} <= names
    assert "new seeds" in page


def test_a_second_run_does_nothing(project: Project) -> None:
    run = project.snakemake()
    assert run.returncode == 0
    assert "Nothing to be done" in run.stdout + run.stderr


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        ({"allocation": {"cpus_per_node": 2, "mem_mb_per_node": 3000, "runtime": "2h"}}, []),
        ({"max_concurrent": 1, "max_failures": 5, "resume": True}, []),
        ({"num_samples": 4}, ["run_sweep"]),
        ({"search_space": {"lr": 0.1, "batch_size": 16}}, ["run_sweep"]),
        ({"max_epochs": 3}, ["run_sweep"]),
        ({"repeats": 2}, ["run_sweep"]),
        ({"stop": {"accuracy": {"at_least": 0.9}}}, ["run_sweep"]),
        ({"constraint": {"loss": {"at_most": 9}}}, ["run_sweep"]),
        ({"confirm": {"seeds": 5}}, ["confirm"]),
        ({"metrics": ["f1"]}, ["confirm"]),
    ],
)
def test_what_a_changed_key_runs_again(project: Project, change: dict[str, Any], runs: list[str]) -> None:
    sweeps = {"one": {**SWEEP, **change}, "two": CONFIG["sweeps"]["two"]}
    project.configure("changed.yaml", **{**CONFIG, "sweeps": sweeps})
    run = project.snakemake("--dry-run", "--quiet", "rules", configfile="changed.yaml")
    assert run.returncode == 0, run.stderr
    said = run.stdout + run.stderr
    if not runs:
        assert "Nothing to be done" in said
    stats = {line.split()[0]: int(line.split()[1]) for line in said.splitlines() if len(line.split()) == 2 and line.split()[1].isdigit()}
    later = {"run_sweep": ["run_sweep", "confirm", "report", "compare", "all"], "confirm": ["confirm", "report", "compare", "all"]}
    expected = dict.fromkeys(later[runs[0]], 1) if runs else {}
    assert {rule: count for rule, count in stats.items() if rule != "total"} == expected


def test_forcing_the_sweep_writes_the_same_outputs_from_the_record_without_ray(project: Project) -> None:
    folder = project.folder / "results/one"
    before = {name: (folder / name).read_bytes() for name in ("trials.csv", "best.yaml", "model/model.safetensors")}
    record = (project.folder / "state/one/record.jsonl").read_bytes()
    run = project.snakemake("results/one/best.yaml", "-R", "run_sweep")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Ray is up" not in run.stdout + run.stderr
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert (project.folder / "state/one/record.jsonl").read_bytes() == record
    # The winner is the same file by its checksum, so neither its confirmation nor the report runs again.
    again = project.snakemake("--dry-run")
    assert "Nothing to be done" in again.stdout + again.stderr


def test_the_test_set_is_opened_by_confirm_and_by_nothing_else(project: Project, tmp_path: Path) -> None:
    """Without the test set on the disk the sweep gives the same trials, and nothing is confirmed."""
    copy = Project(tmp_path / "without test set")
    copy.configure(**CONFIG)
    shutil.copytree(project.folder / "resources", copy.folder / "resources")
    shutil.rmtree(copy.folder / "resources/data/generated/test")
    run = copy.run("run_sweep", "two")
    assert run.returncode == 0, run.stdout + run.stderr
    assert rows(copy.folder / "results/two/trials.csv") == rows(project.folder / "results/two/trials.csv")
    hasty = {**CONFIG["sweeps"]["two"], "max_failures": 0, "confirm": {"seeds": 1}}
    copy.configure(**{**CONFIG, "sweeps": {"two": hasty}})
    confirm = copy.run("confirm", "two")
    assert confirm.returncode == 0, confirm.stderr
    assert "test" in confirm.stderr.splitlines()[-1]
    assert [entry["value"] for entry in copy.result("two", "confirmed.yaml")["seeds"]] == [None]


def test_the_rules_declare_who_opens_the_test_set(project: Project) -> None:
    run = project.snakemake("--dry-run", "--forceall")
    said = run.stdout + run.stderr
    inputs = re.findall(r"rule (\w+):\n    input: (.*)", said)
    opens = {rule for rule, files in inputs if "generated/test" in files}
    assert opens == {"confirm"}


def test_a_models_own_file_is_trained_and_its_change_starts_anew(tmp_path: Path) -> None:
    project = Project(tmp_path / "own model")
    source = (REPOSITORY / "workflow/scripts/raysweep/models/lenet.py").read_text()
    # It also says how many threads it trains with: one for each CPU of its trial.
    source = source.replace(
        "        super().__init__()", "        super().__init__()\n        print(torch.get_num_threads(), file=open('threads.txt', 'a'))"
    )
    project.write("net.py", source)
    sweep = {
        **SWEEP,
        "model": "net.py:LeNet",
        "num_samples": 1,
        "max_epochs": 1,
        "search_space": {"lr": 0.05, "batch_size": 32, "num_classes": 10},
    }
    project.configure(datasets=CONFIG["datasets"], sweeps={"own": sweep})
    run = project.snakemake("results/own/best.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    assert (project.folder / "threads.txt").read_text().splitlines()[-1] == "1"
    first = project.record("own").header.identity
    project.write("net.py", source.replace("120", "60"))
    run = project.snakemake("results/own/best.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "own starts anew, since the code changed" in run.stdout + run.stderr
    assert project.record("own").header.identity != first
    assert json.dumps(project.result("own", "best.yaml")["config"]["num_classes"]) == "10"


LINEAR = """
from torch import nn

class Net(nn.Module):
    def __init__(self, in_features, out_features):
        super().__init__()
        self.layer = nn.Linear(in_features, out_features)

    def forward(self, x):
        return self.layer(x)
"""


def test_a_regression_on_a_table_is_trained_together_and_comes_near_to_least_squares(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    x, city = generator.normal(50, [1, 20], (600, 2)), generator.integers(0, 3, 600)
    x[generator.integers(0, 600, 20), 1] = np.nan
    y = 1000 + 30 * x[:, 0] + 5 * np.nan_to_num(x[:, 1], nan=50) - 100 * (city == 1) + generator.normal(0, 20, 600)
    lines = [f"{a},{'' if np.isnan(b) else b},{'abc'[c]},{d}" for (a, b), c, d in zip(x.tolist(), city, y.tolist(), strict=True)]
    project = Project(tmp_path / "a project")
    project.write("own table.csv", "\n".join(["a,b,city,price", *lines]))
    project.write("net.py", LINEAR)
    sweep = {
        **SWEEP,
        "dataset": "own",
        "model": "net.py:Net",
        "metric": "rmse",
        "mode": "min",
        "metrics": ["mape", "spearman_corrcoef"],
        "constraint": {"spearman_corrcoef": {"at_least": 0.5}},
        "max_epochs": 12,
        "num_samples": 2,
        "fuse": "on",
        "confirm": {"seeds": 1},
    }
    sweep["search_space"] = {"lr": {"choice": [0.02, 0.01]}, "batch_size": {"choice": [8, 16]}}
    project.configure(datasets={"own": {"source": "own table.csv", "target": "price"}}, sweeps={"s": sweep})
    run = project.snakemake("results/s/confirmed.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "missing values are filled from the training part: b (20, with " in (project.folder / "logs/stage_data/own.log").read_text()
    assert isinstance(project.record("s").fused, FusionPlan)
    parts = {split: load_split(project.folder / "resources/data/own", split) for split in ("train", "validation", "test")}
    assert parts["train"][0].shape == (432, 6), "two numbers, three categories, and one for other texts"
    fitted = np.linalg.lstsq(*map(np.concatenate, zip(parts["train"], parts["validation"], strict=True)), rcond=None)[0]
    least_squares = np.sqrt(np.square(parts["test"][0] @ fitted - parts["test"][1]).mean())
    confirmed = project.result("s", "confirmed.yaml")
    assert confirmed["evaluated_on"] == "test"
    assert confirmed["mean"] == pytest.approx(least_squares, rel=0.05)
    names = ["rmse", "mae", "r2", "loss", "mape", "spearman_corrcoef"]
    assert list(confirmed["published_model"]) == names
    assert {tuple(report.metrics) for trial in project.record("s").trials.values() for report in trial.results} == {(*names, "train_loss")}
    assert confirmed["metrics"]["mape"]["mean"] == pytest.approx(np.abs(1 - parts["test"][0] @ fitted / parts["test"][1]).mean(), rel=0.05)
    compared = confirmed["predictions"]
    assert compared["true"] == pytest.approx(parts["test"][1], rel=1e-5)
    errors = np.subtract(compared["predicted"], compared["true"])
    assert confirmed["published_model"]["rmse"] == pytest.approx(np.sqrt(np.square(errors).mean()), rel=1e-3)
    again = project.snakemake("results/s/confirmed.yaml", "-n")
    assert "Nothing to be done" in again.stdout + again.stderr, again.stdout + again.stderr
