"""This module is the probe, which runs once on each node of the job. The probe measures the node, and then tries to connect to the other nodes.

`srun` starts the probe, and transfers the probe's standard input and output. Each message is one line of JSON (node_report.py). The probe ends when the
standard input ends.
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

SHARED_DEADLINE_S = 60  # equal to `latency-wait` in the profile; Snakemake stops waiting for a file after this time
CONNECT_DEADLINE_S = 5  # time limit in seconds for one connection
NUM_CONNECTIONS = 16  # number of connections that a node opens at the same time
FIRST_FILE = "first"  # name of the file that the first node writes to the shared folder


def probe_node(input_stream: IO[str], output_stream: IO[str], in_slurm: bool) -> None:
    """Measure this node and send a NodeReport, then connect to the other nodes and send FailedConnections."""
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
        addresses = from_json(Listeners, json.loads(line)) if line else {}
        others = {rank: other for rank, other in addresses.items() if int(rank) != task.rank}
        send(FailedConnections(task.rank, failed_connections(others)), output_stream)
        input_stream.read()  # wait for the end of the input, because other nodes may still connect to this node


def listen(listener: socket.socket, nodes: Sequence[Node], rank: int) -> tuple[SocketAddress | None, str | None]:
    """Make the socket listen on the address through which the other nodes reach this node.

    Return the address and None, or None and the reason of the failure.
    """
    try:
        host = own_address(nodes, rank)
        listener.bind((host, 0))
        listener.listen(len(nodes))
        return SocketAddress(host, listener.getsockname()[1]), None
    except (WorldError, OSError) as error:
        return None, str(error)


def seen_after(paths: Sequence[Path], content: str) -> list[float | None]:
    """Wait until this node sees all files `paths` with the text `content`.

    Return the waiting time in seconds for each file, or None for a file that was not visible within SHARED_DEADLINE_S seconds.
    """
    began_at_s = time.monotonic()
    seen_after_s: dict[Path, float] = {}
    while len(seen_after_s) < len(paths) and time.monotonic() < began_at_s + SHARED_DEADLINE_S:
        for path in paths:
            with contextlib.suppress(OSError):
                if path not in seen_after_s and path.read_text() == content:
                    seen_after_s[path] = time.monotonic() - began_at_s
        time.sleep(0.05)  # polling is necessary, because shared file systems offer no event
    return [seen_after_s.get(path) for path in paths]


def failed_connections(addresses: Mapping[str, SocketAddress]) -> dict[str, str]:
    """Try to connect to the addresses (rank of a node → address). Return the ranks whose address did not accept a connection (rank → reason)."""

    def connect(address: SocketAddress) -> str | None:
        try:
            with socket.create_connection((address.host, address.port), timeout=CONNECT_DEADLINE_S):
                return None
        except OSError as error:
            return error.strerror or str(error)

    with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        reasons = dict(zip(addresses, pool.map(connect, addresses.values()), strict=True))
    return {rank: reason for rank, reason in reasons.items() if reason is not None}
