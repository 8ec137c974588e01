"""The agent: one on each node. It starts Ray there, keeps what it started, and ends that and nothing else.

Ray's own ways out harm others: `ray stop` kills every Ray process of the machine by name, and a default cluster listens on fixed ports and
runs code for anyone who can reach them. So each Ray process here is a child of the agent in a session of its own, gets its ports from the
kernel, asks for a token that only this job knows, and keeps its files in a private folder that is gone at the end.

The agents and the launcher (launcher.py) talk through standard input and output, which `srun` carries between the nodes: no port, and no
file on a shared file system that one node sees later than another. The token goes the same way. Each message is a line of JSON:

    to the agents    {"start": {…}}          what to do; see launcher.py
                     {"address": "ip:port"}  Ray's head is up
                     {}                      the launcher lives: sent every few seconds
                     (end of file)           end all and go
    to the launcher  {"node": name, "event": "environment" | "head" | "worker"}   a stage is done; "head" brings the address
                     {"node": name, "event": "driver", "code": …}                 the driver has ended
                     {"node": name, "event": "failed", "why": …}                  this node will not come, or is lost
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import logging
import os
import queue
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

import psutil

from raysweep.cluster.job import DriverInput, Job, RayCluster
from raysweep.common.errors import RaysweepError, WorldError
from raysweep.common.gpus import usable_gpus, visible_gpus
from raysweep.common.typed_json import from_json, to_json
from raysweep.environment.archive import unpack
from raysweep.environment.commands import seen_in_container
from raysweep.environment.manifest import Environment
from raysweep.slurm.allocation import Node, Task, submit_host, without_slurm
from raysweep.usercode.target import SCRIPTS_DIR

logger = logging.getLogger("raysweep")

RAY_DEADLINE_S = 120
TICK_S = 3  # how often the launcher says that it lives …
SILENT_TICKS = 6  # … and how often it may fail to: when the first node is lost, the others are to be free again within 30 s
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of Linux, see prctl(2)
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 8  # between SIGTERM and SIGKILL; Slurm itself kills 30 s after it has asked (KillWait)
JOB_FILE = "job.json"
# Ray puts sockets below its folder, and the path of a socket ends at 107 bytes: 43 are left for the folder.
LONGEST_TEMP_DIR = 43
# On this address alone do Ray's servers listen on the loopback and nowhere else. Ray replaces it by one that the network can reach, unless it takes
# itself to be on a system where there is only one node.
LOOPBACK = "127.0.0.1"
ONE_NODE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Ray's command line. Where grpc is installed, as many libraries have it, a head also serves remote clients, on a port that is the same for
# all heads of a machine: 0 is refused, so Ray is to think that grpc is not there.
RAY = "from ray.scripts import scripts; scripts.get_ray_client_dependency_error = lambda: ImportError(); scripts.main()"
OBJECT_STORE_SHARE = 0.1
LEAST_OBJECT_STORE_MB = 100


@contextlib.contextmanager
def private_folder(base: Path) -> Iterator[Path]:
    """A folder in `base` that only this user can enter; removed at the end, or, after a SIGKILL, by the next agent that passes by."""
    remove_left_behind(base)
    # mkdtemp would tell its name only when it is made, and a signal in between would leave it for ever.
    folder = base / f"rs-{secrets.token_urlsafe(6)}"
    try:
        folder.mkdir(mode=0o700)
        # The lock tells a folder in use from one left behind. `base` is a disk of this node, where locks can be relied on.
        with (folder / "lock.new").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(socket.gethostname())
            lock.flush()
            (folder / "lock.new").rename(folder / "lock")
            yield folder
    finally:
        with uninterrupted():
            _remove(folder)


def remove_left_behind(base: Path) -> None:
    """Remove the private folders of this user's agents that were killed on this node: TMPDIR may be one that all nodes share."""
    for lock_path in base.glob("rs-*/lock"):
        with contextlib.suppress(OSError):  # in use, gone, or somebody else's
            if lock_path.parent.lstat().st_uid == os.getuid():
                with lock_path.open("r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if lock.read() == socket.gethostname():
                        _remove(lock_path.parent)


def _remove(folder: Path) -> None:
    """Remove a private folder. Its lock goes last: by that, what a SIGKILL leaves of it is found."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def is_short(base: Path) -> bool:
    """Whether Ray can keep its sockets in a private folder in `base`."""
    return len(os.fsencode(base)) + len("/rs-XXXXXXXX/ray") <= LONGEST_TEMP_DIR


def short_base(local_dir: Path) -> Path:
    """Where Ray's own folder may lie: on the node's disk, or where the path of that is too long, in /tmp."""
    for base in (local_dir, Path("/tmp")):
        if is_short(base) and os.access(base, os.W_OK):
            return base
    raise WorldError(f"no folder for temporary files with a path of at most {LONGEST_TEMP_DIR - 16} bytes: set TMPDIR to one")


def _prctl(option: int, value: int) -> None:
    """Ask Linux for something about this process; elsewhere nothing is asked."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def _die_with_parent() -> None:
    """Runs in the child, before exec: the kernel is to end it when its agent is killed."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Children:
    """Processes that this agent started, each in a session of its own, so that a Ctrl-C in the terminal reaches the agent alone."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[bytes]] = []
        # Ray's processes start others that outlive them for a moment: those come to this process, which then ends them.
        _prctl(PR_SET_CHILD_SUBREAPER, 1)

    def start(self, argv: list[str], env: dict[str, str], log: Path, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        with log.open("ab") as stream:
            process = subprocess.Popen(
                argv,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                pass_fds=pass_fds,
                preexec_fn=_die_with_parent,
            )
        self.running.append(process)
        return process

    def end(self) -> None:
        """End them with SIGTERM, and after a while with SIGKILL; then whatever they started."""
        end = time.monotonic() + GRACE_S
        for process in reversed(self.running):  # the driver before its Ray
            process.terminate()
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()
        end = time.monotonic() + GRACE_S
        while (descendants := psutil.Process().children(recursive=True)) and time.monotonic() < end:
            for descendant in descendants:
                with contextlib.suppress(psutil.NoSuchProcess):
                    descendant.kill()
            psutil.wait_procs(descendants, timeout=1)
        if descendants:  # stuck in the kernel, on a dead file system for example
            logger.warning("Processes that cannot be ended: %s.", ", ".join(str(process.pid) for process in descendants))


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end this process through the `finally` blocks; the first one does, so that no other ends those.

    What `nohup`, or a shell that puts a command in the background, has this process ignore stays ignored.
    """
    numbers = [number for number in ENDING if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN]

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP wait for the end of the block."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for late in came:  # the first may be one that is ignored
        os.kill(os.getpid(), late)


def ray_environment(folder: Path, number_of_nodes: int) -> dict[str, str]:
    """The environment of every Ray process: the user's, without his own settings of Ray and without Slurm's of the step, and with ours."""
    foreign = ("RAY_", "TUNE_", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {key: value for key, value in without_slurm(dict(os.environ)).items() if not key.startswith(foreign)}
    if number_of_nodes == 1:
        kept |= ONE_NODE
    return kept | {
        "PYTHONPATH": str(SCRIPTS_DIR),
        "PYTHONUNBUFFERED": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without a GPU sees none
        "RAY_DEDUP_LOGS": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # else ending takes 30 s, and Slurm kills after 30
        "RAY_gcs_rpc_server_reconnect_timeout_s": "20",  # else the other nodes notice the loss of the head after 60 s
        "RAY_timeout_ms_task_wait_for_death_info": "30000",  # else a crash on a busy node passes for the loss of the node
        "RAY_prestart_worker_first_driver": "0",  # else a process for each CPU is started that no trial uses
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        # Where ray[default] is installed, three servers of figures ask nobody for a token, two of them on ports that are the same for all heads of a
        # machine. One can be turned off; for the others, which take 0 for a port of the kernel's, there is only a port that cannot be.
        "RAY_enable_metrics_collection": "0",
        "AUTOSCALER_METRIC_PORT": "65536",
        "DASHBOARD_METRIC_PORT": "65536",
        "TMPDIR": str(folder / "tmp"),  # what trials leave there goes with the folder
    }


def write_token(path: Path, token: str) -> None:
    """The job's token, for this user's eyes."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(token)


def object_store_mb(node: Node) -> int:
    """The size of Ray's object store: sweeps pass little through it, and it must fit into /dev/shm."""
    wanted = max(LEAST_OBJECT_STORE_MB, int(node.mem_mb * OBJECT_STORE_SHARE))
    shm = Path("/dev/shm")
    # Where /dev/shm cannot even hold the least, Ray puts the object store into a file.
    return min(wanted, max(LEAST_OBJECT_STORE_MB, shutil.disk_usage(shm).free // 2**20 // 2)) if shm.is_dir() else wanted


def own_address(nodes: list[Node], rank: int) -> str:
    """The address under which the other nodes reach this one: that of the interface from which this one would reach them.

    A node's own name is no help, since many sites map it to the loopback. Nothing is sent: connecting a UDP socket only asks the routes.
    """
    if len(nodes) == 1:
        return LOOPBACK
    peer = nodes[1 if rank == 0 else 0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(peer.address), 9))
        except OSError as error:
            raise WorldError(f"{nodes[rank].name} finds no way to {peer.name} ({peer.address}): {error}") from None
        return str(probe.getsockname()[0])


def start_command(
    environment: Environment, node: Node, temp_dir: Path, own: str, head: str | None, dashboard_port: int | None
) -> list[str]:
    """How to start Ray on this node: its head, or what joins the head at `head`."""
    store_mb = object_store_mb(node)
    if head is not None:
        role = [f"--address={head}"]
    elif dashboard_port is None:
        role = ["--head", "--port=0", "--include-dashboard=false"]
    else:
        role = ["--head", "--port=0", "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]
    return environment.command(
        [
            *("-c", RAY, "start", "--block", *role),
            f"--node-ip-address={own}",
            f"--node-name={node.name}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--dashboard-agent-listen-port=0",
            "--disable-usage-stats",
            f"--num-cpus={node.cpus}",
            f"--num-gpus={node.gpus}",
            f"--memory={max(1, node.mem_mb - store_mb) * 2**20}",
            f"--object-store-memory={store_mb * 2**20}",
            f"--temp-dir={temp_dir}",
        ]
    )


def tail_of(log: Path) -> str:
    """The last words of a program's log."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    return " | ".join(lines[-3:]) or "it wrote nothing"


def wait_for(ready: Callable[[], Any], process: subprocess.Popen[bytes], what: str, log: Path, deadline_s: float) -> Any:
    """What `ready` returns once it returns something. Raises WorldError with the tail of the log when the process dies or time is up."""
    end = time.monotonic() + deadline_s
    while True:
        if found := ready():
            return found
        if process.poll() is not None or time.monotonic() > end:
            why = f"is not up after {deadline_s:.0f} s" if process.poll() is None else f"ended with exit code {process.returncode}"
            raise WorldError(f"{what} {why}: {tail_of(log)}")
        time.sleep(0.05)  # Ray offers a file, and no event, that says it is up


def check_gpus(node: Node) -> None:
    """Raise WorldError when this node has not the GPUs that Slurm counted for us."""
    named = usable_gpus()
    if named < node.gpus:
        raise WorldError(f"Slurm gave {node.gpus} GPUs, but CUDA_VISIBLE_DEVICES names {named}: tell the site, or ask for another gpu_type")
    seen, why = visible_gpus()
    if seen < node.gpus:
        raise WorldError(
            f"Slurm gave {node.gpus} GPUs, but {why}: the node is broken, or it has no NVIDIA GPUs. Tell the site, or ask for another gpu_type"
        )


class Agent:
    """What one agent does, from the launcher's first message to its last."""

    def __init__(self, told: IO[str], tell: IO[str]) -> None:
        self.told, self.tell = told, tell
        self.messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self.children = Children()

    def run(self) -> None:
        """Returns when the launcher, or a signal, says that it is over. What goes wrong here is told to the launcher."""
        with ended_by_signals(), contextlib.suppress(KeyboardInterrupt):
            start = json.loads(self.told.readline() or "{}").get("start")
            if start is None:
                return
            self.start = start
            self.nodes = [Node(**node) for node in start["nodes"]]
            task = Task.current(start["in_slurm"])
            self.rank, self.node = task.rank, self.nodes[task.rank]
            threading.Thread(target=self.listen, daemon=True).start()
            try:
                self.work(task.local_dir)
            except (RaysweepError, OSError) as error:
                self.say("failed", why=str(error))
                self.wait()

    def listen(self) -> None:
        """Runs in a thread: what the launcher says. When it says no more, its job is over, one way or another."""
        for line in self.told:
            self.messages.put(json.loads(line))
        os.kill(os.getpid(), signal.SIGTERM)

    def watch(self, process: subprocess.Popen[bytes], name: str) -> None:
        """Have a thread say when a child ends."""
        threading.Thread(target=lambda: self.messages.put({"ended": name, "code": process.wait()}), daemon=True).start()

    def say(self, event: str, **facts: Any) -> None:
        print(json.dumps({"node": self.node.name, "event": event, **facts}), file=self.tell, flush=True)

    def wait(self, key: str | None = None) -> dict[str, Any]:
        """The next message that has `key`; without one, wait for the end. A launcher that is silent for long is taken for lost."""
        silent = 0
        while True:
            try:
                message = self.messages.get(timeout=TICK_S)
            except queue.Empty:
                silent += 1  # counted, not timed: a job that Slurm suspends goes on where it was
                if silent > SILENT_TICKS:
                    raise KeyboardInterrupt from None
                continue
            silent = 0
            if key is not None and key in message:
                return message

    def work(self, local_dir: Path) -> None:
        try:
            with private_folder(local_dir) as folder, private_folder(short_base(local_dir)) as ray_folder:
                try:
                    self.bring_up(folder, ray_folder / "ray")
                finally:
                    with uninterrupted():
                        self.children.end()
        except OSError as error:
            raise WorldError(f"{local_dir}: {error.strerror or error}") from None

    def bring_up(self, folder: Path, temp_dir: Path) -> None:
        start, node = self.start, self.node
        if start["in_slurm"] and node.gpus:
            check_gpus(node)
        env_dir = Path(start["env_dir"])
        environment = (
            unpack(env_dir, folder, start["cache_dir"] and Path(start["cache_dir"])) if start["in_slurm"] else Environment.load(env_dir)
        )
        job: Job = from_json(Job, start["job"])  # type: ignore[arg-type]
        (folder / "tmp").mkdir()
        write_token(folder / "token", start["token"])
        env = ray_environment(folder, len(self.nodes)) | {"RAYSWEEP_NODE_PYTHON": str(environment.python)}
        if environment.container is not None:
            env = seen_in_container(env, [folder, temp_dir.parent, *job.seen_folders])
        self.say("environment")
        own = own_address(self.nodes, self.rank)
        head = None if self.rank == 0 else self.wait("address")["address"]
        port = free_port() if start["dashboard"] else None
        log = folder / "ray.log"
        ray = self.children.start(start_command(environment, node, temp_dir, own, head, port), env, log)
        driver = self.start_driver(environment, env, folder) if head is None else None
        # Ray writes this file on each node, last of all.
        address_file = temp_dir / "ray_current_cluster"
        what = "Ray's head" if head is None else "Ray"
        address = wait_for(lambda: address_file.exists() and address_file.read_text().strip(), ray, what, log, RAY_DEADLINE_S)
        self.watch(ray, what)
        if driver is not None:
            self.watch(driver, "driver")
            self.say("head", address=address, dashboard=self.how_to_see_it(port, folder) if port else None)
            nodes = tuple(node.size for node in self.nodes)
            self.give_job(folder, DriverInput(job, RayCluster(nodes, start["min_nodes"], address, own)))
        else:
            self.say("worker")
        ended = self.wait("ended")
        if ended["ended"] == "driver":
            self.say("driver", code=ended["code"])
        else:
            self.say("failed", why=f"{what} ended with exit code {ended['code']} in the middle: {tail_of(log)}")
        self.wait()

    def give_job(self, folder: Path, driver_input: DriverInput) -> None:
        """Write the file for which the driver waits."""
        aside = folder / "job.json.new"
        aside.write_text(json.dumps(to_json(driver_input)))
        aside.rename(folder / JOB_FILE)

    def start_driver(self, environment: Environment, env: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
        """Start the driver while Ray's head starts: it imports meanwhile, and waits for its job."""
        terminal = os.dup(sys.stderr.fileno())  # for what the user should see; Ray's and the trials' own output goes to the log
        path_to_log = Path(self.start["log"])
        try:
            argv = [
                str(SCRIPTS_DIR / "drive.py"),
                "--job",
                str(folder / JOB_FILE),
                "--terminal-fd",
                str(terminal),
                "--log",
                str(path_to_log),
            ]
            return self.children.start(environment.command(argv), env, path_to_log, pass_fds=(terminal,))
        finally:
            os.close(terminal)

    def how_to_see_it(self, port: int, folder: Path) -> str:
        """The commands that bring Ray's dashboard, which only this node can reach, to the user's own machine."""
        if not self.start["in_slurm"]:
            return f"http://127.0.0.1:{port} (it asks for the token in {folder / 'token'})"
        via = f"-J {submit_host()} " if submit_host() else ""
        name = self.node.name
        return f"ssh {via}-L {port}:127.0.0.1:{port} {name}, then http://127.0.0.1:{port} (it asks for the token: ssh {via}{name} cat {folder / 'token'})"


def free_port() -> int:
    """A port of the loopback that is free now; Ray takes another where it is not free any more."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
