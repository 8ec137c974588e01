from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import TrialScheduler

from raysweep.config.space import parse_space
from raysweep.record.events import ScheduleStep
from raysweep.record.file import Record
from raysweep.tune.faults import FirstFault
from raysweep.tune.gpu_share import GpuShare
from raysweep.tune.hung_trials import RunningTrials
from raysweep.tune.population import PBT, HandOvers, Replay, mutable_keys
from raysweep.tune.private import StorageContext
from raysweep.tune.retries import RetryPolicy
from raysweep.tune.samplers import ListSampler
from raysweep.tune.search import RecordedSearch, StartConditions, TrialPlan
from raysweep.tune.trial import RESERVED_KEY
from records import two_trials
from typed import sweep_config

SPACE = parse_space(
    {
        "lr": {"loguniform": [1e-4, 1e-1]},
        "batch_size": {"choice": [2, 4, 8]},
        "net": {"width": {"randint": [2, 9]}, "rate": {"quniform": [0, 1, 0.25]}},
        "noise": {"normal": [0, 2]},
        "fixed": 3,
    }
)
SEARCHED = [key for key in SPACE if key != "fixed"]
OPTIONS = {"perturbation_interval": 1, "quantile_fraction": 0.5, "resample_probability": 0.25}


def tune_trials(record: Record) -> list[Any]:
    """Return the trials of the record as Tune has them, which run."""
    share = GpuShare(record, 0)
    retries = RetryPolicy(record, FirstFault(), RunningTrials(None, lambda actor: None), share, max_failures=0, has_engines=False)
    conditions = StartConditions(lambda: 9, lambda: False)
    search = RecordedSearch(record, ListSampler([]), TrialPlan(2, 0), conditions, retries, share)
    tune.register_trainable("nothing", lambda config: None)
    storage = StorageContext(str(record.path.parent), "tune")
    search.add_configurations([SimpleNamespace(spec={"run": "nothing", "config": {}, "storage": storage})])
    trials = [search.next_trial() for _ in record.sweep.trials]
    for trial in trials:
        trial.storage.trial_dir_name = trial.trial_id  # Tune's controller sets it, for which Ray must run
        trial.set_status("RUNNING")
    return trials


class PausingController:
    """As much of Tune's controller as population based training calls."""

    def __init__(self, trials: list[Any]) -> None:
        self.trials, self.search_alg, self.paused = trials, None, []  # type: ignore[var-annotated]

    def get_trials(self) -> list[Any]:
        return self.trials

    def pause_trial(self, trial: Any, should_checkpoint: bool) -> None:
        assert not should_checkpoint
        trial.set_status("PAUSED")
        self.paused.append(trial.trial_id)


def pbt_of(record: Record, keys: list[str], hand_overs: HandOvers | None = None) -> PBT:
    pbt = PBT(record, HandOvers() if hand_overs is None else hand_overs, SPACE, keys, 0, **OPTIONS)
    pbt.set_search_properties("score", "max")
    return pbt


def test_what_is_explored_stays_within_the_space(tmp_path: Path) -> None:
    with two_trials(tmp_path) as record:
        pbt, draws = pbt_of(record, SEARCHED), random.Random(0)
        config = record.sweep.trials["00000"].config
        seen = []
        for _ in range(200):
            config = pbt.explore(config, draws)
            assert 1e-4 <= config["lr"] <= 1e-1
            assert config["batch_size"] in (2, 4, 8)
            assert config["net"]["width"] in range(2, 9)
            assert config["net"]["rate"] in (0, 0.25, 0.5, 0.75, 1)
            assert config["fixed"] == 3
            seen.append(config)
        assert {config["batch_size"] for config in seen} == {2, 4, 8}
        assert len({config["lr"] for config in seen}) > 100


@pytest.mark.parametrize(("target", "keys"), [({"model": "m:M"}, ["lr", "batch_size"]), ({"trainable": "f.py:f"}, SEARCHED)])
def test_of_a_model_only_its_training_changes(target: dict[str, Any], keys: list[str]) -> None:
    assert mutable_keys(sweep_config(**target), SPACE) == keys


