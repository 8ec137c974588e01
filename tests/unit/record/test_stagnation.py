"""When a sweep ends because its best value has not become better. The records are real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raysweep.config.model import NoBetterFor
from raysweep.record.file import Record, read_sweep
from raysweep.record.stagnation import Stagnation, has_stagnated
from records import begin_repeat, new_record, report_scores


def end(record: Record, index: int, score: float | None, status: str = "TERMINATED") -> None:
    """Record a trial from its start to its end."""
    trial = f"{index:05d}"
    if trial not in record.sweep.trials:
        begin(record, index)
    if score is not None:
        report_scores(record, trial, score)
    record.write("finish", trial=trial, status=status, error=None)


def begin(record: Record, index: int) -> None:
    record.write("trial", trial=f"{index:05d}", index=index, repeat=0, seed=index, config={"x": index})
    record.write("start", trial=f"{index:05d}", node="n", from_epoch=0)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return new_record(tmp_path, metric="score", mode="max")


def test_configurations_count_in_the_order_in_which_they_finished(record: Record) -> None:
    for index in range(4):
        begin(record, index)
    end(record, 3, 0.9)
    end(record, 0, 0.1)
    assert not has_stagnated(record.sweep, NoBetterFor(2, 0))
    end(record, 2, 0.2)
    assert has_stagnated(record.sweep, NoBetterFor(2, 0))
    assert not has_stagnated(record.sweep, NoBetterFor(3, 0)), "a larger number lets the sweep go on"
    assert not has_stagnated(record.sweep, None)


def test_a_trial_that_still_ran_may_let_the_sweep_go_on(record: Record) -> None:
    begin(record, 9)
    live = Stagnation(record.sweep, NoBetterFor(2, 0))
    states = []
    for index, score in enumerate((0.5, 0.4, 0.3)):
        end(record, index, score)
        states.append(live.is_reached())
    end(record, 9, 0.7)
    assert (states, live.is_reached()) == ([False, False, True], False)
    assert not has_stagnated(read_sweep(record.path), NoBetterFor(2, 0)), "a later run reads the same from the record"


@pytest.mark.parametrize(("min_delta", "is_reached"), [(0.0, False), (0.05, True)])
def test_only_a_value_that_is_better_by_more_than_min_delta_counts(record: Record, min_delta: float, is_reached: bool) -> None:
    for index, score in enumerate((0.5, 0.52, 0.54)):
        end(record, index, score)
    assert has_stagnated(record.sweep, NoBetterFor(2, min_delta)) is is_reached


def test_nothing_counts_before_the_first_value_and_failures_count_afterwards(record: Record) -> None:
    for index in range(3):
        end(record, index, None, "ERROR")
    assert not has_stagnated(record.sweep, NoBetterFor(1, 0))
    end(record, 3, 0.5)
    end(record, 4, 0.9, "ERROR")
    assert has_stagnated(record.sweep, NoBetterFor(1, 0))


def test_only_values_within_the_constraint_are_better(tmp_path: Path) -> None:
    record = new_record(tmp_path, metric="score", mode="max", constraint={"score": {"at_most": 0.6}})
    for index, score in enumerate((0.5, 0.9, 0.8)):
        end(record, index, score)
    assert has_stagnated(record.sweep, NoBetterFor(2, 0))
    record.sweep.set_goal({})
    assert not has_stagnated(record.sweep, NoBetterFor(2, 0))


def test_a_configuration_with_repeats_finishes_with_its_last_trial(tmp_path: Path) -> None:
    record = new_record(tmp_path, metric="score", mode="min", repeats=2)
    trials = [begin_repeat(record, index, repeat) for index in range(3) for repeat in range(2)]
    for trial, score in zip(trials, (0.1, 0.3, 0.5, 0.7, 0.1, 0.1), strict=True):
        report_scores(record, trial, score)

    def finish(number: int) -> dict[str, Any]:
        return {"trial": trials[number], "status": "TERMINATED", "error": None}

    reached = []
    for number in (2, 0, 3, 1, 4, 5):  # configuration 1 (mean 0.6) finishes first, then 0 (0.2), then 2 (0.1)
        record.write("finish", **finish(number))
        reached.append(has_stagnated(record.sweep, NoBetterFor(1, 0)))
    assert not any(reached)
    record.write("finish", **finish(5))
    assert not has_stagnated(record.sweep, NoBetterFor(1, 0)), "the same end does not count twice"


def test_the_end_of_the_sweep_is_the_end_of_its_trials_too(record: Record) -> None:
    for index, score in enumerate((0.5, 0.4)):
        end(record, index, score)
    stagnated = has_stagnated(record.sweep, NoBetterFor(1, 0))
    assert record.sweep.is_complete(50, not stagnated)
    begin(record, 2)
    assert not record.sweep.is_complete(50, not stagnated), "what runs is finished first"


def test_trials_that_go_on_are_counted_again_with_their_present_values(record: Record) -> None:
    live = Stagnation(record.sweep, NoBetterFor(3, 0))
    for index, score in enumerate((0.9, 0.8, 0.7, 0.6)):
        end(record, index, score)
    assert live.is_reached()
    for index, score in enumerate((0.91, 0.85, 0.8, 0.95)):
        record.write("reopen", trial=f"{index:05d}")
        record.write("start", trial=f"{index:05d}", node="n", from_epoch=1)
        end(record, index, score)
        assert live.is_reached() is has_stagnated(record.sweep, NoBetterFor(3, 0))
    assert not live.is_reached(), "the last configuration is the best one now"
