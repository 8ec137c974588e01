"""Defines the contents of the YAML files that the report needs in addition to the record. Only the fields that the report reads are defined."""

from __future__ import annotations

from dataclasses import dataclass

from raysweep.common.typed_json import Extensible


@dataclass(frozen=True)
class EnvironmentManifest(Extensible):
    """Contains the fields of `env.yaml` that the report reads."""

    python_version: str
    torch_backend: str | None
    wheels: str
    packages: dict[str, str]  # maps the name of each package to the version of the package
    environment_sha256: str
    python: str | None = None  # path of the Python interpreter


@dataclass(frozen=True)
class Plan(Extensible):
    """Contains the fields of a plan that the report reads.

    `cpu_hours` and `gpu_hours` are the hours that `snakemake plan` expected. Both have the keys low, expected and high.
    """

    num_trials: int
    trials_left: int
    cpu_hours: dict[str, float]
    gpu_hours: dict[str, float]
