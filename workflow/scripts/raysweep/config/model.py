"""This module defines the frozen dataclasses in which every stage reads the validated config.

A field has the name and the meaning of the key in config/schema.yaml. A field with a time has the form that the config uses: minutes, or text with
units. A property, such as `runtime_s`, returns the time in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from raysweep.common.bounds import Bounds
from raysweep.common.capacity import TrialResources, WorkerResources, capacity
from raysweep.common.durations import seconds
from raysweep.common.files import read_yaml
from raysweep.common.machine import NodeSize
from raysweep.common.typed_json import OMIT_IF_EMPTY, from_json
from raysweep.config.recipe import Recipe
from raysweep.config.space import num_combinations, parse_space
from raysweep.config.tasks import is_own_loss
from raysweep.data.manifest import DatasetSpec

# Names that Tune itself adds to each report. A value that a function reports under one of these names would replace Tune's value, such as the count of reports.
TUNE_NAMES = frozenset(
    {
        "checkpoint_dir_name",
        "config",
        "date",
        "done",
        "episodes_total",
        "experiment_tag",
        "hostname",
        "iterations_since_restore",
        "node_ip",
        "pid",
        "should_checkpoint",
        "time_since_restore",
        "time_this_iter_s",
        "time_total_s",
        "timestamp",
        "timesteps_since_restore",
        "timesteps_total",
        "training_iteration",
        "trial_id",
    }
)

Mode = Literal["max", "min"]
# A time is a number in minutes, or text with units, such as 1d12h.
Time = float | str


@dataclass(frozen=True)
class Named:
    """Describes a search algorithm or a scheduler by its name and options. In the config, one map contains both the name and the options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the map that stands for this search algorithm or scheduler in the config."""
        return {"name": self.name, **self.options}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Named:
        """Return the search algorithm or scheduler from the map that the config contains."""
        return cls(value["name"], {key: option for key, option in value.items() if key != "name"})


@dataclass(frozen=True)
class Objective:
    """Names a metric by which trials are compared, and whether larger or smaller values are better."""

    metric: str
    mode: Mode = "max"


@dataclass(frozen=True)
class EnvConfig:
    """Describes the environment in which trials run."""

    python: str
    modules: tuple[str, ...]
    requirements: str
    wheels: str
    container: str | None
    torch_backend: str
    cache_dir: str | None


TlsChoice = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class RayConfig:
    """Describes the settings of the Ray cluster."""

    dashboard: bool
    tls: TlsChoice = "auto"


@dataclass(frozen=True)
class TrialResourcesConfig:
    """Describes the CPUs, GPUs and processes that the config requests for each trial."""

    cpu: float
    gpu: float | Literal["auto"]
    reuse_processes: bool = False  # whether trials of a `trainable` run one after the other in one process
    workers: WorkerResources | None = None  # what a trial starts of its own


@dataclass(frozen=True)
class AllocationConfig:
    """Describes the nodes, the time limits and the restarts that the config requests for the Slurm job of a sweep."""

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
    jobs: int = 1  # number of Slurm jobs that work on the sweep together
    idle: Time | None = None  # time without a trial after which one of several jobs ends; None: no limit
    runtime_min: Time | None = None  # least time limit with which Slurm may start the job; None: always `runtime`
    partitions: tuple[str, ...] = ()  # partitions that the job may start in; empty: the partition of the profile

    @property
    def runtime_s(self) -> float:
        """Return the time limit of the sweep's job in seconds."""
        return seconds(self.runtime) or 0.0

    @property
    def idle_s(self) -> float | None:
        """Return the time in seconds without a trial after which one of several jobs ends. Return None where there is no such limit."""
        return seconds(self.idle)

    @property
    def walltime_margin_s(self) -> float:
        """Return how many seconds before the time limit the sweep begins to end. In this margin, no new trial starts."""
        return seconds(self.walltime_margin) or 0.0


@dataclass(frozen=True)
class ConfirmConfig:
    """Describes how the stage `confirm` trains the best configurations again with new seeds."""

    seeds: int
    runtime: Time
    top: int = 1  # number of the best configurations that are trained again

    @property
    def runtime_s(self) -> float:
        """Return the time limit of the confirmation's job in seconds."""
        return seconds(self.runtime) or 0.0


@dataclass(frozen=True)
class NoBetterFor:
    """Describes after how many finished configurations without a better value the sweep ends."""

    configurations: int
    min_delta: float  # a value is better only if it exceeds the best value before by more than this difference


