"""This module gives the recorded reports to a Tune scheduler before a sweep continues."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler, MedianStoppingRule, PopulationBasedTraining

from raysweep.common.errors import logger
from raysweep.record.trials import Result, Sweep
from raysweep.tune.private import add_median_result


class RecordedStub:
    """Replaces a recorded trial during a replay. The id is enough, because schedulers with rungs read only the id of a trial.

    The stub is equal to the trial that continues under this id (search.RecordedTrial), because the median rule uses trials as dictionary keys for results.
    """

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id

    def __eq__(self, other: object) -> bool:
        return self.trial_id == getattr(other, "trial_id", None)

    def __hash__(self) -> int:
        return hash(self.trial_id)


class _ControllerStub:
    """Replaces Tune's controller during a replay. The median rule asks the controller for the live trials, and a replay has no live trial."""

    def get_live_trials(self) -> list[Any]:
        return []


def replay(scheduler: Any, recorded: Sweep, metric: str) -> None:
    """Give ASHA or the median rule the recorded reports in the original order, so that the scheduler has the same rungs and results as before.

    HyperBand and population based training get no replay, because HyperBand would start and stop trials, and population based training would start take-overs.
    Both schedulers start again without a memory of the recorded reports, and the log says so.
    """
    if isinstance(scheduler, HyperBandScheduler) and recorded.trials:
        logger.info("HyperBand does not remember its brackets: the trials that are left form new ones.")
    if isinstance(scheduler, PopulationBasedTraining) and recorded.trials:
        logger.info("Population based training compares the trials that are left anew.")
    if not isinstance(scheduler, ASHAScheduler | MedianStoppingRule):
        return
    stubs = {candidate.trial_id: RecordedStub(candidate.trial_id) for candidate in recorded.candidates}
    controller = _ControllerStub()
    for stub in stubs.values():
        scheduler.on_trial_add(controller, stub)
    reports = [(result, stubs[candidate.trial_id]) for candidate in recorded.candidates for result in candidate.results]
    for result, stub in sorted(reports, key=lambda report: report[0].at):
        if metric not in result.metrics:
            continue
        if isinstance(scheduler, MedianStoppingRule):
            add_median_result(scheduler, stub, _as_tune_reports(result))
        else:
            scheduler.on_trial_result(controller, stub, _as_tune_reports(result))
    for candidate in recorded.candidates:
        if candidate.finished and candidate.results and metric in candidate.results[-1].metrics:
            scheduler.on_trial_complete(controller, stubs[candidate.trial_id], _as_tune_reports(candidate.results[-1]))


def _as_tune_reports(result: Result) -> dict[str, Any]:
    return {"training_iteration": result.epoch, "time_total_s": result.time_s, **result.metrics}
