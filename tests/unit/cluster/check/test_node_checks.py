"""What check_cluster makes of the reports of the nodes: edges first. Real nodes: tests/slurm/test_check_cluster.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raysweep.cluster.check import node_checks as checks
from raysweep.cluster.check.node_checks import NodeFacts
from raysweep.cluster.check.node_report import GpuCounts, PythonStatus
from raysweep.cluster.check.probe import ProbedNode, ProbeResult
from unit.cluster.check.reports import DISK, FACTS, NODES, PROBED, REPORT, RESOURCES


def facts_with(**resources: Any) -> NodeFacts:
    """Facts of a node with some resources replaced."""
    return replace(FACTS, probed=replace(PROBED, report=replace(REPORT, resources=replace(RESOURCES, **resources))))


def test_a_node_that_does_not_answer_is_named_with_sruns_errors() -> None:
    unshared = replace(PROBED, report=replace(REPORT, shared_file_seen_after_s=None))
    assert checks.check_nodes_answer(NODES, ProbeResult({"n1": PROBED, "n2": unshared}, "")).state == "ok"
    errors = "slurmstepd: error: execve(): /p/.venv/bin/python: No such file or directory"
    result = checks.check_nodes_answer(NODES, ProbeResult({"n1": PROBED}, errors))
    assert result.state == "FAILED"
    assert result.finding.startswith("n2: no answer: slurmstepd")
    assert result.remedy == checks.SHARED_FOLDER_REMEDY
    silent = checks.check_nodes_answer(NODES, ProbeResult({}, ""))
    assert silent.finding == "n1, n2: no answer: srun says nothing"
    assert silent.remedy != checks.SHARED_FOLDER_REMEDY


@pytest.mark.parametrize(
    ("forth_s", "back_s", "state", "finding"),
    [
        (0.0, 0.0, "ok", "at once"),
        (0.0, 12.0, "ok", "after 12 s"),
        (31.0, 0.0, "warning", "after 31 s"),
        (None, None, "FAILED", "does not see"),
        (0.0, None, "FAILED", "is not seen by the first"),
    ],
)
def test_shared_folder(forth_s: float | None, back_s: float | None, state: str, finding: str) -> None:
    probed = ProbedNode(replace(REPORT, shared_file_seen_after_s=forth_s), seen_by_first_after_s=back_s)
    result = checks.check_shared_folder(replace(FACTS, probed=probed))
    assert result.state == state
    assert finding in result.finding


def test_python_runs_or_the_reason_is_named() -> None:
    assert checks.check_python(FACTS).finding == "Python 3.11.7"
    broken = replace(PROBED, report=replace(REPORT, python=PythonStatus(None, "n1 has no /usr/bin/python3.")))
    result = checks.check_python(replace(FACTS, probed=broken))
    assert (result.state, result.finding) == ("FAILED", "n1 has no /usr/bin/python3")


@pytest.mark.parametrize(
    ("python", "state", "finding"),
    [
        (PythonStatus("3.11.7"), "ok", "there is one, and Python's headers"),
        (PythonStatus("3.11.7", None, "there is no C++ compiler"), "warning", "there is no C++ compiler"),
        (PythonStatus(None, "n1 has no /usr/bin/python3."), "warning", "not tried, since env.python does not run"),
    ],
)
def test_compiler_and_headers(python: PythonStatus, state: str, finding: str) -> None:
    result = checks.check_compiler(replace(FACTS, probed=replace(PROBED, report=replace(REPORT, python=python))))
    assert (result.state, result.finding) == (state, finding)


@pytest.mark.parametrize(
    ("named", "listed", "state", "finding"),
    [
        (1, 1, "ok", "1 given"),
        (0, 1, "FAILED", "CUDA_VISIBLE_DEVICES name 0"),
        (1, 0, "FAILED", "nvidia-smi lists 0"),
        (1, 4, "ok", "1 given"),
    ],
)
def test_gpus(named: int, listed: int, state: str, finding: str) -> None:
    result = checks.check_gpus(facts_with(gpus=GpuCounts(named, listed, f"nvidia-smi lists {listed}")))
    assert result.state == state
    assert finding in result.finding


@pytest.mark.parametrize(
    ("disk", "needed_mb", "state", "finding"),
    [
        ({}, 5000, "ok", "/scratch (xfs), 50.0 GB free"),
        ({"free_mb": 5000}, 5000, "ok", "5.0 GB free"),
        ({"free_mb": 4999}, 5000, "FAILED", "the environment takes 5.0 GB"),
        ({"is_noexec": True}, 5000, "FAILED", "noexec"),
        ({"is_noexec": True}, 0, "ok", "/scratch"),
        ({"is_writable": False}, 0, "FAILED", "cannot be written to"),
        ({"filesystem": "tmpfs"}, 5000, "warning", "counts as the job's"),
        ({"filesystem": "nfs4"}, 0, "warning", "not the node's own"),
        ({"filesystem": "lustre"}, 0, "warning", "not the node's own"),
        ({"filesystem": "overlay"}, 0, "ok", "overlay"),
    ],
)
def test_local_disk(disk: dict[str, Any], needed_mb: float, state: str, finding: str) -> None:
    result = checks.check_local_disk(replace(facts_with(local_disk=replace(DISK, **disk)), environment_mb=needed_mb))
    assert result.state == state
    assert finding in result.finding


@pytest.mark.parametrize(
    ("free_mb", "store_mb", "state"),
    [(None, 800, "warning"), (50, 100, "warning"), (1000, 500, "warning"), (1600, 800, "ok"), (9000, 800, "ok")],
)
def test_shared_memory_holds_a_tenth_of_the_memory(free_mb: int | None, store_mb: int, state: str) -> None:
    assert checks.check_shared_memory(facts_with(shm_free_mb=free_mb, object_store_mb=store_mb)).state == state


@pytest.mark.parametrize(
    ("soft", "hard", "state"),
    [(1024, 4096, "ok"), (1023, 4096, "warning"), (1024, 4095, "warning"), (None, None, "ok"), (1024, None, "ok")],
)
def test_open_files(soft: int | None, hard: int | None, state: str) -> None:
    assert checks.check_open_files(facts_with(open_files_soft=soft, open_files_hard=hard)).state == state


@pytest.mark.parametrize(("left", "state"), [(None, "ok"), (460, "ok"), (459, "warning"), (-3, "warning")])
def test_threads(left: int | None, state: str) -> None:
    assert checks.check_threads(facts_with(threads_left=left)).state == state


def test_a_pair_of_nodes_that_do_not_reach_each_other_is_named() -> None:
    assert checks.check_connections(NODES, ProbeResult({"n1": PROBED, "n2": PROBED}, "")).finding == "each node reaches each other"
    late = replace(PROBED, failed_connections={"1": "timed out"})
    result = checks.check_connections(NODES, ProbeResult({"n1": late, "n2": PROBED}, ""))
    assert (result.state, result.finding) == ("FAILED", "n1 → n2: timed out")
    unreachable = replace(PROBED, report=replace(REPORT, address=None, address_error="n2 finds no way to n1"))
    result = checks.check_connections(NODES, ProbeResult({"n1": PROBED, "n2": unreachable}, ""))
    assert (result.state, result.finding) == ("FAILED", "n2: n2 finds no way to n1")
    silent = replace(PROBED, failed_connections=None)
    assert checks.check_connections(NODES, ProbeResult({"n1": PROBED, "n2": silent}, "")).finding == "n2: no answer"
