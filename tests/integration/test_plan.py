"""What a sweep will take, before it is paid for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raysweep.config.load import validated
from raysweep.config.model import Config
from raysweep.data.manifest import DatasetSpec
from raysweep.data.stage import stage
from raysweep.record.file import Record
from raysweep.stages.plan import Plan, Planner, Range, lines_of
from raysweep.stages.stage import Call, Stage
from sweeping import NET, REPOSITORY, Project, sweep_of


def planner(project: Project, on_slurm: bool = False, **values: object) -> Planner:
    project.configure(sweeps={"s": sweep_of("climb", **values)})
    project.build_env()
    config = Config.of(validated(project.config(), [project.folder / "c.yaml"], project.folder))
    return Planner(Stage(config, "s", Call(project.folder, project.folder / "env", project.folder / "log", threads=2)), on_slurm)


def test_a_function_without_a_record_is_not_guessed_at(project: Project) -> None:
    assert str(planner(project).plan()).startswith("how long a function of your own takes is seen when it has run: set num_samples to 2")


def record_six_trials(project: Project, identity: str, nodes: list[dict[str, Any]]) -> None:
    """Write the record of a sweep in which six trials have taken 10 s an epoch."""
    with Record(project.folder / "state/s/record.jsonl") as record:
        record.write("session", sweep={"identity": identity, "metric": "score"}, host="h", pid=1, nodes=nodes)
        for index in range(6):
            trial = f"{index:05d}"
            record.write("trial", trial=trial, index=index, repeat=0, seed=index, config={"x": 0.5})
            record.write("start", trial=trial, node="n0", from_epoch=0)
            for epoch in range(1, 5):
                record.write("result", trial=trial, epoch=epoch, metrics={"score": 0.1}, time_s=10.0 * epoch, node="n0")
            record.write("finish", trial=trial, status="TERMINATED", error=None)


def test_what_a_trial_took_of_a_gpu_says_how_many_share_one(project: Project) -> None:
    values = {
        "num_samples": 20,
        "max_epochs": 4,
        "allocation": {"cpus_per_node": 12, "gpus_per_node": 1, "nodes": 2},
        "trial_resources": {"cpu": 1, "gpu": "auto"},
    }
    record_six_trials(project, planner(project, on_slurm=True, **values).work.identity, [{"name": "n0", "cpus": 12, "gpus": 1}])
    unmeasured = planner(project, on_slurm=True, **values).plan()
    with Record(project.folder / "state/s/record.jsonl") as record:
        record.write("gpu_share", gpu=0.25, used_mb=2200, total_mb=10000)
    measured = planner(project, on_slurm=True, **values).plan()
    assert isinstance(unmeasured, Plan)
    assert isinstance(measured, Plan)
    assert (unmeasured.at_a_time, unmeasured.waves, unmeasured.measures_gpu) == (2, 7, True)
    assert (measured.at_a_time, measured.waves, measured.measures_gpu) == (8, 2, False)


def test_a_plan_counts_the_nodes_of_all_jobs_on_slurm(project: Project) -> None:
    values = {"num_samples": 14, "max_epochs": 4, "allocation": {"cpus_per_node": 2, "jobs": 4, "nodes": 2}}
    nodes = [{"name": "n0", "cpus": 2, "gpus": 0}, {"name": "n1", "cpus": 2, "gpus": 0}]
    record_six_trials(project, planner(project, on_slurm=True, **values).work.identity, nodes)
    plan = planner(project, on_slurm=True, **values).plan()
    assert isinstance(plan, Plan)
    assert (len(plan.nodes), plan.jobs, plan.at_a_time, plan.waves) == (8, 4, 8, 1)
    assert plan.hours("cpus").expected == pytest.approx(16 * plan.walltime_s.expected / 3600)
    assert plan.speed.source == "6 trials of this sweep", "the number of nodes of one leader says nothing about the speed"
    here = planner(project, **values).plan()
    assert isinstance(here, Plan)
    assert (len(here.nodes), here.jobs) == (1, 1)


def test_the_gpu_hours_that_are_left_limit_the_plan(project: Project) -> None:
    values = {
        "num_samples": 1000,
        "max_epochs": 4,
        "allocation": {"cpus_per_node": 2, "gpus_per_node": 1, "nodes": 2},
        "trial_resources": {"cpu": 1, "gpu": 1},
    }
    record_six_trials(project, planner(project, on_slurm=True, **values).work.identity, [{"name": "n0", "cpus": 2, "gpus": 1}] * 2)
    plan = planner(project, on_slurm=True, **values | {"max_gpu_hours": 1}).plan()
    assert isinstance(plan, Plan)
    # Half an hour of two GPUs, the start of Ray, and the last trial, which trains for 40 s to its end.
    assert plan.walltime_s.high == pytest.approx(1800 + 20 + 40, abs=1)
    assert plan.hours("gpus").high == pytest.approx(1860 * 2 / 3600, abs=0.01)


def test_a_record_says_how_long_the_rest_takes_and_how_much_would_fit(project: Project) -> None:
    allocation = {"cpus_per_node": 2, "nodes": 3, "runtime": 10, "walltime_margin": 5}
    values = {"num_samples": 12, "max_epochs": 4, "allocation": allocation, "confirm": {"seeds": 4, "runtime": 1}}
    nodes = [{"name": f"n{number}", "cpus": 2, "gpus": 0} for number in range(3)]
    record_six_trials(project, planner(project, **values).work.identity, nodes)
    plan = planner(project, on_slurm=True, **values).plan()
    assert isinstance(plan, Plan)
    assert (plan.num_trials, plan.trials_left, plan.at_a_time, plan.waves) == (12, 6, 6, 1)
    assert plan.walltime_s == Range(pytest.approx(20 + 40 * 0.85), 60, pytest.approx(20 + 40 * 1.15))
    assert plan.speed.source == "6 trials of this sweep"
    assert plan.runtime_s == 300
    assert plan.fits == "yes"
    # As slow as is likely, six trials take 46 s, of the 280 s that are left for trials: 36 more.
    assert plan.largest_num_trials == 6 + 36
    assert plan.hours("cpus").expected == pytest.approx(60 * 6 / 3600)
    short = planner(project, on_slurm=True, **values | {"num_samples": 1000, "time_budget": 1}).plan()  # a minute
    assert isinstance(short, Plan)
    assert short.walltime_s.high == pytest.approx(20 + 60 + 40, abs=1)
    assert dict(lines_of(plan))["confirm"] == "at most 1m55s: more than confirm.runtime, 1m00s, may be needed"
    # Two waves of the four seeds on the two CPUs of one node, 40 s each.
    assert plan.confirm_s.expected == 100
    three = planner(project, **values | {"confirm": {"seeds": 4, "top": 3}}).plan()
    assert isinstance(three, Plan)
    assert three.confirm_s.expected == 3 * 100, "one configuration after the other"
    # All six trials have the same value, so five of them made nothing better.
    going_on, ended = (planner(project, **values | {"end_when": {"no_better_for": number}}).plan() for number in (6, 5))
    assert isinstance(going_on, Plan)
    assert isinstance(ended, Plan)
    assert (going_on.num_trials, going_on.trials_left, ended.num_trials, ended.trials_left) == (12, 6, 6, 0)
    assert lines_of(ended)[0] == ("trials", "6, all done")
    assert dict(lines_of(going_on))["may end"].startswith("the sweep after 6 configurations without a better value (end_when)")

    # Two trials with a worker of two CPUs each: the two workers take two of the three nodes, and the two trials share the third node.
    workers = {"trial_resources": {"cpu": 1, "gpu": 0, "workers": {"num": 1, "cpu": 2}}}
    distributed = planner(project, on_slurm=True, **values | workers).plan()
    assert isinstance(distributed, Plan)
    assert distributed.at_a_time == 2

    done = planner(project, **{**values, "num_samples": 6}).plan()
    assert isinstance(done, Plan)
    assert (done.trials_left, done.walltime_s) == (0, Range(0, 0, 0))


def test_steps_of_a_model_are_timed(tmp_path: Path) -> None:
    project = Project(tmp_path / "a project")
    sweep = {
        "dataset": "generated",
        "model": "net.py:Net",
        "search_space": {"lr": {"loguniform": [1e-3, 1e-1]}, "batch_size": {"choice": [16, 32]}},
        "metric": "accuracy",
        "num_samples": 40,
        "max_epochs": 3,
        "allocation": {"cpus_per_node": 2},
    }
    function = {"dataset": None, "trainable": "user.py:f", "search_space": {"x": 1}, "metric": "m"}
    project.write("user.py", "def f(config):\n    return {'m': 1}\n")
    project.write("net.py", NET)
    project.configure(
        datasets={"generated": {"source": "synthetic"}}, sweeps={"one": sweep, "other": {**sweep, "fuse": "off"}, "mine": function}
    )
    run = project.snakemake("plan")
    said = run.stdout + run.stderr
    assert run.returncode == 0, said
    for name in ("one", "other"):
        plan = yaml.safe_load((project.folder / f"state/.plan/{name}.yaml").read_text())
        assert (plan["num_trials"], plan["trials_left"]) == (40, 40)
        assert plan["source"].startswith("steps of 6 configurations, timed on this machine's CPU")
        assert 0 < plan["walltime_s"]["low"] < plan["walltime_s"]["expected"] < plan["walltime_s"]["high"] < 10_000
        assert plan["cpu_hours"]["expected"] == pytest.approx(2 * plan["walltime_s"]["expected"] / 3600, rel=0.02)
    assert plan["at_a_time"] == 2
    assert "together    no: fuse is off" in said
    assert "sweep mine" in said
    assert "set num_samples to 2" in " ".join(said.split())
    assert not (project.folder / "state/.plan/mine.yaml").exists()
    assert not (project.folder / "state/one").exists()  # nothing that a sweep would take for its own
    table = [line for line in said.splitlines() if line.startswith("  ") and "timed on this" in line]
    assert table
    assert all(len(line) <= 80 for line in table)


def test_a_model_that_cannot_be_trained_is_one_line(project: Project) -> None:
    stage(
        DatasetSpec("generated", "synthetic", "none", validation_fraction=0.1, seed=0),
        project.folder,
        project.folder / "resources/data/generated",
    )
    project.write(
        "model.py",
        "from torch import nn\nclass Net(nn.Module):\n    def forward(self, x):\n        raise ValueError('no such shape')\n",
    )
    space = {"lr": 0.1, "batch_size": 16}
    sweep = {"dataset": "generated", "model": "model.py:Net", "search_space": space, "metric": "accuracy"}
    project.configure(datasets={"generated": {"source": "synthetic"}}, sweeps={"s": sweep})
    project.build_env()
    checked = project.folder / "checked.yaml"
    checked.write_text(yaml.safe_dump(validated(project.config(), [project.folder / "c.yaml"], project.folder)))
    argv = [sys.executable, str(REPOSITORY / "workflow/scripts/plan.py"), "--sweeps", "s", "--configs", str(checked), "--env-dir", "env"]
    run = project.finished([*argv, "--allocation", "local", "--threads", "2", "--log", "logs/plan.log"])
    assert run.returncode == 1
    assert run.stdout == ""
    assert (
        run.stderr == "Error: s: its model cannot be trained: ValueError: optimizer got an empty parameter list (logs/plan.log has more)\n"
    )
