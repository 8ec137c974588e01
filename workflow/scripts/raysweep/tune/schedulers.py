"""Tune's schedulers, by the names of the config, shielded from results that they cannot read."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from raysweep.common.files import flush_folder
from raysweep.common.seeds import sampler_seed
from raysweep.config.model import SweepConfig
from raysweep.config.space import TRAINING_KEYS, Choice, Distribution, Normal, Numeric, flattened, nested, quantized, value_at
from raysweep.record.events import ScheduleStep
from raysweep.record.file import Record
from raysweep.record.trials import Sweep, Trial
from raysweep.tune.trial import OWN

logger = logging.getLogger("raysweep")


class HyperBand(HyperBandScheduler):
    """Tune's, but a bracket that was halved once is looked at again when a trial of it fails: else the last runner's end would leave the others waiting."""

    def _process_bracket(self, tune_controller: Any, bracket: Any) -> str:
        try:
            return super()._process_bracket(tune_controller, bracket)
        finally:
            bracket.is_being_processed = False


def hand_over(record: Record, tune_controller: Any, trial: Any, donor: Trial, epoch: int, config: dict[str, Any]) -> dict[str, Any]:
    """Pause a trial of Tune's, to go on with another configuration from the checkpoint that `donor` recorded after `epoch`.

    Returns what the record is to be told after the report at which this was decided (event `take_over`).
    """
    state_dir = record.path.parent
    result = next(result for result in donor.results if result.epoch == epoch)
    # Beside the trial's own, whose names begin otherwise; a copy, since the donor's is deleted when it has a later one. Of earlier copies the latest stays,
    # of which the record speaks until it has heard of this one.
    earlier = sorted(Path(trial.path).glob("taken_over_*"))
    for old in earlier[:-1]:
        shutil.rmtree(old)
    number = int(earlier[-1].name.rpartition("_")[2]) + 1 if earlier else 0
    folder = shutil.copytree(state_dir / donor.checkpoints[epoch], Path(trial.path) / f"taken_over_{number:06d}")
    flush_folder(folder)
    tune_controller.pause_trial(trial, should_checkpoint=False)
    trial.set_config({**config, **{key: value for key, value in trial.config.items() if key == OWN}})
    metrics = {"training_iteration": epoch, "time_total_s": result.time_s, **result.metrics}
    trial.run_metadata.checkpoint_manager._latest_checkpoint_result = _TrainingResult(
        checkpoint=Checkpoint.from_directory(folder), metrics=metrics
    )
    return {"donor": donor.trial_id, "epoch": epoch, "config": config, "path": str(folder.relative_to(state_dir))}


class PBT(PopulationBasedTraining):
    """Tune's population based training, but what a trial takes over from a better one it takes from our record, which knows it.

    Tune would have the better trial save itself, and hand over a checkpoint that nobody keeps; here the other trial gets a copy of the latest one that is
    recorded.
    (M. Jaderberg et al., https://arxiv.org/abs/1711.09846)
    """

    def __init__(self, record: Record, space: dict[str, Any], keys: Sequence[str], seed: int, **options: Any) -> None:
        # A function that explores, since Tune wants something to mutate; ours does it all.
        super().__init__(time_attr="training_iteration", custom_explore_fn=dict, log_config=False, **options)
        self.record, self.space, self.keys = record, space, keys
        self.random = random.Random(seed)
        self.taken_over: dict[str, dict[str, Any]] = {}  # trial_id → what the record is to be told of it

    def _checkpoint_or_exploit(self, trial: Any, tune_controller: Any, upper_quantile: list[Any], lower_quantile: list[Any]) -> None:
        if trial in lower_quantile:
            self._exploit(tune_controller, trial, self.random.choice(upper_quantile))

    def _exploit(self, tune_controller: Any, trial: Any, trial_to_clone: Any) -> None:
        donor = self.record.sweep.trials[trial_to_clone.trial_id]
        epoch = donor.latest_checkpoint(self.record.path.parent)
        if not epoch:
            logger.debug("trial %s has no checkpoint that trial %s could take over", donor.trial_id, trial.trial_id)
            return
        config = self.explored(donor.config)
        self.taken_over[trial.trial_id] = hand_over(self.record, tune_controller, trial, donor, epoch, config)
        mine, its = self._trial_state[trial], self._trial_state[trial_to_clone]
        mine.last_perturbation_time, mine.last_train_time = its.last_perturbation_time, epoch
        self._num_perturbations += 1
        logger.debug("trial %s goes on as trial %s at epoch %d, with %s", trial.trial_id, donor.trial_id, epoch, config)

    def explored(self, config: dict[str, Any]) -> dict[str, Any]:
        """A configuration near another one: each key is drawn anew, or multiplied, or, of a list, moved by one place."""
        found = flattened(config)
        for key in self.keys:
            d, value = self.space[key], value_at(config, key)
            if self.random.random() < self._resample_probability or value is None:
                found[key] = d.quantile(self.random.random())
            elif isinstance(d, Choice):
                at = d.values.index(value) if value in d.values else 0
                found[key] = d.values[min(max(at + self.random.choice((-1, 1)), 0), len(d.values) - 1)]
            else:
                found[key] = near(d, value * self.random.choice(self._perturbation_factors))
        return nested(found)


def near(d: Numeric | Normal, value: float) -> Any:
    """The value of a distribution that is the nearest."""
    if isinstance(d, Normal):
        return value
    value = min(max(value, d.low), d.high - 1 if d.integer else d.high)
    return round(value) if d.integer else quantized(value, d.low, d.high, d.step) if d.step else value


def mutable_keys(sweep: SweepConfig, space: dict[str, Any]) -> list[str]:
    """What may change in the middle of a training: of a model what the training is set by, since its form is that of the weights; of a function all."""
    return [key for key, d in space.items() if isinstance(d, Distribution) and (sweep.trainable is not None or key in TRAINING_KEYS)]


def make_scheduler(sweep: SweepConfig, record: Record, space: dict[str, Any]) -> TrialScheduler:
    """The scheduler of a sweep of a validated config. The metric and mode are set by Tune."""
    name, options = sweep.scheduler.name, sweep.scheduler.options
    if name == "pbt":
        return PBT(record, space, mutable_keys(sweep, space), sampler_seed(sweep.seed, len(record.sweep.trials)), **options)
    if name == "asha":
        return ASHAScheduler(time_attr="training_iteration", max_t=sweep.max_epochs, **options)
    if name == "hyperband":
        return HyperBand(time_attr="training_iteration", max_t=sweep.max_epochs, **options)
    if name == "median":
        return MedianStoppingRule(time_attr="training_iteration", **options)
    return FIFOScheduler()


class Replay(FIFOScheduler):
    """Has each trial change its configuration at the epochs at which those weights did that a population came to (record.Trial.schedule).

    It learns of an epoch's checkpoint with the next report, goes back to it, and takes that epoch again in the new way.
    """

    def __init__(self, record: Record, schedule: Sequence[ScheduleStep]) -> None:
        super().__init__()
        self.record, self.schedule = record, schedule
        self.taken_over: dict[str, dict[str, Any]] = {}  # as of PBT

    def due(self, trial_id: str) -> tuple[int, dict[str, Any]] | None:
        """The epoch to go back to and the configuration to go on with, where a change is due."""
        own = self.record.sweep.trials[trial_id]
        epoch = own.latest_checkpoint(self.record.path.parent)
        configs = [step.config for step in self.schedule if 0 < step.from_epoch <= epoch]
        return (epoch, configs[-1]) if configs and configs[-1] != own.config else None

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if (due := self.due(trial.trial_id)) is None:
            return TrialScheduler.CONTINUE
        own = self.record.sweep.trials[trial.trial_id]
        self.taken_over[trial.trial_id] = hand_over(self.record, tune_controller, trial, own, *due)
        return TrialScheduler.NOOP


class _Recorded:
    """Stands for a trial of an earlier run where results are replayed: rung schedulers look at nothing but its id.

    It equals the trial that goes on under that id (search.JudgedTrial), since the median rule keeps results by trial.
    """

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id

    def __eq__(self, other: object) -> bool:
        return self.trial_id == getattr(other, "trial_id", None)

    def __hash__(self) -> int:
        return hash(self.trial_id)


class _NobodyElse:
    """Stands for Tune's controller, of which the median rule asks whether others wait: in a replay nobody does."""

    def get_live_trials(self) -> list[Any]:
        return []


def replay(scheduler: Any, recorded: Sweep, metric: str) -> None:
    """Tell ASHA or the median rule what is recorded, in the order in which it was reported, so that their rungs are as they were.

    HyperBand would start and stop trials as it is told; it begins its bracket anew, and a line says so.
    """
    if isinstance(scheduler, HyperBandScheduler) and recorded.trials:
        logger.info("HyperBand does not remember its brackets: the trials that are left form new ones.")
    if isinstance(scheduler, PBT) and recorded.trials:
        logger.info("Population based training compares the trials that are left anew.")
    if not isinstance(scheduler, ASHAScheduler | MedianStoppingRule):
        return
    stubs = {candidate.trial_id: _Recorded(candidate.trial_id) for candidate in recorded.candidates}
    nobody_else = _NobodyElse()
    for stub in stubs.values():
        scheduler.on_trial_add(nobody_else, stub)
    reports = [
        (result.at, candidate, result) for candidate in recorded.candidates for result in candidate.results if metric in result.metrics
    ]
    for _, trial, result in sorted(reports, key=lambda report: report[0]):
        told = {"training_iteration": result.epoch, "time_total_s": result.time_s, **result.metrics}
        if isinstance(scheduler, MedianStoppingRule):
            # Asked, it would note whom it stops, and not take another result of that trial; which may have gone on all the same: it failed and was tried
            # again, or time was up before it was asked.
            scheduler._results[stubs[trial.trial_id]].append(told)
        else:
            scheduler.on_trial_result(nobody_else, stubs[trial.trial_id], told)
    for trial in recorded.candidates:
        if trial.finished and trial.results and metric in (last := trial.results[-1]).metrics:
            scheduler.on_trial_complete(nobody_else, stubs[trial.trial_id], {"training_iteration": last.epoch, **last.metrics})


class Passing(TrialScheduler):
    """Passes everything to another scheduler."""

    def __init__(self, inner: TrialScheduler) -> None:
        super().__init__()
        self.inner = inner

    @property
    def metric(self) -> str | None:
        return self.inner.metric

    @property
    def supports_buffered_results(self) -> bool:
        return False

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return self.inner.set_search_properties(metric, mode, **spec)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self.inner.on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.inner.on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self.inner.on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self.inner.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self.inner.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        return self.inner.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        return self.inner.debug_string()


class Grouped(Passing):
    """Shows another scheduler the trials of one configuration as one: it is told their mean once all have come to an epoch, and what it decides holds for all.

    A trial that is ahead of the others, and learns that they are stopped, ends with its next report.
    """

    def __init__(self, inner: TrialScheduler, recorded: Sweep, metric: str) -> None:
        super().__init__(inner)
        self.recorded, self.metric_told = recorded, metric
        # index of the configuration → epoch → trial_id → value; of what is recorded the scheduler knows, see replay().
        self.reported: dict[int, dict[int, dict[str, float]]] = {}
        self.told: dict[int, int] = {}
        self.added: set[int] = set()
        for index, group in recorded.groups.items():
            self.told[index] = group.epochs
            for trial in group.trials:
                for result in trial.results:
                    self._note(index, result.epoch, trial.trial_id, result.metrics.get(metric))
        # Configurations of which no trial is to go on.
        self.over = {index for index, group in recorded.groups.items() if {"STOPPED", "ERROR"} & {trial.status for trial in group.trials}}
        self.ended: dict[int, set[str]] = {
            index: {trial.trial_id for trial in group.trials if trial.finished} for index, group in recorded.groups.items()
        }

    def _note(self, index: int, epoch: int, trial_id: str, value: Any) -> None:
        if value is not None:
            self.reported.setdefault(index, {}).setdefault(epoch, {})[trial_id] = value

    def _index(self, trial: Any) -> int:
        return self.recorded.trials[trial.trial_id].index

    def _stub(self, index: int) -> _Recorded:
        return _Recorded(self.recorded.groups[index].trial_id)

    def _mean(self, index: int, result: dict[str, Any]) -> dict[str, Any] | None:
        """What to tell of a configuration at the epoch of a report; None while some of its trials have not come to it."""
        epoch = result["training_iteration"]
        values = self.reported.get(index, {}).get(epoch, {})
        if len(values) < self.recorded.repeats or epoch <= self.told.get(index, 0):
            return None
        self.told[index] = epoch
        return {**result, self.metric_told: sum(values.values()) / len(values)}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        index = self._index(trial)
        self.ended.setdefault(index, set())
        if index not in self.added:
            self.added.add(index)
            self.inner.on_trial_add(tune_controller, self._stub(index))

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        index = self._index(trial)
        # Tune says so of failures too after which it tries the trial again.
        if index not in self.over and not getattr(trial, "is_tried_again", False):
            self.over.add(index)  # what fails with one seed cannot win
            self.inner.on_trial_error(tune_controller, self._stub(index))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        index = self._index(trial)
        self._note(index, result["training_iteration"], trial.trial_id, result.get(self.metric_told))
        told = None if index in self.over else self._mean(index, result)
        if told and self.inner.on_trial_result(tune_controller, self._stub(index), told) == TrialScheduler.STOP:
            self.over.add(index)
        return TrialScheduler.STOP if index in self.over else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        index = self._index(trial)
        if "training_iteration" in result:
            self._note(index, result["training_iteration"], trial.trial_id, result.get(self.metric_told))
        self.ended.setdefault(index, set()).add(trial.trial_id)
        if index not in self.over and len(self.ended[index]) == self.recorded.repeats:
            self.over.add(index)
            if told := self._mean(index, result):
                self.inner.on_trial_complete(tune_controller, self._stub(index), told)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """The others of its configuration may go on."""


class _Live:
    """Tune's controller without the trials that have ended: for each choice Tune's schedulers look at all, which of 10,000 takes 2 ms."""

    def __init__(self, tune_controller: Any) -> None:
        self.tune_controller = tune_controller

    def get_trials(self) -> list[Any]:
        return sorted(self.tune_controller.get_live_trials(), key=lambda trial: trial.trial_id)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tune_controller, name)


class Shielded(Passing):
    """Takes for an error the end of a trial whose results lack a usable metric, and lets no trial
    begin or go on once `is_over`."""

    def __init__(self, inner: TrialScheduler, unusable: Container[str], is_over: Callable[[], bool]) -> None:
        super().__init__(inner)
        self.unusable = unusable
        self.is_over = is_over

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if trial.trial_id in self.unusable:
            self.inner.on_trial_error(tune_controller, trial)
        else:
            self.inner.on_trial_complete(tune_controller, trial, result)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        return None if self.is_over() else self.inner.choose_trial_to_run(_Live(tune_controller))
