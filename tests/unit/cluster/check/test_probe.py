"""The first node's part of the probe: on this machine, and with a made-up srun of which one task ends."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

import sweeping
from raysweep.cluster.check import node_checks as checks
from raysweep.cluster.check.node_checks import NodeFacts
from raysweep.cluster.check.probe import probe_nodes
from raysweep.slurm.allocation import Allocation, Node
from unit.cluster.check.reports import NODES

# Runs the program on the first of two nodes; the second one has no such Python.
SRUN = """#!/bin/sh
echo "srun: error: n2: task 1: Exited with exit code 2" >&2
while [ "$1" != "{python}" ]; do shift; done
SLURM_PROCID=0 exec "$@"
"""


@pytest.mark.slow
def test_this_machine_is_probed_like_a_node(project: sweeping.Project) -> None:
    project.configure(sweeps={"s": sweeping.sweep_of("climb")})
    project.build_env()
    shared = project.folder / "shared"
    shared.mkdir()
    node = Node(socket.gethostname(), 1, 0, 1000)
    result = probe_nodes(Allocation((node,)), project.folder / "env", shared)
    assert result.errors == ""
    assert checks.check_nodes_answer((node,), result).state == "ok"
    facts = NodeFacts(node, result.nodes[node.name], environment_mb=0)
    assert checks.check_shared_folder(facts).finding == "files are seen at once"
    assert checks.check_python(facts).state == "ok"
    assert checks.check_connections((node,), result).finding == "one node: the loopback is enough"
    assert facts.report.resources.local_disk.is_writable
    assert facts.report.resources.local_disk.filesystem != "unknown"


def test_nobody_waits_for_a_node_whose_task_has_ended_with_a_made_up_srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "srun").write_text(SRUN.format(python=sys.executable))
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (shared := tmp_path / "shared").mkdir()
    nodes = tuple(Node(node.name, 1, 0, 1000, "127.0.0.1") for node in NODES)
    result = probe_nodes(Allocation(nodes, "7"), tmp_path, shared)
    assert list(result.nodes) == ["n1"]
    assert result.nodes["n1"].failed_connections == {}
    answer = checks.check_nodes_answer(nodes, result)
    assert answer.finding == "n2: no answer: srun: error: n2: task 1: Exited with exit code 2"
