"""Analyses a sweep beyond the winner.

The analysis finds which hyper-parameters mattered, where the good values lie, which trials the scheduler stopped, and what the sweep cost.
"""

from __future__ import annotations

import bisect
import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from raysweep.config.model import Mode
from raysweep.record.gpu_use import GpuUse
from raysweep.record.node_times import Device
from raysweep.record.trials import Trial
from raysweep.report.inputs import Attempt, Inputs, SweepResult
from raysweep.report.keys import Key
from raysweep.report.optuna_study import distribution_of, new_study, params_of

MIN_TRIALS = 30  # number of trials with a value that the importances and the map need; fewer trials do not support a conclusion
MIN_SHARE_WITH_KEY = 0.9  # a key gets an importance only if more than this share of the trials with a value have the key
TARGET_QUANTILE = 0.2  # the best fifth of the trials is compared with all trials; the figures also divide the trials into fifths
CELLS = 24  # number of cells along a numeric axis of the map
BANDWIDTH = 0.1  # bandwidth of the map's kernel, as a fraction of the length of an axis
# A cell of the map stays empty if the sum of the weights of the trials is smaller than this number. A trial at the centre of the cell has the weight 1.
MIN_WEIGHT = 0.6
LEVELS = 5  # number of levels into which the map divides the values of the metric; each level has a colour
MAX_PARTS = 200  # largest number of parts of the running time for which the use of the GPUs is given
MAX_RUNGS = 40  # with more rungs, the page has no figure of the rungs


class Importance(NamedTuple):
    """Contains the share of the difference between good trials and all trials that one key explains. The shares of a sweep's keys add up to 1."""

    key: Key
    share: float


def importances(result: SweepResult, keys: list[Key]) -> list[Importance]:
    """Return the importance of two or more of the keys, the most important key first.

    The list is empty if there are too few trials, or if the best fifth of the trials is no better than the other trials. A key is left out if too many
    trials lack the key, for example because the search space no longer contains the key.

    The method is PED-ANOVA (Watanabe, Bansal, Hutter: https://arxiv.org/abs/2304.10255), as Optuna implements it. PED-ANOVA measures how much the
    values of a key in the best fifth of the trials differ from the values of the key in all trials.
    """
    keys = [key for key in keys if len(_with_keys(result, [key])) > MIN_SHARE_WITH_KEY * len(result.ranked)]
    trials = _with_keys(result, keys)
    # `ranked` begins with the best trial. If the best fifth ends with the worst value of all trials, good trials do not differ from other trials.
    if len(keys) < 2 or len(trials) < MIN_TRIALS or trials[int(TARGET_QUANTILE * len(trials))][1] == trials[-1][1]:
        return []
    import optuna

    distributions = {key.name: distribution_of(key) for key in keys}
    study = new_study(result)
    study.add_trials(
        [optuna.create_trial(params=params_of(keys, trial.config), distributions=distributions, value=value) for trial, value in trials]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=TARGET_QUANTILE)
    share_of = optuna.importance.get_param_importances(study, evaluator=evaluator)
    by_name = {key.name: key for key in keys}
    return [Importance(by_name[name], share) for name, share in share_of.items()]


def _with_keys(result: SweepResult, keys: list[Key]) -> list[tuple[Trial, float]]:
    """Return the trials with a value that have all of these keys. Trials from the time before the search space was extended lack some keys."""
    return [(trial, value) for trial, value in result.ranked if all(key.is_in(trial.config) for key in keys)]


class Cell(NamedTuple):
    """Describes a rectangle of the map. The ends of the rectangle are positions from 0 to 1 on the two axes of the map."""

    left: float
    right: float
    bottom: float
    top: float
    value: float  # smoothed value of the metric
    level: int  # index of the level of `value`; the best level has index 0


def landscape(result: SweepResult, x: Key, y: Key) -> list[Cell]:
    """Return the cells of the map, which shows the smoothed metric over the two keys `x` and `y`.

    The value of a cell is the weighted mean of the trials' values. Trials near the centre of the cell have more weight. The method is Nadaraya–Watson
    with a Gaussian kernel. Values outside the middle 90 % of all values are clipped. Otherwise one trial that diverged would make all other cells look
    alike. Cells without trials around them are left out.
    """
    trials = _with_keys(result, [x, y])
    values = np.array([value for _, value in trials])
    values = np.clip(values, *np.quantile(values, [0.05, 0.95]))
    positions = np.array([[key.position(key.value_in(trial.config)) for key in (x, y)] for trial, _ in trials])
    # Names have no neighbours. So along an axis of names, only trials with the name at the centre of the cell count.
    bandwidths = np.array([BANDWIDTH if key.numeric else 1e-9 for key in (x, y)])
    cells = []
    for (left, right), (bottom, top) in itertools.product(_edges(x), _edges(y)):
        centre = np.array([(left + right) / 2, (bottom + top) / 2])
        weights = np.exp(-(((positions - centre) / bandwidths) ** 2).sum(1) / 2)
        if weights.sum() >= MIN_WEIGHT:
            # Rounding removes the last digits, in which equal values may differ.
            value = float(f"{weights @ values / weights.sum():.6g}")
            cells.append((left, right, bottom, top, value))
    smoothed = [cell[4] for cell in cells]
    low, high = min(smoothed), max(smoothed)
    bounds = [low + (high - low) * i / LEVELS for i in range(1, LEVELS)]
    return [Cell(*cell, _level(cell[4], bounds, result.mode)) for cell in cells]


