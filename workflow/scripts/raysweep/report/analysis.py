"""What a sweep teaches beyond its winner: which hyper-parameters mattered, where the good values lie, what the scheduler did, and what it cost."""

from __future__ import annotations

import bisect
import itertools
import math
import warnings
from typing import NamedTuple

import numpy as np

from raysweep.config.model import Mode
from raysweep.record.trials import Trial
from raysweep.report.inputs import Attempt, SweepResult
from raysweep.report.keys import Key
from raysweep.report.optuna_study import distribution_of, new_study, params_of

MIN_TRIALS = 30  # trials with a value: fewer trials support neither importances nor a map
MIN_SHARE_WITH_KEY = 0.9  # a key is judged if more than this share of the trials with a value have it
TARGET_QUANTILE = 0.2  # the best fifth is compared with all trials, as elsewhere on the page
CELLS = 24  # cells along a numeric axis of the map
BANDWIDTH = 0.1  # bandwidth of the map's kernel, as a part of an axis
MIN_WEIGHT = 0.6  # weight of the trials around a cell (a trial at its centre counts 1): with less weight the cell stays empty
LEVELS = 5
MAX_RUNGS = 40


class Importance(NamedTuple):
    """The share of the difference between good trials and all trials that one key explains; the shares of a sweep add up to 1."""

    key: Key
    share: float


def importances(result: SweepResult, keys: list[Key]) -> list[Importance]:
    """Return the importance of two or more of the keys, the most important key first.

    The list is empty where the trials are too few, or where the best fifth is no better than the others. Keys that a part of the trials
    lacks, such as a key that the space no longer has, are left out.

    PED-ANOVA (Watanabe, Bansal, Hutter: https://arxiv.org/abs/2304.10255), as Optuna implements it, measures how far the values of the best
    fifth are from the values of all trials.
    """
    keys = [key for key in keys if len(_with_keys(result, [key])) > MIN_SHARE_WITH_KEY * len(result.ranked)]
    trials = _with_keys(result, keys)
    # `ranked` is best first. Where the best fifth ends with the worst value of all, nothing separates good trials from others.
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
    """Return the trials with a value that have all of these keys; trials from before a space was extended lack some keys."""
    return [(trial, value) for trial, value in result.ranked if all(key.is_in(trial.config) for key in keys)]


class Cell(NamedTuple):
    """A rectangle of the map, in positions from 0 to 1 on both axes."""

    left: float
    right: float
    bottom: float
    top: float
    value: float  # the smoothed metric
    level: int  # 0 is the best level


def landscape(result: SweepResult, x: Key, y: Key) -> list[Cell]:
    """Return the metric over two keys: each cell has the mean of the trials' values, weighted by how near the trials lie to its centre.

    Nadaraya–Watson with a Gaussian kernel. Values beyond the middle nine tenths are clipped, so that one trial that diverged does not bleach
    all the others. Cells without trials around them are left out.
    """
    trials = _with_keys(result, [x, y])
    values = np.array([value for _, value in trials])
    values = np.clip(values, *np.quantile(values, [0.05, 0.95]))
    positions = np.array([[key.position(key.value_in(trial.config)) for key in (x, y)] for trial, _ in trials])
    # Names have no neighbours: along an axis of names, only trials with the very same name count.
    bandwidths = np.array([BANDWIDTH if key.numeric else 1e-9 for key in (x, y)])
    cells = []
    for (left, right), (bottom, top) in itertools.product(_edges(x), _edges(y)):
        centre = np.array([(left + right) / 2, (bottom + top) / 2])
        weights = np.exp(-(((positions - centre) / bandwidths) ** 2).sum(1) / 2)
        if weights.sum() >= MIN_WEIGHT:
            value = float(f"{weights @ values / weights.sum():.6g}")  # without the last digits, which differ between equal values
            cells.append((left, right, bottom, top, value))
    smoothed = [cell[4] for cell in cells]
    low, high = min(smoothed), max(smoothed)
    bounds = [low + (high - low) * i / LEVELS for i in range(1, LEVELS)]
    return [Cell(*cell, _level(cell[4], bounds, result.mode)) for cell in cells]


def _edges(key: Key) -> list[tuple[float, float]]:
    """Return the ends of the cells along the axis of a key."""
    count = CELLS if key.numeric else len(key.categories)
    return [(i / count, (i + 1) / count) for i in range(count)]


