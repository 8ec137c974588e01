"""Reads the YAML files that the report needs in addition to the record. The contents become typed values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class Document:
    """Describes a YAML document of which the report reads only the fields that the class names."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Return the document that is made from `values`. Keys of `values` that are not fields of the class are ignored.

        Raises TypeError if `values` lacks a field without a default.
        """
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


@dataclass(frozen=True)
class EnvironmentManifest(Document):
    """Contains the fields of `env.yaml` that the report reads."""

    python_version: str
    torch_backend: str
    wheels: str
    packages: dict[str, str]  # maps the name of each package to the version of the package
    environment_sha256: str
    python: str | None = None  # path of the Python interpreter


@dataclass(frozen=True)
class Plan(Document):
    """Contains the fields of a plan that the report reads.

    `cpu_hours` and `gpu_hours` are the hours that `snakemake plan` expected. Both have the keys low, expected and high.
    """

    num_trials: int
    trials_left: int
    cpu_hours: dict[str, float]
    gpu_hours: dict[str, float]
