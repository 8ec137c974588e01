"""The private names of Tune that the search depends on, and the order in which it hands out trials."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from raysweep.cluster.job import ConfirmTask
from raysweep.common.seeds import trial_seed
from raysweep.config.space import parse_space
from raysweep.record.file import Record
from raysweep.tune.samplers import IndependentSampler
from raysweep.tune.search import RecordedSearch
from raysweep.tune.trial import OWN

SAMPLER = IndependentSampler(parse_space({"x": {"uniform": [0, 1]}}), 0)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    record = Record(tmp_path / "record.jsonl")
    record.write("session", sweep={}, host="h", pid=1, nodes=[])
    return record


def search(record: Record, total: int = 3, max_concurrent: float = 9, **options: Any) -> RecordedSearch:
    made = RecordedSearch(
        record,
        SAMPLER,
        total=total,
        seed=0,
        max_concurrent=lambda: max_concurrent,
        may_start=options.pop("may_start", lambda: True),
        **options,
    )
    tune.register_trainable("nothing", lambda config: None)
    made.add_configurations([SimpleNamespace(spec={"run": "nothing", "config": {}})])
    return made


def test_new_trials_have_stable_ids_and_their_configuration_is_recorded_before_they_start(record: Record) -> None:
    algorithm = search(record)
    trials = [algorithm.next_trial() for _ in range(3)]
    assert [t.trial_id for t in trials] == ["00000", "00001", "00002"]
    assert algorithm.next_trial() is None
    assert algorithm.is_finished()
    for index, trial in enumerate(trials):
        own = {"seed": trial_seed(0, index, 0), "task": "search", "measures_gpu": False}
        assert trial.config == {**SAMPLER.propose(index), OWN: own}
        assert record.sweep.trials[trial.trial_id].config == SAMPLER.propose(index)
    assert algorithm.total_samples == 3


def test_at_capacity_it_waits_and_goes_on_when_a_trial_has_ended(record: Record) -> None:
    algorithm = search(record, max_concurrent=1)
    first = algorithm.next_trial()
    assert algorithm.next_trial() is None
    assert not algorithm.is_finished()
    first.set_status(TuneTrial.TERMINATED)
    assert algorithm.next_trial().trial_id == "00001"


def test_nothing_new_starts_when_the_time_is_used_up(record: Record) -> None:
    algorithm = search(record, may_start=lambda: False)
    assert algorithm.next_trial() is None
    assert algorithm.is_finished()
    assert not record.sweep.trials


def test_unfinished_trials_come_first_and_go_on_from_their_last_whole_checkpoint(record: Record, tmp_path: Path) -> None:
    for index, status in enumerate(["TERMINATED", None, None]):
        trial_id = f"{index:05d}"
        record.write("trial", trial=trial_id, index=index, repeat=0, seed=index, config={"x": index})
        record.write("start", trial=trial_id, node="n", from_epoch=0)
        if status:
            record.write("finish", trial=trial_id, status=status, error=None)
    for epoch in (1, 2, 3):
        if epoch < 3:  # a checkpoint of which the report was lost
            record.write("result", trial="00001", epoch=epoch, metrics={"score": 0.1 * epoch}, time_s=10.0 * epoch, node="n")
        (tmp_path / f"c{epoch}").mkdir()
        record.write("checkpoint", trial="00001", epoch=epoch, path=f"c{epoch}")
    record.write("session", sweep={}, host="h", pid=2, nodes=[])
    algorithm = search(record, total=4)
    going_on, anew, new = (algorithm.next_trial() for _ in range(3))
    assert (going_on.trial_id, anew.trial_id, new.trial_id) == ("00001", "00002", "00003")
    restored = going_on.latest_checkpoint_result
    assert restored.checkpoint.path == str(tmp_path / "c2")
    assert (restored.metrics["training_iteration"], restored.metrics["time_total_s"]) == (2, 20.0)
    assert anew.latest_checkpoint_result is None
    assert going_on.config == {"x": 1, OWN: {"seed": 1, "task": "search", "measures_gpu": False}}
    assert algorithm.next_trial() is None


def test_a_confirmation_hands_out_its_tasks(record: Record) -> None:
    tasks = [ConfirmTask("confirm-1", 11, "confirm", {}), ConfirmTask("published", 11, "evaluate", {})]
    algorithm = search(record, total=2, tasks=tasks)
    trials = [algorithm.next_trial() for _ in range(2)]
    assert [(t.trial_id, t.config[OWN]) for t in trials] == [
        ("confirm-1", {"seed": 11, "task": "confirm", "measures_gpu": False}),
        ("published", {"seed": 11, "task": "evaluate", "measures_gpu": False}),
    ]
