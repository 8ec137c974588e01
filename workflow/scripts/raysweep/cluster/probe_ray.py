"""What the nodes are like through Ray: the driver's part of check_cluster. Runs in the node environment."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from typing import Any

from raysweep.cluster.job import CheckJob
from raysweep.common.files import written_aside
from raysweep.slurm.capacity import NodeSize

logger = logging.getLogger("raysweep")

TASK_DEADLINE_S = 120


def look_through_ray(job: CheckJob, nodes: Iterable[NodeSize]) -> None:
    """Runs in the driver: one task on each node of the Ray cluster, with all its GPUs. What they say goes to the file `result` of the job."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ids = {node["NodeName"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
    tasks = {
        node.name: ray.remote(look_from_task)
        .options(num_gpus=node.gpus, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(ids[node.name], soft=False))
        .remote(job.has_torch)
        for node in nodes
    }
    found: dict[str, dict[str, Any]] = {}
    end = time.monotonic() + TASK_DEADLINE_S
    for name, task in tasks.items():
        try:
            found[name] = ray.get(task, timeout=max(1.0, end - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            found[name] = {"wrong": f"a task does not end within {TASK_DEADLINE_S} s"}
        except ray.exceptions.RayError as error:
            logger.debug("%s:", name, exc_info=True)
            found[name] = {"wrong": str(error).strip().splitlines()[-1]}
    with written_aside(job.result) as stream:
        json.dump(found, stream)


def look_from_task(with_torch: bool) -> dict[str, Any]:
    """Runs in a task of Ray: the GPUs that torch can compute on."""
    if not with_torch:
        return {}
    import torch

    number = torch.cuda.device_count()
    sums = [float(torch.ones(2, device=f"cuda:{index}").sum()) for index in range(number)]
    return {"gpus": sums.count(2.0), "torch": torch.__version__}
