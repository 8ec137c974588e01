"""The launcher turns an allocation into a Ray cluster with one agent on each node (agent.py), and runs a driver on the cluster.

The launcher waits for messages of the agents (channel.py), and never sleeps for a fixed time in the hope that a node is ready. From these messages the
launcher knows which stage each node has reached. Without Slurm, the launcher starts one agent on this machine, without `srun`. The controller's Python runs
this module.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from raysweep.cluster.channel import (
    TICK_S,
    UNANSWERED_TICKS,
    AgentAlive,
    AgentKey,
    AgentMessage,
    DriverEnded,
    EndRay,
    EnvironmentReady,
    HeadAddress,
    HeadUp,
    LauncherAlive,
    NodeFailed,
    Notice,
    RayEnded,
    Start,
    WorkerUp,
    read_agent_message,
)
from raysweep.cluster.children import GRACE_S, ended_by_signals
from raysweep.cluster.gate import Gate
from raysweep.cluster.job import Job
from raysweep.cluster.node_tasks import NodeTasks, script_command
from raysweep.cluster.run_secrets import new_secrets, seal_secrets
from raysweep.common.errors import RaysweepError, WorldError, logger
from raysweep.config.model import TlsChoice
from raysweep.slurm.allocation import Allocation, Node
from raysweep.slurm.commands import lost_node

BRING_UP_DEADLINE_S = 900  # time limit in seconds; unpacking the environment on a slow disk takes minutes
# Time limit in seconds for the end of the agents. An agent waits GRACE_S seconds for the end of the agent's children, and then GRACE_S seconds for the end
# of the processes that these children started. Then the agent removes the unpacked environment, which takes up to a minute on a busy disk. An agent that is
# ended by force leaves the environment on its node.
END_DEADLINE_S = 2 * GRACE_S + 120


@dataclass(frozen=True)
class LaunchRequest:
    """Describes the Ray cluster that the launcher is to start, by the nodes, the environment and the options.

    Trials start as soon as Ray is up on `min_nodes` nodes, or on all nodes where `min_nodes` is None. Every other node joins when that node is ready.
    """

    allocation: Allocation
    env_dir: Path
    path_to_log: Path
    min_nodes: int | None = None
    has_dashboard: bool = False
    cache_dir: Path | None = None  # folder where the unpacked environment stays for later jobs
    crew: Crew | None = None  # None where no other job can join the cluster
    tls: TlsChoice = "auto"

    @property
    def has_tls(self) -> bool:
        """Return whether Ray uses TLS. On one node Ray listens only on the loopback, and no traffic leaves the machine, unless other jobs can join."""
        return self.tls == "on" or (self.tls == "auto" and (len(self.allocation.nodes) > 1 or self.crew is not None))

    @property
    def num_required_nodes(self) -> int:
        return min(self.min_nodes or len(self.allocation.nodes), len(self.allocation.nodes))


@dataclass(frozen=True)
class BringUp:
    """Describes how a Ray cluster started. The fields contain the nodes, and the times in seconds that the start took."""

    nodes: tuple[Node, ...]  # the nodes on which Ray was up
    num_allocated_nodes: int
    job_start_s: float | None  # time from the start of the job to the start of the launcher; None without a job
    stages_s: dict[str, float]  # stage (environment, head, workers) → duration of the stage
    total_s: float  # time from the start of the job, or of the launcher without a job, until the cluster was up

    def __str__(self) -> str:
        # The first text has no decimals, because Slurm gives the start time in whole seconds.
        stages = [] if self.job_start_s is None else [f"start of the job {self.job_start_s:.0f} s"]
        stages += [f"{stage} {duration_s:.1f} s" for stage, duration_s in self.stages_s.items()]
        of_nodes = f"on {len(self.nodes)} of {self.num_allocated_nodes} nodes " if self.num_allocated_nodes > 1 else ""
        cpus, gpus = sum(node.cpus for node in self.nodes), sum(node.gpus for node in self.nodes)
        return f"Ray is up {of_nodes}after {self.total_s:.1f} s: {cpus} CPUs, {gpus} GPUs ({', '.join(stages)})"


@dataclass(frozen=True)
class LaunchResult:
    """Describes how a driver ended, and how the driver's Ray cluster started.

    `bring_up` is None where the driver ended before the launcher counted the cluster as up.
    """

    exit_code: int
    bring_up: BringUp | None


class Interrupted(RaysweepError):
    """Reports that Slurm or a signal has ended the job, so that the sweep is not finished."""


class LostNode(WorldError):
    """Reports that the node `node` is lost, without which the run cannot go on."""

    def __init__(self, line: str, node: str) -> None:
        super().__init__(line)
        self.node = node


class SilentAgent(LostNode):
    """Reports an agent that does not answer, without which the run cannot go on. For example, the `slurmstepd` of the agent's node has died."""


