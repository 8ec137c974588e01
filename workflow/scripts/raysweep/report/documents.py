"""What the report reads beside the record, as typed values: the YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class Document:
    """A document of which only the named fields are read."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Return the document with those of its fields that `values` holds. Raises TypeError where a field without a default is missing."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


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
