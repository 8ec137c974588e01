"""When no new trial of a sweep may begin."""

from __future__ import annotations

import pytest

from raysweep.record.budget import is_budget_used_up, may_begin_trials
from records import History
from typed import sweep_config


def history(hours: float, gpus: int = 2) -> History:
    """A sweep with `gpus` GPUs that has run for so many hours, and whose three trials have been of no use after the first."""
    history = History()
    history.begin(0, "7_0", ("a", 4, gpus))
    for index in range(3):
        trial = f"{index:05d}"
        history.tell(0, "trial", trial=trial, index=index, repeat=0, seed=0, config={})
        history.tell(0, "start", trial=trial, node="a", from_epoch=0)
        history.tell(0, "result", trial=trial, epoch=1, metrics={"score": 0.5}, time_s=1.0, node="a")
        history.tell(0, "finish", trial=trial, status="TERMINATED", error=None)
    history.tell(hours, "fused", why_not="no")
    return history


@pytest.mark.parametrize(
    ("budget", "is_used_up"),
    [
        ({}, False),
        ({"time_budget": 121}, False),
        ({"time_budget": 120}, True),
        ({"max_gpu_hours": 4.1}, False),
        ({"max_gpu_hours": 4}, True),
        ({"max_gpu_hours": 0.5, "time_budget": "3h"}, True),
        ({"max_gpu_hours": 9, "time_budget": "1h"}, True),
    ],
)
def test_a_budget_of_time_or_of_gpu_hours_ends_the_sweep(budget: dict[str, float | str], is_used_up: bool) -> None:
    sweep = sweep_config(trainable="user.py:train", allocation={"gpus_per_node": 2}, **budget)
    recorded = history(2).sweep
    assert is_budget_used_up(recorded, sweep) is is_used_up
    assert may_begin_trials(recorded, sweep) is not is_used_up
    assert recorded.is_complete(50, may_begin_trials(recorded, sweep)) is is_used_up


def test_a_sweep_that_trained_on_cpus_has_used_no_gpu_hours() -> None:
    sweep = sweep_config(trainable="user.py:train", allocation={"gpus_per_node": 1}, max_gpu_hours=1)
    assert not is_budget_used_up(history(99, gpus=0).sweep, sweep)


def test_the_nodes_of_other_jobs_use_the_budget_too() -> None:
    sweep = sweep_config(trainable="user.py:train", allocation={"gpus_per_node": 2, "jobs": 2}, max_gpu_hours=6)
    running = history(2)
    running.node(2, "b", "joined", "7_1", 4, 2)
    running.tell(2.4, "fused", why_not="no")
    assert not is_budget_used_up(running.sweep, sweep)
    running.tell(2.5, "fused", why_not="no")
    assert is_budget_used_up(running.sweep, sweep)


def test_a_sweep_that_gets_no_better_begins_no_trials() -> None:
    recorded = history(1).sweep
    recorded.sessions[-1].header = recorded.header.from_json({"metric": "score"})
    for configurations, may_begin in ((2, False), (3, True)):
        sweep = sweep_config(trainable="user.py:train", end_when={"no_better_for": {"configurations": configurations}})
        assert may_begin_trials(recorded, sweep) is may_begin
