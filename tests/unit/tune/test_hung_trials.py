from __future__ import annotations

from typing import Any

import pytest

from raysweep.tune.hung_trials import START_DEADLINE_S, RunningTrials
from tune_parts import Clock, tune_trial


class Watched:
    """Trials that run under a clock that tests set forward, and what was killed."""

    def __init__(self, timeout_s: float | None = 100) -> None:
        self.clock, self.killed = Clock(), []  # type: ignore[var-annotated]
        self.running = RunningTrials(timeout_s, self.killed.append, self.clock)

    def step(self, after_s: float) -> None:
        self.clock.now_s += after_s
        self.running.allow_for_suspension()
        self.running.kill_hung()


def test_a_trial_that_reports_nothing_for_too_long_is_killed_once() -> None:
    watched = Watched()
    watched.running.begin(tune_trial("00000"))
    watched.step(50)
    watched.running.begin(tune_trial("00001"))
    watched.step(49)
    assert watched.killed == []
    for _ in range(2):
        watched.step(2)
    assert watched.killed == ["actor of 00000"]
    reason = watched.running.take_kill_reason("00000")
    assert reason == "it reported nothing for 1m40s (trial_timeout), so it was ended"
    assert watched.running.take_kill_reason("00000") is None
    assert watched.running.take_kill_reason("00001") is None
    watched.step(50)  # Tune has not ended the first trial yet
    assert watched.killed == ["actor of 00000", "actor of 00001"]


def test_the_trial_that_is_silent_longest_is_killed_whatever_the_order_of_the_starts() -> None:
    watched = Watched()
    for number in range(3):
        watched.running.begin(tune_trial(f"{number:05d}"))
    watched.step(50)
    watched.running.note_report("00000")
    watched.step(20)
    watched.running.note_report("00002")
    watched.step(40)
    assert watched.killed == ["actor of 00001"]
    watched.step(45)
    assert watched.killed == ["actor of 00001", "actor of 00000"]


def test_a_report_begins_the_time_anew() -> None:
    watched = Watched()
    watched.running.begin(tune_trial("00000"))
    for _ in range(5):
        watched.step(50)
        watched.running.note_report("00000")
    assert watched.killed == []


@pytest.mark.parametrize("timeout_s", [None, 10])
def test_without_a_limit_or_an_actor_nothing_is_killed(timeout_s: float | None) -> None:
    watched = Watched(timeout_s)
    trial = tune_trial("00000")
    if timeout_s is not None:
        trial.temporary_state.ray_actor = None
    watched.running.begin(trial)
    for _ in range(10):
        watched.step(50)
    assert watched.killed == []


def test_the_time_for_which_the_job_was_suspended_is_not_held_against_trials() -> None:
    watched = Watched()
    watched.running.begin(tune_trial("00000"))
    for suspended_s in (90, 5000):
        watched.step(suspended_s)
    assert watched.killed == []
    watched.running.end("00000")
    assert watched.running.start_error() is None


def test_a_sweep_in_which_no_trial_begins_has_an_error() -> None:
    watched = Watched()
    watched.clock.now_s += START_DEADLINE_S
    assert watched.running.start_error() is None
    watched.clock.now_s += 1
    assert str(watched.running.start_error()) == "no trial has begun for 15 minutes, though there is room for one"
    watched.running.trials["00000"] = tune_trial("00000")
    assert watched.running.start_error() is None, "a trial may train for as long as it needs"


def test_an_event_begins_the_start_deadline_anew() -> None:
    watched = Watched()
    watched.clock.now_s += START_DEADLINE_S
    watched.running.note_event()
    watched.clock.now_s += 1
    assert watched.running.start_error() is None


def test_paused_trials_run_no_more() -> None:
    watched = Watched()
    trials: list[Any] = [tune_trial("00000"), tune_trial("00001")]
    for trial in trials:
        watched.running.begin(trial)
    trials[0].status = "PAUSED"
    assert watched.running.take_paused() == ["00000"]
    assert list(watched.running.trials) == ["00001"]
    assert watched.running.take_paused() == []
