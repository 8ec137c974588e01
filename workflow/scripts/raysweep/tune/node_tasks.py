"""This module runs one task on each node of the Ray cluster for the command check_cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysweep.cluster.check.task_report import TaskReport, TorchReport
from raysweep.cluster.job import CheckJob
from raysweep.common.errors import logger
from raysweep.common.files import written_aside
from raysweep.common.machine import NodeSize
from raysweep.common.typed_json import to_json

TASK_DEADLINE_S = 120


def run_node_tasks(job: CheckJob, nodes: Iterable[NodeSize]) -> None:
    """Run one task on each node of the Ray cluster, with all GPUs of the node, and write the reports of the tasks to the file `job.result`."""
    ids = {node["NodeName"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
    tasks = {
        node.name: ray.remote(node_task)
        .options(num_gpus=node.gpus, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(ids[node.name], soft=False))
        .remote(job.has_torch)
        for node in nodes
    }
    reports: dict[str, TaskReport] = {}
    deadline = time.monotonic() + TASK_DEADLINE_S
    for name, task in tasks.items():
        try:
            reports[name] = ray.get(task, timeout=max(1.0, deadline - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            reports[name] = TaskReport(error=f"a task does not end within {TASK_DEADLINE_S} s")
        except ray.exceptions.RayError as error:
            logger.debug("%s:", name, exc_info=True)
            reports[name] = TaskReport(error=str(error).strip().splitlines()[-1])
    with written_aside(job.result) as stream:
        json.dump(to_json(reports), stream)


def node_task(with_torch: bool) -> TaskReport:
    """Return torch's version and the number of GPUs on which torch can compute. Return an empty report if `with_torch` is false.

    This function runs in a Ray task.
    """
    if not with_torch:
        return TaskReport()
    import torch

    from raysweep.training.devices import select_device

    device = select_device(needs_gpu=False)
    count = 0 if device.type == "cpu" else torch.get_device_module(device).device_count()
    sums = [float(torch.ones(2, device=f"{device.type}:{index}").sum()) for index in range(count)]
    return TaskReport(TorchReport(torch.__version__, sums.count(2.0)))
