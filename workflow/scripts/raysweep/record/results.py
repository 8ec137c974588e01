"""Defines the content of `best.yaml` and `confirmed.yaml`. The stages that write these files and the code that reads these files share this definition."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from raysweep.common.bounds import Bounds
from raysweep.common.errors import RaysweepError
from raysweep.common.files import OneLine, read_yaml
from raysweep.common.t_test import MIN_SEEDS, paired_interval
from raysweep.common.text import number, plural
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
class PairedDifference:
    """Contains the differences between two configurations over the seeds with which both were trained: a configuration minus the winner."""

    n: int  # number of seeds with which both trainings gave a value
    mean: float | None
    # The mean lies between these bounds in 19 of 20 cases, for all configurations of the file together. None where the part of chance is not known.
    low: float | None
    high: float | None

    @classmethod
    def between(cls, values: Mapping[int, float], winner: Mapping[int, float], num_comparisons: int) -> PairedDifference:
        """Return the differences of `values` and the values of the winner. Both map a seed to a value."""
        differences = [value - winner[seed] for seed, value in values.items() if seed in winner]
        low, high = paired_interval(differences, num_comparisons) or (None, None)
        return cls(len(differences), statistics.fmean(differences) if differences else None, low, high)


@dataclass(frozen=True, kw_only=True)
class ConfirmedOther:
    """Describes the result of training one of the next best configurations anew, with the seeds of the winner."""

    trial_id: str
    config: dict[str, Any]
    validation: float  # value of the metric that the configuration reached on the validation data
    epochs: int
    seeds: tuple[ConfirmedSeed, ...]
    n: int  # number of seeds whose training gave a value
    mean: float | None
    standard_deviation: float | None
    difference: PairedDifference  # this configuration minus the winner

    def sentence(self, mode: Mode) -> str:
        """Return a sentence that says whether the configuration and the winner differ on the new seeds."""
        difference, which = self.difference, f"The configuration of trial {self.trial_id}"
        if difference.mean is None:
            return f"{which} and the winner share no seed with a value, so nothing can be said about their difference."
        gap = (
            f"{number(abs(difference.mean))} {'above' if difference.mean > 0 else 'below'} the winner"
            if difference.mean
            else "equal to the winner"
        )
        measured = f"{which} is on average {gap}, over {plural(difference.n, 'shared seed')}"
        if difference.low is None or difference.high is None:
            few = f"{MIN_SEEDS} shared seeds are needed" if difference.n < MIN_SEEDS else "the difference is the same with each seed"
            return f"{measured}. Whether they differ cannot be concluded: {few}."
        bounds = f"{measured} (95 % interval {number(difference.low)} to {number(difference.high)})"
        if self.verdict(mode) is None:
            return f"{bounds}. Chance may explain this."
        return f"{bounds}. The configuration is {self.verdict(mode)} than the winner by more than chance."

    def verdict(self, mode: Mode) -> Literal["better", "worse"] | None:
        """Return whether the configuration is better or worse than the winner by more than chance. Return None where this is not known."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or low <= 0 <= high:
            return None
        return "better" if (low > 0) == (mode == "max") else "worse"


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
    # The next best configurations (`confirm.top`), best first.
    others: tuple[ConfirmedOther, ...] = field(default=(), metadata=OMIT_IF_EMPTY)

    @property
    def is_on_test(self) -> bool:
        """Return whether the trials of the confirmation were evaluated on the test set."""
        return self.evaluated_on == "test"

    @property
    def values(self) -> list[float]:
        """Return the values of the seeds whose training gave a value."""
        return list(self.value_of_seed.values())

    @property
    def value_of_seed(self) -> dict[int, float]:
        """Return the values of the seeds whose training gave a value, as {seed: value}."""
        return {seed.seed: seed.value for seed in self.seeds if seed.value is not None}

    def as_other(self, best: BestResult, winner: Confirmation, num_others: int) -> ConfirmedOther:
        """Return this confirmation of the configuration `best` as an entry of the file of the winner, which has `num_others` such entries."""
        return ConfirmedOther(
            trial_id=best.trial_id,
            config=best.config,
            validation=best.value,
            epochs=best.epochs,
            seeds=self.seeds,
            n=self.n,
            mean=self.mean,
            standard_deviation=self.standard_deviation,
            difference=PairedDifference.between(self.value_of_seed, winner.value_of_seed, num_others),
        )

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
