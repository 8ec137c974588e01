"""What the report reads beside the record, as typed values: the YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from raysweep.common.bounds import Bounds


@dataclass(frozen=True)
class Document:
    """A document of which only the named fields are read."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Return the document with those of its fields that `values` holds. Raises TypeError where a field without a default is missing."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


@dataclass(frozen=True)
class BestResult(Document):
    """What the report reads of `best.yaml`."""

    sweep: str
    trial_id: str
    metric: dict[str, Any]  # {name, mode, value}
    epochs: int
    provenance: dict[str, Any]
    model_epoch: int | None = None  # None: the trainable saved no checkpoint
    constraint: Bounds = field(default_factory=dict)
    schedule: tuple[dict[str, Any], ...] = ()  # configurations of a population's winner: {from_epoch, config}

    @property
    def value(self) -> float:
        """The validation value of the winning trial."""
        value: float = self.metric["value"]
        return value


@dataclass(frozen=True)
class ConfirmedSeed(Document):
    """A confirmation with one seed."""

    seed: int
    value: float | None  # None: it failed
    error: str | None = None


@dataclass(frozen=True)
class Confirmation(Document):
    """What the report reads of `confirmed.yaml`."""

    evaluated_on: str  # "test" or "validation"
    note: str
    epochs: int
    seeds: tuple[ConfirmedSeed, ...]
    n: int  # seeds that gave a value
    mean: float | None
    standard_deviation: float | None  # None: fewer than two seeds gave a value
    published_model: dict[str, float] | None = None  # metrics of the published model on the test set

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Return the confirmation with its seeds typed, too."""
        return super().read({**values, "seeds": tuple(ConfirmedSeed.read(seed) for seed in values["seeds"])})

    @property
    def is_on_test(self) -> bool:
        """Whether the confirmation was measured on the test set."""
        return self.evaluated_on == "test"

    @property
    def values(self) -> list[float]:
        """The values of the seeds that did not fail."""
        return [seed.value for seed in self.seeds if seed.value is not None]


@dataclass(frozen=True)
class EnvironmentManifest(Document):
    """What the report reads of `env.yaml`."""

    python_version: str
    torch_backend: str
    wheels: str
    packages: dict[str, str]  # name → version
    environment_sha256: str
    python: str | None = None  # path of the interpreter


@dataclass(frozen=True)
class Plan(Document):
    """What the report reads of a plan: the hours that `snakemake plan` expected, as {low, expected, high}."""

    num_trials: int
    trials_left: int
    cpu_hours: dict[str, float]
    gpu_hours: dict[str, float]