class Agents(NodeTasks[AgentMessage]):
    """Runs one agent on each node, and counts the ticks that each agent has not answered.

    The lines on stderr that are not lines of Slurm come from the drivers and the agents.
    """

    error_prefixes = ("srun: error", "slurmstepd")

    def __init__(self, allocation: Allocation) -> None:
        super().__init__(allocation.command(script_command("agent.py")), END_DEADLINE_S)
        self.node_names = [node.name for node in allocation.nodes]
        # Ticks are counted instead of seconds, so that the time in which the launcher is suspended does not count.
        self.num_ticks = 0
        self.ended: set[str] = set()  # nodes whose agents have ended
        self.is_ray_wanted = False  # whether the agents were told to start Ray, and not yet to end Ray
        self.last_answer_tick: dict[str, int] = {}  # node → tick at the agent's last message; a node without a message is missing
        # This is a separate thread, because the main thread may have to wait for a file system that hangs.
        self.threads.append(threading.Thread(target=self.show_life, daemon=True))

    # This method runs in a thread.
    def show_life(self) -> None:
        while not self.is_over.wait(TICK_S):
            self.send(LauncherAlive())
            self.num_ticks += 1

    def send(self, message: object) -> None:
        if isinstance(message, Start | EndRay):
            self.is_ray_wanted = isinstance(message, Start)
        super().send(message)

    def note_error(self, line: str) -> None:
        if (name := lost_node(line)) is not None:
            self.ended.add(name)

    def read_message(self, line: str) -> AgentMessage | None:
        message = read_agent_message(line)
        if message is not None:
            self.last_answer_tick[message.node] = self.num_ticks
        return message

    def silent_nodes(self) -> list[str]:
        """Return the nodes whose agents have answered before, and have not answered the last UNANSWERED_TICKS ticks."""
        return [name for name, tick in self.last_answer_tick.copy().items() if self.num_ticks - tick > UNANSWERED_TICKS]

    def message_for_ended_task(self, rank: int) -> AgentMessage:
        self.ended.add(self.node_names[rank])
        return NodeFailed(self.node_names[rank], f"its agent ended: {self.last_errors()}")


@dataclass(frozen=True)
class Crew:
    """Contains the nodes of a job that works on a sweep together with other jobs, and the agents on these nodes, which outlive Ray.

    `gate_path` is the socket where other jobs join while this job leads the sweep. `gate` is None while this job does not lead the sweep.
    """

    allocation: Allocation
    agents: Agents
    gate_path: Path
    peer: Node | None = None  # another node of the cluster, which shows the only node of this job its own address
    gate: Gate | None = None


