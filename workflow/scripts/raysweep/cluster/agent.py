"""The agent is a process that runs once on each node. The agent starts Ray on the node, and ends only the processes that the agent started.

The agent does not use `ray stop`, because `ray stop` finds processes by their name, and would also kill the Ray processes of other jobs on the machine.
Instead each Ray process is a child of the agent in a new session (children.py). Ray gets ports from the kernel, asks for a token (ray_node.py), and
stores all files in a private folder (private_folder.py). The agent and the launcher exchange messages through the agent's standard input and output
(channel.py).

The controller's Python runs this module.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn, TypeVar

from raysweep.cluster.channel import (
    SILENT_TICKS,
    TICK_S,
    AgentAlive,
    AgentKey,
    AgentMessage,
    DriverEnded,
    EndRay,
    EnvironmentReady,
    HeadAddress,
    HeadUp,
    LauncherAlive,
    LauncherMessage,
    NodeFailed,
    Notice,
    RayEnded,
    SealedSecrets,
    Secrets,
    Start,
    WorkerUp,
    read_launcher_message,
    send,
)
from raysweep.cluster.children import Children, ended_by_signals, tail_of, uninterrupted, wait_until_up
from raysweep.cluster.gpu_watch import measured_gpus
from raysweep.cluster.job import DriverInput, RayCluster, SearchJob, TuneJob
from raysweep.cluster.private_folder import base_for_ray, check_space, describe_disk_error, private_folder, write_secret
from raysweep.cluster.ray_node import (
    ADDRESS_FILE,
    CODE_DIR,
    GCS_LIMIT_ENV,
    TRIALS_DIR,
    check_gpus,
    describe_end,
    free_port,
    has_reached_time_limit,
    how_to_open_dashboard,
    own_address,
    ray_environment,
    resources_of_job,
    start_command,
    with_gpus_of,
)
from raysweep.common.errors import RaysweepError, WorldError
from raysweep.common.files import written_aside
from raysweep.common.typed_json import from_json, to_json
from raysweep.environment.archive import unpack
from raysweep.environment.commands import seen_in_container
from raysweep.environment.manifest import Environment
from raysweep.record.gpu_use import GpuUseFile
from raysweep.slurm.allocation import Task
from raysweep.usercode.freeze import write_for_processes
from raysweep.usercode.target import SCRIPTS_DIR

# Time limit in seconds for Ray to come up, counted from the first start of Ray. The limit is a minute shorter than the launcher's limit for all nodes
# (BRING_UP_DEADLINE_S), because the agent's message contains the last lines of Ray's log.
RAY_DEADLINE_S = 840
JOB_FILE = "job.json"
DRIVER = "driver"


@dataclass(frozen=True)
class ChildEnded:
    """Tells the agent that a child process of the agent has ended."""

    name: str
    exit_code: int


class RayIsOver(Exception):
    """Is raised in the agent's main thread where the launcher has asked the agent to end Ray."""


M = TypeVar("M", Start, HeadAddress, ChildEnded)


def run_agent(input_stream: IO[str], output_stream: IO[str]) -> None:
    """Wait for the launcher's message Start, and run the agent. Returns when the input stream ends, or when a signal ends this process.

    In a job of several, Start may come late, because the launcher first finds out which job leads. Other messages that come before have no effect.
    """
    with ended_by_signals(), contextlib.suppress(KeyboardInterrupt):
        for line in input_stream:
            if isinstance(start := read_launcher_message(line), Start):
                Agent(start, input_stream, output_stream).run()
                return


