"""This module gives the recorded reports to a Tune scheduler before a sweep continues."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from raysweep.common.errors import logger
from raysweep.record.trials import Result, Sweep, Trial
from raysweep.tune.private import add_median_result
from raysweep.tune.repeats import GroupedScheduler
from raysweep.tune.schedulers import PassingScheduler, RecordedStub


class RecordedVerdicts(PassingScheduler):
    """Gives recorded reports to the scheduler `inner`, and returns the recorded verdict, because a trial acts on a verdict only once."""

    verdict = ""  # recorded verdict of the present report

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        if isinstance(self.inner, ASHAScheduler):
            self.inner.on_trial_result(tune_controller, trial, result)
        elif isinstance(self.inner, MedianStoppingRule):
            add_median_result(self.inner, trial, result, self.verdict)
        return self.verdict


def replay(scheduler: TrialScheduler, recorded: Sweep, metric: str) -> None:
    """Give the scheduler the recorded reports and ends of trials in the order of the record, so that the scheduler has the same state as before.

    HyperBand and population based training get no replay, because HyperBand would start and stop trials, and population based training would start take-overs.
    Both schedulers start again without a memory of the recorded reports, and the log says so.
    """
    inner = scheduler.inner if isinstance(scheduler, GroupedScheduler) else scheduler
    if isinstance(inner, HyperBandScheduler) and recorded.trials:
        logger.info("HyperBand does not remember its brackets: the trials that are left form new ones.")
    if isinstance(inner, PopulationBasedTraining) and recorded.trials:
        logger.info("Population based training compares the trials that are left anew.")
    answers = RecordedVerdicts(inner if isinstance(inner, ASHAScheduler | MedianStoppingRule) else FIFOScheduler())
    for candidate in recorded.candidates:
        answers.on_trial_add(None, RecordedStub(candidate.trial_id))
    if isinstance(scheduler, GroupedScheduler):
        scheduler.inner = answers
        _replay_history(scheduler, answers, recorded, metric)
        scheduler.inner = inner
    else:
        _replay_history(answers, answers, recorded, metric)


def _replay_history(scheduler: TrialScheduler, answers: RecordedVerdicts, recorded: Sweep, metric: str) -> None:
    for trial, report in recorded.history:
        stub: Any = RecordedStub(trial.trial_id)
        if report is None:
            _replay_end(scheduler, stub, trial, metric)
        elif report.verdict is not None and metric in report.metrics:
            answers.verdict = report.verdict
            scheduler.on_trial_result(None, stub, _as_tune_report(report))


def _replay_end(scheduler: TrialScheduler, stub: Any, trial: Trial, metric: str) -> None:
    if isinstance(scheduler, GroupedScheduler) and trial.status == "STOPPED":
        scheduler.over.add(trial.index)  # the reports of version 0.1 have no verdicts, from which the scheduler would learn this
    if trial.status == "ERROR" or not trial.results or metric not in trial.results[-1].metrics:
        scheduler.on_trial_error(None, stub)
    else:
        scheduler.on_trial_complete(None, stub, _as_tune_report(trial.results[-1]))


def _as_tune_report(result: Result) -> dict[str, Any]:
    return {"training_iteration": result.epoch, "time_total_s": result.time_s, **result.metrics}