class Launcher:
    """Follows one run of the agents, and records which stage each node has reached and which nodes are lost."""

    def __init__(self, allocation: Allocation, num_required_nodes: int, agents: Agents, gate: Gate | None = None) -> None:
        self.allocation, self.num_required_nodes, self.agents, self.gate = allocation, num_required_nodes, agents, gate
        self.names = [node.name for node in allocation.nodes]
        self.head = self.names[0]
        self.began_at_s = time.monotonic()
        self.with_environment: set[str] = set()
        self.with_ray: set[str] = set()
        self.lost: set[str] = set()
        self.reached_at_s: dict[str, float] = {}  # stage → seconds from the launcher's start until the last node reached the stage
        self.bring_up: BringUp | None = None

    def run(self, start: Start) -> LaunchResult:
        """Send `start` to the agents and to other jobs at the gate, and wait until the driver ends.

        Raises:
            SilentAgent: an agent without which the run cannot go on does not answer any more.
            WorldError: the cluster does not come up, the node of Ray's head is lost, or all agents have ended before the driver.
        """
        self.send(start)
        while True:
            message, has_ended = None, False
            with contextlib.suppress(queue.Empty):
                message = self.agents.messages.get(timeout=TICK_S)
                has_ended = message is None
            if self.bring_up is None and self.elapsed_s() > BRING_UP_DEADLINE_S:
                raise WorldError(f"{self.describe_missing_nodes()} within {BRING_UP_DEADLINE_S} s")
            if has_ended:
                raise WorldError(f"{self.describe_missing_nodes()}: {self.agents.describe_end()}")
            if isinstance(message, DriverEnded):
                return LaunchResult(message.exit_code, self.bring_up)
            if isinstance(message, AgentKey):
                self.agents.send(seal_secrets(start, message))
            elif message is not None:
                self.handle(message)
            for name in self.agents.silent_nodes():
                self.lose(name, f"its agent has not answered for {UNANSWERED_TICKS * TICK_S:.0f} s", SilentAgent)

    def send(self, message: Start | HeadAddress) -> None:
        self.agents.send(message.as_sent() if isinstance(message, Start) else message)
        if self.gate is not None:
            self.gate.send(message)

    def handle(self, message: EnvironmentReady | HeadUp | WorkerUp | RayEnded | NodeFailed | AgentAlive | Notice) -> None:
        """Record the state of a node that a message reports. Raises WorldError where the node has failed and the run cannot go on without the node."""
        if isinstance(message, NodeFailed):
            self.lose(message.node, message.reason)
            return
        if isinstance(message, Notice):
            logger.warning("%s: %s", message.node, message.text)
        if isinstance(message, Notice | AgentAlive | RayEnded):
            return
        if isinstance(message, EnvironmentReady):
            self.with_environment.add(message.node)
            self.reached_at_s["environment"] = self.elapsed_s()
        else:
            self.with_ray.add(message.node)
            self.reached_at_s["head" if isinstance(message, HeadUp) else "workers"] = self.elapsed_s()
        if isinstance(message, HeadUp):
            self.send(HeadAddress(message.address))
            if message.dashboard:
                logger.info("Ray's dashboard: %s", message.dashboard)
        nodes_up = tuple(node for node in self.allocation.nodes if node.name in self.with_ray - self.lost)
        if self.bring_up is None:
            if len(nodes_up) >= self.num_required_nodes and self.head in self.with_ray:
                self.bring_up = self.describe_bring_up(nodes_up)
                logger.info("%s.", self.bring_up)
        elif isinstance(message, WorkerUp):
            logger.info("%s has joined after %.1f s: %d of %d nodes.", message.node, self.elapsed_s(), len(nodes_up), len(self.names))

    def lose(self, name: str, reason: str, error: type[LostNode] = LostNode) -> None:
        """Record that a node is lost. Raises `error` where too few nodes are left, or where Ray's head runs on the lost node."""
        if name in self.lost:
            return
        self.lost.add(name)
        num_required = self.num_required_nodes if self.bring_up is None else 1
        if name == self.head or len(self.names) - len(self.lost) < num_required:
            raise error(f"{name}: {reason}" if self.allocation.job_id else reason, name)
        logger.warning("%s is lost: %s. The sweep goes on without it.", name, reason)

    def elapsed_s(self) -> float:
        return time.monotonic() - self.began_at_s

    def describe_missing_nodes(self) -> str:
        """Return a text that names the nodes whose Ray is not up, with the stage that each of these nodes has reached."""
        missing = [f"{name} ({self.progress_of(name)})" for name in self.names if name not in self.with_ray | self.lost]
        return f"not up: {', '.join(missing)}" if missing else "the agents went away"

    def progress_of(self, name: str) -> str:
        """Return a text on the stage that a node has reached. Ray is not up on this node yet."""
        if name not in self.with_environment:
            return "it has not answered"
        return "its Ray is starting" if name == self.head else "it waits for Ray's head"

    def describe_bring_up(self, nodes_up: tuple[Node, ...]) -> BringUp:
        """Return the nodes of the cluster, and the duration of each stage. The launcher calls this method when the cluster is up."""
        elapsed_s, started_at = self.elapsed_s(), self.allocation.started
        job_start_s = None if started_at is None else max(0.0, time.time() - elapsed_s - started_at)
        stages_s: dict[str, float] = {}
        stage_began_at_s = 0.0
        for stage in ("environment", "head", "workers"):
            if stage in self.reached_at_s:
                stages_s[stage] = max(0.0, self.reached_at_s[stage] - stage_began_at_s)
                stage_began_at_s = max(stage_began_at_s, self.reached_at_s[stage])
        return BringUp(nodes_up, len(self.names), job_start_s, stages_s, (job_start_s or 0.0) + elapsed_s)