class Agent:
    """Runs Ray on one node. On the first node, this class also runs the driver. The launcher's first message contains all settings."""

    def __init__(self, start: Start, input_stream: IO[str], output_stream: IO[str]) -> None:
        self.start, self.input, self.output = start, input_stream, output_stream
        task = Task.current(start.in_slurm)
        self.rank, self.node, self.local_dir = task.rank, start.nodes[task.rank], task.local_dir
        self.events: queue.Queue[LauncherMessage | ChildEnded] = queue.Queue()
        self.children = Children()
        self.is_sending = threading.Lock()
        self.is_ray_over = threading.Event()  # set from the message EndRay until the next start of Ray

    @property
    def is_head(self) -> bool:
        return self.rank == 0 and not self.start.joins

    @property
    def ray_name(self) -> str:
        return "Ray's head" if self.is_head else "Ray"

    def run(self) -> None:
        """Start Ray, and let Ray run until KeyboardInterrupt is raised. Where this node fails, the agent sends the reason to the launcher."""
        threading.Thread(target=self.receive, daemon=True).start()
        # Where not even the private folder can be made, this process ends as soon as the launcher asks the agents to end Ray.
        with contextlib.suppress(RayIsOver), self.reported_faults(), private_folder(self.local_dir) as folder:
            environment = None
            while True:
                with contextlib.suppress(RayIsOver), self.reported_faults():
                    base = base_for_ray(self.local_dir)
                    for each in {self.local_dir, base}:
                        check_space(each)
                    if not self.start.token:
                        self.start = self.start.with_secrets(self.receive_secrets())
                    environment = environment or self.prepare_environment(folder)
                    self.run_ray_in(base, environment)
                self.events = queue.Queue()
                self.is_ray_over.clear()
                self.send(RayEnded(self.node.name))
                self.start = self.next_start()

    def next_start(self) -> Start:
        """Return the next message Start. A further EndRay is answered at once, because no Ray runs."""
        while True:
            try:
                return self.wait_for(Start)
            except RayIsOver:
                self.is_ray_over.clear()
                self.send(RayEnded(self.node.name))

    @contextlib.contextmanager
    def reported_faults(self) -> Iterator[None]:
        """Send NodeFailed to the launcher where the block raises an error of this node, and then wait as `wait_for_the_end` does."""
        try:
            yield
        except RaysweepError as error:
            reason = str(error)
        except OSError as error:
            reason = describe_disk_error(self.local_dir, error)
        else:
            return
        self.send(NodeFailed(self.node.name, reason))
        self.wait_for_the_end()

    def receive_secrets(self) -> Secrets:
        """Ask the launcher for the secrets of the run, and return the secrets. Raises RayIsOver and KeyboardInterrupt like `next_event`."""
        from raysweep.cluster.sealing import Recipient  # the import takes 0.15 s, which a run without TLS saves

        recipient = Recipient()
        self.send(AgentKey(self.node.name, recipient.public_key))
        others: list[LauncherMessage | ChildEnded] = []  # such as the address of Ray's head, which may come first on a slow node
        while not isinstance(event := self.next_event(), SealedSecrets) or event.node != self.node.name:
            others.append(event)
        for other in others:
            self.events.put(other)
        return from_json(Secrets, json.loads(recipient.open(event.text)))

    def receive(self) -> None:
        """Queue the messages of the launcher, answer LauncherAlive, and end this process when the input ends. This method runs in a thread.

        The end of the input means that the launcher has ended.
        """
        for line in self.input:
            message = read_launcher_message(line)
            if isinstance(message, EndRay):
                self.is_ray_over.set()
            self.events.put(message)
            if isinstance(message, LauncherAlive):
                with contextlib.suppress(OSError):  # the launcher has closed its end, and will also close the input
                    self.send(AgentAlive(self.node.name, self.start.has_several_jobs and self.children.have_ray_actor()))
        os.kill(os.getpid(), signal.SIGTERM)

    def report_end_of(self, process: subprocess.Popen[bytes], name: str) -> None:
        """Start a thread that waits for the end of a child process, and then queues ChildEnded."""
        events = self.events  # an end after EndRay must not reach the events of the next start of Ray
        threading.Thread(target=lambda: events.put(ChildEnded(name, process.wait())), daemon=True).start()

    def send(self, message: AgentMessage) -> None:
        with self.is_sending:
            send(message, self.output)

    def next_event(self) -> LauncherMessage | ChildEnded:
        """Return the next event.

        Raises RayIsOver where the launcher asks this agent to end Ray. Raises KeyboardInterrupt after more than SILENT_TICKS ticks without an event.
        So long a silence means that the launcher is lost.
        """
        silent_ticks = 0  # ticks are counted instead of seconds, so that the time in which Slurm suspends the job does not count
        while True:
            try:
                event = self.events.get(timeout=TICK_S)
            except queue.Empty:
                silent_ticks += 1
                if silent_ticks > SILENT_TICKS:
                    raise KeyboardInterrupt from None
                continue
            if isinstance(event, EndRay):
                raise RayIsOver
            return event

    def wait_for(self, kind: type[M]) -> M:
        """Return the next event of the class `kind`. Events of other classes are ignored."""
        while not isinstance(event := self.next_event(), kind):
            pass
        return event

    def wait_for_the_end(self) -> NoReturn:
        """Wait until KeyboardInterrupt is raised, because a signal arrives, the input ends, or the launcher is lost. Raises RayIsOver like `next_event`."""
        while True:
            self.next_event()

    def run_ray_in(self, base: Path, environment: Environment) -> NoReturn:
        """Run Ray in private folders. On the first node, also run the driver. Raises RaysweepError when Ray does not come up."""
        with private_folder(self.local_dir) as folder, private_folder(base, self.start.ray_folder) as ray_folder:
            try:
                with self.measured_gpus():
                    self.run_ray(environment, folder, ray_folder / "ray")
            finally:
                with uninterrupted():
                    self.children.end()

    def run_ray(self, environment: Environment, folder: Path, temp_dir: Path) -> NoReturn:
        """Start Ray with `temp_dir` as the folder of Ray's files, send a message to the launcher after each stage, and wait as `wait_for_the_end` does."""
        address = own_address(self.start.nodes, self.rank, self.start.peer)
        env = self.environment_variables(environment, address, folder, temp_dir)
        self.send(EnvironmentReady(self.node.name))
        head_address = None if self.is_head else self.wait_for(HeadAddress).address
        dashboard_port = free_port() if self.start.has_dashboard else None
        log = folder / "ray.log"
        driver = self.start_driver(environment, env, folder) if self.is_head else None
        resources = resources_of_job(self.start.job_id, self.start.job_deadline) if self.start.has_several_jobs else {}
        command = start_command(environment, self.node, temp_dir, address, head_address, dashboard_port, resources)
        ray, gcs_address = self.start_ray(command, env, temp_dir, log)
        self.report_end_of(ray, self.ray_name)
        if driver is None:
            self.send(WorkerUp(self.node.name))
        else:
            self.report_end_of(driver, DRIVER)
            self.send(HeadUp(self.node.name, gcs_address, self.dashboard(dashboard_port, folder)))
            ray_cluster = RayCluster(
                tuple(node.size for node in self.start.nodes), self.start.min_nodes, gcs_address, address, self.start.has_several_jobs
            )
            give_job(folder, DriverInput(self.start.job, ray_cluster))
        ended = self.wait_for(ChildEnded)
        if ended.name == DRIVER:
            self.send(DriverEnded(self.node.name, ended.exit_code))
        else:
            self.send(NodeFailed(self.node.name, describe_end(ended.name, ended.exit_code, log)))
        self.wait_for_the_end()

    def start_ray(self, command: list[str], env: dict[str, str], temp_dir: Path, log: Path) -> tuple[subprocess.Popen[bytes], str]:
        """Start Ray with `command`, and return the process and the address of Ray's GCS when Ray is up.

        Ray ends a start that takes longer than a fixed time, as on a busy node. Then this method starts Ray again, until RAY_DEADLINE_S seconds have passed
        since the first start. Raises WorldError when Ray ends for another reason, or when Ray is not up within RAY_DEADLINE_S seconds.
        """
        address_file = temp_dir / ADDRESS_FILE
        began_at_s = time.monotonic()
        while True:
            ray = self.children.start(command, env, log)
            try:
                return ray, wait_until_up(
                    lambda: self.address_in(address_file),
                    ray,
                    self.ray_name,
                    log,
                    began_at_s,
                    RAY_DEADLINE_S,
                )
            except WorldError:
                check_space(temp_dir.parent.parent)  # a Ray whose disk is full reaches its time limits
                if ray.poll() is None or not has_reached_time_limit(log) or time.monotonic() > began_at_s + RAY_DEADLINE_S:
                    raise
            text = f"{self.ray_name} was not up within Ray's own time limit, as happens on a busy node. Ray is started again."
            self.send(Notice(self.node.name, f"{text} Ray's last lines: {tail_of(log)}"))
            self.children.kill_orphans()
            shutil.rmtree(temp_dir, ignore_errors=True)
            log.unlink()  # the end of the next start is judged by the lines of that start
            env = env | {GCS_LIMIT_ENV: str(2 * int(env[GCS_LIMIT_ENV]))}

    def address_in(self, address_file: Path) -> str | None:
        """Return the address of Ray's GCS, or None where Ray is not up yet. Raises RayIsOver where the launcher does not want Ray any more."""
        if self.is_ray_over.is_set():
            raise RayIsOver
        return (address_file.read_text().strip() or None) if address_file.exists() else None

    def prepare_environment(self, folder: Path) -> Environment:
        """Return the environment of the trials.

        In a Slurm job the environment is unpacked to `folder` or to the cache. Without Slurm the installed environment is used directly.
        """
        if not self.start.in_slurm:
            return Environment.load(self.start.env_dir)
        if self.node.gpus:
            check_gpus(self.node)
        return unpack(self.start.env_dir, folder, self.start.cache_dir)

    def environment_variables(self, environment: Environment, address: str, folder: Path, temp_dir: Path) -> dict[str, str]:
        """Make the folders and files in the private folder that Ray and the driver need, and return the environment variables of Ray and the driver."""
        (folder / "tmp").mkdir()
        (folder / TRIALS_DIR).mkdir()
        write_secret(folder / "token", self.start.token)
        if isinstance(self.start.job, TuneJob):
            write_for_processes(self.start.job.code, folder / CODE_DIR)
        env = ray_environment(folder, is_alone=self.start.is_alone) | {"RAYSWEEP_NODE_PYTHON": str(environment.python)}
        if self.start.authority is not None:
            from raysweep.cluster.certificates import write_certificate  # as in receive_secrets

            env |= write_certificate(self.start.authority, address, folder)
        if environment.container is not None:
            early_ends = self.start.job.early_ends if self.is_head and isinstance(self.start.job, SearchJob) else None  # only on this node
            env = seen_in_container(env, [folder, temp_dir.parent, *self.start.job.seen_folders, early_ends])
        return with_gpus_of(self.node, environment, env)

    def measured_gpus(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which this agent measures how busy the GPUs of the node are. In other jobs than a sweep, nothing is measured."""
        if not self.node.gpus or not isinstance(self.start.job, SearchJob):
            return contextlib.nullcontext()
        return measured_gpus(GpuUseFile(self.start.job.state_dir, self.start.job_id, self.node.name), self.node.gpus)

    def start_driver(self, environment: Environment, env: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
        """Start the driver while Ray's head starts. The driver imports modules during this time, and then waits for JOB_FILE."""
        # The driver writes messages for the user to this file descriptor. The output of Ray and of the trials goes to the log.
        terminal = os.dup(sys.stderr.fileno())
        try:
            argv = [
                str(SCRIPTS_DIR / "drive.py"),
                "--job",
                str(folder / JOB_FILE),
                "--terminal-fd",
                str(terminal),
                "--log",
                str(self.start.path_to_log),
            ]
            return self.children.start(environment.command(argv), env, self.start.path_to_log, pass_fds=(terminal,))
        finally:
            os.close(terminal)

    def dashboard(self, port: int | None, folder: Path) -> str | None:
        """Return a text that says how the user opens Ray's dashboard, or None where the user did not ask for a dashboard."""
        return None if port is None else how_to_open_dashboard(self.node, port, folder / "token", self.start.in_slurm)


def give_job(folder: Path, driver_input: DriverInput) -> None:
    """Write the job and the Ray cluster to the file JOB_FILE in `folder`. The driver waits for this file."""
    with written_aside(folder / JOB_FILE) as stream:
        json.dump(to_json(driver_input), stream)
