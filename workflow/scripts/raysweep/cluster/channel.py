"""This module defines the messages between the launcher and the agents. Each message is one line of JSON.

The messages pass through the standard input and the standard output of the agents, and `srun` transfers both streams between the nodes. Therefore the
messages need no port. The messages also need no file on a shared file system, where some nodes would see a new file later than other nodes. When the
standard input of an agent ends, the agent ends all processes that the agent started, and exits.

The secrets of the run, which are the token and the key of the certificate authority, are a part of the first message. But Slurm does not encrypt the streams of
`srun`. So where Ray uses TLS, the launcher leaves the secrets out of the first message. Then each agent sends a public key (AgentKey), and the launcher answers
with the secrets, encrypted for this key (SealedSecrets).

The launcher and the agents run in the controller's Python.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, cast

from raysweep.cluster.job import Job
from raysweep.common.typed_json import from_json, to_json
from raysweep.slurm.allocation import Node

TICK_S = 3  # time in seconds between two LauncherAlive messages
# An agent ends when the agent has received no message for more than this number of ticks. Thus all other nodes are free again within 30 s after the
# loss of the first node.
SILENT_TICKS = 6
# An agent counts as lost when the agent has answered none of this number of LauncherAlive messages. The limit is three minutes, because a busy node or
# network delays answers, and because Slurm suspends and resumes the nodes of a job one after the other.
UNANSWERED_TICKS = 60

# ---------------------------------------------------------------------------------------------------------------- to the agents


@dataclass(frozen=True)
class Authority:
    """Is the certificate authority of a run (certificates.py). Both texts are in the format PEM."""

    certificate: str
    key: str = field(repr=False)


@dataclass(frozen=True)
class Secrets:
    """Contains the secrets of a run."""

    token: str = field(repr=False)
    authority: Authority | None


@dataclass(frozen=True)
class Start:
    """Tells an agent to start Ray, and contains all settings that an agent needs. Start is the first message to each agent.

    A further Start after EndRay starts Ray again, for example as a part of the Ray cluster of another job.
    """

    in_slurm: bool
    nodes: tuple[Node, ...]  # nodes of the agents' job, sorted by the rank of each node's agent
    env_dir: Path
    cache_dir: Path | None  # folder where the unpacked environment stays for later jobs; None where the config sets no such folder
    token: str = field(repr=False)  # secret text of this job; Ray asks for the text at each connection. Empty in a message without secrets
    has_dashboard: bool
    path_to_log: Path
    min_nodes: int  # number of nodes that must be up before the driver starts trials
    job: Job  # the job that the driver runs
    # Signs the certificate of each node. None where Ray does not use TLS, and in a message without secrets.
    authority: Authority | None = None
    # Whether nodes of other jobs can join the Ray cluster, so that also a single node must not listen only on the loopback interface.
    is_joinable: bool = False
    # Node of another job, to which each node finds its own address by the route. None: there is no such node, or the nodes of this job show the route.
    peer: Node | None = None
    job_id: str | None = None  # id of the agents' Slurm job; None without Slurm
    # Time after which no trial may begin on the nodes of a job that joins, in seconds since the epoch. None: there is no such time.
    job_deadline: float | None = None
    joins: bool = False  # whether Ray's head runs in another job, so that no agent of this job starts a head
    kind: Literal["start"] = "start"

    @property
    def ray_folder(self) -> str:
        """Return the name of the private folder of Ray, which is the same on all nodes of a job.

        On each node, an old Ray (2.53) writes to the path of the head's folder instead of the path that `ray start` gets. Without a private folder at
        this path, Ray would make a folder there that other users can enter, and nobody would remove this folder.
        """
        return f"rs-{hashlib.sha256(self.token.encode()).hexdigest()[:8]}"

    @property
    def has_several_jobs(self) -> bool:
        """Return whether the nodes of the Ray cluster may belong to several Slurm jobs."""
        return self.is_joinable or self.joins

    @property
    def is_alone(self) -> bool:
        """Return whether the Ray cluster has only one node for as long as the cluster exists."""
        return len(self.nodes) == 1 and not self.has_several_jobs

    @property
    def secrets(self) -> Secrets:
        return Secrets(self.token, self.authority)

    def as_sent(self) -> Start:
        """Return the message as the launcher sends it to the agents. With TLS, the agents ask for the secrets."""
        return self.without_secrets() if self.authority else self

    def with_secrets(self, secrets: Secrets) -> Start:
        return replace(self, token=secrets.token, authority=secrets.authority)

    def without_secrets(self) -> Start:
        return self.with_secrets(Secrets("", None))


@dataclass(frozen=True)
class SealedSecrets:
    """Answers AgentKey. Contains the Secrets of the run as JSON, encrypted for the agent of the node `node` (sealing.py)."""

    node: str
    text: str
    kind: Literal["secrets"] = "secrets"


@dataclass(frozen=True)
class HeadAddress:
    """Tells the agents that Ray's head is up at `address` (ip:port), so that the other nodes can join."""

    address: str
    kind: Literal["head_address"] = "head_address"


