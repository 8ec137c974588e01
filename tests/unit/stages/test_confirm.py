from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raysweep.cluster.job import ConfirmTask
from raysweep.data.manifest import Validation
from raysweep.record.events import Provenance, ScheduleStep
from raysweep.record.results import BestMetric, BestResult
from raysweep.stages.confirm import Method, identity_of, method_of, tasks_of
from staging import stage_into
from typed import make_stage

FIRST, LAST = {"x": 1}, {"x": 2}
SCHEDULE = (ScheduleStep(0, FIRST), ScheduleStep(3, LAST))
BEST = BestResult(
    sweep="s",
    trial_id="00001",
    config=LAST,
    metric=BestMetric("score", "max", 0.5),
    epochs=4,
    num_trials=2,
    num_errors=0,
    provenance=Provenance("0.1.0", "i", "e"),
)
CONFIRM = "def train(config): ...\ndef confirm(config, seed, epochs): ...\n"


@pytest.mark.parametrize(
    ("source", "schedule", "config", "replayed", "on", "end_of_note"),
    [
        ("def train(config): ...\n", (), LAST, (), "validation", "defines no confirm(config, seed, epochs))"),
        ("def train(config): ...\n", SCHEDULE, FIRST, SCHEDULE, "validation", "; its settings changed at the same epochs"),
        (CONFIRM, (), LAST, (), "test", "evaluated on the test set"),
        (CONFIRM, SCHEDULE, LAST, (), "test", "; with the last configuration throughout, not with the schedule by which it came about"),
    ],
)
def test_a_trainable_replays_a_schedule_unless_it_defines_confirm(
    tmp_path: Path,
    source: str,
    schedule: tuple[ScheduleStep, ...],
    config: dict[str, int],
    replayed: tuple[ScheduleStep, ...],
    on: str,
    end_of_note: str,
) -> None:
    (tmp_path / "user.py").write_text(source)
    method = method_of(make_stage(tmp_path), replace(BEST, schedule=schedule))
    assert (method.config, method.schedule, method.evaluated_on) == (config, replayed, on)
    assert method.note.endswith(end_of_note)


def test_without_a_test_result_the_note_names_the_fold(tmp_path: Path) -> None:
    source = tmp_path / "own.npz"
    np.savez(source, x=np.arange(60.0).reshape(30, 2), y=np.arange(30.0))
    stage_into(tmp_path, source, output_dir=tmp_path / "resources/data/own", name="own", validation=Validation(2))
    datasets = {"own": {"source": str(source), "validation": {"folds": 2}}}
    stage = make_stage(tmp_path, datasets=datasets, dataset="own")
    assert stage.header("i", 2, 1, repeats=2).has_folds
    assert not stage.header("i", 2, 1).has_folds, "a confirmation trains on all rows except the test part"
    assert method_of(stage, BEST).note.endswith("; on fold 0")
    (tmp_path / "user.py").write_text(CONFIRM)
    assert method_of(make_stage(tmp_path, datasets=datasets, dataset="own"), BEST).note.endswith("evaluated on the test set")


def test_each_seed_is_a_trial_with_the_configuration_of_the_method(tmp_path: Path) -> None:
    tasks = tasks_of(make_stage(tmp_path, confirm={"seeds": 2}), BEST, Method(FIRST, SCHEDULE, "validation", ""))
    assert [(task.trial, task.task, task.config) for task in tasks] == [("confirm-1", "search", FIRST), ("confirm-2", "search", FIRST)]
    assert len({task.seed for task in tasks}) == 2


def test_a_confirmation_of_another_winner_has_another_identity() -> None:
    tasks = [ConfirmTask("confirm-1", 7, "search", LAST)]
    other_tasks = [replace(tasks[0], seed=8)]
    identities = [
        identity_of(BEST, tasks, ()),
        identity_of(replace(BEST, epochs=5), tasks, ()),
        identity_of(replace(BEST, trial_id="00000"), tasks, ()),
        identity_of(BEST, other_tasks, ()),
        identity_of(BEST, tasks, SCHEDULE),
        identity_of(BEST, tasks, (), ["f1"]),
    ]
    assert len(set(identities)) == 6
