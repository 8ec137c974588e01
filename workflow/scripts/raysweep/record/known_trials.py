"""Defines the trials that were known before a sweep (`warm_start`). The stage writes the trials to the state folder, where the driver reads them.

A known trial has the form of a finished trial, so the sampler gets known trials in the same way as the recorded trials of the sweep. Known trials are not
part of the record, so they are never counted, and can never win.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysweep.common.files import write_yaml
from raysweep.common.typed_json import read_yaml_as, to_json
from raysweep.config.model import Mode
from raysweep.record.events import WarmStart
from raysweep.record.trials import Result, Trial


@dataclass(frozen=True)
class KnownTrial:
    """Contains a configuration, nested like the search space, and the value of the metric that the configuration reached."""

    config: dict[str, Any]
    value: float


@dataclass(frozen=True)
class KnownTrials:
    """Contains the known trials that fit the search space of a sweep."""

    source: str  # the key `warm_start` of the config
    trials: tuple[KnownTrial, ...]
    num_left_out: int  # number of trials of the source that do not fit

    def header(self, mode: Mode) -> WarmStart:
        """Return the description for the record."""
        values = [trial.value for trial in self.trials]
        best = max(values) if mode == "max" else min(values)
        return WarmStart(self.source, _sha256(self.trials), len(self.trials), best, self.num_left_out)


def path_to_known(state_dir: Path) -> Path:
    """Return the path of the file with the known trials of a sweep."""
    return state_dir / "warm_start.yaml"


def write_known(known: KnownTrials, state_dir: Path) -> None:
    """Write the known trials of a sweep for the driver."""
    write_yaml(path_to_known(state_dir), to_json(known))


def read_known(state_dir: Path, metric: str) -> list[Trial]:
    """Return the known trials of a sweep as finished trials with negative numbers, which no trial of a sweep has."""
    return as_finished(read_yaml_as(KnownTrials, path_to_known(state_dir)).trials, metric)


def as_finished(known: Sequence[KnownTrial], metric: str) -> list[Trial]:
    """Return known trials as finished trials. The id of a trial follows from its content, because a searcher remembers which ids it has got."""
    ids = (f"known-{_sha256(trial)[:12]}" for trial in known)
    return [
        Trial(trial_id, -number, 0, 0, trial.config, "TERMINATED", [Result(1, {metric: trial.value}, 0.0, "")])
        for number, (trial_id, trial) in enumerate(zip(ids, known, strict=True), start=1)
    ]


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(to_json(value), sort_keys=True).encode()).hexdigest()
