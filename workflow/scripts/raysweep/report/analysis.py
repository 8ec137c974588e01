"""What a sweep teaches beyond its winner: which hyper-parameters mattered, where the good values lie, what the scheduler did, and what it cost."""

from __future__ import annotations

import bisect
import itertools
import math
import warnings
from typing import Any, NamedTuple

import numpy as np

from raysweep.report.inputs import Attempt, Inputs, Key
from raysweep.report.optuna_study import distribution_of, new_study, params_of

MIN_TRIALS = 30  # with values: of fewer neither importances nor a map say anything
MOST_TRIALS = 0.9  # of all with a value have to have a key, for it to be judged
TARGET_QUANTILE = 0.2  # the trials whose values are compared with all others: the best fifth, as elsewhere on the page
CELLS = 24  # along a numeric axis of the map
BANDWIDTH = 0.1  # of the map's kernel, of the length of an axis
LEAST_WEIGHT = 0.6  # of trials around a cell, one at its centre counts 1: where there are fewer, the map stays empty
LEVELS = 5
MAX_RUNGS = 40


class Importance(NamedTuple):
    """How much of what separates good trials from the others one key explains; those of a sweep add up to 1."""

    key: Key
    share: float


def importances(inputs: Inputs, keys: list[Key]) -> list[Importance]:
    """Of the keys that vary, two or more, the most important first; [] where the trials are too few to say, or the best fifth is no better than the others.

    Keys that a part of the trials does not have, such as one that the space no longer has, are left out.

    PED-ANOVA (Watanabe, Bansal, Hutter: https://arxiv.org/abs/2304.10255), as Optuna has it: how far the values of the best fifth are from those of all.
    """
    keys = [key for key in keys if len(_with_all(inputs, [key])) > MOST_TRIALS * len(inputs.ranked)]
    trials = [(trial.config, value) for trial, value in _with_all(inputs, keys)]
    # `ranked` is best first. Where the best fifth is as good as the worst of all there is nothing to tell apart.
    if len(keys) < 2 or len(trials) < MIN_TRIALS or trials[int(TARGET_QUANTILE * len(trials))][1] == trials[-1][1]:
        return []
    import optuna

    distributions = {key.name: distribution_of(key) for key in keys}
    study = new_study(inputs)
    study.add_trials(
        [optuna.create_trial(params=params_of(keys, config), distributions=distributions, value=value) for config, value in trials]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=TARGET_QUANTILE)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    by_name = {key.name: key for key in keys}
    return [Importance(by_name[name], share) for name, share in found.items()]


def _with_all(inputs: Inputs, keys: list[Key]) -> list[tuple[Any, float]]:
    """Trials with a value that have all of these keys: a space may have grown on the way."""
    return [(trial, value) for trial, value in inputs.ranked if all(key.is_in(trial.config) for key in keys)]


class Cell(NamedTuple):
    """A rectangle of the map, in positions from 0 to 1 on both axes."""

    left: float
    right: float
    bottom: float
    top: float
    value: float  # of the metric, smoothed
    level: int  # 0: the best


def landscape(inputs: Inputs, x: Key, y: Key) -> list[Cell]:
    """The metric over two keys: at the centre of each cell the mean of the trials' values, weighted with how near they lie.

    Nadaraya–Watson with a Gaussian kernel. Values beyond the middle nine tenths are drawn in, so that one that diverged does not bleach all others. Cells
    without trials around them are left out.
    """
    trials = _with_all(inputs, [x, y])
    values = np.array([value for _, value in trials])
    values = np.clip(values, *np.quantile(values, [0.05, 0.95]))
    at = np.array([[key.position(key.value_in(trial.config)) for key in (x, y)] for trial, _ in trials])
    # Names have no neighbours: along them only trials of the very same one count.
    bandwidths = np.array([BANDWIDTH if key.numeric else 1e-9 for key in (x, y)])
    edges = [_edges(key) for key in (x, y)]
    cells = []
    for (left, right), (bottom, top) in itertools.product(*edges):
        centre = np.array([(left + right) / 2, (bottom + top) / 2])
        weights = np.exp(-(((at - centre) / bandwidths) ** 2).sum(1) / 2)
        if weights.sum() >= LEAST_WEIGHT:
            value = float(f"{weights @ values / weights.sum():.6g}")  # without the last digits, in which equal values would differ
            cells.append((left, right, bottom, top, value))
    found = [cell[4] for cell in cells]
    low, high = min(found), max(found)
    bounds = [low + (high - low) * i / LEVELS for i in range(1, LEVELS)]
    return [Cell(*cell, _level(cell[4], bounds, inputs.mode)) for cell in cells]


