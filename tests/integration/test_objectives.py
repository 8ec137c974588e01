"""A sweep with several objectives on a real Ray: killed in the middle, it goes on exactly, and its outputs have the front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from raysweep.record.pareto import front_of
from sweeping import Project, sweep_of, wait_until

# A flat plate is light and bends, a thick one is heavy and stiff. The fifth trial waits for the file `go`.
PLATE = """
import os, time
from ray import tune

def plate(config):
    started = os.path.join(os.path.dirname(os.path.abspath(__file__)), "started")
    with open(started, "a") as stream:
        stream.write("x")
    while os.path.getsize(started) == 5 and not os.path.exists(started.replace("started", "go")):
        time.sleep(0.1)
    tune.report({"weight": config["x"] + config["y"] ** 2, "bend": (1 - config["x"]) ** 2 + config["y"] ** 2})

def confirm(config, seed, epochs):
    return {"weight": config["x"] + config["y"] ** 2, "bend": (1 - config["x"]) ** 2 + config["y"] ** 2}
"""


def sweep(**changes: Any) -> dict[str, Any]:
    algorithm = {"name": "optuna", "sampler": "nsga2", "population_size": 3}
    objectives = [{"metric": "weight", "mode": "min"}, {"metric": "bend", "mode": "min"}]
    space = {"x": {"uniform": [0, 1]}, "y": {"uniform": [0, 1]}}
    made = sweep_of(
        "plate", num_samples=10, max_concurrent=1, search_space=space, search_algorithm=algorithm, objectives=objectives, **changes
    )
    return {key: value for key, value in made.items() if key != "metric"}


def shown(journal: Path) -> list[str]:
    """Return the states of the trials that a reader of Optuna's journal sees."""
    study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(journal))))
    return [trial.state.name for trial in study.trials]


def test_a_killed_sweep_with_two_objectives_goes_on_exactly_and_has_a_front(project: Project) -> None:
    project.write("user.py", PLATE)
    project.configure(sweeps={"s": sweep(choose="knee", confirm={"seeds": 2}), "whole": sweep()})
    process = project.start("run_sweep", "s")
    started = project.folder / "started"
    wait_until(lambda: started.exists() and started.stat().st_size == 5, "the fifth trial")
    journal = project.folder / "state/s/optuna.journal"
    wait_until(lambda: journal.exists() and shown(journal) == ["COMPLETE"] * 4 + ["RUNNING"], "the fifth trial in the journal of Optuna")
    process.kill()
    process.communicate(timeout=180)
    project.write("go", "")
    for name in ("s", "whole"):
        run = project.run("run_sweep", name)
        assert run.returncode == 0, run.stdout + run.stderr
    assert shown(journal) == ["COMPLETE"] * 10
    interrupted, whole = (list(project.record(name).trials.values()) for name in ("s", "whole"))
    assert [trial.config for trial in interrupted] == [trial.config for trial in whole]
    assert len(interrupted[4].attempts) == 2

    rows = project.trials("s")
    points = [(float(row["weight"]), float(row["bend"])) for row in rows]
    front = [rows[index]["trial_id"] for index in front_of(points)]
    assert [row["trial_id"] for row in rows if row["pareto"] == "true"] == sorted(front)
    best = project.result("s", "best.yaml")
    assert [point["trial_id"] for point in best["front"]] == front
    assert best["trial_id"] in front[1:-1]

    project.configure(sweeps={"s": sweep(choose="bend", confirm={"seeds": 2})})
    assert project.run("run_sweep", "s").returncode == 0
    assert project.result("s", "best.yaml")["trial_id"] == front[-1]
    assert len(project.record("s").sessions) == 2, "another choice runs no trial"
    assert project.run("confirm", "s").returncode == 0
    confirmed = project.result("s", "confirmed.yaml")
    assert (confirmed["metric"]["name"], confirmed["config"]) == ("weight", best["front"][-1]["config"])
    assert confirmed["metrics"]["bend"]["mean"] == best["front"][-1]["metrics"]["bend"]
