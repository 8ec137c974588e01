"""The launcher: turns an allocation into a Ray cluster with one agent on each node (agent.py), and runs a driver on it.

It waits for what the agents say, never for a time that should be enough, and knows of each node how far it has come. On this machine it
is the same with one agent and no `srun`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from raysweep.cluster.agent import GRACE_S, TICK_S, ended_by_signals
from raysweep.cluster.job import Job
from raysweep.common.errors import RaysweepError, WorldError
from raysweep.common.typed_json import to_json
from raysweep.slurm.allocation import Allocation
from raysweep.slurm.commands import ended_tasks
from raysweep.usercode.target import SCRIPTS_DIR

logger = logging.getLogger("raysweep")

BRING_UP_DEADLINE_S = 900  # unpacking on a slow disk takes minutes
END_DEADLINE_S = 2 * GRACE_S + 10
# How far a node has come, in words for who waits for it.
STAGES = {"": "it has not answered", "environment": "it waits for Ray's head", "head": "its Ray is up", "worker": "its Ray is up"}
STAGES_OF_HEAD = STAGES | {"environment": "its Ray is starting"}


def show(line: str) -> None:
    """Print a line. That nobody reads it any more (`| tee` was ended, the disk is full) is no reason to stop listening."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(line)
        sys.stderr.flush()


