"""Which finished trials go on with other limits, and what the record keeps of them meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raysweep.common.bounds import Bounds
from raysweep.record.events import finish
from raysweep.record.file import Record, read_sweep
from raysweep.record.reopening import reopening_of
from raysweep.record.trials import Trial
from records import begin_repeat, new_record, report_scores

STOP: Bounds = {"score": {"at_least": 0.9}}


def finished(record: Record, trial: str, reason: Any, *scores: float, error: str | None = None) -> str:
    """Record a trial with these scores that has finished for this reason."""
    record.write("trial", trial=trial, index=int(trial), repeat=0, seed=0, config={})
    record.write("start", trial=trial, node="n", from_epoch=0)
    report_scores(record, trial, *scores)
    record.write("finish", **finish(trial, reason, error))
    return trial


def checkpoint(record: Record, trial: str, epoch: int) -> None:
    """Record a checkpoint that exists."""
    folder = record.path.parent / f"{trial}-{epoch}"
    folder.mkdir()
    record.write("checkpoint", trial=trial, epoch=epoch, path=folder.name)


def reopened(record: Record, max_epochs: int, stop: Bounds | None = None) -> list[str]:
    return [trial.trial_id for trial in reopening_of(record.sweep, record.path.parent, max_epochs, stop or {}).trials]


def test_more_epochs_reopen_the_trials_that_max_epochs_had_ended_and_fewer_none(tmp_path: Path) -> None:
    with new_record(tmp_path, max_epochs=2) as record:
        finished(record, "00000", "max_epochs", 0.1, 0.2)
        finished(record, "00001", "scheduler", 0.1)
        finished(record, "00002", "returned", 0.1)
        finished(record, "00003", "error", 0.1, error="died")
        finished(record, "00004", "stop", 0.95)
        assert reopened(record, 3, STOP) == ["00000"]
        assert reopened(record, 2, STOP) == reopened(record, 1, STOP) == []


def test_other_bounds_reopen_the_trials_that_they_would_not_end(tmp_path: Path) -> None:
    with new_record(tmp_path, max_epochs=3) as record:
        finished(record, "00000", "stop", 0.1, 0.92)
        finished(record, "00001", "stop", 0.97)
        finished(record, "00002", "max_epochs", 0.1, 0.99, 0.2)
        assert reopened(record, 3, STOP) == []
        assert reopened(record, 3) == ["00000", "00001"], "without stop"
        assert reopened(record, 3, {"score": {"at_least": 0.95}}) == ["00000"]
        assert reopened(record, 4, STOP) == [], "the trial 00002 had reached the bound before its last epoch"


def test_a_record_of_version_0_1_has_no_reasons(tmp_path: Path) -> None:
    with new_record(tmp_path, max_epochs=2) as record:
        for number, (status, scores) in enumerate([("TERMINATED", (0.1, 0.2)), ("TERMINATED", (0.1,)), ("STOPPED", (0.1,)), ("ERROR", ())]):
            trial = f"{number:05d}"
            record.write("trial", trial=trial, index=number, repeat=0, seed=0, config={})
            record.write("start", trial=trial, node="n", from_epoch=0)
            report_scores(record, trial, *scores)
            record.write("finish", trial=trial, status=status, error=None)
        assert [trial.reason for trial in record.sweep.trials.values()] == ["max_epochs", "returned", "scheduler", "error"]
        assert reopened(record, 3) == ["00000"]


@pytest.mark.parametrize(("reason", "expected"), [("max_epochs", ["00000-0", "00000-1"]), ("stop", ["00000-0"]), ("scheduler", [])])
def test_a_failed_or_stopped_trial_keeps_its_configuration_finished(tmp_path: Path, reason: Any, expected: list[str]) -> None:
    with new_record(tmp_path, max_epochs=2, repeats=2) as record:
        for repeat, (why, scores) in enumerate([("max_epochs", (0.1, 0.2)), (reason, (0.1, 0.95 if reason == "stop" else 0.2))]):
            trial = begin_repeat(record, 0, repeat)
            report_scores(record, trial, *scores)
            record.write("finish", **finish(trial, why))  # type: ignore[arg-type]
        assert reopened(record, 3, STOP) == expected


def test_the_sentence_says_what_going_on_costs(tmp_path: Path) -> None:
    with new_record(tmp_path, max_epochs=2) as record:
        for number in range(3):
            finished(record, f"{number:05d}", "max_epochs", 0.1, 0.2)
        checkpoint(record, "00000", 2)
        checkpoint(record, "00001", 1)
        reopening = reopening_of(record.sweep, tmp_path, 4, {})
        assert (reopening.from_epochs, reopening.epochs) == ((2, 1, 0), 9)
        assert str(reopening) == (
            "3 finished trials go on to epoch 4, with at most 9 epochs of training. 1 of them begins at the first epoch, because its checkpoint was deleted"
            " (keep_checkpoints) or never written"
        )


def state_of(trial: Trial) -> tuple[Any, ...]:
    best = trial.best("score", "max")
    assert best
    return trial.status, trial.epochs, round(best.metrics["score"], 3), [result.epoch for result in trial.results]


def test_a_trial_that_is_trained_anew_keeps_its_reports_until_it_has_passed_them(tmp_path: Path) -> None:
    with new_record(tmp_path, max_epochs=2) as record:
        trial = record.sweep.trials[finished(record, "00000", "max_epochs", 0.5, 0.6)]
        record.write("reopen", trial="00000")
        assert (state_of(trial), trial.finished, trial.ended) == (("PENDING", 2, 0.6, [1, 2]), False, None)
        record.write("start", trial="00000", node="n", from_epoch=0)
        assert state_of(trial) == ("RUNNING", 2, 0.6, [1, 2])
        record.write("result", trial="00000", epoch=1, metrics={"score": 0.4}, time_s=1.0, node="n", verdict="CONTINUE")
        assert state_of(trial) == ("RUNNING", 2, 0.6, [1, 2])
        for epoch, score in ((2, 0.5), (3, 0.7), (4, 0.8)):
            record.write("result", trial="00000", epoch=epoch, metrics={"score": score}, time_s=1.0, node="n", verdict="CONTINUE")
        assert state_of(trial) == ("RUNNING", 4, 0.8, [1, 2, 3, 4])
        record.write("start", trial="00000", node="n", from_epoch=3)  # an ordinary failure after it has gone on
        assert state_of(trial) == ("RUNNING", 3, 0.7, [1, 2, 3])
    again = read_sweep(record.path).trials["00000"]
    assert (state_of(again), again.reopened_at) == (state_of(trial), 2)


@pytest.mark.parametrize(
    "stop",
    [{"time_total_s": {"at_least": 2}}, {"training_iteration": {"at_least": 2}}, {"lost": {"at_least": 1}}],
    ids=lambda stop: next(iter(stop)),
)
def test_a_bound_of_a_value_that_is_no_recorded_metric_still_holds(tmp_path: Path, stop: Bounds) -> None:
    """Tune adds two of the values to each report. The record has no infinite values, such as the third one was."""
    with new_record(tmp_path, max_epochs=5) as record:
        finished(record, "00000", "stop", 0.1, 0.2)
        assert reopened(record, 5, stop) == []
        assert reopened(record, 5) == ["00000"]
