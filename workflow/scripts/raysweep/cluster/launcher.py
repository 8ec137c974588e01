"""The launcher turns an allocation into a Ray cluster with one agent on each node (agent.py), and runs a driver on the cluster.

The launcher waits for messages of the agents (channel.py), and never sleeps for a fixed time in the hope that a node is ready. From these messages the
launcher knows which stage each node has reached. Without Slurm, the launcher starts one agent on this machine, without `srun`. The controller's Python runs
this module.
"""

from __future__ import annotations

import contextlib
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
from raysweep.common.errors import RaysweepError, WorldError, logger
from raysweep.slurm.allocation import Allocation, Node
from raysweep.slurm.commands import ended_tasks
from raysweep.usercode.target import SCRIPTS_DIR

BRING_UP_DEADLINE_S = 900  # time limit in seconds; unpacking the environment on a slow disk takes minutes
# Time limit in seconds for the end of the agents. An agent waits GRACE_S seconds for the end of the agent's children, and then GRACE_S seconds for the end
# of the processes that these children started.
END_DEADLINE_S = 2 * GRACE_S + 10


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
        stages = (
            [] if self.job_start_s is None else [f"start of the job {self.job_start_s:.0f} s"]
        )  # this text has no decimals, because Slurm gives the start time in whole seconds
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


# ---------------------------------------------------------------------------------------------------------------- the agents' program


def print_to_terminal(line: str) -> None:
    """Print a line to stderr, and ignore errors. The launcher must go on when stderr fails, because `| tee` was ended or the disk is full."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(line)
        sys.stderr.flush()


class AgentsProgram:
    """Runs the program that starts the agents, and queues the agents' messages. The program is `srun`, or the one agent where there is no Slurm job."""

    def __init__(self, process: subprocess.Popen[str], allocation: Allocation) -> None:
        self.process = process
        self.name = "srun" if allocation.job_id else "the agent"
        self.node_names = [node.name for node in allocation.nodes]
        self.messages: queue.Queue[AgentMessage | None] = queue.Queue()  # None is the last item, after the end of the program's output
        self.error_lines: list[str] = []  # the error messages of srun
        self.is_writing, self.is_over = threading.Lock(), threading.Event()
        self.error_reader = threading.Thread(target=self.read_errors, daemon=True)
        self.threads = [
            threading.Thread(target=self.read_messages, daemon=True),
            self.error_reader,
            # This is a separate thread, because the main thread may have to wait for a file system that hangs.
            threading.Thread(target=self.show_life, daemon=True),
        ]

    def send(self, message: LauncherMessage) -> None:
        """Send a message to all agents."""
        assert self.process.stdin
        # An error here means that the program has ended. `read_messages` notices that end too, so the error needs no treatment here.
        with self.is_writing, contextlib.suppress(BrokenPipeError, ValueError):
            send(message, self.process.stdin)

    # This method runs in a thread.
    def show_life(self) -> None:
        while not self.is_over.wait(TICK_S):
            self.send(LauncherAlive())

    # This method runs in a thread.
    def read_messages(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            message = read_agent_message(line)
            if message is None:  # the line is no message: for example, the prolog of the site printed the line
                print_to_terminal(line)
            else:
                self.messages.put(message)
        self.messages.put(None)

    def read_errors(self) -> None:
        """Print the lines of the driver and of `srun` to the terminal, and queue NodeFailed for each agent that ended with an error.

        This method runs in a thread. An agent that was killed cannot send a message. Therefore the launcher learns the end of such an agent from an error
        line of `srun`.
        """
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
        """Wait for the end of the program, and return a text that says how the program ended."""
        exit_code = self.process.wait()
        self.error_reader.join(END_DEADLINE_S)  # the thread may still be reading the last lines
        if exit_code < 0:
            return f"{self.name} was killed (signal {-exit_code})"
        return f"{self.name} ended with exit code {exit_code}: {self.last_errors() or 'it printed nothing'}"

    def end(self) -> None:
        """End the agents. This method closes the agents' standard input, and each agent ends when the standard input ends."""
        self.is_over.set()
        assert self.process.stdin
        with self.is_writing, contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            logger.warning("The agents did not end within %d s: ending them by force.", END_DEADLINE_S)
            self.process.terminate()  # srun kills its tasks when srun gets SIGTERM
            self.process.wait()
        for thread in self.threads:
            thread.join()


@contextlib.contextmanager
def agents_on(allocation: Allocation) -> Iterator[AgentsProgram]:
    """Start the agents, and end the agents after the block. The program runs in a new session, so that a Ctrl-C in the terminal does not reach the agents.

    Raises WorldError where the program cannot be started.
    """
    command = allocation.command([sys.executable, str(SCRIPTS_DIR / "agent.py")])
    pipe = subprocess.PIPE
    try:
        # `errors` is set because the prolog of a site may print text in another encoding.
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
    """Follows one run of the agents, and records which stage each node has reached and which nodes are lost."""

    def __init__(self, allocation: Allocation, num_required_nodes: int, agents: AgentsProgram) -> None:
        self.allocation, self.num_required_nodes, self.agents = allocation, num_required_nodes, agents
        self.names = [node.name for node in allocation.nodes]
        self.head = self.names[0]
        self.began_at_s = time.monotonic()
        self.with_environment: set[str] = set()
        self.with_ray: set[str] = set()
        self.lost: set[str] = set()
        self.reached_at_s: dict[str, float] = {}  # stage → seconds from the launcher's start until the last node reached the stage
        self.bring_up: BringUp | None = None

    def run(self, start: Start) -> LaunchResult:
        """Send `start` to the agents, and wait until the driver ends.

        Raises WorldError when the cluster does not come up, when the node of Ray's head is lost, or when all agents have ended before the driver.
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
        """Record the state of a node that a message reports. Raises WorldError where the node has failed and the run cannot go on without the node."""
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
        """Record that a node is lost. Raises WorldError where too few nodes are left, or where Ray's head runs on the lost node."""
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

    Raises:
        WorldError: too few nodes come up, or Ray's head is lost. The message is one line that names the node.
        RaysweepError: a signal ends this process in a Slurm job.
        KeyboardInterrupt: a signal ends this process where there is no Slurm job.
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
