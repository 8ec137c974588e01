"""What check_cluster makes of a Ray cluster that came up, and of the reports of the tasks. Real ones: tests/slurm/test_check_cluster.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from raysweep.cluster.check.ray_checks import check_environment, check_torch
from raysweep.cluster.check.task_report import TaskReport, TorchReport, read_reports
from raysweep.cluster.launcher import BringUp
from raysweep.common.typed_json import to_json
from raysweep.environment.archive import ARCHIVE
from raysweep.tune.node_tasks import node_task
from typed import described_environment
from unit.cluster.check.reports import NODES

ENVIRONMENT = described_environment()
BRING_UP = BringUp(NODES, 2, 5.4, {"environment": 12.34, "head": 3.0, "workers": 1.0}, 21.74)


def test_torch_has_to_compute_on_every_gpu_of_each_node() -> None:
    good, bad = TorchReport("2.13.0", 1), TorchReport("2.13.0+cpu", 0)
    assert check_torch(NODES, {"n1": good, "n2": good}).state == "ok"
    result = check_torch(NODES, {"n1": good, "n2": bad})
    assert (result.state, result.finding) == ("FAILED", "n2: torch 2.13.0+cpu computes on 0 of 1 GPUs")


def test_a_cluster_that_came_up_is_described_in_one_line() -> None:
    line = "Ray is up on 2 of 2 nodes after 21.7 s: 8 CPUs, 2 GPUs (start of the job 5 s, environment 12.3 s, head 3.0 s, workers 1.0 s)"
    assert str(BRING_UP) == line
    here = replace(BRING_UP, nodes=NODES[:1], num_allocated_nodes=1, job_start_s=None, stages_s={"head": 3.0})
    assert str(here) == "Ray is up after 21.7 s: 4 CPUs, 1 GPUs (head 3.0 s)"


def test_the_time_that_the_environment_took_is_told(tmp_path: Path) -> None:
    assert check_environment(ENVIRONMENT, tmp_path, BRING_UP).finding == "ready after 12.3 s: that of env.python, as it is"
    (tmp_path / ARCHIVE).write_bytes(bytes(2_500_000))
    installed = replace(ENVIRONMENT, wheels="pypi")
    assert check_environment(installed, tmp_path, BRING_UP).finding == "ready after 12.3 s: 2 MB unpacked on each node"
    assert check_environment(installed, tmp_path, None).finding == "ready: 2 MB unpacked on each node"


def test_the_reports_of_the_tasks_are_read_as_they_were_written(tmp_path: Path) -> None:
    reports = {"n1": TaskReport(TorchReport("2.13.0", 1)), "n2": TaskReport(error="the worker died"), "n3": node_task(with_torch=False)}
    (tmp_path / "result.json").write_text(json.dumps(to_json(reports)))
    assert read_reports(tmp_path / "result.json") == reports
