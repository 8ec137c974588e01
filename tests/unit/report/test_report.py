"""The page of a sweep: nothing of the user's becomes markup, every kind of sweep has a page, and the entry point writes it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysweep.common.files import write_yaml
from raysweep.common.machine import NodeSize
from raysweep.common.text import number
from raysweep.record.gpu_use import GpuUse
from raysweep.report.inputs import Inputs
from raysweep.report.report import figures_of, render, split_lines, write_report
from recorded import MemberJob, write_outputs, write_record
from reporting import made_up, note, read_written, titles

ROOT = Path(__file__).resolve().parents[3]


def page_of(inputs: Inputs, root: Path = ROOT) -> str:
    """Return the page of a sweep."""
    return render(inputs, figures_of(inputs), root)


HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror=\"window.broken = 1\"> {{ 7 * 7 }} \u2028 'a' & \\"


def test_nothing_of_the_users_becomes_markup(tmp_path: Path) -> None:
    inputs = made_up(
        tmp_path,
        failed={0: HOSTILE},
        name="sw<b>eep",
        search_space={"lr": {"loguniform": [1e-4, 1e-1]}, HOSTILE.replace("/", "|"): {"choice": [HOSTILE, "b"]}},
    )
    write_yaml(tmp_path / "config.yaml", {"x": HOSTILE})
    inputs = replace(inputs, config_text=(tmp_path / "config.yaml").read_text())
    page = page_of(inputs)
    assert page.count("<script") == 3  # data, bundle, code
    assert page.count("</script") == 3
    assert "<img" not in page.replace(inputs.config_text, "").split("<script")[0]
    assert "sw<b>eep" not in page
    assert "sw&lt;b&gt;eep" in page
    assert "{{ 7 * 7 }}" in page  # shown as it is, not run as a template


@pytest.mark.parametrize(
    ("changes", "split", "test"),
    [
        ({}, "0.1 of the training set for validation, drawn with seed 0, the same share of each class", None),
        (
            {"kind": "table", "test_fraction": 0.2, "group": "site", "folds": 5, "validation_fraction": None},
            "5 folds, drawn with seed 0, whole groups of site",
            "0.2 of all rows, set aside with the same seed before that split, whole groups of site",
        ),
        (
            {"kind": "arrays", "test_fraction": 0.2, "split": "time"},
            "0.1 of the training set for validation, the last rows",
            "0.2 of all rows, set aside before that split, the last rows",
        ),
    ],
)
def test_the_page_says_how_the_rows_were_divided(tmp_path: Path, changes: dict[str, Any], split: str, test: str | None) -> None:
    data = made_up(tmp_path, num_trials=1).data
    assert data is not None
    assert dict(split_lines(replace(data, **changes))) == {"Split": split} | ({"Test set": test} if test else {})


def test_the_policy_names_the_scripts_and_allows_nothing_else(tmp_path: Path) -> None:
    page = page_of(made_up(tmp_path))
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1])  # type: ignore[index]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy


@pytest.mark.slow
def test_the_page_of_a_thousand_trials_is_below_three_megabytes(tmp_path: Path) -> None:
    inputs = made_up(
        tmp_path,
        num_trials=1000,
        max_epochs=10,
        slots=20,
        scheduler={"name": "asha"},
        search_space={"lr": {"loguniform": [1e-4, 1e-1]}, "net": {f"p{i}": {"uniform": [0, 1]} for i in range(6)}},
    )
    path = tmp_path / "report.html"
    write_report(inputs, path, tmp_path / "figures", ROOT)
    assert path.stat().st_size < 3_000_000
    assert path.read_text(encoding="utf-8").count("<tr class=") == 1000


@pytest.mark.parametrize(
    ("sweep", "outputs"),
    [
        ({"num_trials": 1}, {}),
        ({"constant": 0.5}, {"spread": 0.0}),
        ({"num_trials": 5, "failed": dict.fromkeys(range(4), "boom")}, {}),
        ({"mode": "min", "metric": "loss", "max_epochs": 3}, {}),
        ({"search_space": {"act": {"choice": ["relu", "tanh", None, True]}}}, {}),
        ({"search_space": {"momentum": 0.9}}, {}),
        ({"search_space": {}}, {}),
        ({"search_space": {"n": {"normal": [0, 1]}, "i": {"lograndint": [1, 3]}, "q": {"qloguniform": [1, 100, 1]}}}, {"seeds": 1}),
        ({}, {"seed_errors": {0: "died", 1: "died"}}),
        ({"dataset": None, "model": None, "optimizer": None, "loss": None, "trainable": "a/train.py:train"}, {"on": "validation"}),
        ({"interruptions": 3, "nodes": ("a", "b"), "max_epochs": 3}, {"synthetic": True}),
    ],
)
def test_a_page_comes_of_every_kind_of_sweep(tmp_path: Path, sweep: dict[str, Any], outputs: dict[str, Any]) -> None:
    inputs = made_up(tmp_path, outputs, **sweep)
    page = page_of(inputs)
    figures = json.loads(html.unescape(re.search(r'id="figures">(.*?)</script>', page)[1]))  # type: ignore[index]
    assert len(figures["data"]["trials"]["trial"]) == len(inputs.trials)
    assert number(inputs.best.value) in page
    assert ("Synthetic data." in page) == bool(outputs.get("synthetic"))
    for place in figures["specs"]:
        assert f'id="chart-{place}"' in page


def test_synthetic_data_is_said_above_the_result(tmp_path: Path) -> None:
    page = page_of(made_up(tmp_path, {"synthetic": True}))
    assert page.index("Synthetic data.") < page.index("Best configuration")


@pytest.mark.slow
def test_the_entry_point_writes_the_page_and_names_a_missing_file(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    outputs = write_outputs(tmp_path, write_record(record))
    command = [sys.executable, str(ROOT / "workflow/scripts/report.py"), "--sweep", "lenet", "--record", str(record)]
    for option in ("best", "confirmed", "config", "data-manifest", "env-manifest"):
        command += [f"--{option}", str(outputs[f"path_to_{option.replace('-', '_')}"])]
    command += [
        "--figures-dir",
        str(tmp_path / "figures"),
        "--journal",
        str(tmp_path / "optuna.journal"),
        "--output",
        str(tmp_path / "report.html"),
        "--log",
        str(tmp_path / "report.log"),
    ]
    subprocess.run(command, check=True, cwd=ROOT)
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "report.html" in (tmp_path / "report.log").read_text()
    outputs["path_to_best"].unlink()
    failed = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "best.yaml" in failed.stderr


def test_the_listed_metrics_and_the_predictions_of_the_test_set_are_shown(tmp_path: Path) -> None:
    means = {"f1": {"mean": 0.81234, "standard_deviation": 0.0123}, "auroc": {"mean": 0.9, "standard_deviation": None}}
    pairs = {"true": [1.0, 2.0], "predicted": [1.5, 2.0]}
    page = page_of(made_up(tmp_path, {"confirmed": {"metrics": means, "predictions": pairs}}))
    assert 'test f1, mean ± standard deviation of the seeds</td><td class="number">0.8123 ± 0.012<' in page
    assert 'test auroc, mean of the seeds</td><td class="number">0.9<' in page
    assert "2 of 10,000 rows are drawn, at even steps." in page
    assert 'id="chart-confusion"' not in page


def test_the_next_best_configurations_are_shown_with_their_difference_from_the_winner(tmp_path: Path) -> None:
    def other(trial: str, low: float | None, high: float | None) -> dict[str, Any]:
        mean = None if low is None or high is None else (low + high) / 2
        difference = {"n": 3, "mean": mean or -0.01, "low": low, "high": high}
        seeds = [{"seed": 2000 + number, "value": 0.5, "error": None} for number in range(3)]
        values = {
            "trial_id": trial,
            "config": {},
            "validation": 0.61,
            "epochs": 7,
            "seeds": seeds,
            "n": 3,
            "mean": 0.5,
            "standard_deviation": 0.0,
        }
        return values | {"difference": difference}

    inputs = made_up(tmp_path, {"confirmed": {"others": [other("00007", 0.01, 0.03), other("00009", None, None)]}})
    page = page_of(inputs)
    assert 'trial 00007</td><td class="number">0.61</td><td class="number">7</td>' in page
    assert "0.01 to 0.03" in page
    found = note(inputs, "A configuration is better than the winner on the new seeds")
    assert found.kind == "warn"
    assert "The winner stays the configuration that validation chose" in found.text
    rows = [value["row"] for value in figures_of(inputs).specs["confirmation"]["data"]["values"]]
    assert rows.count("trial 00007, each seed") == 3
    worse = made_up(tmp_path / "worse", {"confirmed": {"others": [other("00007", -0.03, -0.01)]}})
    assert note(worse, "The next configuration was confirmed too").kind == "good"
    assert not any("confirmed too" in title for title in titles(made_up(tmp_path / "alone")))


@pytest.mark.parametrize("target", [{}, {"dataset": None, "model": None, "optimizer": None, "loss": None, "trainable": "train.py:train"}])
def test_a_page_without_a_model_names_the_file_with_the_reason(tmp_path: Path, target: dict[str, Any]) -> None:
    inputs = made_up(tmp_path, {"on": "validation"}, **target)
    assert "checkpoint after epoch 1" in page_of(inputs, tmp_path)
    inputs = replace(inputs, best=replace(inputs.best, model_epoch=None))
    page = page_of(inputs, tmp_path)
    assert "README.txt says why" in page
    assert "load.py" not in page


def test_the_cost_stands_beside_what_was_planned(tmp_path: Path) -> None:
    plan = {
        "num_trials": 20,
        "trials_left": 20,
        "cpu_hours": {"low": 0.5, "expected": 1, "high": 2.25},
        "gpu_hours": {"low": 0, "expected": 0, "high": 0},
    }
    sweep = write_record(tmp_path / "record.jsonl", num_trials=20)
    files = write_outputs(tmp_path, sweep)
    for left, is_said in ((20, True), (5, False)):
        write_yaml(tmp_path / "plan.yaml", plan | {"trials_left": left})
        inputs = read_written(tmp_path / "record.jsonl", files | {"path_to_plan": tmp_path / "plan.yaml"})
        write_report(inputs, tmp_path / "report.html", tmp_path / "figures", ROOT)
        assert ("planned: 0.5 to 2.25" in (tmp_path / "report.html").read_text()) == is_said


def test_the_nodes_of_several_jobs_stand_with_their_jobs_and_those_of_one_job_do_not(tmp_path: Path) -> None:
    jobs = (MemberJob("12_0", "a"), MemberJob("12_1", "b", from_s=60), MemberJob("12_2", "c", from_s=70, until_s=80))
    several = page_of(made_up(tmp_path / "several", num_trials=30, jobs=jobs, interruptions=1))
    assert "3 nodes of 3 jobs, up to 6 CPUs at a time" in several
    assert "a (job 12_0, 2 CPUs, 0 GPUs), b (job 12_1, 2 CPUs, 0 GPUs), c (job 12_2, 2 CPUs, 0 GPUs)" in several
    assert '<td class="wrap">b (job 12_1, 2 CPUs, 0 GPUs)</td>' in several, "the second leader goes on alone"
    one = page_of(made_up(tmp_path / "one", num_trials=30, nodes=("a", "b"), interruptions=1))
    assert "2 nodes, 4 CPUs<" in one
    assert "a (2 CPUs, 0 GPUs), b (2 CPUs, 0 GPUs)" in one


def test_how_busy_the_gpus_were_stands_beside_their_number_and_has_a_figure_and_a_file(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=30)
    assert "gpu_use" not in figures_of(inputs).specs
    session = replace(inputs.sessions[0], nodes=(NodeSize("a", 8, 2),))
    inputs.sweep.sessions[:] = [session]
    lines = [(session.at, (100.0, 60.0)), (session.last_at, (40.0, 0.0))]
    inputs = replace(inputs, gpu_use=tuple(GpuUse("7-a", "a", at, 60, percent) for at, percent in lines))
    write_report(inputs, tmp_path / "report.html", tmp_path / "figures", ROOT)
    page = (tmp_path / "report.html").read_text()
    assert "1 node, 8 CPUs, 2 GPUs; GPUs 50 % busy" in page
    assert 'id="chart-gpu_use"' in page
    rows = (tmp_path / "figures" / "gpu_use.csv").read_text().splitlines()
    assert rows[0] == "at,mean,least_busy,most_busy"
    assert [row.partition(",")[2] for row in rows[1:]] == ["80.0,60.0,100.0", "20.0,0.0,40.0"]
