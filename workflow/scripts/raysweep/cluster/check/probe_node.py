"""What runs on each node of the job: the node measures itself, then it tries to reach the other nodes.

`srun` starts it, and carries its standard input and output: one JSON object a line (node_report.py). The end of the input ends it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from raysweep.cluster.channel import send
from raysweep.cluster.check.node_report import (
    FailedConnections,
    Listeners,
    NodeReport,
    NodeResources,
    ProbeStart,
    PythonStatus,
    SocketAddress,
)
from raysweep.cluster.ray_node import own_address
from raysweep.common.errors import WorldError
from raysweep.common.files import written_aside
from raysweep.common.typed_json import from_json
from raysweep.slurm.allocation import Node, Task

SHARED_DEADLINE_S = 60  # as `latency-wait` in the profile, after which Snakemake gives up as well
CONNECT_DEADLINE_S = 5
NUM_CONNECTIONS = 16  # at a time
FIRST_FILE = "first"  # in the shared folder: the file of the first node


def probe_node(input_stream: IO[str], output_stream: IO[str], in_slurm: bool) -> None:
    """Send what this node is like, then which of the other nodes cannot be reached from it."""
    start = from_json(ProbeStart, json.loads(input_stream.readline()))
    task = Task.current(in_slurm)
    with written_aside(start.shared_dir / str(task.rank)) as stream:
        stream.write(start.nonce)
    with socket.socket() as listener:
        resources = NodeResources.measure(start.nodes[task.rank], task.local_dir)
        seen_after_s = seen_after([start.shared_dir / FIRST_FILE], start.nonce)[0]
        python = PythonStatus.measure(start.env_dir)
        address, address_error = listen(listener, start.nodes, task.rank)
        send(NodeReport(task.rank, resources, python, seen_after_s, address, address_error), output_stream)
        line = input_stream.readline()
        addresses = from_json(Listeners, json.loads(line)).addresses if line else {}
        others = {rank: other for rank, other in addresses.items() if int(rank) != task.rank}
        send(FailedConnections(task.rank, failed_connections(others)), output_stream)
        input_stream.read()  # the other nodes may still be connecting


def listen(listener: socket.socket, nodes: Sequence[Node], rank: int) -> tuple[SocketAddress | None, str | None]:
    """Have the socket listen where the other nodes reach this node. Return its address, or None and the reason why there is no address."""
    try:
        host = own_address(nodes, rank)
        listener.bind((host, 0))
        listener.listen(len(nodes))
        return SocketAddress(host, listener.getsockname()[1]), None
    except (WorldError, OSError) as error:
        return None, str(error)


def seen_after(paths: Sequence[Path], content: str) -> list[float | None]:
    """Return after how many seconds this node sees each file with its content; None for a file that it does not see within the deadline."""
    began_at_s = time.monotonic()
    seen_after_s: dict[Path, float] = {}
    while len(seen_after_s) < len(paths) and time.monotonic() < began_at_s + SHARED_DEADLINE_S:
        for path in paths:
            with contextlib.suppress(OSError):
                if path not in seen_after_s and path.read_text() == content:
                    seen_after_s[path] = time.monotonic() - began_at_s
        time.sleep(0.05)  # shared file systems offer no event
    return [seen_after_s.get(path) for path in paths]


def failed_connections(addresses: Mapping[str, SocketAddress]) -> dict[str, str]:
    """Return which of the addresses (rank → address) do not accept a connection, and why."""

    def connect(address: SocketAddress) -> str | None:
        try:
            with socket.create_connection((address.host, address.port), timeout=CONNECT_DEADLINE_S):
                return None
        except OSError as error:
            return error.strerror or str(error)

    with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        reasons = dict(zip(addresses, pool.map(connect, addresses.values()), strict=True))
    return {rank: reason for rank, reason in reasons.items() if reason is not None}
