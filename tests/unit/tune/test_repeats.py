"""Several trials of each configuration, with a seed each, shown to a scheduler as one trial."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler

from raysweep.record.file import Record
from raysweep.tune.repeats import GroupedScheduler
from raysweep.tune.replay import replay
from records import begin_repeat, new_record, report_scores


class NotingScheduler(TrialScheduler):
    """Notes its calls, and stops a trial whose score is below 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self.calls.append(("add", trial.trial_id))

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.calls.append(("error", trial.trial_id))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        self.calls.append((trial.trial_id, result["training_iteration"], round(result["score"], 6)))
        return TrialScheduler.STOP if result["score"] < 0.5 else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self.calls.append(("complete", trial.trial_id, round(result["score"], 6)))

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None: ...

    def choose_trial_to_run(self, tune_controller: Any) -> Any: ...

    def debug_string(self) -> str:
        return ""


class Grouping:
    """A grouped scheduler, and the scheduler that it tells, with the calls after the replay."""

    def __init__(self, record: Record) -> None:
        self.inner = NotingScheduler()
        self.scheduler = GroupedScheduler(self.inner, record.sweep, "score")
        replay(self.scheduler, record.sweep, "score")
        self.replayed, self.inner.calls = self.inner.calls, []

    def fail(self, trial: str) -> None:
        self.scheduler.on_trial_error(None, SimpleNamespace(trial_id=trial))

    def add(self, trial: str) -> None:
        self.scheduler.on_trial_add(None, SimpleNamespace(trial_id=trial))

    def result(self, trial: str, epoch: int, score: float) -> str:
        return self.scheduler.on_trial_result(None, SimpleNamespace(trial_id=trial), {"training_iteration": epoch, "score": score})

    def complete(self, trial: str, epoch: int, score: float) -> None:
        self.scheduler.on_trial_complete(None, SimpleNamespace(trial_id=trial), {"training_iteration": epoch, "score": score})


def test_a_scheduler_is_told_means_and_stops_a_configuration_as_one(tmp_path: Path) -> None:
    with new_record(tmp_path, repeats=2) as record:
        trials = [begin_repeat(record, index, repeat) for index in (0, 1) for repeat in (0, 1)]
        grouping = Grouping(record)
        for trial in trials:
            grouping.add(trial)
        good, other_good, bad, other_bad = trials
        assert grouping.result(good, 1, 0.2) == "CONTINUE"  # nothing is decided while the other has not come as far
        assert grouping.result(good, 2, 0.9) == "CONTINUE"
        assert grouping.result(other_good, 1, 0.9) == "CONTINUE"
        assert grouping.result(bad, 1, 0.6) == "CONTINUE"
        assert grouping.result(bad, 2, 0.9) == "CONTINUE"
        assert grouping.result(other_bad, 1, 0.1) == "STOP"
        assert grouping.result(bad, 3, 0.9) == "STOP"  # it was ahead
        grouping.complete(good, 3, 0.7)
        assert grouping.result(other_good, 2, 0.5) == "CONTINUE"
        grouping.complete(other_good, 3, 0.9)
        assert grouping.replayed == [("add", "00000"), ("add", "00001")]
        assert grouping.inner.calls == [
            ("00000", 1, 0.55),
            ("00001", 1, 0.35),
            ("00000", 2, 0.7),
            ("complete", "00000", 0.8),
        ]


def test_a_configuration_is_over_when_one_of_its_trials_failed_and_stays_so(tmp_path: Path) -> None:
    with new_record(tmp_path, repeats=2) as record:
        first, second = begin_repeat(record, 0, 0), begin_repeat(record, 0, 1)
        grouping = Grouping(record)
        grouping.add(first)
        grouping.add(second)
        grouping.fail(first)
        assert grouping.result(second, 1, 0.9) == "STOP"
        assert grouping.inner.calls == [("error", "00000")]
        record.write("finish", trial=first, status="ERROR", error="died")
        again = Grouping(record)
        assert again.result(second, 1, 0.9) == "STOP"


def test_what_is_recorded_is_not_told_again(tmp_path: Path) -> None:
    with new_record(tmp_path, repeats=2) as record:
        first, second = begin_repeat(record, 0, 0), begin_repeat(record, 0, 1)
        report_scores(record, first, 0.6, 0.7)
        report_scores(record, second, 0.8)
        grouping = Grouping(record)
        assert grouping.result(second, 1, 0.9) == "CONTINUE"
        assert grouping.result(second, 2, 0.9) == "CONTINUE"
        assert grouping.replayed == [("add", "00000"), ("00000", 1, 0.7)]
        assert grouping.inner.calls == [("00000", 2, 0.8)]
