from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, MedianStoppingRule, TrialScheduler

from raysweep.record.trials import Result, Sweep, Trial
from raysweep.tune.schedulers import Shielded, make_scheduler, replay
from typed import sweep_config

NO_RECORD: Any = None  # only population based training reads it


class Stub:
    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id
        self.config: dict[str, Any] = {}
        self.status, self.is_saving = "RUNNING", False


def scheduler(**options: Any) -> Any:
    made = make_scheduler(sweep_config(scheduler=options, max_epochs=9, trainable="user.py:train"), NO_RECORD, {})
    made.set_search_properties("score", "max")
    return made


def recorded(values: dict[str, list[float]], finished: bool = True) -> Sweep:
    """Trials with these values by epoch; reports come in the order of epochs, then of trials."""
    trials = {}
    for number, (trial_id, scores) in enumerate(values.items()):
        trial = trials[trial_id] = Trial(trial_id, number, 0, 0, {}, "TERMINATED" if finished else "PENDING")
        trial.results = [Result(e, {"score": s}, float(e), f"{e:03d}-{number:03d}") for e, s in enumerate(scores, start=1)]
    return Sweep(trials=trials)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"name": "none"}, FIFOScheduler),
        ({"name": "asha", "grace_period": 2, "reduction_factor": 3}, ASHAScheduler),
        ({"name": "hyperband", "reduction_factor": 3}, HyperBandScheduler),
        ({"name": "median", "grace_period": 2, "min_samples_required": 4}, MedianStoppingRule),
    ],
)
def test_each_name_gives_tunes_own_scheduler(options: dict[str, Any], kind: type) -> None:
    assert isinstance(make_scheduler(sweep_config(scheduler=options, max_epochs=9, trainable="user.py:train"), NO_RECORD, {}), kind)


def test_asha_decides_after_a_replay_as_if_it_had_seen_the_reports() -> None:
    values = {"a": [0.5, 0.6], "b": [0.4], "c": [0.9, 0.95], "d": [0.1]}
    told, replayed = (scheduler(name="asha", grace_period=1, reduction_factor=2) for _ in range(2))
    stubs = {trial_id: Stub(trial_id) for trial_id in values}
    for stub in stubs.values():
        told.on_trial_add(None, stub)
    for epoch in (1, 2):
        for trial_id, scores in values.items():
            if epoch <= len(scores):
                told.on_trial_result(None, stubs[trial_id], {"training_iteration": epoch, "score": scores[epoch - 1]})
    replay(replayed, recorded(values, finished=False), "score")
    decisions = []
    for one in (told, replayed):
        for trial_id, score in (("low", 0.3), ("high", 0.8)):
            stub = Stub(trial_id)
            one.on_trial_add(None, stub)
            decisions.append(one.on_trial_result(None, stub, {"training_iteration": 1, "score": score}))
    assert decisions == [TrialScheduler.STOP, TrialScheduler.CONTINUE] * 2


def test_the_median_rule_is_rebuilt_too() -> None:
    rebuilt = scheduler(name="median", grace_period=1, min_samples_required=2)
    replay(rebuilt, recorded({"a": [0.5, 0.6], "b": [0.7, 0.8], "c": [0.6, 0.7]}), "score")
    decisions = {}
    for trial_id, score in (("low", 0.1), ("high", 0.9)):
        stub = Stub(trial_id)
        rebuilt.on_trial_add(None, stub)
        decisions[trial_id] = rebuilt.on_trial_result(None, stub, {"training_iteration": 1, "score": score})
    assert decisions == {"low": TrialScheduler.STOP, "high": TrialScheduler.CONTINUE}


def test_a_replay_leaves_hyperband_and_trials_without_the_metric_alone() -> None:
    replay(scheduler(name="hyperband", reduction_factor=3), recorded({"a": [0.5]}), "score")  # would need Tune's controller
    asha = scheduler(name="asha", grace_period=1, reduction_factor=2)
    sweep = recorded({"a": [0.5]})
    sweep.trials["a"].results[0].metrics.clear()
    replay(asha, sweep, "score")


@pytest.mark.parametrize("is_over", [False, True])
def test_when_time_is_nearly_up_no_trial_that_waits_goes_on(is_over: bool) -> None:
    waiting = Stub("waits")
    waiting.status = "PENDING"

    class Waits(FIFOScheduler):
        def choose_trial_to_run(self, tune_controller: Any) -> Any:
            return waiting

    assert Shielded(Waits(), set(), lambda: is_over).choose_trial_to_run(None) == (None if is_over else waiting)


def test_a_bracket_of_hyperband_goes_on_when_its_last_runner_fails() -> None:
    one = scheduler(name="hyperband", reduction_factor=3)
    added = [Stub(f"{number}") for number in range(17)]
    for trial in added:
        one.on_trial_add(None, trial)
    largest, _ = one._trial_info[added[-1]]
    trials = [trial for trial in added if one._trial_info[trial][0] is largest]
    stopped: list[Stub] = []

    def stop(trial: Stub) -> None:
        stopped.append(trial)
        trial.status = "TERMINATED"
        one.on_trial_remove(controller, trial)

    controller = SimpleNamespace(stop_trial=stop, _set_trial_status=lambda trial, status: setattr(trial, "status", status))

    def report(trial: Stub, epoch: int) -> None:
        trial.status = "RUNNING"
        action = one.on_trial_result(controller, trial, {"training_iteration": epoch, "score": float(trial.trial_id)})
        trial.status = {"PAUSE": "PAUSED", "CONTINUE": "RUNNING", "STOP": "TERMINATED"}[action]

    for trial in trials:
        report(trial, 1)
    assert (len(trials), stopped) == (9, trials[:6])
    *waiting, last = trials[6:]
    for trial in waiting:
        report(trial, 4)
    assert {trial.status for trial in waiting} == {"PAUSED"}
    last.status = "ERROR"
    one.on_trial_error(controller, last)
    assert stopped[6:] == waiting[:1], "it was halved once more"
    assert waiting[1] in largest.trials_to_unpause


def test_the_end_of_a_trial_without_a_usable_metric_is_an_error_to_the_scheduler() -> None:
    class Listening(FIFOScheduler):
        def __init__(self) -> None:
            super().__init__()
            self.heard: list[str] = []

        def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
            self.heard.append(f"error {trial.trial_id}")

        def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
            self.heard.append(f"complete {trial.trial_id}")

    inner = Listening()
    shielded = Shielded(inner, {"bad"}, lambda: False)
    for trial_id in ("good", "bad"):
        shielded.on_trial_complete(None, Stub(trial_id), {})
    assert inner.heard == ["complete good", "error bad"]
