"""Several trials of each configuration, with a seed or a fold each: judged by their mean, stopped as one."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import PredefinedSplit, cross_val_score

from raysweep.data.manifest import DatasetSpec, Validation
from raysweep.data.split import fold_dir, load_split
from raysweep.data.stage import stage
from sweeping import TRAINABLES, Project, sweep_of

# The first trial of 0.5 is the best of all, and the second the worst.
UNEVEN = """
def uneven(config):
    value = config["x"]
    if value == 0.5:
        try:
            open(shared("first"), "x").close()
            value = 0.9
        except FileExistsError:
            value = 0.1
    climb({"x": value})
"""


def test_one_that_raises_once_is_tried_again_and_its_configuration_goes_on(project: Project) -> None:
    space = {"kind": {"grid": ["segfault", "nothing"]}}
    project.configure(sweeps={"s": sweep_of("stumbles", repeats=2, search_space=space, max_epochs=3)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    trials = project.record("s").trials.values()
    assert {(trial.status, trial.epochs) for trial in trials} == {("TERMINATED", 3)}
    assert sum(trial.num_failures for trial in trials) == 1


def test_a_sweep_is_won_by_the_best_mean(project: Project) -> None:
    project.write("user.py", TRAINABLES + UNEVEN)
    space = {"x": {"grid": [0.5, 0.6, 0.3]}}
    project.configure(sweeps={"s": sweep_of("uneven", repeats=2, search_space=space, max_epochs=2, confirm={"seeds": 1})})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    rows = project.trials("s")
    assert [(row["trial_id"], row["repeat"], row["config/x"]) for row in rows] == [
        ("00000-0", "0", "0.5"),
        ("00000-1", "1", "0.5"),
        ("00001-0", "0", "0.6"),
        ("00001-1", "1", "0.6"),
        ("00002-0", "0", "0.3"),
        ("00002-1", "1", "0.3"),
    ]
    assert len({row["seed"] for row in rows}) == 6
    best = project.result("s", "best.yaml")
    assert best["config"] == {"x": 0.6}
    assert best["trial_id"] == "00001-0"
    assert best["metric"]["value"] == pytest.approx(1.2)
    assert best["repeats"] == {"n": 2, "values": [1.2, 1.2], "standard_deviation": 0.0}
    assert best["num_trials"] == 6
    assert (project.folder / "results/s/model/epoch").read_text() == "2"
    confirm = project.run("confirm", "s")
    assert confirm.returncode == 0, confirm.stdout + confirm.stderr


def test_asha_stops_configurations_and_a_longer_sweep_goes_on(project: Project) -> None:
    values = {"repeats": 2, "max_epochs": 4, "scheduler": {"name": "asha", "reduction_factor": 2}, "search_algorithm": "optuna"}
    project.configure(sweeps={"s": sweep_of("climb", num_samples=4, **values)})
    assert project.run("run_sweep", "s").returncode == 0
    rows = project.trials("s")
    assert len(rows) == 8
    by_configuration: dict[str, set[str]] = {}
    for row in rows:
        by_configuration.setdefault(row["trial_id"].split("-")[0], set()).add(row["config/x"])
    assert all(len(values) == 1 for values in by_configuration.values())
    assert len({row["config/x"] for row in rows}) == 4
    stopped = {row["trial_id"].split("-")[0] for row in rows if row["status"] == "STOPPED"}
    assert stopped
    assert len(stopped) < 4
    project.configure(sweeps={"s": sweep_of("climb", num_samples=5, **values)})
    assert project.run("run_sweep", "s").returncode == 0
    longer = project.trials("s")
    assert longer[:8] == rows
    assert len(longer) == 10


LINEAR = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, in_features):
        super().__init__(nn.Linear(in_features, 1))
"""


def test_the_folds_have_the_values_of_cross_validation_with_scikit_learn(project: Project) -> None:
    generator = np.random.default_rng(0)
    x, site = generator.normal(5, [1, 3, 20], (120, 3)), np.arange(120) // 4
    y = x @ [3.0, -2.0, 0.5] + generator.normal(0, 1, 120)
    np.savez(project.folder / "own.npz", x=x, y=y, site=site)
    project.write("net.py", LINEAR)
    # With independent standardised inputs and the learning rate 0.5, each full batch brings the weights ten times nearer to those of least squares.
    space = {"lr": {"grid": [0.05, 0.5]}, "batch_size": 120}
    sweep = {
        "dataset": "own",
        "model": "net.py:Net",
        "metric": "rmse",
        "mode": "min",
        "max_epochs": 8,
        "search_space": space,
        "confirm": {"seeds": 1},
    }
    dataset = {"source": str(project.folder / "own.npz"), "checksum": "none", "group": "site", "validation": {"folds": 5}}
    project.configure(datasets={"own": dataset}, sweeps={"s": sweep})
    data = project.folder / "resources/data/own"
    spec = DatasetSpec("own", str(project.folder / "own.npz"), "none", 0.1, 0, group="site", validation=Validation(5))
    stage(spec, project.folder, data)
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "s: 10 trials (2 configurations, 5 folds each)" in run.stderr
    assert "s: trials are trained one by one: each trial of a configuration trains on another fold" in run.stderr

    fold_of_row = np.full(120, -1)
    for fold in range(5):
        is_validation = np.isin(x[:, 0], load_split(fold_dir(data, fold), "validation")[0][:, 0])
        assert (fold_of_row[is_validation] == -1).all()
        fold_of_row[is_validation] = fold
    assert all(len(np.unique(fold_of_row[site == number])) == 1 for number in range(30))
    is_test = fold_of_row == -1
    np.testing.assert_array_equal(x[is_test], load_split(data, "test")[0])
    x, y, folds, x_test, y_test = x[~is_test], y[~is_test], fold_of_row[~is_test], x[is_test], y[is_test]
    expected = -cross_val_score(LinearRegression(), x, y, cv=PredefinedSplit(folds), scoring="neg_root_mean_squared_error")

    rows = [row for row in project.trials("s") if row["config/lr"] == "0.5"]
    assert [(row["trial_id"], row["repeat"]) for row in rows] == [(f"00001-{fold}", str(fold)) for fold in range(5)]
    best = project.result("s", "best.yaml")
    assert best["trial_id"] == "00001-0", "the model of fold 0 is published"
    last = [trial.results[-1].metrics["rmse"] for trial in project.record("s").trials.values()][5:]
    assert last == pytest.approx(expected, rel=1e-4)
    assert best["metric"]["value"] == pytest.approx(np.mean(best["repeats"]["values"]))
    assert best["metric"]["value"] == pytest.approx(expected.mean(), rel=1e-2)
    confirm = project.run("confirm", "s")
    assert confirm.returncode == 0, confirm.stdout + confirm.stderr
    confirmed = project.result("s", "confirmed.yaml")
    residuals = LinearRegression().fit(x, y).predict(x_test) - y_test
    assert confirmed["mean"] == pytest.approx(np.sqrt(np.square(residuals).mean()), rel=1e-2)
    fold_0 = LinearRegression().fit(x[folds != 0], y[folds != 0]).predict(x_test) - y_test
    assert confirmed["published_model"]["rmse"] == pytest.approx(np.sqrt(np.square(fold_0).mean()), rel=5e-2)
