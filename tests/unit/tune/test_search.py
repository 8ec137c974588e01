from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from raysweep.cluster.job import ConfirmTask
from raysweep.common.seeds import trial_seed
from raysweep.config.space import parse_space
from raysweep.record.file import Record
from raysweep.tune.faults import FirstFault
from raysweep.tune.gpu_share import GpuShare
from raysweep.tune.hung_trials import RunningTrials
from raysweep.tune.retries import RetryPolicy
from raysweep.tune.samplers import IndependentSampler
from raysweep.tune.schedulers import RecordedStub
from raysweep.tune.search import RecordedSearch, StartConditions, TrialPlan
from raysweep.tune.trial import RESERVED_KEY, TrialFacts
from records import begin_repeat, new_record

SAMPLER = IndependentSampler(parse_space({"x": {"uniform": [0, 1]}}), 0)

NO_STORAGE = SimpleNamespace(trial_driver_staging_path=None)  # Tune's own needs Ray to run


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return new_record(tmp_path)


def search(
    record: Record,
    total: int = 3,
    max_concurrent: float = 9,
    may_start_new: bool = True,
    is_over: bool = False,
    may_improve: bool = False,
    tasks: tuple[ConfirmTask, ...] = (),
    max_failures: int = 0,
) -> RecordedSearch:
    faults, running, gpu_share = FirstFault(), RunningTrials(None, lambda actor: None), GpuShare(record, 0.5)
    retries = RetryPolicy(record, faults, running, gpu_share, max_failures=max_failures, has_engines=False)
    conditions = StartConditions(lambda: max_concurrent, lambda: may_start_new, lambda: is_over, may_improve)
    made = RecordedSearch(record, SAMPLER, TrialPlan(total, seed=0, tasks=tasks), conditions, retries, gpu_share)
    tune.register_trainable("nothing", tune.with_resources(lambda config: None, {"CPU": 1, "GPU": 0.25}))
    made.add_configurations([SimpleNamespace(spec={"run": "nothing", "config": {}, "storage": NO_STORAGE})])
    return made


def test_new_trials_have_stable_ids_and_their_configuration_is_recorded_before_they_start(record: Record) -> None:
    algorithm = search(record)
    trials = [algorithm.next_trial() for _ in range(3)]
    assert [t.trial_id for t in trials] == ["00000", "00001", "00002"]
    assert algorithm.next_trial() is None
    assert algorithm.is_finished()
    for index, trial in enumerate(trials):
        facts = TrialFacts(trial_seed(0, index, 0), "search", False)
        assert trial.config == {**SAMPLER.propose(index), RESERVED_KEY: facts}
        assert record.sweep.trials[trial.trial_id].config == SAMPLER.propose(index)
    assert algorithm.total_samples == 3


@pytest.mark.parametrize(("has_folds", "folds"), [(True, [0, 1, 2]), (False, [0, 0, 0])])
def test_each_trial_of_a_configuration_trains_on_another_fold(record: Record, has_folds: bool, folds: list[int]) -> None:
    record.write("session", sweep={"repeats": 3, "has_folds": has_folds}, host="h", pid=2, nodes=[])
    algorithm = search(record)
    assert [algorithm.next_trial().config[RESERVED_KEY].fold for _ in range(3)] == folds


def test_at_capacity_it_waits_and_goes_on_when_a_trial_has_ended(record: Record) -> None:
    algorithm = search(record, max_concurrent=1)
    first = algorithm.next_trial()
    assert algorithm.next_trial() is None
    assert not algorithm.is_finished()
    first.set_status(TuneTrial.TERMINATED)
    assert algorithm.next_trial().trial_id == "00001"


def test_nothing_new_starts_when_the_time_is_used_up(record: Record) -> None:
    algorithm = search(record, may_start_new=False)
    assert algorithm.next_trial() is None
    assert algorithm.is_finished()
    assert not record.sweep.trials


