from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from raysweep.record.sweep import Sweep
from raysweep.tune.population import HandOvers
from raysweep.tune.repeats import GroupedScheduler
from raysweep.tune.replay import replay
from raysweep.tune.schedulers import RecordedStub, make_scheduler
from typed import sweep_config

NO_RECORD: Any = None  # only population based training reads it


class Stub:
    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id
        self.config: dict[str, Any] = {}
        self.status, self.is_saving = "RUNNING", False


def scheduler(**options: Any) -> Any:
    made = make_scheduler(sweep_config(scheduler=options, max_epochs=9, trainable="user.py:train"), NO_RECORD, {}, HandOvers())
    made.set_search_properties("score", "max")
    return made


def recorded(values: dict[str, list[float]], finished: bool = True) -> Sweep:
    """Trials with these values by epoch; reports come in the order of epochs, then of trials, as version 0.1 recorded them."""
    sweep = Sweep()

    def apply(event: str, **more: Any) -> None:
        sweep.apply({"event": event, "at": "2026-01-01T00:00:00Z", **more})  # the order of the lines counts, and not the time

    apply("session", sweep={})
    for number, trial_id in enumerate(values):
        apply("trial", trial=trial_id, index=number, repeat=0, seed=0, config={})
        apply("start", trial=trial_id, node="n", from_epoch=0)
    for epoch in range(1, 1 + max(len(scores) for scores in values.values())):
        for trial_id, scores in values.items():
            if epoch <= len(scores):
                apply("result", trial=trial_id, epoch=epoch, metrics={"score": scores[epoch - 1]}, time_s=float(epoch), node="n")
    for trial_id in values if finished else ():
        apply("finish", trial=trial_id, status="TERMINATED", error=None)
    return sweep


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


def halved(last: str) -> Sweep:
    """Trials of a bracket of HyperBand, of which three wait for `last`, which has reported its last epoch when the session is killed."""
    sweep = Sweep()

    def apply(event: str, **more: Any) -> None:
        sweep.apply({"event": event, "at": "2026-01-01T00:00:00Z", **more})

    apply("session", sweep={})
    for number in range(8):
        apply("trial", trial=str(number), index=number, repeat=0, seed=0, config={})
    for number in range(4, 8):  # the first four are another bracket
        apply("start", trial=str(number), node="n", from_epoch=0)
        for epoch in range(1, 4 + (3 if str(number) == last else 0)):
            verdict = None if epoch == 6 else "PAUSE" if epoch == 3 else "CONTINUE"
            apply("result", trial=str(number), epoch=epoch, metrics={"score": number / 10}, time_s=1.0, node="n", verdict=verdict)
    return sweep


def test_trials_that_hyperband_stops_only_in_the_replay_are_returned() -> None:
    sweep = halved(last="7")
    hyperband = make_scheduler(
        sweep_config(scheduler={"name": "hyperband", "reduction_factor": 2}, max_epochs=6, trainable="user.py:train"),
        NO_RECORD,
        {},
        HandOvers(),
    )
    hyperband.set_search_properties("score", "max")
    assert replay(hyperband, sweep, "score") == ["4", "5"], "the session was killed before it recorded the ends of the worse half"
    for trial_id in ("4", "5"):
        sweep.apply({"event": "finish", "at": "2026-01-01T00:00:00Z", "trial": trial_id, "status": "STOPPED", "error": None})
    assert replay(scheduler(name="hyperband", reduction_factor=2), sweep, "score") == []


def test_a_report_without_the_metric_is_not_replayed() -> None:
    replayed, empty = (scheduler(name="asha", grace_period=1, reduction_factor=2) for _ in range(2))
    sweep = recorded({"a": [0.5], "b": [0.9]})
    sweep.trials["a"].results[0].metrics.clear()
    replay(replayed, sweep, "score")
    empty.on_trial_add(None, Stub("b"))
    empty.on_trial_result(None, Stub("b"), {"training_iteration": 1, "score": 0.9})
    assert replayed.debug_string() == empty.debug_string()


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_trial_that_goes_on_is_judged_as_if_it_had_not_been_finished(name: str) -> None:
    """Also where another scheduler, or none, has given the recorded verdicts."""
    options: dict[str, Any] = {"asha": {"reduction_factor": 2}, "median": {"min_samples_required": 2}}[name]
    sweep = recorded({"a": [0.5, 0.6], "b": [0.4, 0.4], "c": [0.9, 0.95], "d": [0.1, 0.1]})
    for trial_id in sweep.trials:
        sweep.apply({"event": "reopen", "at": "2026-01-01T00:00:00Z", "trial": trial_id})
    rebuilt = scheduler(name=name, grace_period=1, **options)
    assert replay(rebuilt, sweep, "score") == []
    decisions = {}
    for trial_id, score in (("c", 0.96), ("a", 0.7), ("b", 0.5), ("d", 0.2)):
        rebuilt.on_trial_add(None, Stub(trial_id))
        decisions[trial_id] = rebuilt.on_trial_result(
            SimpleNamespace(get_live_trials=list), RecordedStub(trial_id), {"training_iteration": 4, "score": score}
        )
    assert decisions["c"] == TrialScheduler.CONTINUE
    assert decisions["d"] == TrialScheduler.STOP


def test_the_trials_of_a_configuration_that_goes_on_are_judged_together() -> None:
    sweep = Sweep()

    def apply(event: str, **more: Any) -> None:
        sweep.apply({"event": event, "at": "2026-01-01T00:00:00Z", **more})

    apply("session", sweep={"repeats": 2, "max_epochs": 1})
    for repeat in range(2):
        trial = f"00000-{repeat}"
        apply("trial", trial=trial, index=0, repeat=repeat, seed=0, config={})
        apply("start", trial=trial, node="n", from_epoch=0)
        apply("result", trial=trial, epoch=1, metrics={"score": 0.5}, time_s=1.0, node="n", verdict=None)
        apply("finish", trial=trial, status="TERMINATED", reason="max_epochs", error=None)
    for repeat in range(2):
        apply("reopen", trial=f"00000-{repeat}")
    grouped = GroupedScheduler(scheduler(name="asha", grace_period=2, reduction_factor=2), sweep, "score")
    replay(grouped, sweep, "score")
    assert grouped.over == set()
    results = [grouped.on_trial_result(None, Stub(f"00000-{repeat}"), {"training_iteration": 2, "score": 0.6}) for repeat in range(2)]
    assert results == [TrialScheduler.CONTINUE] * 2
    assert "0.6" in grouped.debug_string(), "the rung of epoch 2 has the mean of the configuration"
