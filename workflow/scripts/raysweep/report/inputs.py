"""What the report is made from: a sweep's record and the files beside it, in the shape that text, table and figures share."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from raysweep.common.errors import RaysweepError
from raysweep.common.files import read_yaml
from raysweep.common.numeric import is_finite_number
from raysweep.config.model import Mode
from raysweep.config.space import ONE_OF, Choice, Distribution, Normal, Numeric, flattened, parse_space, shown_key
from raysweep.data.manifest import DataManifest, read_manifest
from raysweep.record.record import Judged, Sweep, Trial, read_sweep

CONTINUED = "continued later"  # an attempt that was cut off, paused by the scheduler, or failed and was tried again


@dataclass(frozen=True)
class Key:
    """A key of the configurations, nested ones as `outer/inner`."""

    name: str
    distribution: Distribution | None  # None: a constant, or a key that the search space no longer has
    values: tuple[Any, ...]  # those that occur, each once

    @property
    def varies(self) -> bool:
        return len(self.values) > 1

    @property
    def numeric(self) -> bool:
        """Whether its values are points on a scale, not names: numbers, unless they were chosen from a list."""
        return not isinstance(self.distribution, Choice) and all(is_finite_number(v) for v in self.values)

    @property
    def log(self) -> bool:
        return isinstance(self.distribution, Numeric) and self.distribution.log and all(v > 0 for v in self.values)

    @property
    def categories(self) -> list[Any]:
        """The values in the order in which an axis shows them: those of the list, and others that occur; numbers by size."""
        offered = list(self.distribution.values) if isinstance(self.distribution, Choice) else []
        found = offered + [v for v in self.values if v not in offered]
        return sorted(found) if all(is_finite_number(v) for v in found) else found

    @property
    def span(self) -> tuple[float, float]:
        """The ends of a numeric key's axis: the bounds of its range, moved outwards by values that lie beyond them."""
        d = self.distribution
        ends: list[float] = []
        if isinstance(d, Numeric):
            ends = [d.low, d.high - d.integer]
        elif isinstance(d, Normal):
            ends = [d.mean - 2 * d.standard_deviation, d.mean + 2 * d.standard_deviation]
        return min([*ends, *self.values]), max([*ends, *self.values])

    def value_in(self, config: dict[str, Any]) -> Any:
        """Its value in a configuration, None where that has none."""
        return flattened(config).get(self.name)

    def is_in(self, config: dict[str, Any]) -> bool:
        """Whether a configuration has it."""
        return self.name in flattened(config)

    def position(self, value: Any) -> float:
        """Where a value lies on the axis of the key, from 0 to 1."""
        if not self.numeric:
            return (self.categories.index(value) + 0.5) / len(self.categories)
        return position_in_range(Numeric("", *self.span, self.log), value)


@dataclass(frozen=True)
class Attempt:
    """A stretch of time in which a trial ran on a node, in seconds of the sweep's running time."""

    trial: Trial
    node: str
    start_s: float
    end_s: float
    state: str  # the trial's status, or CONTINUED


@dataclass
class Inputs:
    """All that the report knows."""

    sweep: Sweep
    best: dict[str, Any]
    confirmed: dict[str, Any]
    config_text: str
    data: DataManifest | None  # manifest of the data; None when the trainable brings its own
    data_dir: Path | None
    env: dict[str, Any]
    model_dir: Path
    plan: dict[str, Any] | None  # what `snakemake plan` said of all its trials, before the sweep

    @property
    def about(self) -> dict[str, Any]:
        return self.sweep.header

    @property
    def name(self) -> str:
        return self.about["name"]

    @property
    def metric(self) -> str:
        return self.about["metric"]

    @property
    def mode(self) -> Mode:
        return self.about["mode"]

    @property
    def sign(self) -> int:
        """A value times this is larger when it is better."""
        return 1 if self.mode == "max" else -1

    @property
    def trials(self) -> list[Trial]:
        return list(self.sweep.trials.values())

    @property
    def winner(self) -> Trial:
        return self.sweep.trials[self.best["trial_id"]]

    def value(self, trial: Trial) -> float | None:
        """The trial's best value of the metric, None where it reported none."""
        result = trial.best(self.metric, self.mode)
        return None if result is None else result.metrics[self.metric]

    @cached_property
    def ranked(self) -> list[tuple[Trial, float]]:
        """Trials without error that reported a value, best first; of equal ones the lowest id first."""
        ordered = sorted(self.trials, key=lambda trial: trial.rank(self.metric, self.mode))
        return [(trial, result.metrics[self.metric]) for trial in ordered if (result := trial.counted(self.metric, self.mode))]

    @cached_property
    def compared(self) -> list[tuple[Judged, float]]:
        """What the winner was chosen from, best first: the trials of `ranked`, or, with several seeds of each, configurations with their mean."""
        ordered = sorted(self.sweep.judged, key=lambda one: one.rank(self.metric, self.mode))
        return [(one, result.metrics[self.metric]) for one in ordered if (result := one.counted(self.metric, self.mode))]

    @cached_property
    def keys(self) -> list[Key]:
        """The keys of the search space, then others that configurations have."""
        space: dict[str, Any] = {}
        for key, d in parse_space(self.about["search_space"]).items():
            name = shown_key(key)
            if not (isinstance(d, Choice) and d.name == ONE_OF):  # whose branches have the values
                space[name] = d if name not in space or space[name] == d else None  # two branches may mean different things by it
        configs = [flattened(t.config) for t in self.trials]
        names = list(space) + [name for config in configs for name in config if name not in space]
        keys = []
        for name in dict.fromkeys(names):
            values = {json.dumps(c[name], sort_keys=True): c[name] for c in configs if name in c}  # values may be lists: not hashable
            distribution = space.get(name)
            keys.append(Key(name, distribution if isinstance(distribution, Distribution) else None, tuple(values.values())))
        return keys

    @cached_property
    def clock(self) -> Clock:
        return Clock(self.sweep)

    @cached_property
    def attempts(self) -> list[Attempt]:
        """Every attempt of every trial, by start."""
        clock = self.clock
        return sorted(
            (attempt for trial in self.trials for attempt in _attempts_of(trial, clock)), key=lambda a: (a.start_s, a.trial.trial_id)
        )

    def unfinished(self) -> int:
        """How many of the planned trials have no result that counts yet."""
        return max(self.about["num_trials"], len(self.trials)) - sum(t.finished for t in self.trials)


