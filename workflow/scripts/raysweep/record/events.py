"""What the events of a record hold: typed values, each with the keys that its event has in the file.

A record of version 0.1 stays readable: a key that was added later has a default, and a key that this version does not know is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from raysweep.common.bounds import Bounds
from raysweep.common.machine import NodeSize
from raysweep.common.typed_json import fields_to_json, known_fields_from_json
from raysweep.config.model import Mode, Named, TrialResourcesConfig

# After one of these events the file is on the disk, not only in the system's memory: to lose the event would lose or repeat a trial.
DURABLE = frozenset({"session", "trial", "take_over", "start", "checkpoint", "failure", "finish", "session_end"})

Status = Literal["PENDING", "RUNNING", "TERMINATED", "STOPPED", "ERROR"]


@dataclass(frozen=True)
class Provenance:
    """Where the trials of a session come from, and what the trials of a sweep come from."""

    workflow_version: str = ""
    identity: str = ""  # of the sweep
    environment_sha256: str = ""
    data_sha256: str | None = None  # None without a data set
    earlier_environments: tuple[str, ...] = ()  # environments of earlier sessions of the sweep, where they differ

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in fields_to_json(self).items() if key != "earlier_environments" or value}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Provenance:
        return known_fields_from_json(cls, value)


@dataclass(frozen=True, kw_only=True)
class SessionHeader:
    """The sweep of a session, as the event `session` describes it for the report and for `make watch`."""

    name: str = ""
    identity: str = ""
    num_trials: int = 0
    max_epochs: int = 0
    repeats: int = 1  # trials of each configuration
    metric: str = ""
    mode: Mode = "max"
    seed: int = 0
    search_space: dict[str, Any] = field(default_factory=dict)  # as the config has it
    search_algorithm: Named = field(default_factory=lambda: Named("random"))
    scheduler: Named = field(default_factory=lambda: Named("none"))
    dataset: str | None = None  # None: the trainable brings its own data
    model: str | None = None
    trainable: str | None = None
    optimizer: str | None = None
    loss: str | None = None
    trial_resources: TrialResourcesConfig = field(default_factory=lambda: TrialResourcesConfig(1, 0))
    constraint: Bounds = field(default_factory=dict)
    version: str = ""  # of the workflow
    provenance: Provenance = field(default_factory=Provenance)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SessionHeader:
        return known_fields_from_json(cls, value)


@dataclass(kw_only=True)
class Session:
    """A run of the driver. The fold of its events sets `last_at` and `outcome`: a new object for each event would take four times as long."""

    header: SessionHeader = field(default_factory=SessionHeader)
    at: str  # start, ISO 8601 in UTC
    last_at: str  # time of the session's last event
    host: str = ""
    pid: int = 0
    nodes: tuple[NodeSize, ...] = ()
    slurm_job: str | None = None
    outcome: str | None = None  # None: the session still runs, or was cut off

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> Session:
        """Return the session that an event `session` begins."""
        nodes = tuple(known_fields_from_json(NodeSize, node) for node in event.get("nodes", ()))
        header = SessionHeader.from_json(event["sweep"])
        started = {key: event[key] for key in ("host", "pid", "slurm_job") if key in event}
        return cls(header=header, at=event["at"], last_at=event["at"], nodes=nodes, **started)


@dataclass(frozen=True)
class NodeEvent:
    """A node that was lost, or that joined, while a session ran."""

    node: str
    state: Literal["lost", "joined"]
    at: str


@dataclass(frozen=True)
class Attempt:
    """A start of a trial."""

    node: str | None  # None: it is not known
    at: str
    from_epoch: int


@dataclass(frozen=True)
class Failure:
    """A failed attempt of a trial."""

    error: str
    counted: bool  # False where the trial was not to blame
    at: str


@dataclass(frozen=True)
class ScheduleStep:
    """The configuration with which a trial of a population trained, and the epoch after which it began to."""

    from_epoch: int
    config: dict[str, Any]


@dataclass(frozen=True)
class NotFused:
    """Trials are trained one by one, for a reason."""

    reason: str

    def as_event(self) -> dict[str, Any]:
        """Return the fields of the record's event `fused`."""
        return {"why_not": self.reason}


@dataclass(frozen=True)
class FusionPlan:
    """Trials are trained together: in how many engines, how many at a time, and how."""

    processes: int  # engines
    slots: int  # of each engine
    speed_up: float  # how many times as fast as one by one
    way: str  # how steps run, in words

    def as_event(self) -> dict[str, Any]:
        """Return the fields of the record's event `fused`."""
        return {"why_not": None, "processes": self.processes, "seats": self.slots, "speed_up": self.speed_up, "way": self.way}


def fusion_from_event(event: Mapping[str, Any]) -> FusionPlan | NotFused:
    """Return what an event `fused` says: how trials are trained together, or why they are not."""
    if event["why_not"] is not None:
        return NotFused(event["why_not"])
    return FusionPlan(event["processes"], event["seats"], event["speed_up"], event["way"])
