"""This module runs on the first node of the job. The module starts probe_node.py once on each node, and collects the messages of these probes."""

from __future__ import annotations

import os
import queue
import time
from dataclasses import dataclass, replace
from pathlib import Path

from raysweep.cluster.check.node_report import (
    FailedConnections,
    NodeMessage,
    NodeReport,
    ProbeStart,
    TaskEnded,
    read_node_message,
)
from raysweep.cluster.check.probe_node import CONNECT_DEADLINE_S, FIRST_FILE, NUM_CONNECTIONS, seen_after
from raysweep.cluster.node_tasks import NodeTasks, script_command
from raysweep.slurm.allocation import Allocation

REPORT_DEADLINE_S = 180  # time limit in seconds; includes SHARED_DEADLINE_S, and the start of Python from a slow disk


@dataclass(frozen=True)
class ProbedNode:
    """Contains the report of one node, and the measurements that need other nodes."""

    report: NodeReport
    # Time in seconds until the first node saw this node's file. None where the first node did not see the file within SHARED_DEADLINE_S.
    seen_by_first_after_s: float | None = None
    failed_connections: dict[str, str] | None = None  # rank of another node → reason; None where this node did not answer


@dataclass(frozen=True)
class ProbeResult:
    """Contains the reports of the nodes (name of the node → report), and the last error lines of srun."""

    nodes: dict[str, ProbedNode]
    errors: str


class Probes(NodeTasks[NodeMessage]):
    """Runs one probe on each node, and collects the messages of the probes."""

    def __init__(self, allocation: Allocation) -> None:
        super().__init__(allocation.command(script_command("probe_node.py", "slurm" if allocation.job_id else "local")), CONNECT_DEADLINE_S)
        self.reports: dict[int, NodeReport] = {}  # rank of the node → report
        self.connections: dict[int, FailedConnections] = {}
        self.ended: set[int] = set()  # ranks of the nodes whose tasks have failed

    def read_message(self, line: str) -> NodeMessage | None:
        return read_node_message(line)

    def message_for_ended_task(self, rank: int) -> NodeMessage:
        return TaskEnded(rank)

    def __enter__(self) -> Probes:
        super().__enter__()
        return self

    def collect(self, ranks: set[int], answers: dict[int, NodeReport] | dict[int, FailedConnections], deadline_s: float) -> None:
        """Receive messages until each node of `ranks` has an entry in `answers` or has failed, or until `deadline_s` seconds are over.

        `answers` is one of the dictionaries `reports` and `connections` of this object.
        """
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


def probe_nodes(allocation: Allocation, env_dir: Path, shared_dir: Path) -> ProbeResult:
    """Start a probe on each node, and return the reports of the nodes.

    `shared_dir` is a new folder. The first node and each other node write a file there, to find out whether all nodes share the folder.
    """
    nonce = os.urandom(8).hex()
    (shared_dir / FIRST_FILE).write_text(nonce)
    num_nodes = len(allocation.nodes)
    with Probes(allocation) as probes:
        probes.send(ProbeStart(allocation.nodes, nonce, shared_dir.absolute(), env_dir.absolute()))
        probes.collect(set(range(num_nodes)), probes.reports, REPORT_DEADLINE_S)
        nodes = {rank: ProbedNode(report) for rank, report in probes.reports.items()}
        # The first node waits only for files of nodes that saw the first node's file. The other nodes share no folder with the first node, and waiting for
        # the files of these nodes would take another SHARED_DEADLINE_S seconds.
        sharing = [rank for rank, node in nodes.items() if node.report.shared_file_seen_after_s is not None]
        for rank, seen_after_s in zip(sharing, seen_after([shared_dir / str(rank) for rank in sharing], nonce), strict=True):
            nodes[rank] = replace(nodes[rank], seen_by_first_after_s=seen_after_s)
        probes.send({str(rank): node.report.address for rank, node in nodes.items() if node.report.address is not None})
        deadline_s = CONNECT_DEADLINE_S * (1 + num_nodes / NUM_CONNECTIONS) + CONNECT_DEADLINE_S
        probes.collect(set(nodes), probes.connections, deadline_s)
    # A report that came after the deadline is ignored. The connections of the same node are ignored too.
    for rank in nodes.keys() & probes.connections.keys():
        nodes[rank] = replace(nodes[rank], failed_connections=probes.connections[rank].reasons)
    return ProbeResult({allocation.nodes[rank].name: node for rank, node in sorted(nodes.items())}, probes.last_errors())