@dataclass(frozen=True)
class EndRay:
    """Tells the agents to end Ray and to keep the environment of the trials. Each agent answers with RayEnded, and waits for the next Start."""

    kind: Literal["end_ray"] = "end_ray"


@dataclass(frozen=True)
class LauncherAlive:
    """Tells the agents that the launcher is alive. The launcher sends this message every TICK_S seconds, and each agent answers with AgentAlive."""

    kind: Literal["alive"] = "alive"


LauncherMessage = Start | SealedSecrets | HeadAddress | EndRay | LauncherAlive

# ---------------------------------------------------------------------------------------------------------------- to the launcher


@dataclass(frozen=True)
class AgentKey:
    """Asks the launcher for the secrets of the run, encrypted for the public key `public_key` (sealing.py)."""

    node: str
    public_key: str
    event: Literal["key"] = "key"


@dataclass(frozen=True)
class EnvironmentReady:
    """Tells the launcher that the environment of the trials is ready on the node."""

    node: str
    event: Literal["environment"] = "environment"


@dataclass(frozen=True)
class HeadUp:
    """Tells the launcher that Ray's head is up at `address` (ip:port).

    `dashboard` is a text that says how the user opens Ray's dashboard. `dashboard` is None where there is no dashboard.
    """

    node: str
    address: str
    dashboard: str | None
    event: Literal["head"] = "head"


@dataclass(frozen=True)
class WorkerUp:
    """Tells the launcher that Ray is up on a node that has joined Ray's head."""

    node: str
    event: Literal["worker"] = "worker"


@dataclass(frozen=True)
class DriverEnded:
    """Tells the launcher that the driver has ended. The exit code is negative where a signal killed the driver."""

    node: str
    exit_code: int
    event: Literal["driver"] = "driver"


@dataclass(frozen=True)
class RayEnded:
    """Tells the launcher that the agent has ended all that belonged to Ray on the node, as EndRay asked."""

    node: str
    event: Literal["ray_ended"] = "ray_ended"


@dataclass(frozen=True)
class NodeFailed:
    """Tells the launcher that Ray will not come up on the node, or that the node is lost."""

    node: str
    reason: str
    event: Literal["failed"] = "failed"


@dataclass(frozen=True)
class AgentAlive:
    """Answers LauncherAlive. The thread that sends this answer has no other work, so an agent that unpacks an environment answers too.

    `has_trial` is whether a trial, or a process that a trial has started, runs on the node. This is known only where Ray's nodes belong to several jobs.
    """

    node: str
    has_trial: bool = False
    event: Literal["alive"] = "alive"


@dataclass(frozen=True)
class Notice:
    """Contains a warning for the user. The launcher logs the warning, because only the launcher writes to the terminal and to the log of the rule."""

    node: str
    text: str
    event: Literal["notice"] = "notice"


AgentMessage = AgentKey | EnvironmentReady | HeadUp | WorkerUp | DriverEnded | RayEnded | NodeFailed | AgentAlive | Notice

# ---------------------------------------------------------------------------------------------------------------- on the wire


def send(message: object, stream: IO[str]) -> None:
    """Write one message to `stream` as a line of JSON, and flush the stream."""
    stream.write(json.dumps(to_json(message)) + "\n")
    stream.flush()


def read_message(kinds: object, line: str) -> Any:
    """Return the message of one of `kinds` that a line contains. Return None for any other line, such as a line that the prolog of a site prints."""
    try:
        return from_json(cast(Any, kinds), json.loads(line))
    except (ValueError, TypeError):
        return None


def read_launcher_message(line: str) -> LauncherMessage:
    """Return the message that a line from the launcher contains. Raises ValueError or TypeError where the line is no message."""
    return cast(LauncherMessage, from_json(cast(Any, LauncherMessage), json.loads(line)))


def read_agent_message(line: str) -> AgentMessage | None:
    """Return the message that a line from an agent contains, or None for any other line."""
    return cast(AgentMessage | None, read_message(AgentMessage, line))
