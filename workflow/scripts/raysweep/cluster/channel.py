"""The messages between the launcher and the agents: one JSON object a line, through standard input and output of the agents.

`srun` carries both streams between the nodes. So no port is needed, and no file on a shared file system, which one node sees later than another. The
token goes the same way. The end of the agents' input tells each agent to end what it started, and to exit.

Both sides run in the controller's Python.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, cast

from raysweep.cluster.job import Job
from raysweep.common.typed_json import from_json, to_json
from raysweep.slurm.allocation import Node

TICK_S = 3  # the launcher sends LauncherAlive this often
# An agent ends after so many ticks without a message: when the first node is lost, the other nodes are to be free again within 30 s.
SILENT_TICKS = 6

# ---------------------------------------------------------------------------------------------------------------- to the agents


@dataclass(frozen=True)
class Start:
    """The first message, which says all that an agent needs to know."""

    in_slurm: bool
    nodes: tuple[Node, ...]  # in the order of their ranks
    env_dir: Path
    cache_dir: Path | None  # where the unpacked environment stays between jobs; None: nowhere
    token: str = field(repr=False)  # a secret of this job
    has_dashboard: bool
    path_to_log: Path
    min_nodes: int  # with how many of them the driver starts the trials
    job: Job  # for the driver
    kind: Literal["start"] = "start"


@dataclass(frozen=True)
class HeadAddress:
    """Ray's head is up at `address` (ip:port), so the other nodes can join."""

    address: str
    kind: Literal["head_address"] = "head_address"


@dataclass(frozen=True)
class LauncherAlive:
    """The launcher is alive: sent every TICK_S seconds."""

    kind: Literal["alive"] = "alive"


LauncherMessage = Start | HeadAddress | LauncherAlive

# ---------------------------------------------------------------------------------------------------------------- to the launcher


@dataclass(frozen=True)
class EnvironmentReady:
    """The environment lies on the node, or was on it before."""

    node: str
    event: Literal["environment"] = "environment"


@dataclass(frozen=True)
class HeadUp:
    """Ray's head is up at `address`. `dashboard` is how the user reaches the dashboard; None where there is no dashboard."""

    node: str
    address: str
    dashboard: str | None
    event: Literal["head"] = "head"


@dataclass(frozen=True)
class WorkerUp:
    """Ray is up on a node that has joined the head."""

    node: str
    event: Literal["worker"] = "worker"


@dataclass(frozen=True)
class DriverEnded:
    """The driver has ended; the exit code is negative where a signal killed the driver."""

    node: str
    exit_code: int
    event: Literal["driver"] = "driver"


@dataclass(frozen=True)
class NodeFailed:
    """The node will not come up, or is lost."""

    node: str
    reason: str
    event: Literal["failed"] = "failed"


AgentMessage = EnvironmentReady | HeadUp | WorkerUp | DriverEnded | NodeFailed

# ---------------------------------------------------------------------------------------------------------------- on the wire


def send(message: object, stream: IO[str]) -> None:
    """Write one message as a line, and flush the line."""
    stream.write(json.dumps(to_json(message)) + "\n")
    stream.flush()


def read_launcher_message(line: str) -> LauncherMessage:
    """Return the message in a line from the launcher. Raises ValueError or TypeError where the line holds no message."""
    return cast(LauncherMessage, from_json(cast(Any, LauncherMessage), json.loads(line)))


def read_agent_message(line: str) -> AgentMessage | None:
    """Return the message in a line from an agent; None for any other line, such as a line that the prolog of a site prints."""
    try:
        return cast(AgentMessage, from_json(cast(Any, AgentMessage), json.loads(line)))
    except (ValueError, TypeError):
        return None