def _edges(key: Key) -> list[tuple[float, float]]:
    count = CELLS if key.numeric else len(key.categories)
    return [(i / count, (i + 1) / count) for i in range(count)]


def _level(value: float, bounds: list[float], mode: str) -> int:
    if bounds[0] == bounds[-1]:
        return 0
    from_below = bisect.bisect_right(bounds, value)
    return LEVELS - 1 - from_below if mode == "max" else from_below


class Rung(NamedTuple):
    """An epoch at which trials were compared: how many of those that did not fail reached it, and what became of them."""

    epoch: int
    went_on: int
    stopped: int


def rungs(inputs: Inputs) -> list[Rung]:
    """What ASHA or HyperBand did; [] with another scheduler, or where it stopped none."""
    if inputs.about["scheduler"]["name"] not in ("asha", "hyperband"):
        return []
    stopped = [trial.epochs for trial in inputs.trials if trial.status == "STOPPED"]
    epochs = sorted({*stopped, inputs.about["max_epochs"]})
    if not stopped or len(epochs) > MAX_RUNGS:
        return []
    ended_well = [trial for trial in inputs.trials if trial.status in ("STOPPED", "TERMINATED")]
    reached = {epoch: sum(trial.epochs >= epoch for trial in ended_well) for epoch in epochs}
    return [Rung(epoch, reached[epoch] - stopped.count(epoch), stopped.count(epoch)) for epoch in epochs]


class Cost(NamedTuple):
    """What the sweep was given, and what its scheduler spared."""

    unit: str
    hours: float  # that it was given, over all its sessions
    epochs: int  # that were trained
    epochs_spared: int  # that trials which were stopped early would have trained

    @property
    def hours_spared(self) -> float:
        """About as much as those epochs would have taken at the pace of the others."""
        return self.hours * self.epochs_spared / self.epochs if self.epochs else 0.0


def cost(inputs: Inputs) -> Cost:
    # A function may end by itself before `max_epochs`.
    whole = max((trial.epochs for trial in inputs.trials if trial.status == "TERMINATED"), default=inputs.about["max_epochs"])
    spared = sum(max(0, whole - trial.epochs) for trial in inputs.trials if trial.status == "STOPPED")
    return Cost(unit_of_cost(inputs), hours_at(inputs, math.inf), sum(trial.epochs for trial in inputs.trials), spared)


def repeated_s(inputs: Inputs) -> float:
    """Training that was done twice, in seconds over all trials: what an attempt that was cut off had done since the report from which the next went on."""
    attempts: dict[str, list[Attempt]] = {}
    for attempt in inputs.attempts:
        attempts.setdefault(attempt.trial.trial_id, []).append(attempt)
    lost_s, clock = 0.0, inputs.clock
    for trial in inputs.trials:
        reported = {result.epoch: clock.seconds(result.at) for result in trial.results}
        for attempt, following in zip(attempts.get(trial.trial_id, []), trial.attempts[1:], strict=False):
            kept_s = reported.get(following["from_epoch"], attempt.start_s)
            failed_s = [
                clock.seconds(f["at"])
                for f in trial.failures
                if attempt.start_s <= clock.seconds(f["at"]) <= clock.seconds(following["at"])
            ]
            lost_s += max(0.0, max([attempt.end_s, *failed_s]) - max(kept_s, attempt.start_s))
    return lost_s


def unit_of_cost(inputs: Inputs) -> str:
    """GPU-hours where it had GPUs, else CPU-hours."""
    return "GPU-hours" if any(node["gpus"] for session in inputs.sweep.sessions for node in session["nodes"]) else "CPU-hours"


def hours_at(inputs: Inputs, running_s: float) -> float:
    """What the sweep had been given after so many seconds of running time, whether it used it or not: what a cluster counts."""
    kind, hours = "gpus" if unit_of_cost(inputs) == "GPU-hours" else "cpus", 0.0
    for session, seconds in zip(inputs.sweep.sessions, inputs.clock.session_s, strict=True):
        hours += sum(node[kind] for node in session["nodes"]) * min(max(running_s, 0.0), seconds) / 3600
        running_s -= seconds
    return hours


def at_a_time(inputs: Inputs, bins: int) -> list[tuple[float, float]]:
    """How many trials ran on average in so many equal parts of the running time: (seconds at which the part begins, trials)."""
    width = inputs.clock.total_s / bins
    busy_s = np.zeros(bins)
    for attempt in inputs.attempts:
        first, last = (min(int(at / width), bins - 1) if width else 0 for at in (attempt.start_s, attempt.end_s))
        for part in range(first, last + 1):
            busy_s[part] += max(0.0, min(attempt.end_s, (part + 1) * width) - max(attempt.start_s, part * width))
    return [(part * width, float(busy) / width if width else 0.0) for part, busy in enumerate(busy_s)]