def test_the_worse_trial_takes_over_a_copy_of_the_better_ones_recorded_checkpoint(tmp_path: Path) -> None:
    with two_trials(tmp_path) as record:
        hand_overs = HandOvers()
        pbt = pbt_of(record, ["lr"], hand_overs)
        better, worse = trials = tune_trials(record)
        controller = PausingController(trials)
        for trial in trials:
            pbt.on_trial_add(controller, trial)
        pbt.on_trial_result(controller, better, {"training_iteration": 3, "score": 0.9})
        pbt.on_trial_result(controller, worse, {"training_iteration": 2, "score": 0.1})
        assert controller.paused == ["00001"]
        assert hand_overs.pop("00000", None) is None
        taken = hand_overs.pop("00001", None)
        assert taken is not None
        assert (taken.donor, taken.epoch) == ("00000", 3)
        assert worse.config[RESERVED_KEY].seed == 1
        assert worse.config["lr"] == taken.config["lr"] != 0.01
        assert {key: value for key, value in taken.config.items() if key != "lr"} == {
            key: value for key, value in record.sweep.trials["00000"].config.items() if key != "lr"
        }
        restored = worse.latest_checkpoint_result
        assert restored.metrics == {"training_iteration": 3, "time_total_s": 3.0, "score": pytest.approx(0.3)}
        assert (Path(restored.checkpoint.path) / "weights").read_text() == "00000"
        assert (tmp_path / taken.path / "weights").read_text() == "00000"
        assert better.latest_checkpoint_result.checkpoint.path == str(tmp_path / "tune/00000/checkpoint_3"), (
            "the better trial is left alone"
        )


def test_of_earlier_copies_only_the_one_that_the_record_may_name_stays(tmp_path: Path) -> None:
    with two_trials(tmp_path) as record:
        pbt = pbt_of(record, ["lr"])
        better, worse = trials = tune_trials(record)
        controller = PausingController(trials)
        for trial in trials:
            pbt.on_trial_add(controller, trial)
        for _ in range(3):
            pbt.exploit(controller, worse, [better], 2)
        copies = sorted(path.name for path in (tmp_path / "tune/00001").glob("taken_over_*"))
        assert copies == ["taken_over_000001", "taken_over_000002"]


def test_the_draws_depend_on_the_trial_and_the_epoch_and_not_on_the_order(tmp_path: Path) -> None:
    def take_overs(folder: Path, epochs: list[int]) -> dict[int, dict[str, Any]]:
        with two_trials(folder) as record:
            hand_overs = HandOvers()
            better, worse = trials = tune_trials(record)
            pbt, controller = pbt_of(record, SEARCHED, hand_overs), PausingController(trials)
            for trial in trials:
                pbt.on_trial_add(controller, trial)
            configs = {}
            for epoch in epochs:
                pbt.exploit(controller, worse, [better], epoch)
                configs[epoch] = hand_overs.pop("00001").config
            return configs

    forward, backward = take_overs(tmp_path / "forward", [2, 4, 6]), take_overs(tmp_path / "backward", [6, 4, 2])
    assert forward == backward
    assert len({config["lr"] for config in forward.values()}) > 1


def test_a_better_trial_without_a_checkpoint_hands_nothing_over(tmp_path: Path) -> None:
    with two_trials(tmp_path) as record:
        record.sweep.trials["00000"].checkpoints.clear()
        hand_overs = HandOvers()
        pbt = pbt_of(record, ["lr"], hand_overs)
        better, worse = trials = tune_trials(record)
        controller = PausingController(trials)
        pbt.exploit(controller, worse, [better], 2)
        assert (controller.paused, hand_overs.pop("00001", None)) == ([], None)


def test_a_confirmation_changes_its_configuration_where_the_weights_of_the_best_did(tmp_path: Path) -> None:
    with two_trials(tmp_path) as record:
        hand_overs = HandOvers()
        before = record.sweep.trials["00000"].config
        schedule = [ScheduleStep(0, before), ScheduleStep(3, {"lr": 0.5}), ScheduleStep(4, {"lr": 0.7})]
        replaying = Replay(record, hand_overs, schedule)
        reached, not_yet = trials = tune_trials(record)
        controller = PausingController(trials)
        assert [replaying.is_due(trial.trial_id) for trial in trials] == [True, False]
        assert replaying.on_trial_result(controller, not_yet, {}) == TrialScheduler.CONTINUE
        assert replaying.on_trial_result(controller, reached, {}) == TrialScheduler.NOOP
        assert controller.paused == ["00000"]
        taken = hand_overs.pop("00000", None)
        assert taken is not None
        assert (taken.donor, taken.epoch, taken.config) == ("00000", 3, {"lr": 0.5})
        record.write("take_over", trial="00000", **vars(taken))
        assert not replaying.is_due("00000"), "it has changed"
