"""The reports of the driver's tasks for check_cluster, one on each node of the Ray cluster: the driver writes them, and the checks read them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from raysweep.common.typed_json import from_json


@dataclass(frozen=True)
class TorchReport:
    """The version of torch on a node, and the number of GPUs that torch can compute on."""

    version: str
    num_gpus: int


@dataclass(frozen=True)
class TaskReport:
    """The result of the task on a node: the report on torch where the job asked for it, or the error of a task that failed."""

    torch: TorchReport | None = None
    error: str | None = None


def read_reports(path: Path) -> dict[str, TaskReport]:
    """Return the reports that a driver wrote, by the name of the node."""
    return {node: from_json(TaskReport, report) for node, report in json.loads(path.read_text()).items()}