class Launcher:
    """One run of the agents. `say` broadcasts to them; what they say arrives in `messages`."""

    def __init__(self, allocation: Allocation, min_nodes: int) -> None:
        self.allocation, self.min_nodes = allocation, min_nodes
        self.names = [node.name for node in allocation.nodes]
        self.began = time.monotonic()
        self.messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.stages = dict.fromkeys(self.names, "")
        self.lost: dict[str, str] = {}  # node → why
        self.times_s: dict[str, float] = {}
        self.ready = False
        self.last_words: list[str] = []  # of srun
        self.speaking, self.over = threading.Lock(), threading.Event()

    @contextlib.contextmanager
    def agents(self) -> Iterator[None]:
        """Start them; end them. A session of their own keeps a Ctrl-C in the terminal from them: they end when their input does."""
        command = self.allocation.command([sys.executable, str(SCRIPTS_DIR / "agent.py")])
        self.program = "srun" if self.allocation.job_id else "the agent"
        pipe = subprocess.PIPE
        try:
            # A site's prolog may speak another encoding.
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True
            )
        except OSError as error:
            raise WorldError(f"{command[0]} cannot be run: {error.strerror}") from None
        assert self.process.stdin
        assert self.process.stdout
        assert self.process.stderr
        readers = [
            threading.Thread(target=self.listen, args=(self.process.stdout,), daemon=True),
            relay := threading.Thread(target=self.relay, args=(self.process.stderr,), daemon=True),
            # A thread of its own, since the rest may wait for a file system in trouble.
            threading.Thread(target=self.show_life, daemon=True),
        ]
        self.relay_thread = relay
        for reader in readers:
            reader.start()
        try:
            yield
        finally:
            self.over.set()
            with self.speaking, contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            try:
                self.process.wait(END_DEADLINE_S)
            except subprocess.TimeoutExpired:
                logger.warning("The agents did not end within %d s: ending them by force.", END_DEADLINE_S)
                self.process.terminate()  # srun then kills its tasks
                self.process.wait()
            for reader in readers:
                reader.join()

    def listen(self, stream: IO[str]) -> None:
        for line in stream:
            try:
                self.messages.put(json.loads(line))
            except ValueError:  # a site's own prolog
                show(line)
        self.messages.put(None)

    def relay(self, stream: IO[str]) -> None:
        """Pass on what the driver and `srun` have for the terminal."""
        for line in stream:
            show(line)
            if line.startswith(("srun: error", "slurmstepd")):
                logger.debug("%s", line.strip())
                self.last_words.append(line.strip())
            for rank in ended_tasks(line):  # it could not say so itself
                self.messages.put(
                    {"node": self.names[rank], "event": "failed", "why": f"its agent ended: {' | '.join(self.last_words[-3:])}"}
                )

    def show_life(self) -> None:
        while not self.over.wait(TICK_S):
            self.say({})

    def say(self, message: dict[str, Any]) -> None:
        assert self.process.stdin
        with self.speaking, contextlib.suppress(BrokenPipeError, ValueError):  # its end is told by `listen`
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def run(self, start: dict[str, Any]) -> int:
        """Have the agents do what `start` says; the driver's exit code. Raises WorldError when the cluster does not come up or its head is lost."""
        with self.agents():
            self.say({"start": start})
            while True:
                try:
                    message = self.messages.get(timeout=TICK_S)
                except queue.Empty:
                    message = {}
                if not self.ready and time.monotonic() - self.began > BRING_UP_DEADLINE_S:
                    raise WorldError(f"{self.missing()} within {BRING_UP_DEADLINE_S} s")
                if message is None:
                    raise WorldError(f"{self.missing()}: {self.end()}")
                if message and (code := self.heard(**message)) is not None:
                    return code

    def heard(self, node: str, event: str, **facts: Any) -> int | None:
        """Act on what an agent says; the driver's exit code where it has ended."""
        elapsed_s = time.monotonic() - self.began
        if event == "driver":
            return int(facts["code"])
        if event == "failed":
            self.failed(node, facts["why"])
            return None
        self.stages[node] = event
        self.times_s[event] = elapsed_s
        if event == "head":
            self.say({"address": facts["address"]})
            if facts["dashboard"]:
                logger.info("Ray's dashboard: %s", facts["dashboard"])
        up = [name for name, stage in self.stages.items() if stage in ("head", "worker") and name not in self.lost]
        if self.ready and event == "worker":
            logger.info("%s has joined after %.1f s: %d of %d nodes.", node, elapsed_s, len(up), len(self.names))
        elif not self.ready and len(up) >= self.min_nodes and self.names[0] in up:
            self.ready = True
            logger.info("%s", self.summary(up, elapsed_s))
        return None

    def failed(self, node: str, why: str) -> None:
        """A node that will not come, or is lost, ends the run unless enough others are left."""
        if node in self.lost:
            return
        self.lost[node] = why
        if node == self.names[0] or len(self.names) - len(self.lost) < (1 if self.ready else self.min_nodes):
            raise WorldError(f"{node}: {why}" if self.allocation.job_id else why)
        logger.warning("%s is lost: %s. The sweep goes on without it.", node, why)

    def missing(self) -> str:
        """The nodes that have not come, and how far each is."""
        late = [name for name in self.names if self.stages[name] not in ("head", "worker") and name not in self.lost]
        stages = [f"{name} ({(STAGES_OF_HEAD if name == self.names[0] else STAGES)[self.stages[name]]})" for name in late]
        return f"not up: {', '.join(stages)}" if late else "the agents went away"

    def end(self) -> str:
        """How the program that carries the agents has ended."""
        code = self.process.wait()
        self.relay_thread.join(END_DEADLINE_S)  # its last words may be on their way
        if code < 0:
            return f"{self.program} was killed (signal {-code})"
        return f"{self.program} ended with exit code {code}: {' | '.join(self.last_words[-3:]) or 'it said nothing'}"

    def summary(self, up: list[str], elapsed_s: float) -> str:
        """How long it took from the job's start, stage by stage."""
        nodes = [node for node in self.allocation.nodes if node.name in up]
        stages, since = [], 0.0
        if self.allocation.started is not None:  # Slurm tells whole seconds
            since_start_s = max(0.0, time.time() - elapsed_s - self.allocation.started)
            stages.append(f"start of the job {since_start_s:.0f} s")
        else:
            since_start_s = 0.0
        for event, name in (("environment", "environment"), ("head", "head"), ("worker", "workers")):
            if event in self.times_s:
                stages.append(f"{name} {max(0.0, self.times_s[event] - since):.1f} s")
                since = max(since, self.times_s[event])
        have = f"{sum(node.cpus for node in nodes)} CPUs, {sum(node.gpus for node in nodes)} GPUs"
        on = f"on {len(up)} of {len(self.names)} nodes " if len(self.names) > 1 else ""
        return f"Ray is up {on}after {since_start_s + elapsed_s:.1f} s: {have} ({', '.join(stages)})."


def run(
    allocation: Allocation,
    env_dir: Path,
    job: Job,
    path_to_log: Path,
    *,
    min_nodes: int | None = None,
    dashboard: bool = False,
    cache_dir: str | None = None,
) -> int:
    """Bring Ray up, run the driver on it, take all down again; returns the driver's exit code.

    The driver starts with `min_nodes` nodes (None: with all), and the others join when they are ready. Raises WorldError, with one line
    that names the node, when they do not come or the head is lost; RaysweepError when this process is told to end.
    """
    path_to_log.parent.mkdir(parents=True, exist_ok=True)
    needed = min(min_nodes or len(allocation.nodes), len(allocation.nodes))
    start = {
        "in_slurm": allocation.job_id is not None,
        "nodes": [asdict(node) for node in allocation.nodes],
        "env_dir": str(env_dir.absolute()),
        "cache_dir": cache_dir,
        "token": secrets.token_hex(32),
        "dashboard": dashboard,
        "log": str(path_to_log.absolute()),
        "job": to_json(job),
        "min_nodes": needed,
    }
    try:
        with ended_by_signals():
            return Launcher(allocation, needed).run(start)
    except KeyboardInterrupt:
        if allocation.job_id is None:
            raise
        raise RaysweepError(allocation.why_interrupted()) from None
