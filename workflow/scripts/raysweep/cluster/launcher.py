"""The launcher: turns an allocation into a Ray cluster with one agent on each node (agent.py), and runs a driver on the cluster.

The launcher waits for the messages of the agents (channel.py), never for a time that should be enough, and knows how far each node has come. On this
machine it works in the same way with one agent and no `srun`. Runs in the controller's Python.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raysweep.cluster.channel import (
    TICK_S,
    AgentMessage,
    DriverEnded,
    EnvironmentReady,
    HeadAddress,
    HeadUp,
    LauncherAlive,
    LauncherMessage,
    NodeFailed,
    Start,
    WorkerUp,
    read_agent_message,
    send,
)
from raysweep.cluster.children import GRACE_S, ended_by_signals
from raysweep.cluster.job import Job
from raysweep.common.errors import RaysweepError, WorldError
from raysweep.slurm.allocation import Allocation, Node
from raysweep.slurm.commands import ended_tasks
from raysweep.usercode.target import SCRIPTS_DIR

logger = logging.getLogger("raysweep")

BRING_UP_DEADLINE_S = 900  # unpacking on a slow disk takes minutes
END_DEADLINE_S = 2 * GRACE_S + 10


@dataclass(frozen=True)
class LaunchRequest:
    """What to start a Ray cluster on and with.

    The driver starts as soon as `min_nodes` nodes are up (None: all nodes), and the other nodes join when they are ready.
    """

    allocation: Allocation
    env_dir: Path
    path_to_log: Path
    min_nodes: int | None = None
    has_dashboard: bool = False
    cache_dir: Path | None = None  # where the unpacked environment stays between jobs

    @property
    def num_required_nodes(self) -> int:
        return min(self.min_nodes or len(self.allocation.nodes), len(self.allocation.nodes))


@dataclass(frozen=True)
class BringUp:
    """How a Ray cluster came up: its size, and the time from the start of the job, or of the launcher where there is no job."""

    nodes: tuple[Node, ...]  # that were up
    num_allocated_nodes: int
    job_start_s: float | None  # from the start of the job to the start of the launcher; None without a job
    stages_s: dict[str, float]  # the time that each later stage took: environment, head, workers
    total_s: float

    def __str__(self) -> str:
        stages = [] if self.job_start_s is None else [f"start of the job {self.job_start_s:.0f} s"]  # Slurm gives whole seconds
        stages += [f"{stage} {duration_s:.1f} s" for stage, duration_s in self.stages_s.items()]
        of_nodes = f"on {len(self.nodes)} of {self.num_allocated_nodes} nodes " if self.num_allocated_nodes > 1 else ""
        cpus, gpus = sum(node.cpus for node in self.nodes), sum(node.gpus for node in self.nodes)
        return f"Ray is up {of_nodes}after {self.total_s:.1f} s: {cpus} CPUs, {gpus} GPUs ({', '.join(stages)})"


@dataclass(frozen=True)
class LaunchResult:
    """How a driver ended, and how its Ray cluster had come up; `bring_up` is None where the driver ended before the cluster was up."""

    exit_code: int
    bring_up: BringUp | None


# ---------------------------------------------------------------------------------------------------------------- the agents' program


def print_to_terminal(line: str) -> None:
    """Print a line to stderr. A terminal that nobody reads any more (`| tee` was ended, the disk is full) must not stop the launcher."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(line)
        sys.stderr.flush()


