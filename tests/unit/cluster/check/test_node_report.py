"""What a node measures of itself, and how it says so."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from raysweep.cluster.check.node_report import (
    FailedConnections,
    NodeMessage,
    NodeResources,
    PythonStatus,
    TaskEnded,
    filesystem_type,
    read_node_message,
)
from raysweep.common.typed_json import to_json
from raysweep.slurm.allocation import Node
from unit.cluster.check.reports import REPORT


def test_the_disk_of_a_folder_has_a_type(tmp_path: Path) -> None:
    assert filesystem_type(Path("/proc/self")) == "proc"
    assert filesystem_type(tmp_path / "not there yet") == filesystem_type(tmp_path)


def test_this_machine_measures_itself(tmp_path: Path) -> None:
    resources = NodeResources.measure(Node(socket.gethostname(), 1, 0, 1000), tmp_path)
    assert resources.local_disk.folder == tmp_path
    assert resources.local_disk.is_writable
    assert resources.local_disk.free_mb > 0
    assert resources.object_store_mb == 100
    assert resources.gpus is None, "the job asked for no GPU"


def test_a_python_that_is_missing_has_a_reason(tmp_path: Path) -> None:
    status = PythonStatus.measure(tmp_path)
    assert status.version is None
    assert "env.yaml is missing" in str(status.error)


@pytest.mark.parametrize(
    "message", [REPORT, FailedConnections(1, {"0": "timed out"}), TaskEnded(3)], ids=lambda message: type(message).__name__
)
def test_a_message_is_read_as_it_was_written(message: NodeMessage) -> None:
    assert read_node_message(json.dumps(to_json(message))) == message


@pytest.mark.parametrize("line", ["", "loading modules", "{}", "7"])
def test_any_other_line_is_no_message(line: str) -> None:
    assert read_node_message(line) is None