def position_in_range(distribution: Numeric, value: float) -> float:
    """Where `value` lies between the bounds: 0 at the lower, 1 at the upper one, on the distribution's own scale."""
    # The upper bound of integers is excluded.
    low, high = distribution.low, distribution.high - 1 if distribution.integer else distribution.high
    if low == high:
        return 0.5
    if distribution.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def seconds_between(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)) / timedelta(seconds=1)


class Clock:
    """Turns times into seconds of running time: the gaps between a sweep's sessions are left out."""

    def __init__(self, sweep: Sweep) -> None:
        self.sessions = [(session["at"], session["last_at"]) for session in sweep.sessions]
        self.session_s = [seconds_between(start, end) for start, end in self.sessions]
        self.total_s = sweep.used_s

    def session_of(self, at: str) -> int:
        return max((i for i, (start, _) in enumerate(self.sessions) if start <= at), default=0)

    def seconds(self, at: str) -> float:
        number = self.session_of(at)
        before = sum(self.session_s[:number])
        return before + max(seconds_between(self.sessions[number][0], at), 0.0)


def _attempts_of(trial: Trial, clock: Clock) -> Iterator[Attempt]:
    following = [a["at"] for a in trial.attempts[1:]] + [None]
    for attempt, next_start in zip(trial.attempts, following, strict=True):
        end = clock.sessions[clock.session_of(attempt["at"])][1]
        if next_start is None:
            end = trial.ended or end
        elif next_start < end:  # paused by the scheduler, or tried again: it ran until its last report
            end = max((r.at for r in trial.results if attempt["at"] <= r.at <= next_start), default=next_start)
        state = trial.status if next_start is None else CONTINUED
        yield Attempt(trial, attempt["node"] or "not known", clock.seconds(attempt["at"]), clock.seconds(end), state)


def read_inputs(
    path_to_record: Path,
    *,
    sweep_name: str,
    path_to_best: Path,
    path_to_confirmed: Path,
    path_to_config: Path,
    path_to_env_manifest: Path,
    path_to_data_manifest: Path | None = None,
    path_to_plan: Path | None = None,
) -> Inputs:
    """Read all of it. Raises RaysweepError where the record or `best.yaml` is not of the sweep `sweep_name`."""
    inputs = Inputs(
        sweep=read_sweep(path_to_record),
        best=read_yaml(path_to_best),
        confirmed=read_yaml(path_to_confirmed),
        config_text=path_to_config.read_text(encoding="utf-8"),
        data=None if path_to_data_manifest is None else read_manifest(path_to_data_manifest.parent),
        data_dir=None if path_to_data_manifest is None else path_to_data_manifest.parent,
        env=read_yaml(path_to_env_manifest),
        model_dir=path_to_best.parent / "model",
        plan=read_yaml(path_to_plan) if path_to_plan is not None and path_to_plan.exists() else None,
    )
    inputs.sweep.judge_by(inputs.best.get("constraint", {}))
    # One that was made of a part of the trials, or of another number of them, says nothing of what all took.
    if inputs.plan and not inputs.plan["num_trials"] == inputs.plan["trials_left"] == inputs.about["num_trials"]:
        inputs.plan = None
    for path, name in ((path_to_record, inputs.about.get("name")), (path_to_best, inputs.best["sweep"])):
        if name != sweep_name:
            raise RaysweepError(f"{path}: it belongs to the sweep {name!r}, not to {sweep_name!r}. Give the files of one sweep.")
    if inputs.best["trial_id"] not in inputs.sweep.trials:
        raise RaysweepError(
            f"{path_to_best}: trial {inputs.best['trial_id']} is not in the record {path_to_record}. "
            "Write the outputs anew from the record: run Snakemake with -R run_sweep."
        )
    return inputs