def run(request: LaunchRequest, job: Job) -> LaunchResult:
    """Start the Ray cluster, run the driver with `job` on the cluster, and end all started processes.

    Where an agent does not answer any more, all agents are started once more. The job then goes on from its record.

    Raises:
        WorldError: too few nodes come up, or Ray's head is lost. The message is one line that names the node.
        Interrupted: a signal ends this process in a Slurm job, or the time of the job is over.
        KeyboardInterrupt: a signal ends this process where there is no Slurm job.
    """
    allocation = request.allocation
    request.path_to_log.parent.mkdir(parents=True, exist_ok=True)
    start = Start(
        in_slurm=allocation.job_id is not None,
        nodes=allocation.nodes,
        env_dir=request.env_dir.absolute(),
        cache_dir=request.cache_dir,
        token="",
        has_dashboard=request.has_dashboard,
        path_to_log=request.path_to_log.absolute(),
        min_nodes=request.num_required_nodes,
        job=job,
        job_id=allocation.job_id,
        is_joinable=request.crew is not None,
        peer=request.crew.peer if request.crew is not None else None,
    )
    try:
        with ended_by_signals():
            try:
                return run_once(request, start.with_secrets(new_secrets(request.has_tls)))
            except SilentAgent as error:
                if request.crew is not None:  # another job leads the sweep on
                    raise
                logger.warning("%s. The agents are started once more, and the job goes on from its record.", error)
            return run_once(request, start.with_secrets(new_secrets(request.has_tls)))
    except WorldError as error:
        # From the end of a job's time, Slurm refuses the steps of the job, but ends the job up to 30 s later. Without this check, the refusal of
        # Slurm would look like a fault of a node.
        if not allocation.has_expired():
            raise
        logger.warning("%s.", error)
        raise Interrupted(allocation.why_interrupted()) from None
    except KeyboardInterrupt:
        if allocation.job_id is None:
            raise
        raise Interrupted(allocation.why_interrupted()) from None


def run_once(request: LaunchRequest, start: Start) -> LaunchResult:
    """Run the driver on the agents of `request.crew`, or start agents for this run and end them afterwards. Raises the errors of `Launcher.run`."""
    if request.crew is not None:
        return Launcher(request.allocation, request.num_required_nodes, request.crew.agents, request.crew.gate).run(start)
    agents = Agents(request.allocation)
    with agents:
        try:
            return Launcher(request.allocation, request.num_required_nodes, agents).run(start)
        except SilentAgent:
            agents.give_up()
            raise
