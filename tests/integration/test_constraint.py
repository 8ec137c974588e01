"""What a report must fulfil to win, beside the best metric."""

from __future__ import annotations

from typing import Any

from sweeping import Project, sweep_of

# Better with each epoch, and larger; one is never small enough.
GROWING = """
import os, tempfile
from ray import tune

def growing(config):
    for epoch in range(1, 5):
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "epoch"), "w") as stream:
                stream.write(str(epoch))
            tune.report({"score": config["x"] * epoch, "size": config["size"] * epoch}, checkpoint=tune.Checkpoint.from_directory(folder))
"""


def sweep(constraint: dict[str, Any]) -> dict[str, object]:
    space = {"x": {"grid": [1, 2]}, "size": 10}
    return sweep_of("growing", search_space=space, max_epochs=4, constraint=constraint)


def test_where_none_was_within_it_the_best_model_is_kept_for_another_constraint(project: Project) -> None:
    project.write("user.py", GROWING)
    project.configure(sweeps={"s": sweep({"size": {"at_most": 5}})})
    assert project.run("run_sweep", "s").returncode == 1
    project.configure(sweeps={"s": sweep({})})
    assert project.run("run_sweep", "s").returncode == 0
    best = project.result("s", "best.yaml")
    assert (best["config"]["x"], best["epochs"], best["model_epoch"]) == (2, 4, 4)
    assert (project.folder / "results/s/model/epoch").read_text() == "4"


def test_the_winner_is_within_the_constraint_and_another_one_takes_no_trial_anew(project: Project) -> None:
    project.write("user.py", GROWING)
    project.configure(sweeps={"s": sweep({"size": {"at_most": 25}})})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    best = project.result("s", "best.yaml")
    assert (best["config"]["x"], best["epochs"], best["metric"]["value"]) == (2, 2, 4)
    assert best["constraint"] == {"size": {"at_most": 25}}
    assert (project.folder / "results/s/model/epoch").read_text() == "2"
    attempts = [trial.attempts for trial in project.record("s").trials.values()]

    project.configure(sweeps={"s": sweep({"size": {"at_most": 5}})})
    none = project.run("run_sweep", "s")
    assert none.returncode == 1
    assert "Error: s: no trial without an error has a report within the constraint (size: {'at_most': 5})" in none.stderr
    project.configure(sweeps={"s": sweep({})})
    assert project.run("run_sweep", "s").returncode == 0
    assert project.result("s", "best.yaml")["epochs"] == 4
    assert [trial.attempts for trial in project.record("s").trials.values()] == attempts
