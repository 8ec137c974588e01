"""This module follows which nodes are in the Ray cluster, and records which nodes join and which nodes are lost during a session."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ray

from raysweep.cluster.early_ends import early_ends
from raysweep.common.errors import logger
from raysweep.common.machine import JOB_DEADLINE_RESOURCE, JOB_RESOURCE, NodeSize
from raysweep.record.file import Record
from raysweep.slurm.allocation import Deadline
from raysweep.tune.private import drain_node

LOOK_INTERVAL_S = 5


@dataclass(frozen=True)
class LiveNode:
    """Describes a node that is part of the Ray cluster now."""

    id: str  # Ray's id of the node
    address: str  # network address of the node; two Slurm jobs on one node have equal addresses
    size: NodeSize
    job: str | None = None  # id of the node's Slurm job; None where all nodes belong to one job
    deadline: float = math.inf  # time after which no trial may begin on the node, in seconds since the epoch


def live_nodes() -> list[LiveNode]:
    """Return the nodes that are part of the Ray cluster now."""
    nodes = []
    for node in ray.nodes():
        if node["Alive"]:
            resources = node["Resources"]
            size = NodeSize(node["NodeName"], int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))
            job = next((name.removeprefix(JOB_RESOURCE) for name in resources if name.startswith(JOB_RESOURCE)), None)
            nodes.append(LiveNode(node["NodeID"], node["NodeManagerAddress"], size, job, resources.get(JOB_DEADLINE_RESOURCE, math.inf)))
    return nodes


class RayNodes:
    """Asks the Ray cluster of this process for its nodes."""

    def live(self) -> list[LiveNode]:
        return live_nodes()

    def drain(self, node: LiveNode) -> None:
        """Let no trial begin on a node any more."""
        drain_node(node.id)


@dataclass(frozen=True)
class OtherJobs:
    """Says that the nodes of other Slurm jobs than the session's own job can join."""

    own_job: str  # id of the session's own job
    early_ends: Path  # folder that names the jobs which Slurm ends before their time limits


class NodeWatch:
    """Keeps the nodes that are alive now, and the names of all nodes that were alive at some time.

    `nodes` are the nodes with which the session began. If this is the only node, and no other job can join, the driver runs on that node, and nothing is
    watched. `other_jobs` is None where no other job can join.
    """

    def __init__(
        self,
        record: Record,
        nodes: tuple[NodeSize, ...],
        other_jobs: OtherJobs | None = None,
        ray_nodes: RayNodes | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.record, self.nodes, self.other_jobs, self.ray_nodes, self.clock = record, nodes, other_jobs, ray_nodes or RayNodes(), clock
        self.only_node = nodes[0].name if len(nodes) == 1 and other_jobs is None else None
        self.live: dict[str, LiveNode] = {}  # Ray's id → node that is alive now
        self.names: dict[str, str] = {}  # address → name of each node that was alive at some time
        self.leaving: set[str] = set()  # Ray's ids of the nodes whose jobs are nearly over
        self.early_deadline: Deadline | None = None  # deadline of the session's own job where Slurm ends this job before the time limit
        self.last_look_at_s = -math.inf

    def look(self) -> None:
        """Record which nodes have joined and which nodes were lost since the last call. Do nothing within LOOK_INTERVAL_S seconds after the last call."""
        now_s = self.clock()
        if self.only_node is not None or 0 <= now_s - self.last_look_at_s < LOOK_INTERVAL_S:
            return
        now = {node.id: node for node in self.ray_nodes.live()}
        if self.last_look_at_s == -math.inf:  # the event `session` contains the nodes with which the session began
            own_job = self.other_jobs and self.other_jobs.own_job
            self.live = {id_: node for id_, node in now.items() if node.job == own_job}
        for state, changed in (("lost", self.live.keys() - now.keys()), ("joined", now.keys() - self.live.keys())):
            for id_ in sorted(changed):
                self._write((self.live | now)[id_], state)
        self.live, self.last_look_at_s = now, now_s
        self.names |= {node.address: node.size.name for node in now.values()}
        if self.other_jobs is not None:
            self._drain_leaving(self.other_jobs, now_s)

    def _drain_leaving(self, other_jobs: OtherJobs, now_s: float) -> None:
        """Let no trial begin any more on the nodes of other jobs whose time is nearly over."""
        early = early_ends(other_jobs.early_ends)
        own_ends = [each.ends for each in early if each.job == other_jobs.own_job]
        if own_ends and self.early_deadline is None:
            self.early_deadline = Deadline.early(own_ends[0])
        ending = {(each.job, each.instead_of) for each in early if each.ends > now_s}
        for node in self.live.values():
            is_near = now_s > node.deadline or (node.job, node.deadline) in ending
            if node.job != other_jobs.own_job and is_near and node.id not in self.leaving:
                self.leaving.add(node.id)
                self.ray_nodes.drain(node)
                logger.info("The time of job %s is nearly over: no trial begins on %s any more.", node.job, node.size.name)

    def _write(self, node: LiveNode, state: str) -> None:
        facts = {} if self.other_jobs is None else {"cpus": node.size.cpus, "gpus": node.size.gpus, "job": node.job}
        self.record.write("node", node=node.size.name, state=state, **facts)
        if self.other_jobs is not None:
            logger.info("%s of job %s %s.", node.size.name, node.job, "has joined" if state == "joined" else "is gone")

    def sizes(self) -> tuple[NodeSize, ...]:
        """Return the sizes of the nodes on which trials can begin. Where no other job can join, these are the nodes with which the session began."""
        if self.other_jobs is None or not self.live:
            return self.nodes
        return tuple(node.size for id_, node in self.live.items() if id_ not in self.leaving)

    def has_leaving(self) -> bool:
        """Return whether the job of some node is nearly over."""
        return not self.leaving.isdisjoint(self.live)

    def is_leaving(self, address: str) -> bool:
        """Return whether the jobs of all nodes at this address are nearly over."""
        here = [id_ for id_, node in self.live.items() if node.address == address]
        return bool(here) and self.leaving.issuperset(here)

    def name_of(self, address: str) -> str:
        """Return the name of the node that has this address. Return the address if no such node is known."""
        if self.only_node is not None:
            return self.only_node
        if address not in self.names:
            self.names |= {node.address: node.size.name for node in self.ray_nodes.live()}
        return self.names.get(address, address)
