"""This module defines the reports of the Ray tasks of check_cluster. The driver writes the reports, and the checks read the reports.

The driver runs one task on each node of the Ray cluster.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from raysweep.common.typed_json import from_json


@dataclass(frozen=True)
class TorchReport:
    """Contains the version of torch on a node, and the number of GPUs on which torch can compute."""

    version: str
    num_gpus: int


@dataclass(frozen=True)
class TaskReport:
    """Contains the result of the task on one node.

    `torch` is None where the job did not ask for a test of torch, and where the task failed. `error` is the error message of a task that failed.
    """

    torch: TorchReport | None = None
    error: str | None = None


def read_reports(path: Path) -> dict[str, TaskReport]:
    """Return the reports that a driver wrote to `path` (name of the node → report)."""
    return {node: from_json(TaskReport, report) for node, report in json.loads(path.read_text()).items()}
