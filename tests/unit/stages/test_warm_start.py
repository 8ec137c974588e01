"""What was known before a sweep, read from real tables, real outputs of sweeps and real Optuna studies."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from raysweep.common.errors import ConfigError
from raysweep.config.space import configuration, parse_space, values_in
from raysweep.record.file import read_sweep
from raysweep.record.known_trials import KnownTrials
from raysweep.record.outputs import write_trials
from raysweep.record.study import StudyJournal
from raysweep.stages.sweep import run_sweep
from raysweep.stages.warm_start import read_source
from records import new_record
from typed import make_stage, sweep_config

SPACE = {
    "lr": {"loguniform": [1e-4, 1e-1]},
    "size": {"choice": [2, "x", True, 0.5, None, [1, 2], {"a": 1, "b": "c"}]},
    "net": {"one_of": [{"kind": "flat", "width": {"randint": [8, 65]}}, {"kind": "deep", "depth": {"randint": [2, 6]}, "wide": False}]},
    "noise": {"normal": [0, 1]},
    "fixed": 3,
}
SIMPLE = {"lr": {"uniform": [0, 1]}, "deep": {"n": {"randint": [1, 10]}}}


def known(root: Path, source: str, space: dict[str, Any] | None = None, mode: str = "max") -> KnownTrials:
    return read_source(source, sweep_config(trainable="user.py:train", search_space=space or SIMPLE, mode=mode), root)


def values_of(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return the values that a sampler learns. An empty cell is the value null, where the space has this value."""
    return values_in(parse_space(SPACE), config)


def table(root: Path, text: str, name: str = "old.csv") -> str:
    (root / name).write_text(text, encoding="utf-8")
    return name


