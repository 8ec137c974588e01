"""Defines the types of the values that the events of a record contain. The fields of a type have the names of the keys in the file.

A record of version 0.1 stays readable, because a key that was added later has a default, and a key that this version does not know is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal

from raysweep.common.bounds import Bounds
from raysweep.common.machine import NodeSize
from raysweep.common.typed_json import OMIT_IF_EMPTY, fields_to_json, known_fields_from_json
from raysweep.config.model import Mode, Named, NoBetterFor, Objective, TrialResourcesConfig
from raysweep.config.recipe import Recipe

# The record flushes the file to the disk after an event of these kinds, because the loss of such an event would lose a trial or repeat a trial.
DURABLE = frozenset({"session", "trial", "take_over", "start", "checkpoint", "failure", "finish", "reopen", "session_end"})

# Why a trial has finished: its function returned, the trial reached `max_epochs`, a bound of `stop` or `no_better_for` ended the trial, the scheduler stopped
# the trial, or the trial failed.
FinishReason = Literal["returned", "max_epochs", "stop", "scheduler", "error"]
Status = Literal["PENDING", "RUNNING", "TERMINATED", "STOPPED", "ERROR"]


def finish(trial_id: str, reason: FinishReason, error: str | None = None) -> dict[str, Any]:
    """Return the values of the event `finish`. A trial with an `error` has failed, whatever the other reason is."""
    if error is not None:
        reason = "error"
    status: Status = "ERROR" if reason == "error" else "STOPPED" if reason == "scheduler" else "TERMINATED"
    return {"trial": trial_id, "status": status, "reason": reason, "error": error}


@dataclass(frozen=True)
class Provenance:
    """Describes the workflow, the environment and the data with which the trials of a session or of a whole sweep were trained."""

    workflow_version: str = ""
    identity: str = ""  # identity of the sweep
    environment_sha256: str = ""
    data_sha256: str | None = None  # checksum of the staged data; None where the sweep has no data set
    earlier_environments: tuple[str, ...] = ()  # checksums of earlier sessions' environments that differ from the latest environment

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in fields_to_json(self).items() if key != "earlier_environments" or value}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Provenance:
        return known_fields_from_json(cls, value)


@dataclass(frozen=True)
class WarmStart:
    """Describes the trials that were known before the sweep, and that the sampler got. No trial of the sweep depends on the description."""

    source: str  # the key `warm_start` of the config
    sha256: str  # checksum of the known trials
    num_trials: int
    best: float  # best value of the known trials
    num_left_out: int  # number of trials of the source that do not fit the search space, or that have no value


@dataclass(frozen=True, kw_only=True)
class SessionHeader:
    """Describes the sweep of a session. The event `session` contains this description for the report and for `make watch`."""

    name: str = ""
    identity: str = ""
    # Parts of the identity of a sweep. The map is empty for a confirmation and in records of version 0.1.
    depends_on: dict[str, Any] = field(default_factory=dict)
    num_trials: int = 0
    max_epochs: int = 0
    repeats: int = 1  # number of trials of each configuration
    has_folds: bool = False  # whether trial number k of each configuration trains on fold k of the data set
    metric: str = ""
    mode: Mode = "max"
    objectives: tuple[Objective, ...] = field(default=(), metadata=OMIT_IF_EMPTY)
    choose: str | None = field(default=None, metadata=OMIT_IF_EMPTY)
    seed: int = 0
    search_space: dict[str, Any] = field(default_factory=dict)  # the key `search_space` of the sweep's config
    search_algorithm: Named = field(default_factory=lambda: Named("random"))
    scheduler: Named = field(default_factory=lambda: Named("none"))
    dataset: str | None = None  # None: the trainable loads data without the workflow
    model: str | None = None
    trainable: str | None = None
    optimizer: str | None = None
    loss: str | None = None
    training: Recipe = field(default_factory=Recipe)
    trial_resources: TrialResourcesConfig = field(default_factory=lambda: TrialResourcesConfig(1, 0))
    constraint: Bounds = field(default_factory=dict)
    # When the sweep ends before the last trial (`end_when` and `max_gpu_hours`).
    no_better_for: NoBetterFor | None = field(default=None, metadata=OMIT_IF_EMPTY)
    max_gpu_hours: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    warm_start: WarmStart | None = field(default=None, metadata=OMIT_IF_EMPTY)
    version: str = ""  # version of the workflow
    provenance: Provenance = field(default_factory=Provenance)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SessionHeader:
        return known_fields_from_json(cls, value)


@dataclass(kw_only=True)
class Session:
    """Describes one run of the driver.

    Each event of the run changes `last_at` or `outcome` of this object, because a new object for each event would take four times as long.
    """

    header: SessionHeader = field(default_factory=SessionHeader)
    at: str  # time at which the session started, as ISO 8601 in UTC
    last_at: str  # time of the session's last event, as ISO 8601 in UTC
    host: str = ""
    pid: int = 0
    nodes: tuple[NodeSize, ...] = ()
    slurm_job: str | None = None
    outcome: str | None = None  # None: the session still runs, or was interrupted
    fused: FusionPlan | NotFused | None = None  # see Sweep.fused

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> Session:
        """Return the session that begins with an event `session`."""
        nodes = tuple(known_fields_from_json(NodeSize, node) for node in event.get("nodes", ()))
        header = SessionHeader.from_json(event["sweep"])
        started = {key: event[key] for key in ("host", "pid", "slurm_job") if key in event}
        return cls(header=header, at=event["at"], last_at=event["at"], nodes=nodes, **started)

    @property
    def duration_s(self) -> float:
        """Return the time in seconds from the start of the session to its last event."""
        return self.seconds_until(self.last_at)

    def seconds_until(self, at: str) -> float:
        """Return the time in seconds from the start of the session to `at`, which is a time of the record."""
        return (datetime.fromisoformat(at) - datetime.fromisoformat(self.at)).total_seconds()


@dataclass(frozen=True)
class NodeEvent:
    """Records that a node was lost or joined the Ray cluster while a session ran.

    The sizes and the job are known only in a sweep of several Slurm jobs, where nodes of other jobs than the session's join.
    """

    node: str
    state: Literal["lost", "joined"]
    at: str
    session: int = 0  # number of the session, from 0
    cpus: int = 0
    gpus: int = 0
    job: str | None = None  # id of the node's Slurm job


@dataclass(frozen=True)
class Attempt:
    """Records one start of a trial."""

    node: str | None  # None: the node is not known
    at: str
    from_epoch: int


@dataclass(frozen=True)
class Failure:
    """Records that an attempt of a trial failed."""

    error: str
    counted: bool  # False where the trial did not cause the failure, for example when the node was lost
    at: str


@dataclass(frozen=True)
class ScheduleStep:
    """Contains the configuration with which a trial of a population trained after the epoch `from_epoch`."""

    from_epoch: int
    config: dict[str, Any]


# Says how training steps run: "alone" trains each trial by itself. The other modes train several trials together, with eager steps, compiled steps or a CUDA
# graph.
StepMode = Literal["alone", "eager", "compiled", "captured"]


@dataclass(frozen=True)
class NotFused:
    """States why trials are not trained together."""

    step_mode: ClassVar[StepMode] = "alone"
    reason: str

    def as_event(self) -> dict[str, Any]:
        """Return the fields of the record's event `fused`."""
        return {"why_not": self.reason}


@dataclass(frozen=True)
class FusionPlan:
    """Describes how trials are trained together in engines, which are processes that train several trials at the same time."""

    processes: int  # number of engines
    slots: int  # number of trials that one engine trains at the same time
    speed_up: float  # speed of an engine, as a multiple of the speed of training the same trials one after the other
    way: str  # sentence for the user that says how an engine runs the steps of several trials
    step_mode: StepMode | None = None  # None in the records of earlier versions

    def as_event(self) -> dict[str, Any]:
        """Return the fields of the record's event `fused`."""
        sizes = {"processes": self.processes, "seats": self.slots, "speed_up": self.speed_up}
        return {"why_not": None, **sizes, "way": self.way, "step_mode": self.step_mode}


def fusion_from_event(event: Mapping[str, Any]) -> FusionPlan | NotFused:
    """Return the content of an event `fused`, which says how trials are trained together, or why trials are not trained together."""
    if event["why_not"] is not None:
        return NotFused(event["why_not"])
    return FusionPlan(event["processes"], event["seats"], event["speed_up"], event["way"], event.get("step_mode"))