class AgentsProgram:
    """The program that carries the agents: `srun`, or on this machine the one agent itself. Their messages arrive in `messages`."""

    def __init__(self, process: subprocess.Popen[str], allocation: Allocation) -> None:
        self.process = process
        self.name = "srun" if allocation.job_id else "the agent"
        self.node_names = [node.name for node in allocation.nodes]
        self.messages: queue.Queue[AgentMessage | None] = queue.Queue()  # None: no message can come any more
        self.error_lines: list[str] = []  # of srun
        self.is_writing, self.is_over = threading.Lock(), threading.Event()
        self.error_reader = threading.Thread(target=self.read_errors, daemon=True)
        self.threads = [
            threading.Thread(target=self.read_messages, daemon=True),
            self.error_reader,
            # A thread of its own, because the main thread may wait for a file system in trouble.
            threading.Thread(target=self.show_life, daemon=True),
        ]

    def send(self, message: LauncherMessage) -> None:
        """Send a message to all agents."""
        assert self.process.stdin
        # `read_messages` notices the end of the program, so an error is no news.
        with self.is_writing, contextlib.suppress(BrokenPipeError, ValueError):
            send(message, self.process.stdin)

    def show_life(self) -> None:
        while not self.is_over.wait(TICK_S):
            self.send(LauncherAlive())

    def read_messages(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            message = read_agent_message(line)
            if message is None:  # the prolog of a site printed the line
                print_to_terminal(line)
            else:
                self.messages.put(message)
        self.messages.put(None)

    def read_errors(self) -> None:
        """Pass the lines of the driver and of `srun` to the terminal. `srun` tells which agents have ended, for an agent that was killed cannot."""
        assert self.process.stderr
        for line in self.process.stderr:
            print_to_terminal(line)
            if line.startswith(("srun: error", "slurmstepd")):
                logger.debug("%s", line.strip())
                self.error_lines.append(line.strip())
            for rank in ended_tasks(line):
                self.messages.put(NodeFailed(self.node_names[rank], f"its agent ended: {self.last_errors()}"))

    def last_errors(self) -> str:
        return " | ".join(self.error_lines[-3:])

    def describe_end(self) -> str:
        """Wait for the end of the program, and return how it ended."""
        exit_code = self.process.wait()
        self.error_reader.join(END_DEADLINE_S)  # the last lines may be on their way
        if exit_code < 0:
            return f"{self.name} was killed (signal {-exit_code})"
        return f"{self.name} ended with exit code {exit_code}: {self.last_errors() or 'it printed nothing'}"

    def end(self) -> None:
        """End the agents: they end when their input does."""
        self.is_over.set()
        assert self.process.stdin
        with self.is_writing, contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            logger.warning("The agents did not end within %d s: ending them by force.", END_DEADLINE_S)
            self.process.terminate()  # srun then kills its tasks
            self.process.wait()
        for thread in self.threads:
            thread.join()


@contextlib.contextmanager
def agents_on(allocation: Allocation) -> Iterator[AgentsProgram]:
    """Start the agents, and end them after the block. A session of their own keeps a Ctrl-C in the terminal from the agents.

    Raises WorldError where the program cannot be started.
    """
    command = allocation.command([sys.executable, str(SCRIPTS_DIR / "agent.py")])
    pipe = subprocess.PIPE
    try:
        # The prolog of a site may print in another encoding, hence `errors`.
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True)
    except OSError as error:
        raise WorldError(f"{command[0]} cannot be run: {error.strerror}") from None
    agents = AgentsProgram(process, allocation)
    for thread in agents.threads:
        thread.start()
    try:
        yield agents
    finally:
        agents.end()


# ---------------------------------------------------------------------------------------------------------------- the launcher