@dataclass(frozen=True)
class EndWhenConfig:
    """Describes when a sweep ends before the last trial."""

    no_better_for: NoBetterFor | None = field(default=None, metadata=OMIT_IF_EMPTY)


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Describes one sweep. A sweep has either a `model` or a `trainable`.

    With a trainable, `loss`, `optimizer` and `training` are None, and `metrics` is empty.
    """

    dataset: str | None = None
    model: str | None = field(default=None, metadata=OMIT_IF_EMPTY)
    loss: str | None = field(default=None, metadata=OMIT_IF_EMPTY)
    optimizer: str | None = field(default=None, metadata=OMIT_IF_EMPTY)
    training: Recipe | None = field(default=None, metadata=OMIT_IF_EMPTY)
    trainable: str | None = field(default=None, metadata=OMIT_IF_EMPTY)
    search_space: dict[str, Any]
    points_to_evaluate: tuple[dict[str, Any], ...]
    metric: str  # with several objectives, the metric of the first objective
    mode: Mode
    objectives: tuple[Objective, ...] = ()  # empty where there is one objective, which is `metric`
    choose: str | None = (
        None  # how the best of several objectives is chosen: the metric of an objective, or knee; None: the metric of the first objective
    )
    metrics: tuple[str, ...] = ()
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
    max_gpu_hours: float | None = None  # GPU-hours of all runs of the sweep together, after which no new trial starts; None: no limit
    warm_start: str | None = None
    end_when: EndWhenConfig = EndWhenConfig()
    trial_timeout: Time | None
    max_failures: int
    keep_checkpoints: int | Literal["all"]
    fuse: Literal["auto", "on", "off"]
    tensorboard: bool
    mlflow: str | None
    wandb: str | None
    resume: bool
    trial_resources: TrialResourcesConfig
    allocation: AllocationConfig
    confirm: ConfirmConfig

    @property
    def target(self) -> str:
        """Return the model or the function that the sweep trains, as `module:name` or `file.py:name`."""
        target = self.model if self.model is not None else self.trainable
        assert target is not None  # Each validated sweep has one of the two keys.
        return target

    @property
    def targets(self) -> tuple[str, ...]:
        """Return `target`, and the loss function where it is the user's own."""
        return (self.target, self.loss) if self.loss is not None and is_own_loss(self.loss) else (self.target,)

    @property
    def compared_metrics(self) -> tuple[str, ...]:
        """Return the metrics that each trial must report, because trials are compared by these metrics."""
        return tuple(objective.metric for objective in self.objectives) or (self.metric,)

    @property
    def num_trials(self) -> int:
        """Return the number of trials of the sweep, which has `repeats` trials for each configuration."""
        return self.num_samples * num_combinations(parse_space(self.search_space)) * self.repeats

    @property
    def confirm_nodes(self) -> int:
        """Return the number of nodes of the job that confirms the sweep, which is the smallest number of nodes that holds one trial."""
        resources, allocation = self.trial_resources, self.allocation
        trial = TrialResources(resources.cpu, 1 if resources.gpu == "auto" else resources.gpu, resources.workers)
        node = NodeSize("", allocation.cpus_per_node, allocation.gpus_per_node)
        return next((nodes for nodes in range(1, allocation.nodes) if capacity([node] * nodes, trial)), allocation.nodes)

    @property
    def time_budget_s(self) -> float | None:
        """Return the time limit for all runs of the sweep together in seconds, or None where the sweep has no such limit."""
        return seconds(self.time_budget)

    @property
    def trial_timeout_s(self) -> float | None:
        """Return the longest allowed time between two reports of a trial in seconds, or None where the time is not limited."""
        return seconds(self.trial_timeout)


@dataclass(frozen=True)
class Config:
    """Describes a validated config."""

    results_dir: str
    state_dir: str
    resources_dir: str
    datasets: dict[str, DatasetSpec]
    env: EnvConfig
    ray: RayConfig
    sweeps: dict[str, SweepConfig]

    @classmethod
    def of(cls, validated: Mapping[str, Any]) -> Config:
        """Return the config as a dataclass. `validated` is the map that the function `config.load.validated` returns."""
        sections = {key: value for key, value in validated.items() if key in cls.__dataclass_fields__}
        datasets = {name: {"name": name, **section} for name, section in validated["datasets"].items()}
        return from_json(cls, sections | {"datasets": datasets})


def read_config(path: Path) -> Config:
    """Return the config in the file `path`, which contains the validated config of one sweep."""
    return Config.of(read_yaml(path))
