"""Collects the data that several figures share, which are the trials, the learning curves, and the bars of the timeline.

The page contains each of the three data sets only once.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TypeVar

from raysweep.common.numeric import is_finite_number
from raysweep.config.space import flattened
from raysweep.record.trials import Trial
from raysweep.report.charts.parts import TIERS, Columns, metric_scale, time_unit
from raysweep.report.inputs import Attempt, SweepResult
from raysweep.report.keys import Key, position_in_range

Group = TypeVar("Group", str, int)

MAX_CURVES = 200  # maximum number of learning curves, and of lines of the parallel coordinates, because more lines would be a solid block
BEST_CURVES = 50  # number of these lines that belong to the best trials; the other lines are spread evenly over the other ranks
MAX_POINTS = 100  # maximum number of points of one curve
MAX_BARS = 2000  # maximum number of bars of the timeline


def shared_data(result: SweepResult, keys: list[Key]) -> dict[str, Columns]:
    """Return the data sets `trials`, `curves` and `bars` by name."""
    unit_s, _ = time_unit(result.clock.total_s)
    curves, _ = learning_curves_data(result)
    return {"trials": _trials(result, keys, unit_s), "curves": curves, "bars": _bars(result.attempts, unit_s)}


def _trials(result: SweepResult, keys: list[Key], unit_s: float) -> Columns:
    """Return the columns of the trials. The worst trial comes first, so that the best trials are painted on top."""
    ranked = result.ranked
    rank = {trial.trial_id: i for i, (trial, _) in enumerate(ranked)}
    trials = sorted(result.trials, key=lambda t: -rank.get(t.trial_id, len(rank)))
    configs = [flattened(t.config) for t in trials]
    columns: Columns = {
        "trial": [t.trial_id for t in trials],
        "status": [t.status for t in trials],
        # The values of a failed trial do not count. Figures show only the configuration of a failed trial.
        "value": [None if t.status == "ERROR" else result.value(t) for t in trials],
        "tier": [tier_of(rank[t.trial_id], len(ranked)) if t.trial_id in rank else None for t in trials],
        "end": [round(result.clock.seconds(t.ended) / unit_s, 4) if t.ended else None for t in trials],
    }
    for i, key in enumerate(keys):
        values = [config.get(key.name) for config in configs]
        columns[f"config{i}"] = values if key.numeric else [None if v is None else key.label(v) for v in values]
        columns[f"axis{i}"] = [None if v is None else round(key.position(v), 4) for v in values]
    columns["axis_metric"] = [None if v is None else round(metric_position(result, v), 4) for v in columns["value"]]
    return columns


def tier_of(rank: int, num_trials: int) -> str:
    """Return the fifth of all trials to which the trial with this rank belongs. The best trial has rank 0."""
    return TIERS[len(TIERS) * rank // num_trials]


def metric_position(result: SweepResult, value: float) -> float:
    """Return the position of a value of the metric on the metric's axis of the parallel coordinates. The best value has the position 1."""
    position = position_in_range(*result.value_range, value, metric_scale(result).get("type") == "log")
    return position if result.mode == "max" else 1 - position


def learning_curves_data(result: SweepResult) -> tuple[Columns, str]:
    """Return the columns of the learning curves, and a sentence on the curves and points that are left out.

    If there are too many curves, or too many points in a curve, only a selection is shown.
    """
    ranked = [trial for trial, _ in result.ranked]
    rank = {trial.trial_id: i for i, trial in enumerate(ranked)}
    drawn = drawn_trials(ranked)
    left_out = [text] if (text := left_out_trials(ranked, "curves")) else []
    if any(len(trial.results) > MAX_POINTS for trial in drawn):
        left_out.append(f"At most {MAX_POINTS} epochs are drawn of each curve.")
    columns: Columns = {"trial": [], "epoch": [], "value": [], "tier": []}
    for trial in reversed(drawn):
        points = [(r.epoch, r.metrics[result.metric]) for r in trial.results if is_finite_number(r.metrics.get(result.metric))]
        for epoch, value in _thinned(points, trial, result):
            columns["trial"].append(trial.trial_id)
            columns["epoch"].append(epoch)
            columns["value"].append(float(f"{value:.5g}"))
            columns["tier"].append(tier_of(rank[trial.trial_id], len(ranked)))
    return columns, " ".join(left_out)


def left_out_trials(ranked: list[Trial], lines: str) -> str:
    """Return a sentence on the trials whose lines are left out, or an empty text where the figure shows all trials. `lines` says what is drawn."""
    if len(ranked) <= MAX_CURVES:
        return ""
    return f"{MAX_CURVES} of {len(ranked):,} {lines} are drawn: the best {BEST_CURVES}, and the others at even steps of rank."


def drawn_trials(ranked: list[Trial]) -> list[Trial]:
    """Return the trials whose lines are shown. These trials are the best trials, and a selection of the other trials at even steps of rank."""
    if len(ranked) <= MAX_CURVES:
        return ranked
    best, others = ranked[:BEST_CURVES], ranked[BEST_CURVES:]
    step = len(others) / (MAX_CURVES - BEST_CURVES)
    return best + [others[int(i * step)] for i in range(MAX_CURVES - BEST_CURVES)]


def _thinned(points: list[tuple[int, float]], trial: Trial, result: SweepResult) -> list[tuple[int, float]]:
    """Return at most MAX_POINTS points of a curve. These points are the first, the last and the best point, and other points at even steps."""
    if len(points) <= MAX_POINTS:
        return points
    best = trial.best(result.metric, result.mode)
    step = (len(points) - 1) / (MAX_POINTS - 2)
    kept = {round(i * step) for i in range(MAX_POINTS - 1)}
    return [p for i, p in enumerate(points) if i in kept or (best is not None and p[0] == best.epoch)]


def _bars(attempts: list[Attempt], unit_s: float) -> Columns:
    """Return the columns that describe the bars of the timeline."""
    drawn = attempts[:MAX_BARS]
    return {
        "trial": [a.trial.trial_id for a in drawn],
        "lane": lanes([(a.node, a.start_s, a.end_s) for a in drawn]),
        "state": [a.state for a in drawn],
        "start": [round(a.start_s / unit_s, 4) for a in drawn],
        "end": [round(a.end_s / unit_s, 4) for a in drawn],
    }


def lanes(bars: Sequence[tuple[Group, float, float]]) -> list[int]:
    """Return the row of each bar of a timeline, so that the bars in one row do not overlap.

    A bar is a tuple of the bar's group, start and end. The bars are sorted by their starts. The row is the lowest free row of the group. The groups are in
    the order of their values.
    """
    places: list[tuple[Group, int]] = []
    free: dict[Group, list[int]] = {}
    busy: dict[Group, list[tuple[float, int]]] = {}
    for group, start, end in bars:
        free_lanes, running = free.setdefault(group, []), busy.setdefault(group, [])
        while running and running[0][0] <= start:
            heapq.heappush(free_lanes, heapq.heappop(running)[1])
        lane = heapq.heappop(free_lanes) if free_lanes else len(running)
        heapq.heappush(running, (max(end, start), lane))
        places.append((group, lane))
    row_of = {place: row for row, place in enumerate(sorted(set(places)))}
    return [row_of[place] for place in places]
