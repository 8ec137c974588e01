"""This module defines the job of a driver. The launcher sends the job as JSON through the agents to the driver."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raysweep.common.capacity import TrialResources
from raysweep.common.machine import NodeSize
from raysweep.config.model import SweepConfig
from raysweep.record.events import FusionPlan, NotFused, ScheduleStep, SessionHeader
from raysweep.slurm.allocation import Deadline, SlurmJob
from raysweep.usercode.freeze import Code

TaskKind = Literal["search", "confirm", "evaluate"]


@dataclass(frozen=True)
class ConfirmTask:
    """Describes one trial of a confirmation."""

    trial: str  # id of the trial
    seed: int
    task: TaskKind
    config: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TuneJob:
    """Contains the common fields of SearchJob and ConfirmJob, which describe the trials that Tune runs, and the record of these trials."""

    name: str  # name of the sweep
    sweep: SweepConfig
    header: SessionHeader  # description of the sweep for the record's event `session`
    code: Code  # the model or function to train, with the user's files that the model or function needs
    root: Path  # folder in which the user started Snakemake
    record: Path  # path of the record; checkpoints and Tune's temporary files are in the same folder
    workflow_dirs: tuple[Path, ...]  # folders of the results, the records and the resources, which no trial sees in its working directory
    data_dir: Path | None  # folder of the staged data; None where the trainable brings its own data
    max_epochs: int
    total: int  # number of trials of the sweep or the confirmation
    trial_resources: TrialResources
    slurm_job: SlurmJob | None
    deadline: Deadline  # when the Slurm job's time is nearly over
    schedule: tuple[ScheduleStep, ...] = ()  # changes of the configuration during training; empty where the configuration never changes

    @property
    def state_dir(self) -> Path:
        return self.record.parent

    @property
    def seen_folders(self) -> list[Path | None]:
        """Return the folders that a container must make visible to the driver and the trials."""
        return [self.root, self.data_dir, self.state_dir]


@dataclass(frozen=True, kw_only=True)
class SearchJob(TuneJob):
    """Describes a job that runs the remaining trials of a sweep."""

    purpose: Literal["search"] = "search"
    resources_dir: Path  # folder of the resources, in which what was compiled is kept for later sessions
    early_ends: Path | None = None  # folder that names the jobs which Slurm ends early (early_ends.py); None where the sweep has one job

    @property
    def seen_folders(self) -> list[Path | None]:
        # A sweep without a model compiles nothing, and its resources may not exist.
        return [*super().seen_folders, self.resources_dir if self.sweep.model else None]

    @property
    def packs_gpus(self) -> bool:
        """Return whether the GPU memory that the first trial uses decides how many trials share a GPU."""
        return self.sweep.trial_resources.gpu == "auto" and self.trial_resources.gpu > 0


@dataclass(frozen=True, kw_only=True)
class ConfirmJob(TuneJob):
    """Describes a job that trains the best configuration again from the beginning, with other seeds."""

    purpose: Literal["confirm"] = "confirm"
    tasks: tuple[ConfirmTask, ...]
    model_dir: Path  # folder of the published model

    @property
    def seen_folders(self) -> list[Path | None]:
        return [*super().seen_folders, self.model_dir]


@dataclass(frozen=True, kw_only=True)
class CheckJob:
    """Describes a job that runs a task of check_cluster on each node of the Ray cluster."""

    purpose: Literal["check"] = "check"
    result: Path  # file to which the driver writes the reports of the tasks
    has_torch: bool  # whether each task checks that torch computes on the GPUs of the node

    @property
    def seen_folders(self) -> list[Path | None]:
        return []


Job = SearchJob | ConfirmJob | CheckJob


@dataclass(frozen=True)
class RayCluster:
    """Describes the Ray cluster of the job. The agent of the first node gives this description to the driver."""

    nodes: tuple[NodeSize, ...]  # all nodes of the allocation
    min_nodes: int  # number of nodes that must be up before the trials start
    address: str  # address of Ray's GCS (ip:port)
    node_ip: str  # IP address of the node on which the driver runs
    has_several_jobs: bool = False  # whether nodes of other Slurm jobs can join


@dataclass(frozen=True)
class MeasurementInput:
    """Describes the steps that the program measure_steps.py is to time. The rule `plan` sends this object as JSON to the program."""

    job: SearchJob
    nodes: tuple[NodeSize, ...]
    configs: tuple[dict[str, Any], ...]  # configurations whose training steps are timed
    capacity: int  # number of trials that can run at the same time on the nodes


@dataclass(frozen=True)
class StepTimes:
    """Contains the times that training and validation take for one batch size, when a trial runs alone."""

    batch_size: int
    row_s: float  # time in seconds to train on one row of the split `train`
    validation_row_s: float  # time in seconds to evaluate one row of the split `validation`


@dataclass(frozen=True)
class Measurement:
    """Contains the measured times of training on this machine."""

    device: str
    rows: int  # number of rows of the split `train`
    validation_rows: int  # number of rows of the split `validation`
    points: tuple[StepTimes, ...]
    together: FusionPlan | NotFused
    benchmark_s: float  # time in seconds that the benchmark of training several trials together took


@dataclass(frozen=True)
class DriverInput:
    """Contains the job and the Ray cluster, which the agent of the first node writes to a file for the driver."""

    job: Job
    ray: RayCluster
