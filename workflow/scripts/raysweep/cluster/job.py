"""The job of a driver: one definition for the launcher, the agents, the driver and the trials, written and read as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raysweep.common.machine import NodeSize
from raysweep.common.typed_json import fields_to_json
from raysweep.config.model import SweepConfig
from raysweep.record.events import FusionPlan, NotFused, ScheduleStep, SessionHeader, fusion_from_event
from raysweep.slurm.allocation import Deadline, SlurmJob
from raysweep.slurm.capacity import TrialResources
from raysweep.usercode.freeze import Code

TaskKind = Literal["search", "confirm", "evaluate"]


@dataclass(frozen=True)
class ConfirmTask:
    """One trial of a confirmation."""

    trial: str  # id
    seed: int
    task: TaskKind
    config: dict[str, Any]


@dataclass(frozen=True)
class Walltime:
    """The time of a Slurm job, in seconds since the epoch. `started` and `ends` are None where there is no time limit."""

    started: float | None
    ends: float | None
    margin_s: float  # time before the end of the job at which the driver saves and ends

    @property
    def deadline(self) -> Deadline | None:
        return Deadline.of(self.started, self.ends, self.margin_s)


@dataclass(frozen=True, kw_only=True)
class TuneJob:
    """The common fields of SearchJob and ConfirmJob: the trials that Tune runs, and the record to which their events are written."""

    name: str  # of the sweep
    sweep: SweepConfig
    header: SessionHeader  # the sweep as the record's session describes it
    code: Code  # the model or function that is trained, and the user's files that it needs
    root: Path  # folder in which Snakemake was started
    record: Path  # checkpoints and Tune's scratch lie beside it
    data_dir: Path | None  # of the staged data
    max_epochs: int
    total: int  # number of trials
    trial_resources: TrialResources
    slurm_job: SlurmJob | None
    walltime: Walltime

    @property
    def state_dir(self) -> Path:
        return self.record.parent

    @property
    def seen_folders(self) -> list[Path | None]:
        """The folders that a container must show to the driver and the trials."""
        return [self.root, self.data_dir, self.state_dir]


@dataclass(frozen=True, kw_only=True)
class SearchJob(TuneJob):
    """Run what is left of a sweep."""

    purpose: Literal["search"] = "search"
    packs_gpus: bool = False  # whether the memory that the first trial takes of its GPU decides how many trials share a GPU

    @property
    def schedule(self) -> tuple[ScheduleStep, ...]:
        return ()


@dataclass(frozen=True, kw_only=True)
class ConfirmJob(TuneJob):
    """Train the best configuration anew, with other seeds."""

    purpose: Literal["confirm"] = "confirm"
    tasks: tuple[ConfirmTask, ...]
    model_dir: Path  # of the published model
    schedule: tuple[ScheduleStep, ...] = ()  # empty where the configuration never changed

    @property
    def seen_folders(self) -> list[Path | None]:
        return [*super().seen_folders, self.model_dir]


@dataclass(frozen=True, kw_only=True)
class CheckJob:
    """Report the nodes as Ray sees them."""

    purpose: Literal["check"] = "check"
    result: Path  # file in which the driver describes the nodes
    has_torch: bool  # whether the environment has torch, so that GPUs can compute

    @property
    def seen_folders(self) -> list[Path | None]:
        return []


Job = SearchJob | ConfirmJob | CheckJob


@dataclass(frozen=True)
class RayCluster:
    """The Ray cluster of the job, as the agent of the first node knows it."""

    nodes: tuple[NodeSize, ...]  # of the allocation
    min_nodes: int  # number of nodes with which the trials start
    address: str  # of Ray's GCS
    node_ip: str  # of this node


@dataclass(frozen=True)
class MeasurementInput:
    """The standard input of the measurement of a plan."""

    job: SearchJob
    nodes: tuple[NodeSize, ...]
    configs: tuple[dict[str, Any], ...]  # to measure
    capacity: int  # how many trials the nodes hold


@dataclass(frozen=True)
class StepTimes:
    """The time that a trial takes alone, with one batch size."""

    batch_size: int
    row_s: float  # for a row of the training part
    validation_row_s: float


@dataclass(frozen=True)
class Measurement:
    """The time that training takes on this machine."""

    device: str
    rows: int  # of the training part
    validation_rows: int
    points: tuple[StepTimes, ...]
    together: FusionPlan | NotFused
    benchmark_s: float  # that the benchmark of training together took

    def to_json(self) -> dict[str, Any]:
        """Return the measurement for JSON; `together` has the fields of the record's event `fused`."""
        return {**fields_to_json(self), "together": self.together.as_event()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Measurement:
        together = fusion_from_event(value["together"])
        return cls(**{**value, "points": tuple(StepTimes(**point) for point in value["points"]), "together": together})


@dataclass(frozen=True)
class DriverInput:
    """The file that the agent of the first node writes for the driver."""

    job: Job
    ray: RayCluster