class Launcher:
    """One run of the agents: how far each node has come, and which nodes are lost."""

    def __init__(self, allocation: Allocation, num_required_nodes: int, agents: AgentsProgram) -> None:
        self.allocation, self.num_required_nodes, self.agents = allocation, num_required_nodes, agents
        self.names = [node.name for node in allocation.nodes]
        self.head = self.names[0]
        self.began_at_s = time.monotonic()
        self.with_environment: set[str] = set()
        self.with_ray: set[str] = set()
        self.lost: set[str] = set()
        self.reached_at_s: dict[str, float] = {}  # stage → when the last node that reached the stage did so, since the launcher began
        self.bring_up: BringUp | None = None

    def run(self, start: Start) -> LaunchResult:
        """Have the agents do what `start` says, until the driver ends.

        Raises WorldError when the cluster does not come up, or the node of Ray's head is lost.
        """
        self.agents.send(start)
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
            if message is not None:
                self.handle(message)

    def handle(self, message: EnvironmentReady | HeadUp | WorkerUp | NodeFailed) -> None:
        """Note what a message says of its node. Raises WorldError where the run cannot go on without the node."""
        if isinstance(message, NodeFailed):
            self.lose(message.node, message.reason)
            return
        if isinstance(message, EnvironmentReady):
            self.with_environment.add(message.node)
            self.reached_at_s["environment"] = self.elapsed_s()
        else:
            self.with_ray.add(message.node)
            self.reached_at_s["head" if isinstance(message, HeadUp) else "workers"] = self.elapsed_s()
        if isinstance(message, HeadUp):
            self.agents.send(HeadAddress(message.address))
            if message.dashboard:
                logger.info("Ray's dashboard: %s", message.dashboard)
        nodes_up = tuple(node for node in self.allocation.nodes if node.name in self.with_ray - self.lost)
        if self.bring_up is None:
            if len(nodes_up) >= self.num_required_nodes and self.head in self.with_ray:
                self.bring_up = self.describe_bring_up(nodes_up)
                logger.info("%s.", self.bring_up)
        elif isinstance(message, WorkerUp):
            logger.info("%s has joined after %.1f s: %d of %d nodes.", message.node, self.elapsed_s(), len(nodes_up), len(self.names))

    def lose(self, name: str, reason: str) -> None:
        """Go on without a node. Raises WorldError where too few nodes are left, or the node is the head's."""
        if name in self.lost:
            return
        self.lost.add(name)
        num_required = self.num_required_nodes if self.bring_up is None else 1
        if name == self.head or len(self.names) - len(self.lost) < num_required:
            raise WorldError(f"{name}: {reason}" if self.allocation.job_id else reason)
        logger.warning("%s is lost: %s. The sweep goes on without it.", name, reason)

    def elapsed_s(self) -> float:
        return time.monotonic() - self.began_at_s

    def describe_missing_nodes(self) -> str:
        """Return which nodes are not up, and how far each of them has come."""
        missing = [f"{name} ({self.progress_of(name)})" for name in self.names if name not in self.with_ray | self.lost]
        return f"not up: {', '.join(missing)}" if missing else "the agents went away"

    def progress_of(self, name: str) -> str:
        """Return how far a node has come whose Ray is not up."""
        if name not in self.with_environment:
            return "it has not answered"
        return "its Ray is starting" if name == self.head else "it waits for Ray's head"

    def describe_bring_up(self, nodes_up: tuple[Node, ...]) -> BringUp:
        """Return how long each stage took until the cluster was up, which it is now."""
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
    """Bring Ray up, run the driver on it with `job`, and take everything down again.

    Raises WorldError, with one line that names the node, when too few nodes come up or the head is lost; RaysweepError when a signal ends this process
    in a job of Slurm, else KeyboardInterrupt.
    """
    allocation = request.allocation
    request.path_to_log.parent.mkdir(parents=True, exist_ok=True)
    start = Start(
        in_slurm=allocation.job_id is not None,
        nodes=allocation.nodes,
        env_dir=request.env_dir.absolute(),
        cache_dir=request.cache_dir,
        token=secrets.token_hex(32),
        has_dashboard=request.has_dashboard,
        path_to_log=request.path_to_log.absolute(),
        min_nodes=request.num_required_nodes,
        job=job,
    )
    try:
        with ended_by_signals(), agents_on(allocation) as agents:
            return Launcher(allocation, request.num_required_nodes, agents).run(start)
    except KeyboardInterrupt:
        if allocation.job_id is None:
            raise
        raise RaysweepError(allocation.why_interrupted()) from None
