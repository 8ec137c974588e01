"""What a node measures of itself, and how it says so."""

from __future__ import annotations

import json
import platform
import socket
import sys
from pathlib import Path

import pytest
import yaml

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
from raysweep.environment.manifest import Environment
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


def test_a_node_says_whether_the_python_of_the_trials_can_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Environment(
        key="key",
        python=Path(sys.executable),
        python_version=platform.python_version(),
        torch_backend=None,
        wheels="none",
        modules=(),
        container=None,
        packages={},
        environment_sha256="sha256",
    )
    (tmp_path / "env.yaml").write_text(yaml.safe_dump(to_json(environment)))
    compiler = tmp_path / "c++"
    for exit_code, begin in ((0, None), (1, "the C++ compiler does not find Python's headers")):
        compiler.write_text(f"#!/bin/sh\nexit {exit_code}\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        status = PythonStatus.measure(tmp_path)
        assert (status.version, status.error) == (platform.python_version(), None)
        assert status.reason_not_to_compile is None if begin is None else str(status.reason_not_to_compile).startswith(begin)
