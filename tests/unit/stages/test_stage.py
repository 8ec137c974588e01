"""The identity of a stage: what the trials of its sweep depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysweep.common.errors import ConfigError, WorldError
from raysweep.common.typed_json import to_json
from raysweep.config.recipe import Recipe, Schedule
from raysweep.record.events import SessionHeader
from raysweep.record.file import Record
from raysweep.stages.stage import keep_log, with_horizon
from staging import stage_into
from typed import make_stage, sweep_config


def identity(folder: Path, **changes: Any) -> str:
    return make_stage(folder, **changes).identity().sha256


@pytest.mark.parametrize("change", [{"metric": "other"}, {"mode": "min"}, {"seed": 1}, {"repeats": 2}])
def test_a_key_that_trials_depend_on_changes_the_identity(tmp_path: Path, change: dict[str, Any]) -> None:
    assert identity(tmp_path, **change) != identity(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"num_samples": 9},
        {"max_epochs": 2},
        {"scheduler": "median"},
        {"stop": {"score": {"at_least": 1}}},
        {"search_space": {"x": 2}},
        {"max_failures": 0},
        {"time_budget": "1h"},
        {"allocation": {"cpus_per_node": 2}},
    ],
)
def test_a_key_that_extends_a_sweep_or_says_how_it_is_run_leaves_it(tmp_path: Path, change: dict[str, Any]) -> None:
    assert identity(tmp_path, **change) == identity(tmp_path)


def test_the_epochs_count_where_the_trainable_reads_them(tmp_path: Path) -> None:
    make_stage(tmp_path)
    (tmp_path / "user.py").write_text('import os\n\ndef train(config): return range(int(os.environ["RAYSWEEP_MAX_EPOCHS"]))\n')
    assert identity(tmp_path, max_epochs=2) != identity(tmp_path)


def test_the_schedule_keeps_the_length_that_the_first_session_gave_it(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    training = {"schedule": {"name": "cosine", "epochs": None}}
    first, longer = (sweep_config(model="m.py:M", training=training, max_epochs=epochs) for epochs in (2, 4))
    before = with_horizon(first, path)
    assert before.training is not None
    assert before.training.schedule.epochs == 2
    with Record(path) as record:
        record.write("session", sweep=to_json(SessionHeader(max_epochs=2, training=before.training)), host="h", pid=1, nodes=[])
    assert with_horizon(longer, path).training == before.training
    assert with_horizon(longer, tmp_path / "anew.jsonl").training == Recipe(schedule=Schedule("cosine", epochs=4))
    given = sweep_config(model="m.py:M", training={"schedule": {"name": "cosine", "epochs": 3}})
    assert with_horizon(given, path) == given
    with Record(tmp_path / "given.jsonl") as record:
        record.write("session", sweep=to_json(SessionHeader(max_epochs=2, training=given.training)), host="h", pid=1, nodes=[])
    assert with_horizon(first, tmp_path / "given.jsonl").training == before.training, "the default does not depend on an earlier length"


def test_the_trainables_source_counts(tmp_path: Path) -> None:
    before = identity(tmp_path)
    (tmp_path / "user.py").write_text("def train(config): return {}\n")
    assert identity(tmp_path) != before


@pytest.mark.parametrize(("wheels", "counts"), [("download", False), ("site", True), ("none", True)])
def test_what_is_installed_counts_where_the_lock_does_not_say_it(tmp_path: Path, wheels: str, counts: bool) -> None:
    assert (
        identity(tmp_path, environment_sha256="a", wheels=wheels) != identity(tmp_path, environment_sha256="b", wheels=wheels)
    ) == counts


def test_a_loss_or_metric_that_does_not_fit_the_staged_data_is_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=np.arange(60.0).reshape(30, 2), y=np.arange(30.0))
    stage_into(tmp_path, tmp_path / "own.npz", output_dir=tmp_path / "resources/data/own", name="own")
    datasets = {"own": {"source": str(tmp_path / "own.npz")}}
    model = {
        "trainable": None,
        "model": "raysweep.models.lenet:LeNet",
        "search_space": {"lr": 1, "batch_size": 1},
        "dataset": "own",
        "mode": "min",
    }
    with pytest.raises(
        ConfigError, match=r"^sweeps\.s\.loss: 'cross_entropy' is not allowed: the targets are numbers \(task: regression\)\."
    ):
        make_stage(tmp_path, datasets=datasets, **model, metric="loss")
    assert make_stage(tmp_path, datasets=datasets, **model, metric="mae").sweep.loss == "mse_loss"
    with pytest.raises(ConfigError, match=r"^sweeps\.s\.stop: 'accuracy' is not allowed: the targets are numbers"):
        make_stage(tmp_path, datasets=datasets, **model, metric="mae", stop={"accuracy": {"at_least": 1}})
    stop = {"no_better_for": 1, "r2": {"at_least": 1}}
    assert make_stage(tmp_path, datasets=datasets, **model, metric="mae", stop=stop).sweep.stop["no_better_for"] == {
        "epochs": 1,
        "min_delta": 0,
    }
    with pytest.raises(WorldError, match=r"own was staged with task 'regression', and datasets\.own\.task is 'classification'"):
        make_stage(tmp_path, datasets={"own": {**datasets["own"], "task": "classification"}}, **model, metric="loss")


def test_rows_that_are_no_images_are_not_augmented(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=np.random.default_rng(0).normal(size=(40, 3)), y=np.arange(40) % 2)
    stage_into(tmp_path, tmp_path / "own.npz", output_dir=tmp_path / "resources/data/own", name="own")
    with pytest.raises(ConfigError, match=r"^sweeps\.s\.training\.augment: is not allowed with rows that are no images, \[3\]: \[\]$"):
        make_stage(
            tmp_path,
            datasets={"own": {"source": str(tmp_path / "own.npz")}},
            trainable=None,
            model="raysweep.models.lenet:LeNet",
            search_space={"lr": 1, "batch_size": 1},
            dataset="own",
            metric="accuracy",
            training={"augment": ["flip"]},
        )


def test_the_log_of_a_session_stays_when_snakemake_deletes_the_log_of_the_rule(tmp_path: Path) -> None:
    log = tmp_path / "my.sweep.log"
    with log.open("a") as stream:
        keep_log(log)
        stream.write("the first session")
    log.unlink()
    log.write_text("the second session")
    assert [path.read_text() for path in (tmp_path / "my.sweep").iterdir()] == ["the first session"]


def test_a_log_that_cannot_be_kept_does_not_end_the_sweep(tmp_path: Path) -> None:
    keep_log(tmp_path / "no folder" / "s.log")