def test_where_a_trial_that_runs_may_let_new_trials_begin_it_is_waited_for(record: Record) -> None:
    record.write("trial", trial="00000", index=0, repeat=0, seed=0, config={"x": 1})
    algorithm = search(record, may_start_new=False, may_improve=True)
    running = algorithm.next_trial()
    assert algorithm.next_trial() is None
    assert not algorithm.is_finished()
    running.set_status(TuneTrial.TERMINATED)
    assert algorithm.next_trial() is None
    assert algorithm.is_finished()


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
    assert going_on.config == {"x": 1, RESERVED_KEY: TrialFacts(1, "search", False)}
    assert algorithm.next_trial() is None


def test_a_confirmation_hands_out_its_tasks(record: Record) -> None:
    tasks = (ConfirmTask("confirm-1", 11, "confirm", {}), ConfirmTask("published", 11, "evaluate", {}))
    algorithm = search(record, total=2, tasks=tasks)
    trials = [algorithm.next_trial() for _ in range(2)]
    assert [(t.trial_id, t.config[RESERVED_KEY]) for t in trials] == [
        ("confirm-1", TrialFacts(11, "confirm", False)),
        ("published", TrialFacts(11, "evaluate", False)),
    ]


def test_a_confirmation_that_failed_is_tried_again(record: Record) -> None:
    record.write("trial", trial="confirm-1", index=0, repeat=0, seed=11, config={})
    record.write("start", trial="confirm-1", node="n", from_epoch=0)
    record.write("finish", trial="confirm-1", status="ERROR", error="died")
    assert search(record, total=1).next_trial() is None
    algorithm = search(record, total=1, tasks=(ConfirmTask("confirm-1", 11, "confirm", {}),))
    assert algorithm.next_trial().trial_id == "confirm-1"


def test_nothing_begins_or_goes_on_when_time_is_nearly_up(record: Record) -> None:
    search(record).next_trial()
    algorithm = search(record, is_over=True)
    assert algorithm.next_trial() is None
    assert algorithm.is_finished()


def test_the_policy_decides_whether_tune_tries_a_trial_again(record: Record) -> None:
    algorithm = search(record, max_failures=1)
    trial = algorithm.next_trial()
    record.write("start", trial="00000", node="n", from_epoch=0)
    trial.create_placement_group_factory()
    assert not trial.should_recover()
    trial.handle_error(ValueError("one"))
    assert trial.should_recover()
    trial.handle_error(ValueError("two"))
    assert not trial.should_recover()
    assert [failure.error for failure in record.sweep.trials["00000"].failures] == ["one", "two"]


def test_a_trial_takes_the_present_share_of_a_gpu(record: Record) -> None:
    trial = search(record).next_trial()
    trial.create_placement_group_factory()  # Tune calls it for each trial that it is handed
    assert trial.placement_group_factory.required_resources == {"CPU": 1, "GPU": 0.5}


def test_a_trial_equals_what_stands_for_it_in_a_replay(record: Record) -> None:
    trial, other = (search(record).next_trial() for _ in range(2))
    stub = RecordedStub(trial.trial_id)
    assert trial == stub
    assert hash(trial) == hash(stub)
    assert other.trial_id == "00000", "the first was recorded and did not finish"


def test_tune_may_pickle_a_trial(record: Record) -> None:
    state, _ = search(record).next_trial().get_json_state()
    assert "_retries" not in json.loads(state)


def test_a_configuration_that_has_begun_gets_all_its_trials(tmp_path: Path) -> None:
    """Without one of its trials a configuration has no value."""
    with new_record(tmp_path, repeats=3) as record:
        begin_repeat(record, 0, 0)
        for trial in record.sweep.trials.values():
            trial.status = "TERMINATED"
        algorithm = search(record, total=9, may_start_new=False)
        assert [algorithm.next_trial().trial_id for _ in range(2)] == ["00000-1", "00000-2"]
        assert algorithm.next_trial() is None
        assert algorithm.is_finished()
