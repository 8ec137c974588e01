"""The documents `best.yaml` and `confirmed.yaml`: one definition for the stages that write them, and for the confirmation and the report that read them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from raysweep.common.bounds import Bounds
from raysweep.common.files import read_yaml
from raysweep.common.typed_json import fields_to_json, known_fields_from_json
from raysweep.config.model import Mode
from raysweep.record.events import Provenance, ScheduleStep

EvaluatedOn = Literal["test", "validation"]


@dataclass(frozen=True)
class Goal:
    """The name of a sweep, and the metric by which its candidates are compared."""

    name: str
    metric: str
    mode: Mode


@dataclass(frozen=True)
class BestMetric:
    """The validation value of the winner."""

    name: str
    mode: Mode
    value: float


@dataclass(frozen=True)
class Repeats:
    """The values of the winning configuration's trials at the same epoch."""

    n: int
    values: tuple[float, ...]
    standard_deviation: float

    @classmethod
    def of(cls, values: list[float]) -> Repeats | None:
        """Return the values of several trials; None for the value of a single trial."""
        return cls(len(values), tuple(values), statistics.stdev(values)) if len(values) > 1 else None


@dataclass(frozen=True, kw_only=True)
class BestResult:
    """The winner of a sweep, as `best.yaml` describes it. The file leaves out an empty schedule, repeats that are None, and an empty constraint."""

    sweep: str
    trial_id: str
    config: dict[str, Any]
    metric: BestMetric
    schedule: tuple[ScheduleStep, ...] = ()  # configurations of a population's winner; empty where the configuration never changed
    repeats: Repeats | None = None
    constraint: Bounds = field(default_factory=dict)
    epochs: int
    num_trials: int
    num_errors: int
    provenance: Provenance
    model_epoch: int | None = None  # None: the trainable saved no checkpoint, or the sweep still runs

    @property
    def value(self) -> float:
        """The validation value of the winning trial."""
        return self.metric.value

    def to_json(self) -> dict[str, Any]:
        may_lack = ("schedule", "repeats", "constraint")
        return {key: value for key, value in fields_to_json(self).items() if key not in may_lack or value}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BestResult:
        return known_fields_from_json(cls, value)

    @classmethod
    def read(cls, path: Path) -> BestResult:
        return cls.from_json(read_yaml(path))


@dataclass(frozen=True)
class ConfirmedMetric:
    """The metric of a confirmation."""

    name: str
    mode: Mode


@dataclass(frozen=True)
class ConfirmedSeed:
    """A confirmation with one seed."""

    seed: int
    value: float | None  # None: it failed
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """The best configuration trained anew, as `confirmed.yaml` describes it. The file leaves out `published_model_error` where it is None."""

    sweep: str
    metric: ConfirmedMetric
    config: dict[str, Any]
    epochs: int
    evaluated_on: EvaluatedOn
    note: str
    seeds: tuple[ConfirmedSeed, ...]
    n: int  # seeds that gave a value
    mean: float | None
    standard_deviation: float | None  # None: fewer than two seeds gave a value
    published_model: dict[str, float] | None = None  # metrics of the published model on the test set
    published_model_error: str | None = None

    @property
    def is_on_test(self) -> bool:
        """Whether the confirmation was measured on the test set."""
        return self.evaluated_on == "test"

    @property
    def values(self) -> list[float]:
        """The values of the seeds that did not fail."""
        return [seed.value for seed in self.seeds if seed.value is not None]

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in fields_to_json(self).items() if key != "published_model_error" or value}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Confirmation:
        return known_fields_from_json(cls, value)

    @classmethod
    def read(cls, path: Path) -> Confirmation:
        return cls.from_json(read_yaml(path))
