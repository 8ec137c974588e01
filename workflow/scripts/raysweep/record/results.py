"""Defines the content of `best.yaml` and `confirmed.yaml`. The stages that write these files and the code that reads these files share this definition."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from raysweep.common.bounds import Bounds
from raysweep.common.errors import RaysweepError
from raysweep.common.files import OneLine, read_yaml
from raysweep.common.typed_json import OMIT_IF_EMPTY, fields_to_json, known_fields_from_json
from raysweep.config.model import Mode, Objective
from raysweep.record.events import Provenance, ScheduleStep

# Name of a file in the state folder of a confirmation. The evaluation of the published model writes Predictions to this file.
PREDICTIONS = "predictions.yaml"
T = TypeVar("T")
EvaluatedOn = Literal["test", "validation"]


@dataclass(frozen=True)
class Goal:
    """Names a sweep, and the metric by which the candidates of the sweep are compared."""

    name: str
    metric: str
    mode: Mode


@dataclass(frozen=True)
class BestMetric:
    """Contains the value of the metric that the winner reached on the validation data."""

    name: str
    mode: Mode
    value: float


@dataclass(frozen=True)
class Repeats:
    """Contains the values that the trials of the winning configuration reported at the winning epoch."""

    n: int
    values: tuple[float, ...]
    standard_deviation: float

    @classmethod
    def of(cls, values: list[float]) -> Repeats | None:
        """Return the values of several trials, with the standard deviation, or None where there are fewer than two values."""
        return cls(len(values), tuple(values), statistics.stdev(values)) if len(values) > 1 else None


@dataclass(frozen=True)
class FrontPoint:
    """Describes a configuration on the front of several objectives."""

    trial_id: str
    config: dict[str, Any]
    epochs: int  # epoch of the trial's last report
    metrics: dict[str, float]  # values of the objectives in this report


@dataclass(frozen=True, kw_only=True)
class BestResult:
    """Describes the winner of a sweep, as the content of `best.yaml`.

    The file has no key `schedule`, `repeats`, `constraint`, `objectives`, `choose` or `front` where the value is empty or None.
    """

    sweep: str
    trial_id: str
    config: dict[str, Any]
    metric: BestMetric
    # The configurations with which the winner of a population trained. The tuple is empty where the configuration never changed.
    schedule: tuple[ScheduleStep, ...] = ()
    repeats: Repeats | None = None
    constraint: Bounds = field(default_factory=dict)
    objectives: tuple[Objective, ...] = ()  # several objectives; empty where trials are compared by one metric
    choose: str | None = None
    front: tuple[FrontPoint, ...] = ()  # all configurations on the front of the objectives, the best by the first objective first
    epochs: int
    num_trials: int
    num_errors: int
    provenance: Provenance
    model_epoch: int | None = None  # epoch of the published checkpoint; None where no checkpoint exists or the sweep still runs

    @property
    def value(self) -> float:
        """Return the value of the metric that the winner reached on the validation data."""
        return self.metric.value

    def to_json(self) -> dict[str, Any]:
        may_lack = ("schedule", "repeats", "constraint", "objectives", "choose", "front")
        return {key: value for key, value in fields_to_json(self).items() if key not in may_lack or value}

    @classmethod
    def read(cls, path: Path) -> BestResult:
        """Return the content of the file. Raises RaysweepError if the file is damaged."""
        return _read(cls, path)


@dataclass(frozen=True)
class ConfirmedMetric:
    """Names the metric of a confirmation."""

    name: str
    mode: Mode


@dataclass(frozen=True)
class ConfirmedSeed:
    """Contains the result of training the best configuration with one seed."""

    seed: int
    value: float | None  # value of the metric; None where the training failed
    error: str | None = None


@dataclass(frozen=True)
class ConfirmedMean:
    """Contains the mean of a metric over the seeds of a confirmation, and the sample standard deviation, which is None for one seed."""

    mean: float
    standard_deviation: float | None


@dataclass(frozen=True)
class Predictions:
    """Compares the predictions of the published model for the test set with the targets. For classes, only `confusion` has content."""

    confusion: tuple[tuple[int, ...], ...] = ()  # numbers of rows; the first index is the class of the row, the second the predicted class
    true: tuple[float, ...] = ()  # targets of some rows of a regression
    predicted: tuple[float, ...] = ()  # predictions for the same rows

    def to_json(self) -> dict[str, Any]:
        columns = {"true": OneLine(self.true), "predicted": OneLine(self.predicted)}
        return {"confusion": [OneLine(row) for row in self.confusion]} if self.confusion else columns


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """Describes the result of training the best configuration anew, as the content of `confirmed.yaml`.

    The file has no key `published_model_error` where the evaluation of the published model did not fail.
    """

    sweep: str
    metric: ConfirmedMetric
    config: dict[str, Any]
    epochs: int
    evaluated_on: EvaluatedOn
    note: str
    seeds: tuple[ConfirmedSeed, ...]
    n: int  # number of seeds whose training gave a value
    mean: float | None
    standard_deviation: float | None  # None where fewer than two seeds gave a value
    published_model: dict[str, float] | None = None  # metrics of the published model on the test set
    published_model_error: str | None = None
    metrics: dict[str, ConfirmedMean] = field(default_factory=dict, metadata=OMIT_IF_EMPTY)  # of the metrics that the sweep lists
    predictions: Predictions | None = field(default=None, metadata=OMIT_IF_EMPTY)

    @property
    def is_on_test(self) -> bool:
        """Return whether the trials of the confirmation were evaluated on the test set."""
        return self.evaluated_on == "test"

    @property
    def values(self) -> list[float]:
        """Return the values of the seeds whose training gave a value."""
        return [seed.value for seed in self.seeds if seed.value is not None]

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in fields_to_json(self).items() if key != "published_model_error" or value}

    @classmethod
    def read(cls, path: Path) -> Confirmation:
        """Return the content of the file. Raises RaysweepError if the file is damaged."""
        return _read(cls, path)


def _read(kind: type[T], path: Path) -> T:
    try:
        return known_fields_from_json(kind, read_yaml(path))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise RaysweepError(
            f"{path}: it is damaged ({error}). Remove it and run Snakemake again, which writes it anew from the record."
        ) from None
