"""Several trials of each configuration, with a seed each: judged by their mean, stopped as one."""

from __future__ import annotations

import pytest

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
