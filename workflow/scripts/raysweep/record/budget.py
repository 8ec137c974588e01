"""This module decides whether new trials of a sweep may begin."""

from __future__ import annotations

from raysweep.config.model import SweepConfig
from raysweep.record.node_times import used_hours
from raysweep.record.stagnation import has_stagnated
from raysweep.record.sweep import Sweep


def is_budget_used_up(recorded: Sweep, sweep: SweepConfig) -> bool:
    """Return whether all runs of the sweep together have used the time of `time_budget` or the GPU-hours of `max_gpu_hours`."""
    if sweep.time_budget_s is not None and recorded.used_s >= sweep.time_budget_s:
        return True
    return sweep.max_gpu_hours is not None and used_hours(recorded, "gpus") >= sweep.max_gpu_hours


def may_begin_trials(recorded: Sweep, sweep: SweepConfig) -> bool:
    """Return whether new trials may begin.

    No new trial may begin where the time or the GPU-hours are used up, or where the best value no longer becomes better (`end_when`).
    """
    return not is_budget_used_up(recorded, sweep) and not has_stagnated(recorded, sweep.end_when.no_better_for)
