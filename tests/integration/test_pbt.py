"""Population based training: who takes over what, what the record keeps of it, and how a confirmation repeats it."""

from __future__ import annotations

import pytest
import yaml

from faults import part_of
from raysweep.common.typed_json import to_json
from raysweep.data.manifest import DatasetSpec
from raysweep.data.stage import stage
from raysweep.record.file import read_sweep
from sweeping import NET, Project, sweep_of, wait_until

OPTIONS = {"perturbation_interval": 1, "quantile_fraction": 0.5, "resample_probability": 0.25}


def test_a_population_of_a_function_whose_driver_is_killed_after_a_take_over(project: Project) -> None:
    options = {"name": "pbt", **OPTIONS}
    project.configure(
        sweeps={
            "s": sweep_of(
                "rests",
                num_samples=4,
                max_epochs=6,
                scheduler=options,
                confirm={"seeds": 2},
                search_space={"x": {"uniform": [0, 1]}, "pause_s": 0.1, "free_epochs": 4},
            )
        }
    )
    process = project.start("run_sweep", "s")
    path = project.folder / "state/s/record.jsonl"
    wait_until(lambda: path.exists() and '"take_over"' in path.read_text(), "a trial takes over from another")
    driver = part_of(process, "driver")
    assert driver
    driver.kill()
    process.communicate()
    assert process.returncode != 0
    project.write("go", "")
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    trials = project.record("s").trials
    assert {trial.status for trial in trials.values()} == {"TERMINATED"}
    assert {trial.epochs for trial in trials.values()} == {6}
    changed = [trial for trial in trials.values() if trial.schedule]
    assert changed
    for trial in changed:
        assert trial.schedule[-1].config == trial.config
        own = [result for result in trial.results if not result.is_inherited]
        assert [result.metrics["score"] for result in own] == pytest.approx([trial.config["x"] * result.epoch for result in own])
    best = project.result("s", "best.yaml")
    winner = trials[best["trial_id"]]
    assert best.get("schedule", []) == to_json(winner.schedule)
    assert (project.folder / "results/s/model/epoch").read_text() == str(best["epochs"])
    # The confirmation of one that changed twice: whoever won, its schedule is now that of the test.
    best["schedule"] = [{"from_epoch": epoch, "config": {"x": x, "pause_s": 0.1}} for epoch, x in ((0, 0.2), (2, 0.4), (5, 0.7))]
    best |= {"config": best["schedule"][-1]["config"], "epochs": 6}
    (project.folder / "results/s/best.yaml").write_text(yaml.safe_dump(best))
    run = project.run("confirm", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    [path] = (project.folder / "state/s").glob("confirm-*/record.jsonl")
    for trial in read_sweep(path).trials.values():
        assert (trial.status, to_json(trial.schedule)) == ("TERMINATED", best["schedule"])
        assert [result.metrics["score"] for result in trial.results] == pytest.approx([0.2, 0.4, 1.2, 1.6, 2.0, 4.2])
    assert project.result("s", "confirmed.yaml")["mean"] == pytest.approx(4.2)


@pytest.mark.parametrize("fuse", ["off", "on"])
def test_a_population_of_a_model_and_its_confirmation(project: Project, fuse: str) -> None:
    project.write("net.py", NET)
    stage(
        DatasetSpec("generated", "synthetic", "none", validation_fraction=0.1, seed=0),
        project.folder,
        project.folder / "resources/data/generated",
    )
    sweep = {
        "dataset": "generated",
        "model": "net.py:Net",
        "search_space": {"lr": {"loguniform": [1e-4, 1e-1]}, "batch_size": 32, "training": {"label_smoothing": {"choice": [0, 0.1, 0.2]}}},
        "training": {"schedule": "cosine", "augment": ["flip"], "class_weights": "balanced"},
        "metric": "accuracy",
        "num_samples": 4,
        "max_epochs": 3,
        "scheduler": {"name": "pbt", **OPTIONS},
        "allocation": {"cpus_per_node": 2},
        "confirm": {"seeds": 1},
        "fuse": fuse,
    }
    project.configure(datasets={"generated": {"source": "synthetic"}}, sweeps={"s": sweep})
    for rule in ("run_sweep", "confirm"):
        run = project.run(rule, "s")
        assert run.returncode == 0, run.stdout + run.stderr
    trials = project.record("s").trials
    assert {(trial.status, trial.epochs) for trial in trials.values()} == {("TERMINATED", 3)}
    assert any(trial.schedule for trial in trials.values())
    smoothings = [step.config["training"]["label_smoothing"] for trial in trials.values() for step in trial.schedule]
    assert {*smoothings} <= {0, 0.1, 0.2}
    assert len({*smoothings}) > 1, "a number of the recipe changes too"
    assert project.result("s", "confirmed.yaml")["n"] == 1
