"""This module maps the addresses of the Ray cluster's nodes to names, and records which nodes join and which nodes are lost during a session."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import ray

from raysweep.record.file import Record

LOOK_INTERVAL_S = 5


def live_nodes() -> dict[str, str]:
    """Return a map from the address to the name of each node that is part of the Ray cluster now."""
    return {node["NodeManagerAddress"]: node["NodeName"] for node in ray.nodes() if node["Alive"]}


class NodeWatch:
    """Keeps the nodes that are alive now, and the names of all nodes that were alive at some time.

    `only_node` is the name of the only node, or None if the cluster has several nodes. A single node needs no watch, because the driver runs on that node.
    """

    def __init__(
        self,
        record: Record,
        only_node: str | None,
        list_nodes: Callable[[], dict[str, str]] = live_nodes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.record, self.only_node, self.list_nodes, self.clock = record, only_node, list_nodes, clock
        self.live: dict[str, str] = {}  # address → name of each node that is alive now
        self.names: dict[str, str] = {}  # address → name of each node that was alive at some time
        self.last_look_at_s = -math.inf

    def look(self) -> None:
        """Record which nodes have joined and which nodes were lost since the last call. Do nothing within LOOK_INTERVAL_S seconds after the last call."""
        if self.only_node is not None or self.clock() < self.last_look_at_s + LOOK_INTERVAL_S:
            return
        now = self.list_nodes()
        is_first = self.last_look_at_s == -math.inf
        for state, changed in (("lost", self.live.keys() - now.keys()), ("joined", now.keys() - self.live.keys())):
            for address in sorted(changed) if not is_first else ():
                self.record.write("node", node=(self.live | now)[address], state=state)
        self.live, self.last_look_at_s = now, self.clock()
        self.names |= now

    def name_of(self, address: str) -> str:
        """Return the name of the node that has this address. Return the address if no such node is known."""
        if self.only_node is not None:
            return self.only_node
        if address not in self.names:
            self.names |= self.list_nodes()
        return self.names.get(address, address)
