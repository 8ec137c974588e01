"""This module gives the recorded events to a Tune scheduler before a sweep continues, so that the scheduler decides as without the interruption."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import MedianStoppingRule, TrialScheduler

from raysweep.record.sweep import HistoryEntry, Sweep
from raysweep.record.trials import Result
from raysweep.tune.population import PBT
from raysweep.tune.private import HyperBand, add_median_result
from raysweep.tune.repeats import GroupedScheduler
from raysweep.tune.schedulers import PassingScheduler, RecordedStub


class RecordedVerdicts(PassingScheduler):
    """Gives recorded reports to the scheduler `inner`, and returns the recorded verdict, because a trial acts on a verdict only once."""

    verdict = ""  # recorded verdict of the present report

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        if isinstance(self.inner, MedianStoppingRule):
            add_median_result(self.inner, trial, result, self.verdict)
        elif isinstance(self.inner, PBT):
            self.inner.add_recorded(trial, result)
        else:
            self.inner.on_trial_result(tune_controller, trial, result)
        return self.verdict


class ReplayController:
    """Replaces Tune's controller for a scheduler that learns recorded events. A trial that the scheduler stops is only noted."""

    search_alg = None

    def __init__(self, scheduler: TrialScheduler) -> None:
        self.scheduler = scheduler
        self.stopped: set[str] = set()  # ids of the trials that the scheduler has stopped, and that have not reported since

    def stop_trial(self, trial: Any) -> None:
        trial.status = TuneTrial.TERMINATED
        self.stopped.add(trial.trial_id)
        self.scheduler.on_trial_remove(self, trial)


class RecordedHistory:
    """Gives the events of `recorded` to `scheduler` in the order of the record's lines.

    A report after which a trial takes over a checkpoint is given to the scheduler together with the take-over. If the session was killed between the two, the
    trial makes the report again, and the scheduler decides again.
    """

    def __init__(self, scheduler: TrialScheduler, recorded: Sweep, metric: str) -> None:
        self.grouped = scheduler if isinstance(scheduler, GroupedScheduler) else None
        self.inner = self.grouped.inner if self.grouped else scheduler
        self.answers = RecordedVerdicts(self.inner)
        self.scheduler: TrialScheduler = self.grouped or self.answers
        self.controller: Any = ReplayController(self.answers)
        self.recorded, self.metric = recorded, metric
        self.stubs: dict[str, Any] = {trial_id: RecordedStub(trial_id) for trial_id in recorded.trials}
        self.stopped: set[str] = set()  # ids of the trials that have the verdict STOP
        self.last_reports: dict[str, HistoryEntry] = {}  # trial id → report that waits for the take-over

    def run(self) -> list[str]:
        """Give all events to the scheduler. Return the ids of the unfinished trials that the scheduler has stopped because of the last events."""
        if self.grouped:
            self.grouped.inner = self.answers
        handlers = {
            "trial": self._add,
            "result": self._report,
            "take_over": self._take_over,
            "failure": self._fail,
            "finish": self._finish,
            "reopen": self._reopen,
        }
        for entry in self.recorded.history:
            handlers[entry.event](entry, self.stubs[entry.trial.trial_id])
        if self.grouped:
            self.grouped.inner = self.inner
        return [trial_id for trial_id in sorted(self.controller.stopped) if not self.recorded.trials[trial_id].finished]

    def _add(self, entry: HistoryEntry, stub: Any) -> None:
        self.scheduler.on_trial_add(self.controller, stub)

    def _report(self, entry: HistoryEntry, stub: Any) -> None:
        report = entry.result
        assert report is not None
        if report.verdict == TrialScheduler.NOOP:
            self.last_reports[stub.trial_id] = entry
            return
        stub.status = TuneTrial.RUNNING
        self.controller.stopped.discard(stub.trial_id)
        # The scheduler is not asked about the reports of a trial that it has stopped. Such a trial has failed, and was tried again.
        if report.verdict is not None and self.metric in report.metrics and stub.trial_id not in self.stopped:
            self._tell(report, stub)

    def _tell(self, report: Result, stub: Any) -> None:
        self.answers.verdict = report.verdict or ""
        self.scheduler.on_trial_result(self.controller, stub, as_tune_report(report))
        if report.verdict == TrialScheduler.PAUSE:
            stub.status = TuneTrial.PAUSED
        elif report.verdict == TrialScheduler.STOP:
            self.stopped.add(stub.trial_id)

    def _take_over(self, entry: HistoryEntry, stub: Any) -> None:
        last = self.last_reports.pop(stub.trial_id, None)
        if last is None or last.result is None or entry.donor is None or entry.result is None or not isinstance(self.inner, PBT):
            return
        self._tell(last.result, stub)
        self.inner.note_exploit(stub, self.stubs[entry.donor.trial_id], entry.result.epoch)

    def _fail(self, entry: HistoryEntry, stub: Any) -> None:
        if isinstance(self.inner, HyperBand):
            self.inner.forget_report(stub)

    def _finish(self, entry: HistoryEntry, stub: Any) -> None:
        if stub.is_finished():
            return  # the scheduler has stopped the trial
        # The reports of version 0.1 have no verdicts, from which the scheduler would learn that a configuration was stopped.
        if self.grouped and entry.status == "STOPPED":
            self.grouped.over.add(entry.trial.index)
        if entry.status == "ERROR" or entry.result is None or self.metric not in entry.result.metrics:
            self.scheduler.on_trial_error(self.controller, stub)
        else:
            self.scheduler.on_trial_complete(self.controller, stub, as_tune_report(entry.result))
        stub.status = TuneTrial.TERMINATED

    def _reopen(self, entry: HistoryEntry, stub: Any) -> None:
        stub.status = TuneTrial.PENDING
        if self.grouped:
            self.grouped.reopen(entry.trial.index)
        self.scheduler.on_trial_add(self.controller, stub)


def replay(scheduler: TrialScheduler, recorded: Sweep, metric: str) -> list[str]:
    """Give the recorded events to the scheduler in the order of the record, so that the scheduler has the same state as before the interruption.

    Return the ids of the unfinished trials that the scheduler has stopped. A session was killed before it could record the ends of these trials.
    """
    return RecordedHistory(scheduler, recorded, metric).run()


def as_tune_report(result: Result) -> dict[str, Any]:
    """Return a recorded report as Tune gives the report to a scheduler."""
    return {"training_iteration": result.epoch, "time_total_s": result.time_s, **result.metrics}
