"""What runs on each node: the shared folder, and the connections to the other nodes."""

from __future__ import annotations

import errno
import io
import json
import os
import socket
from pathlib import Path

import pytest

from raysweep.cluster.check import probe_node as module
from raysweep.cluster.check.node_report import FailedConnections, NodeReport, ProbeStart, SocketAddress, read_node_message
from raysweep.cluster.check.probe_node import failed_connections, probe_node
from raysweep.common.typed_json import to_json
from unit.cluster.check.reports import NODES


def test_a_folder_that_is_not_shared_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARED_DEADLINE_S", 0.2)
    (tmp_path / "first").write_text("written by an earlier job")
    messages = [ProbeStart(NODES[:1], "a new nonce", tmp_path, tmp_path), {}]
    output = io.StringIO()
    probe_node(io.StringIO("".join(json.dumps(to_json(message)) + "\n" for message in messages)), output, in_slurm=False)
    report, connections = map(read_node_message, output.getvalue().splitlines())
    assert isinstance(report, NodeReport)
    assert report.shared_file_seen_after_s is None
    assert "env.yaml is missing" in str(report.python.error)
    assert report.address is not None
    assert (tmp_path / "0").read_text() == "a new nonce"
    assert connections == FailedConnections(0, {})


def test_an_address_that_refuses_is_named_with_the_reason() -> None:
    with socket.socket() as listening, socket.socket() as closed:
        for each in (listening, closed):
            each.bind(("127.0.0.1", 0))
        listening.listen()
        addresses = {"0": SocketAddress(*listening.getsockname()), "1": SocketAddress(*closed.getsockname())}
        assert failed_connections(addresses) == {"1": os.strerror(errno.ECONNREFUSED)}