def _edges(key: Key) -> list[tuple[float, float]]:
    """Return the two ends of each cell along the axis of `key`, as positions from 0 to 1."""
    count = CELLS if key.numeric else len(key.categories)
    return [(i / count, (i + 1) / count) for i in range(count)]


def _level(value: float, bounds: list[float], mode: Mode) -> int:
    """Return the level of `value`, from 0 for the best level. `bounds` contains the bounds between the levels."""
    if bounds[0] == bounds[-1]:
        return 0
    from_below = bisect.bisect_right(bounds, value)
    return LEVELS - 1 - from_below if mode == "max" else from_below


class Rung(NamedTuple):
    """Describes an epoch at which the scheduler compared trials. The numbers count the trials without an error that reached this epoch."""

    epoch: int
    went_on: int  # number of these trials that the scheduler did not stop at this epoch
    stopped: int  # number of these trials that the scheduler stopped at this epoch


def rungs(result: SweepResult) -> list[Rung]:
    """Return the rungs of ASHA or HyperBand. The list is empty for any other scheduler, and if no trial was stopped."""
    if result.header.scheduler.name not in ("asha", "hyperband"):
        return []
    stopped = [trial.epochs for trial in result.trials if trial.status == "STOPPED"]
    epochs = sorted({*stopped, result.header.max_epochs})
    if not stopped or len(epochs) > MAX_RUNGS:
        return []
    ended_well = [trial for trial in result.trials if trial.status in ("STOPPED", "TERMINATED")]
    reached = {epoch: sum(trial.epochs >= epoch for trial in ended_well) for epoch in epochs}
    return [Rung(epoch, reached[epoch] - stopped.count(epoch), stopped.count(epoch)) for epoch in epochs]


class Cost(NamedTuple):
    """Contains the hours and epochs that the sweep used, and the epochs that the scheduler and `stop` spared."""

    unit: str  # GPU-hours or CPU-hours
    hours: float  # hours in `unit` that the sweep was given, over all sessions
    epochs: int  # number of epochs that all trials trained
    epochs_spared: int  # number of epochs that the stopped trials did not train

    @property
    def hours_spared(self) -> float:
        """Return an estimate of the hours that the spared epochs would have taken. The estimate uses the mean hours of a trained epoch."""
        return self.hours * self.epochs_spared / self.epochs if self.epochs else 0.0


def cost(result: SweepResult) -> Cost:
    """Return the cost of a sweep."""
    # A trainable function may return before `max_epochs`. So the longest trial that was not stopped gives the epochs of a full trial.
    stopped = [trial for trial in result.trials if trial.status == "STOPPED" or trial.reason == "stop"]
    full = [trial.epochs for trial in result.trials if trial.status == "TERMINATED" and trial.reason != "stop"]
    full_epochs = max(full, default=result.header.max_epochs)
    spared = sum(max(0, full_epochs - trial.epochs) for trial in stopped)
    return Cost(unit_of_cost(result), hours_at(result, math.inf), sum(trial.epochs for trial in result.trials), spared)


def repeated_s(result: SweepResult) -> float:
    """Return the seconds of training that were done twice, summed over all trials.

    The next attempt of a trial goes on from a report of the interrupted attempt. All training after this report is lost and must be repeated.
    """
    attempts: dict[str, list[Attempt]] = {}
    for attempt in result.attempts:
        attempts.setdefault(attempt.trial.trial_id, []).append(attempt)
    lost_s, clock = 0.0, result.clock
    for trial in result.trials:
        reported_s = {report.epoch: clock.seconds(report.at) for report in trial.results}
        failed_s = [clock.seconds(failure.at) for failure in trial.failures]
        for attempt, following in zip(attempts.get(trial.trial_id, []), trial.attempts[1:], strict=False):
            kept_s = reported_s.get(following.from_epoch, attempt.start_s)
            # An attempt that failed ran until its failure. The failure may come after the last report of the attempt.
            own_failures_s = [at_s for at_s in failed_s if attempt.start_s <= at_s <= clock.seconds(following.at)]
            lost_s += max(0.0, max([attempt.end_s, *own_failures_s]) - max(kept_s, attempt.start_s))
    return lost_s