def recorded(root: Path, space: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Write the record of a sweep with `count` trials, and return the configurations."""
    parsed = parse_space(space)
    configs = [configuration(parsed, 0, index) for index in range(count)]
    with new_record(root, name="old", metric="score", mode="max", search_space=space) as record:
        for index, config in enumerate(configs):
            trial = f"{index:05d}"
            record.write("trial", trial=trial, index=index, repeat=0, seed=index, config=config)
            record.write("start", trial=trial, node="n", from_epoch=0)
            record.write("result", trial=trial, epoch=1, metrics={"score": index / 10}, time_s=1.0, node="n")
            record.write("finish", trial=trial, status="TERMINATED", error=None)
    return configs


def test_our_own_table_comes_back_whole_whatever_the_values_are(tmp_path: Path) -> None:
    configs = recorded(tmp_path, SPACE, 40)
    (tmp_path / "results/old").mkdir(parents=True)
    write_trials(tmp_path / "results/old/trials.csv", read_sweep(tmp_path / "record.jsonl"), "score", "max")
    found = known(tmp_path, "results/old", SPACE)
    assert [(values_of(trial.config), trial.value) for trial in found.trials] == [
        (values_of(config), number / 10) for number, config in enumerate(configs)
    ]
    assert found.num_left_out == 0
    assert known(tmp_path, "results/old/trials.csv", SPACE).trials == found.trials


def test_a_plain_table_needs_the_keys_and_the_metric(tmp_path: Path) -> None:
    source = table(
        tmp_path,
        "score,config/lr,config/deep/n,config/other,note\n0.5,0.1,3,x,a\n0.7,1e-05,4.0,,b\n,0.2,3,,\nnan,0.2,3,,\n0.9,7,3,,\n0.9,,3,,\n0.9,0.3,2.5,,\n",
    )
    found = known(tmp_path, source)
    assert [(trial.config, trial.value) for trial in found.trials] == [
        ({"lr": 0.1, "deep": {"n": 3}}, 0.5),
        ({"lr": 1e-5, "deep": {"n": 4}}, 0.7),
    ]
    assert found.num_left_out == 5
    assert isinstance(found.trials[1].config["deep"]["n"], int)


def test_rows_of_odd_forms_are_left_out(tmp_path: Path) -> None:
    space = {"lr": {"uniform": [0, 1]}, "c": {"choice": [{"k": 1}, 2]}}
    rows = ["0.1,,1,0.5", "0.1,2,1,0.5", f"1{'0' * 400},2,,0.5", "0.1,2,,1e999", "0.2", "0.3,2,,0.6,more,cells"]
    found = known(tmp_path, table(tmp_path, "\n".join(["config/lr,config/c,config/c/k,score", *rows])), space)
    assert [(trial.config, trial.value) for trial in found.trials] == [({"lr": 0.1, "c": {"k": 1}}, 0.5), ({"lr": 0.3, "c": 2}, 0.6)]
    assert found.num_left_out == 4


def test_trials_that_failed_or_did_not_finish_are_left_out(tmp_path: Path) -> None:
    rows = "".join(f"{status},0.5,3,0.{number}\n" for number, status in enumerate(("TERMINATED", "ERROR", "RUNNING", "STOPPED")))
    found = known(tmp_path, table(tmp_path, "status,config/lr,config/deep/n,score\n" + rows))
    assert ([trial.value for trial in found.trials], found.num_left_out) == ([0.0, 0.3], 2)


@pytest.mark.parametrize(
    ("source", "text", "words"),
    [
        ("old.csv", None, "old.csv does not exist. Allowed: a .csv file, a folder"),
        ("old.csv", "", "old.csv holds no finished trial"),
        ("old.csv", "config/lr,score\n", "old.csv holds no finished trial"),
        ("old.csv", "config/lr,loss\n0.1,3\n", "old.csv has no column score, which is the metric of the sweep. The columns of "),
        ("old.csv", "config/a,score\n0.1,3\n", "old.csv has none of the searched keys (deep/n, lr). The keys of old.csv: a"),
        ("old.csv", "a,score\n0.1,3\n", "old.csv has none of the searched keys (deep/n, lr). The keys of old.csv: none"),
        ("old.csv", "config/lr,score\n0.1,nan\n0.2,\n", "no trial of old.csv has a finite value of score"),
        (
            "old.csv",
            "config/lr,score\n0.1,0.5\n",
            "no trial of old.csv has a value for each searched key (deep/n, lr) within the range of the key",
        ),
        ("old.txt", "x", "the form of old.txt is not known. Allowed: a .csv file"),
        ("sqlite:///no.db", None, "no.db does not exist, or is no file"),
        (".", None, "the folder holds no trials.csv"),
        ("old.log", "no journal\n", "old.log has no study. Allowed: a storage with a study"),
    ],
)
def test_a_source_from_which_nothing_can_be_learnt_is_one_line(tmp_path: Path, source: str, text: str | None, words: str) -> None:
    if text is not None:
        table(tmp_path, text, source)
    with pytest.raises(ConfigError) as caught:
        known(tmp_path, source)
    [line] = caught.value.lines
    assert words in line


def test_bytes_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_bytes(b"score\n\xff\xfe")
    with pytest.raises(ConfigError, match=r"old\.csv cannot be read"):
        known(tmp_path, "old.csv")


def journal(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path)))


def objective(trial: optuna.Trial) -> float:
    lr, n = trial.suggest_float("lr", 0, 1), trial.suggest_int("deep/n", 1, 12)
    if trial.number == 3:
        raise optuna.TrialPruned
    return lr + n


@pytest.mark.parametrize("storage", ["old.journal", "old.log", "sqlite"])
def test_a_study_of_optuna_is_read_and_not_changed(tmp_path: Path, storage: str) -> None:
    path, url = (tmp_path / "old.db", "sqlite:///old.db") if storage == "sqlite" else (tmp_path / storage, storage)
    opened = f"sqlite:///{path}" if storage == "sqlite" else journal(path)
    study = optuna.create_study(storage=opened, study_name="first", direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=20)
    before = path.read_bytes()
    found = known(tmp_path, url)
    fits = [t for t in study.trials if t.state.name == "COMPLETE" and t.params["deep/n"] < 10]
    assert [(trial.config, trial.value) for trial in found.trials] == [
        ({"lr": t.params["lr"], "deep": {"n": t.params["deep/n"]}}, t.value) for t in fits
    ]
    assert 0 < len(fits) < 19
    assert found.num_left_out == 20 - len(fits)
    assert (path.read_bytes(), sorted(os.listdir(tmp_path))) == (before, [path.name])
    optuna.create_study(storage=opened, study_name="second", direction="minimize")
    with pytest.raises(ConfigError, match=r"has 2 studies, so name one after #\. Allowed: first, second"):
        known(tmp_path, url)
    with pytest.raises(ConfigError, match=r"has no study 'third'\. Allowed: first, second"):
        known(tmp_path, f"{url}#third")
    with pytest.raises(ConfigError, match=r"the study second has the direction minimize, but the sweep has mode max"):
        known(tmp_path, f"{url}#second")
    assert known(tmp_path, f"{url}#first").trials == found.trials


def test_a_study_of_several_objectives_or_of_another_metric_is_refused(tmp_path: Path) -> None:
    optuna.create_study(storage=journal(tmp_path / "two.log"), directions=["maximize", "minimize"])
    with pytest.raises(ConfigError, match=r"has 2 objectives\. Allowed: one"):
        known(tmp_path, "two.log")
    study = optuna.create_study(storage=journal(tmp_path / "loss.log"), study_name="s", direction="maximize")
    study.set_metric_names(["loss"])
    with pytest.raises(ConfigError, match=r"the study s is of the metric loss, but the sweep is of score"):
        known(tmp_path, "loss.log")


def test_another_database_is_refused_and_not_changed(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("CREATE TABLE mine (x)")
    connection.commit()
    connection.close()
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(ConfigError, match=r"Optuna cannot read .*other\.db: the database has no table of studies"):
        known(tmp_path, "sqlite:///other.db")
    assert (tmp_path / "other.db").read_bytes() == before


def test_the_journal_of_another_sweep_is_a_source(tmp_path: Path) -> None:
    space = {
        **SIMPLE,
        "net": {"one_of": [{"kind": "flat"}, {"kind": "deep", "depth": {"randint": [2, 6]}}]},
        "size": {"choice": [2, "x", [1, 2]]},
    }
    configs = recorded(tmp_path, space, 12)
    sweep = read_sweep(tmp_path / "record.jsonl")
    StudyJournal(tmp_path / "optuna.journal", sweep)
    assert [trial.config for trial in known(tmp_path, "optuna.journal", space).trials] == configs


def test_the_stage_refuses_a_source_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "state/s").mkdir(parents=True, mode=0o700)
    stage = make_stage(tmp_path, warm_start="old.csv", search_algorithm="optuna", search_space=SIMPLE)
    with pytest.raises(ConfigError, match=r"^sweeps\.s\.warm_start: old\.csv does not exist"):
        run_sweep(stage, tmp_path / "c.yaml")
