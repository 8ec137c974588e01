"""Several trials of each configuration, with a seed each: judged by their mean, stopped as one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from raysweep.record.file import Record
from raysweep.tune.schedulers import Grouped
from sweeping import TRAINABLES, Project, sweep_of

# The first trial of 0.5 is the best of all, and the second the worst.
UNEVEN = """
def uneven(config):
    value = config["x"]
    if value == 0.5:
        try:
            open("first", "x").close()
            value = 0.9
        except FileExistsError:
            value = 0.1
    climb({"x": value})
"""


def recorded(folder: Path, *, repeats: int = 2) -> Record:
    record = Record(folder / "record.jsonl")
    record.write("session", sweep={"repeats": repeats}, host="h", pid=1, nodes=[])
    return record


def begin(record: Record, index: int, repeat: int) -> str:
    trial = f"{index:05d}-{repeat}"
    record.write("trial", trial=trial, index=index, repeat=repeat, seed=10 * index + repeat, config={"x": index})
    record.write("start", trial=trial, node="n", from_epoch=0)
    return trial


def report(record: Record, trial: str, *scores: float) -> None:
    done = record.sweep.trials[trial].epochs
    for epoch, score in enumerate(scores, start=done + 1):
        record.write("result", trial=trial, epoch=epoch, metrics={"score": score, "other": 1.0}, time_s=float(epoch), node="n")


def test_a_group_has_the_means_of_the_epochs_that_all_have_come_to(tmp_path: Path) -> None:
    with recorded(tmp_path) as record:
        first = begin(record, 0, 0)
        report(record, first, 0.1, 0.9)
        group = record.sweep.groups[0]
        assert group.results == []
        assert group.status == "RUNNING"
        second = begin(record, 0, 1)
        report(record, second, 0.5)
        assert [(result.epoch, result.metrics) for result in group.results] == [(1, {"score": pytest.approx(0.3), "other": 1.0})]
        report(record, second, 0.1, 0.2)
        assert [result.metrics["score"] for result in group.results] == pytest.approx([0.3, 0.5])
        record.write("finish", trial=first, status="STOPPED", error=None)
        assert not group.finished
        record.write("finish", trial=second, status="TERMINATED", error=None)
        assert group.finished
        assert group.status == "STOPPED"


def test_the_best_is_the_best_mean_and_what_failed_with_one_seed_cannot_win(tmp_path: Path) -> None:
    with recorded(tmp_path) as record:
        scores = {(0, 0): 0.9, (0, 1): 0.1, (1, 0): 0.6, (1, 1): 0.62, (2, 0): 0.8, (2, 1): 0.8}
        for (index, repeat), score in scores.items():
            trial = begin(record, index, repeat)
            report(record, trial, score)
            status = "ERROR" if (index, repeat) == (2, 1) else "TERMINATED"
            record.write("finish", trial=trial, status=status, error=None)
        found = record.sweep.best_trial("score", "max")
        assert found is not None
        assert (found[0].trial_id, found[1].metrics["score"]) == ("00001", pytest.approx(0.61))
        ranked = sorted(record.sweep.candidates, key=lambda one: one.rank("score", "max"))
        assert [one.trial_id for one in ranked] == ["00001", "00000", "00002"]


class Noting(TrialScheduler):
    """Says STOP to what is below 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[Any, ...]] = []

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self.heard.append(("add", trial.trial_id))

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.heard.append(("error", trial.trial_id))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        self.heard.append((trial.trial_id, result["training_iteration"], round(result["score"], 6)))
        return TrialScheduler.STOP if result["score"] < 0.5 else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self.heard.append(("complete", trial.trial_id, round(result["score"], 6)))

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None: ...

    def choose_trial_to_run(self, tune_controller: Any) -> Any: ...

    def debug_string(self) -> str:
        return ""


class Told:
    """A grouped scheduler and what it is told."""

    def __init__(self, record: Record) -> None:
        self.inner = Noting()
        self.scheduler = Grouped(self.inner, record.sweep, "score")

    def add(self, trial: str) -> None:
        self.scheduler.on_trial_add(None, SimpleNamespace(trial_id=trial))

    def result(self, trial: str, epoch: int, score: float) -> str:
        return self.scheduler.on_trial_result(None, SimpleNamespace(trial_id=trial), {"training_iteration": epoch, "score": score})

    def complete(self, trial: str, epoch: int, score: float) -> None:
        self.scheduler.on_trial_complete(None, SimpleNamespace(trial_id=trial), {"training_iteration": epoch, "score": score})


def test_a_scheduler_is_told_means_and_stops_a_configuration_as_one(tmp_path: Path) -> None:
    with recorded(tmp_path) as record:
        trials = [begin(record, index, repeat) for index in (0, 1) for repeat in (0, 1)]
        told = Told(record)
        for trial in trials:
            told.add(trial)
        good, other_good, bad, other_bad = trials
        assert told.result(good, 1, 0.2) == "CONTINUE"  # nothing is decided while the other has not come as far
        assert told.result(good, 2, 0.9) == "CONTINUE"
        assert told.result(other_good, 1, 0.9) == "CONTINUE"
        assert told.result(bad, 1, 0.6) == "CONTINUE"
        assert told.result(bad, 2, 0.9) == "CONTINUE"
        assert told.result(other_bad, 1, 0.1) == "STOP"
        assert told.result(bad, 3, 0.9) == "STOP"  # it was ahead
        told.complete(good, 3, 0.7)
        assert told.result(other_good, 2, 0.5) == "CONTINUE"
        told.complete(other_good, 3, 0.9)
        assert told.inner.heard == [
            ("add", "00000"),
            ("add", "00001"),
            ("00000", 1, 0.55),
            ("00001", 1, 0.35),
            ("00000", 2, 0.7),
            ("complete", "00000", 0.8),
        ]


def test_a_configuration_is_over_when_one_of_its_trials_failed_and_stays_so(tmp_path: Path) -> None:
    with recorded(tmp_path) as record:
        first, second = begin(record, 0, 0), begin(record, 0, 1)
        told = Told(record)
        told.add(first)
        told.add(second)
        told.scheduler.on_trial_error(None, SimpleNamespace(trial_id=first))
        assert told.result(second, 1, 0.9) == "STOP"
        assert told.inner.heard == [("add", "00000"), ("error", "00000")]
        record.write("finish", trial=first, status="ERROR", error="died")
        again = Told(record)
        assert again.result(second, 1, 0.9) == "STOP"


def test_a_failure_after_which_a_trial_is_tried_again_decides_nothing(tmp_path: Path) -> None:
    with recorded(tmp_path) as record:
        first, second = begin(record, 0, 0), begin(record, 0, 1)
        told = Told(record)
        told.add(first)
        told.add(second)
        told.scheduler.on_trial_error(None, SimpleNamespace(trial_id=first, is_tried_again=True))
        told.add(first)
        assert told.result(second, 1, 0.9) == "CONTINUE"
        assert told.result(first, 1, 0.9) == "CONTINUE"
        assert told.inner.heard == [("add", "00000"), ("00000", 1, 0.9)]


def test_what_is_recorded_is_not_told_again(tmp_path: Path) -> None:
    with recorded(tmp_path) as record:
        first, second = begin(record, 0, 0), begin(record, 0, 1)
        report(record, first, 0.6, 0.7)
        report(record, second, 0.8)
        told = Told(record)
        assert told.result(second, 1, 0.9) == "CONTINUE"
        assert told.result(second, 2, 0.9) == "CONTINUE"
        assert told.inner.heard == [("00000", 2, 0.8)]


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
