"""The first node's part of the probe: it starts probe_node.py once on each node of the job, and collects their messages."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from raysweep.cluster.channel import send
from raysweep.cluster.check.node_report import (
    FailedConnections,
    Listeners,
    NodeMessage,
    NodeReport,
    ProbeStart,
    TaskEnded,
    read_node_message,
)
from raysweep.cluster.check.probe_node import CONNECT_DEADLINE_S, FIRST_FILE, NUM_CONNECTIONS, seen_after
from raysweep.slurm.allocation import Allocation
from raysweep.slurm.commands import ended_tasks
from raysweep.usercode.target import SCRIPTS_DIR

logger = logging.getLogger("raysweep")

REPORT_DEADLINE_S = 180  # for modules and a Python on a slow file system, and SHARED_DEADLINE_S


@dataclass(frozen=True)
class ProbedNode:
    """A node that has reported."""

    report: NodeReport
    seen_by_first_after_s: float | None = None  # when the first node saw the file that this node wrote; None: not within the deadline
    failed_connections: dict[str, str] | None = None  # rank → reason; None: the node did not answer


@dataclass(frozen=True)
class ProbeResult:
    """The nodes that have reported, by name, and the last errors of srun."""

    nodes: dict[str, ProbedNode]
    errors: str


class Probes:
    """The running probes, one on each node, and what they have sent."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.messages: queue.Queue[NodeMessage | None] = queue.Queue()  # None: no message can come any more
        self.error_lines: list[str] = []
        self.reports: dict[int, NodeReport] = {}  # rank → report
        self.connections: dict[int, FailedConnections] = {}
        self.ended: set[int] = set()  # the ranks whose tasks have ended too early
        self.threads = [threading.Thread(target=self.read_messages), threading.Thread(target=self.read_errors)]

    def read_messages(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            message = read_node_message(line)
            if message is None:  # the prolog of a site printed the line
                logger.debug("%s", line.strip())
            else:
                self.messages.put(message)
        self.messages.put(None)

    def read_errors(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            logger.debug("%s", line.strip())
            self.error_lines.append(line.strip())
            for rank in ended_tasks(line):
                self.messages.put(TaskEnded(rank))

    def send(self, message: ProbeStart | Listeners) -> None:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            send(message, self.process.stdin)

    def collect(self, ranks: set[int], answers: dict[int, NodeReport] | dict[int, FailedConnections], deadline_s: float) -> None:
        """Return when each of the nodes stands among the answers or has ended, or time is up."""
        deadline = time.monotonic() + deadline_s
        while ranks - answers.keys() - self.ended and (left_s := deadline - time.monotonic()) > 0:
            try:
                message = self.messages.get(timeout=left_s)
            except queue.Empty:
                return
            if message is None:
                return
            if isinstance(message, NodeReport):
                self.reports[message.rank] = message
            elif isinstance(message, FailedConnections):
                self.connections[message.rank] = message
            else:
                self.ended.add(message.rank)

    def end(self) -> None:
        """End the probes: they end when their input does."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(CONNECT_DEADLINE_S)
        except subprocess.TimeoutExpired:  # a node that hangs
            self.process.kill()
            self.process.wait()
        for thread in self.threads:
            thread.join()


@contextlib.contextmanager
def probes_on(allocation: Allocation) -> Iterator[Probes]:
    """Start probe_node.py once on each node, and end the probes after the block."""
    argv = [sys.executable, str(SCRIPTS_DIR / "probe_node.py"), "slurm" if allocation.job_id else "local"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(allocation.command(argv), stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace")
    probes = Probes(process)
    for thread in probes.threads:
        thread.start()
    try:
        yield probes
    finally:
        probes.end()


def probe_nodes(allocation: Allocation, env_dir: Path, shared_dir: Path) -> ProbeResult:
    """Return what each node reports. `shared_dir` is a new folder, by whose files the nodes see whether they share it."""
    nonce = os.urandom(8).hex()
    (shared_dir / FIRST_FILE).write_text(nonce)
    num_nodes = len(allocation.nodes)
    with probes_on(allocation) as probes:
        probes.send(ProbeStart(allocation.nodes, nonce, shared_dir.absolute(), env_dir.absolute()))
        probes.collect(set(range(num_nodes)), probes.reports, REPORT_DEADLINE_S)
        nodes = {rank: ProbedNode(report) for rank, report in probes.reports.items()}
        # Waiting for the file of a node that cannot see ours would take as long again.
        sharing = [rank for rank, node in nodes.items() if node.report.shared_file_seen_after_s is not None]
        for rank, seen_after_s in zip(sharing, seen_after([shared_dir / str(rank) for rank in sharing], nonce), strict=True):
            nodes[rank] = replace(nodes[rank], seen_by_first_after_s=seen_after_s)
        probes.send(Listeners({str(rank): node.report.address for rank, node in nodes.items() if node.report.address is not None}))
        deadline_s = CONNECT_DEADLINE_S * (1 + num_nodes / NUM_CONNECTIONS) + CONNECT_DEADLINE_S
        probes.collect(set(nodes), probes.connections, deadline_s)
    # A report that came after the deadline does not count, and nor do its connections.
    for rank in nodes.keys() & probes.connections.keys():
        nodes[rank] = replace(nodes[rank], failed_connections=probes.connections[rank].reasons)
    return ProbeResult({allocation.nodes[rank].name: node for rank, node in sorted(nodes.items())}, " | ".join(probes.error_lines[-3:]))