def _level(value: float, bounds: list[float], mode: Mode) -> int:
    """Return the level of a value between the bounds of the levels."""
    if bounds[0] == bounds[-1]:
        return 0
    from_below = bisect.bisect_right(bounds, value)
    return LEVELS - 1 - from_below if mode == "max" else from_below


class Rung(NamedTuple):
    """An epoch at which the scheduler compared trials: how many trials without an error reached it and went on, or were stopped at it."""

    epoch: int
    went_on: int
    stopped: int


def rungs(result: SweepResult) -> list[Rung]:
    """Return the rungs of ASHA or HyperBand; the list is empty with another scheduler, or where no trial was stopped."""
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
    """What the sweep was given, and what its scheduler spared."""

    unit: str
    hours: float  # hours that the sweep was given, over all its sessions
    epochs: int  # epochs that were trained
    epochs_spared: int  # epochs that stopped trials did not train

    @property
    def hours_spared(self) -> float:
        """About as many hours as the spared epochs would have taken at the pace of the trained ones."""
        return self.hours * self.epochs_spared / self.epochs if self.epochs else 0.0


def cost(result: SweepResult) -> Cost:
    """Return the cost of a sweep."""
    # A function may end by itself before `max_epochs`.
    full_epochs = max((trial.epochs for trial in result.trials if trial.status == "TERMINATED"), default=result.header.max_epochs)
    spared = sum(max(0, full_epochs - trial.epochs) for trial in result.trials if trial.status == "STOPPED")
    return Cost(unit_of_cost(result), hours_at(result, math.inf), sum(trial.epochs for trial in result.trials), spared)


def repeated_s(result: SweepResult) -> float:
    """Return the seconds of training that were done twice, over all trials.

    An attempt that was cut off loses what it had done since the report from which the next attempt went on.
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
            # An attempt that failed ran until its failure, which may come after its last report.
            own_failures_s = [at_s for at_s in failed_s if attempt.start_s <= at_s <= clock.seconds(following.at)]
            lost_s += max(0.0, max([attempt.end_s, *own_failures_s]) - max(kept_s, attempt.start_s))
    return lost_s


def has_gpus(result: SweepResult) -> bool:
    """Return whether the sweep had a GPU in any session."""
    return any(node.gpus for session in result.sessions for node in session.nodes)


def unit_of_cost(result: SweepResult) -> str:
    """Return "GPU-hours" where the sweep had GPUs, else "CPU-hours"."""
    return "GPU-hours" if has_gpus(result) else "CPU-hours"


def hours_at(result: SweepResult, running_s: float) -> float:
    """Return the hours that the sweep had been given after so many seconds of running time. Unused hours count, as a cluster counts them."""
    counts_gpus, hours = has_gpus(result), 0.0
    for session, session_s in zip(result.sessions, result.clock.session_s, strict=True):
        devices = sum(node.gpus if counts_gpus else node.cpus for node in session.nodes)
        hours += devices * min(max(running_s, 0.0), session_s) / 3600
        running_s -= session_s
    return hours


def best_until(result: SweepResult) -> list[tuple[float, float]]:
    """Return the steps of the best value of the trials that had ended: (second of running time, value), up to the end of the sweep."""
    steps: list[tuple[float, float]] = []
    for at_s, value in sorted((result.clock.seconds(trial.ended), value) for trial, value in result.ranked if trial.ended):
        if not steps or result.sign * value > result.sign * steps[-1][1]:
            steps.append((at_s, value))
    return [*steps, (result.clock.total_s, steps[-1][1])] if steps else []


def at_a_time(result: SweepResult, bins: int) -> list[tuple[float, float]]:
    """Return how many trials ran on average in each of so many equal parts of the running time: (second at which the part begins, trials)."""
    width_s = result.clock.total_s / bins
    busy_s = np.zeros(bins)
    for attempt in result.attempts:
        first, last = (min(int(at_s / width_s), bins - 1) if width_s else 0 for at_s in (attempt.start_s, attempt.end_s))
        for part in range(first, last + 1):
            busy_s[part] += max(0.0, min(attempt.end_s, (part + 1) * width_s) - max(attempt.start_s, part * width_s))
    return [(part * width_s, float(busy) / width_s if width_s else 0.0) for part, busy in enumerate(busy_s)]
