"""The config as frozen dataclasses, as every stage reads the config once `config.load` has validated it.

A field has the name and the meaning that config/schema.yaml gives to the key of that name. A time keeps the form of the config; a property beside the
time returns the seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from raysweep.common.bounds import Bounds
from raysweep.common.durations import seconds
from raysweep.common.files import read_yaml
from raysweep.common.typed_json import fields_to_json, from_json
from raysweep.config.space import num_combinations, parse_space
from raysweep.data.manifest import DatasetSpec

Mode = Literal["max", "min"]
Time = float | str  # minutes, or text with units, such as 1d12h


@dataclass(frozen=True)
class Named:
    """A search algorithm or a scheduler, and its options. In the config the name lies among the options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the map that the config holds."""
        return {"name": self.name, **self.options}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Named:
        """Return what `to_json` made `value` from."""
        return cls(value["name"], {key: option for key, option in value.items() if key != "name"})


@dataclass(frozen=True)
class EnvConfig:
    """The environment in which trials run."""

    python: str
    modules: tuple[str, ...]
    requirements: str
    wheels: str
    container: str | None
    torch_backend: str
    cache_dir: str | None


@dataclass(frozen=True)
class RayConfig:
    """The Ray cluster."""

    dashboard: bool


@dataclass(frozen=True)
class TrialResourcesConfig:
    """What the config asks for one trial."""

    cpu: float
    gpu: float | Literal["auto"]


@dataclass(frozen=True)
class AllocationConfig:
    """What the config asks for the sweep."""

    nodes: int
    min_nodes: int | None
    cpus_per_node: int
    gpus_per_node: int
    gpu_type: str | None
    mem_mb_per_node: int
    runtime: Time
    max_wait: Time | None
    resubmit: int
    walltime_margin: Time

    @property
    def runtime_s(self) -> float:
        """Return the time limit of the job in seconds."""
        return seconds(self.runtime) or 0.0

    @property
    def walltime_margin_s(self) -> float:
        """Return the margin before the time limit in seconds."""
        return seconds(self.walltime_margin) or 0.0


@dataclass(frozen=True)
class ConfirmConfig:
    """How the best configuration is trained anew."""

    seeds: int
    runtime: Time

    @property
    def runtime_s(self) -> float:
        """Return the time limit of the job in seconds."""
        return seconds(self.runtime) or 0.0


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """One sweep. Either `model` or `trainable` is given. `loss` and `optimizer` are None with a trainable."""

    dataset: str | None = None
    model: str | None = None
    loss: str | None = None
    optimizer: str | None = None
    trainable: str | None = None
    search_space: dict[str, Any]
    points_to_evaluate: tuple[dict[str, Any], ...]
    metric: str
    mode: Mode
    num_samples: int
    max_epochs: int
    stop: Bounds
    constraint: Bounds
    repeats: int
    search_algorithm: Named
    scheduler: Named
    seed: int
    max_concurrent: int | None
    time_budget: Time | None
    trial_timeout: Time | None
    max_failures: int
    keep_checkpoints: int
    fuse: Literal["auto", "on", "off"]
    tensorboard: bool
    mlflow: str | None
    wandb: str | None
    resume: bool
    trial_resources: TrialResourcesConfig
    allocation: AllocationConfig
    confirm: ConfirmConfig

    def to_json(self) -> dict[str, Any]:
        """Return the sweep as a map, as the config holds the sweep. A key without a default is left out where the config does not give the key."""
        without_default = ("model", "loss", "optimizer", "trainable")
        return {key: value for key, value in fields_to_json(self).items() if key not in without_default or value is not None}

    @property
    def target(self) -> str:
        """Return the model or the function that the sweep trains, as `module:name` or `file.py:name`."""
        target = self.model if self.model is not None else self.trainable
        assert target is not None  # the config has been validated
        return target

    @property
    def num_trials(self) -> int:
        """Return the number of trials of the sweep: `repeats` for each configuration."""
        return self.num_samples * num_combinations(parse_space(self.search_space)) * self.repeats

    @property
    def time_budget_s(self) -> float | None:
        """Return the time for all runs of the sweep in seconds, or None for no limit."""
        return seconds(self.time_budget)

    @property
    def trial_timeout_s(self) -> float | None:
        """Return how many seconds a trial may report nothing, or None for no limit."""
        return seconds(self.trial_timeout)


@dataclass(frozen=True)
class Config:
    """A validated config."""

    results_dir: str
    state_dir: str
    resources_dir: str
    datasets: dict[str, DatasetSpec]
    env: EnvConfig
    ray: RayConfig
    sweeps: dict[str, SweepConfig]

    @classmethod
    def of(cls, validated: Mapping[str, Any]) -> Config:
        """Return a config from the map that `config.load.validated` returns."""
        sections = {key: value for key, value in validated.items() if key in cls.__dataclass_fields__}
        datasets = {name: {"name": name, **section} for name, section in validated["datasets"].items()}
        return from_json(cls, sections | {"datasets": datasets})


def read_config(path: Path) -> Config:
    """Return the config that a stage reads from `path`, which holds the validated config of one sweep."""
    return Config.of(read_yaml(path))
