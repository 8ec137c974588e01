"""The journal that optuna-dashboard opens holds the sweep, whichever algorithm searched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from raysweep.record.study import StudyJournal
from raysweep.report.charts.data import shared_data
from raysweep.report.inputs import Inputs, seconds_between
from records import new_record
from reporting import made_up

SPACE = {
    "lr": {"loguniform": [1e-4, 1e-1]},
    "net": {"width": {"randint": [16, 257]}, "act": {"choice": ["relu", None]}, "layers": {"choice": [[8], [8, 4]]}},
    "fixed": 3,
}


def written(folder: Path, **sweep: Any) -> tuple[Inputs, optuna.Study]:
    """A made-up sweep, and what Optuna reads from its journal."""
    inputs = made_up(folder, **sweep)
    path = folder / "optuna.journal"
    StudyJournal(path, inputs.sweep)
    assert sorted(other.name for other in folder.iterdir() if "journal" in other.name) == ["optuna.journal"]
    return inputs, optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(path))))


@pytest.mark.parametrize("mode", ["max", "min"])
def test_every_finished_trial_is_there_with_its_values_epoch_by_epoch(tmp_path: Path, mode: str) -> None:
    inputs, study = written(
        tmp_path,
        num_trials=30,
        max_epochs=8,
        mode=mode,
        scheduler={"name": "asha"},
        search_space=SPACE,
        failed={4: "out of memory"},
        running=2,
    )
    assert study.study_name == "lenet"
    assert study.metric_names == ["accuracy"]
    trials = {trial.user_attrs["trial_id"]: trial for trial in study.trials}
    states = {
        "TERMINATED": TrialState.COMPLETE,
        "STOPPED": TrialState.PRUNED,
        "ERROR": TrialState.FAIL,
        "RUNNING": TrialState.RUNNING,
    }
    assert {key: trial.state for key, trial in trials.items()} == {t.trial_id: states[t.status] for t in inputs.trials}
    assert set(states.values()) == {trial.state for trial in study.trials}
    assert trials["00004"].user_attrs["error"] == "out of memory"
    for trial in inputs.trials:
        if trial.trial_id in trials:
            found = trials[trial.trial_id]
            assert found.intermediate_values == {result.epoch: result.metrics["accuracy"] for result in trial.results}
            assert found.params["lr"] == trial.config["lr"]
            assert isinstance(found.distributions["net/width"], optuna.distributions.IntDistribution)
            if trial.finished:
                assert (found.datetime_complete - found.datetime_start).total_seconds() == pytest.approx(
                    seconds_between(trial.started, trial.ended), abs=0.01
                )
            assert found.params["net/width"] == trial.config["net"]["width"]
            assert found.params["net/act"] == trial.config["net"]["act"]
            assert found.params["net/layers"] == str(trial.config["net"]["layers"])
            assert "fixed" not in found.params
    assert study.best_value == inputs.ranked[0][1]


def test_it_is_written_anew_each_time(tmp_path: Path) -> None:
    written(tmp_path, num_trials=5)
    (tmp_path / "record.jsonl").unlink()
    _, study = written(tmp_path, num_trials=7)
    assert len(study.trials) == 7


def test_a_trial_that_ended_without_a_value_is_no_result(tmp_path: Path) -> None:
    inputs, _ = written(tmp_path, num_trials=4)
    inputs.trials[0].results.clear()
    StudyJournal(tmp_path / "optuna.journal", inputs.sweep)
    study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(tmp_path / "optuna.journal"))))
    assert [trial.state for trial in study.trials].count(TrialState.FAIL) == 1


def test_true_1_and_1_0_are_three_choices(tmp_path: Path) -> None:
    space = {"lr": {"uniform": [0, 1]}, "x": {"choice": [True, 1, 1.0]}, "y": {"choice": [True, 2]}}
    inputs, study = written(tmp_path, num_trials=30, search_space=space)
    expected = [json.dumps(trial.config["x"]) for trial in inputs.trials]
    assert set(expected) == {"true", "1", "1.0"}
    assert [trial.params["x"] for trial in study.trials] == expected
    assert [trial.params["y"] for trial in study.trials] == [trial.config["y"] for trial in inputs.trials]
    column = shared_data(inputs, inputs.varying_keys)["trials"][f"config{[key.name for key in inputs.varying_keys].index('x')}"]
    assert sorted(column) == sorted(expected)


def test_several_objectives_are_a_study_with_as_many_directions(tmp_path: Path) -> None:
    objectives = [{"metric": "accuracy", "mode": "max"}, {"metric": "latency_ms", "mode": "min"}]
    inputs, study = written(tmp_path, objectives=objectives, failed={4: "out of memory"})
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["accuracy", "latency_ms"]
    assert {trial.user_attrs["trial_id"] for trial in study.best_trials} == {point.trial_id for point in inputs.best.front}
    assert [trial.state for trial in study.trials if trial.user_attrs["trial_id"] == "00004"] == [TrialState.FAIL]


def read(path: Path) -> optuna.Study:
    return optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(path))))


def test_a_reader_sees_each_step_of_a_trial(tmp_path: Path) -> None:
    path = tmp_path / "optuna.journal"
    with new_record(tmp_path, name="s", metric="score", search_space={"x": {"uniform": [0, 1]}}) as record:
        journal = StudyJournal(path, record.sweep)
        reader = read(path)
        seen = []

        def write(kind: str, **values: Any) -> None:
            record.write(kind, trial="00000", **values)
            journal.update(record.sweep.trials["00000"])
            journal.backend.flush()
            seen.append([(t.state.name, dict(t.intermediate_values), t.value if t.state.is_finished() else None) for t in reader.trials])

        write("trial", index=0, repeat=0, seed=0, config={"x": 0.5})
        write("start", node="n", from_epoch=0)
        write("result", epoch=1, metrics={"score": 0.1}, time_s=1.0, node="n")
        write("failure", error="lost", counted=False)
        write("start", node="n", from_epoch=0)
        write("result", epoch=1, metrics={"score": 0.2}, time_s=1.0, node="n")
        write("finish", status="TERMINATED", error=None)
    running, first, again = ("RUNNING", {}, None), ("RUNNING", {1: 0.1}, None), ("RUNNING", {1: 0.2}, None)
    assert seen == [[], [running], [first], [first], [first], [again], [("COMPLETE", {1: 0.2}, 0.2)]]


def test_a_journal_that_ends_in_the_middle_of_a_line_is_readable_and_is_replaced(tmp_path: Path) -> None:
    inputs, study = written(tmp_path, num_trials=5)
    path = tmp_path / "optuna.journal"
    path.write_bytes(path.read_bytes()[:-7])
    assert len(read(path).trials) == 4
    StudyJournal(path, inputs.sweep)
    assert len(read(path).trials) == len(study.trials) == 5


def test_a_configuration_of_another_space_has_no_parameters(tmp_path: Path) -> None:
    inputs, _ = written(tmp_path, num_trials=3)
    inputs.trials[1].config = {"other": 7}
    StudyJournal(tmp_path / "optuna.journal", inputs.sweep)
    assert [bool(trial.params) for trial in read(tmp_path / "optuna.journal").trials] == [True, False, True]


def test_each_kind_of_distribution_has_one_in_optuna(tmp_path: Path) -> None:
    space = {
        "n": {"normal": [0, 1]},
        "q": {"quniform": [0, 1, 0.25]},
        "i": {"lograndint": [1, 100]},
        "net": {"one_of": [{"kind": "a", "w": {"randint": [1, 9]}, "d": {"choice": ["x", "y"]}}, {"kind": "b", "d": {"uniform": [0, 1]}}]},
    }
    inputs, study = written(tmp_path, num_trials=12, search_space={"lr": {"loguniform": [1e-4, 1e-1]}, **space})
    for trial, shown in zip(inputs.trials, study.trials, strict=True):
        branch = {"net/w", "net[0]/d"} if trial.config["net"]["kind"] == "a" else {"net[1]/d"}
        assert shown.params.keys() == {"lr", "n", "q", "i", "net/kind", *branch}
        assert shown.params["q"] == trial.config["q"]
    inputs.trials[0].config["n"] = 50.0
    StudyJournal(tmp_path / "optuna.journal", inputs.sweep)
    assert 5 < read(tmp_path / "optuna.journal").trials[0].params["n"] < 7, "Optuna refuses what lies outside of its range"


def test_a_trial_that_trains_its_epochs_again_shows_the_new_values(tmp_path: Path) -> None:
    path = tmp_path / "optuna.journal"
    with new_record(tmp_path, name="s", metric="score", search_space={"x": {"uniform": [0, 1]}}) as record:
        record.write("trial", trial="00000", index=0, repeat=0, seed=0, config={"x": 0.5})
        record.write("start", trial="00000", node="n", from_epoch=0)
        for epoch in (1, 2):
            record.write("result", trial="00000", epoch=epoch, metrics={"score": 0.1}, time_s=1.0, node="n")
        record.write("finish", trial="00000", status="TERMINATED", reason="max_epochs", error=None)
        record.write("reopen", trial="00000")
        journal = StudyJournal(path, record.sweep)
        record.write("start", trial="00000", node="n", from_epoch=0)
        record.write("result", trial="00000", epoch=1, metrics={"score": 0.7}, time_s=1.0, node="n")
        journal.update(record.sweep.trials["00000"])
        journal.backend.flush()
    [trial] = read(path).trials
    assert (trial.state.name, trial.intermediate_values) == ("RUNNING", {1: 0.7, 2: 0.1})