def unit_of_cost(result: SweepResult) -> str:
    """Return "GPU-hours" if the sweep had GPUs, otherwise "CPU-hours"."""
    return "GPU-hours" if has_gpus(result) else "CPU-hours"


def has_gpus(result: SweepResult) -> bool:
    """Return whether the sweep had a GPU in any session."""
    return any(time.node.gpus for time in result.node_times)


def hours_at(result: SweepResult, running_s: float) -> float:
    """Return the GPU-hours or CPU-hours that the sweep had been given after `running_s` seconds of running time.

    Hours in which a device was not used also count, because a cluster counts such hours.
    """
    device: Device = "gpus" if has_gpus(result) else "cpus"
    return sum(time.hours(device, running_s) for time in result.node_times)


def best_until(result: SweepResult) -> list[tuple[float, float]]:
    """Return the steps of the best value so far as pairs (second of running time, best value of the trials that had ended by then).

    The last step repeats the best value at the end of the sweep.
    """
    steps: list[tuple[float, float]] = []
    for at_s, value in sorted((result.clock.seconds(trial.ended), value) for trial, value in result.ranked if trial.ended):
        if not steps or result.sign * value > result.sign * steps[-1][1]:
            steps.append((at_s, value))
    return [*steps, (result.clock.total_s, steps[-1][1])] if steps else []


def at_a_time(result: SweepResult, bins: int) -> list[tuple[float, float]]:
    """Return the mean number of running trials in each of `bins` equal parts of the running time.

    The result contains pairs (second at which the part begins, number of trials).
    """
    width_s = result.clock.total_s / bins
    busy_s = np.zeros(bins)
    for attempt in result.attempts:
        first, last = (min(int(at_s / width_s), bins - 1) if width_s else 0 for at_s in (attempt.start_s, attempt.end_s))
        for part in range(first, last + 1):
            busy_s[part] += max(0.0, min(attempt.end_s, (part + 1) * width_s) - max(attempt.start_s, part * width_s))
    return [(part * width_s, float(busy) / width_s if width_s else 0.0) for part, busy in enumerate(busy_s)]


class GpuUseAt(NamedTuple):
    """Contains how busy the GPUs were in one part of the running time, in percent."""

    at_s: float  # middle of the part, in seconds of the running time
    mean: float  # of all GPUs
    least_busy: float  # of the GPU that was the least busy
    most_busy: float


def gpu_use_over_time(inputs: Inputs) -> list[GpuUseAt]:
    """Return how busy the GPUs were in each of at most MAX_PARTS equal parts of the running time. Parts without a measurement are left out.

    A part lasts at least a minute, unless the whole sweep is shorter, because most measurements are means of a minute.
    """
    total_s = inputs.clock.total_s
    num_parts = max(1, min(MAX_PARTS, int(total_s / 60)))
    width_s = max(total_s, 1e-3) / num_parts
    parts: dict[int, list[GpuUse]] = {}
    for use in inputs.gpu_use:
        middle_s = inputs.clock.seconds(use.at) - use.seconds / 2
        parts.setdefault(min(max(int(middle_s / width_s), 0), num_parts - 1), []).append(use)
    return [_gpu_use_at((number + 0.5) * width_s, uses) for number, uses in sorted(parts.items())]


def _gpu_use_at(at_s: float, uses: list[GpuUse]) -> GpuUseAt:
    of_gpus: dict[tuple[str, int], list[GpuUse]] = {}
    for use in uses:
        for number, percent in enumerate(use.percent):
            of_gpus.setdefault((use.agent, number), []).append(replace(use, percent=(percent,)))
    means = [_mean_percent(of_gpu) for of_gpu in of_gpus.values()]
    return GpuUseAt(at_s, _mean_percent(uses), min(means), max(means))


def _mean_percent(uses: Sequence[GpuUse]) -> float:
    """Return the mean over the time of all GPUs."""
    gpu_s = sum(use.seconds * len(use.percent) for use in uses)
    return sum(use.seconds * sum(use.percent) for use in uses) / gpu_s if gpu_s else 0.0


def mean_gpu_use(inputs: Inputs) -> float | None:
    """Return which percentage of the measured GPU-hours the GPUs were busy, or None where the GPUs were not measured."""
    return _mean_percent(inputs.gpu_use) if inputs.gpu_use else None
