"""This module starts a Ray cluster in the same way as a sweep, and checks that a task runs on each node and that torch computes on the GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from raysweep.cluster import launcher
from raysweep.cluster.check.table import CheckResult, failed, format_size, ok, worst_of_nodes
from raysweep.cluster.check.task_report import TorchReport, read_reports
from raysweep.cluster.job import CheckJob
from raysweep.cluster.launcher import BringUp, LaunchRequest
from raysweep.common.errors import RaysweepError
from raysweep.environment.archive import ARCHIVE
from raysweep.environment.manifest import Environment
from raysweep.slurm.allocation import Node

RAY_CLUSTER = "Ray cluster"


def check_environment(environment: Environment, env_dir: Path, bring_up: BringUp | None) -> CheckResult:
    """Return a result with the time until the environment was ready on the nodes. `bring_up` is None where this time was not measured."""
    name, duration_s = "environment", bring_up and bring_up.stages_s.get("environment")
    time = "ready" if duration_s is None else f"ready after {duration_s:.1f} s"
    if environment.wheels == "none":
        return ok(name, f"{time}: that of env.python, as it is")
    return ok(name, f"{time}: {format_size((env_dir / ARCHIVE).stat().st_size / 1e6)} unpacked on each node")


def check_torch(nodes: Sequence[Node], reports: Mapping[str, TorchReport]) -> CheckResult:
    """Check whether torch computes on all GPUs of each node. `reports` maps the name of each node to the report on torch."""
    name, results = "torch", {}
    for node in nodes:
        torch = reports[node.name]
        remedy = "Choose a torch_backend for the GPUs and the driver of the nodes (`nvidia-smi` shows the CUDA version of the driver)"
        finding = f"torch {torch.version} computes on {torch.num_gpus} of {node.gpus} GPUs"
        results[node.name] = ok(name, finding) if torch.num_gpus >= node.gpus else failed(name, finding, remedy)
    return worst_of_nodes(results)


def check_ray(request: LaunchRequest, environment: Environment, path_to_result: Path) -> tuple[CheckResult, ...]:
    """Start a Ray cluster in the same way as a sweep, run a task on each node, end the cluster, and return the results of the checks.

    The driver writes the reports of the tasks to `path_to_result`.
    """
    nodes, log = request.allocation.nodes, request.path_to_log
    with_torch = "torch" in environment.packages and any(node.gpus for node in nodes)
    job = CheckJob(result=path_to_result, has_torch=with_torch)
    try:
        result = launcher.run(request, job)
    except RaysweepError as error:
        return (failed(RAY_CLUSTER, str(error).rstrip("."), f"{log} has the details"),)
    if result.exit_code != 0:
        return (failed(RAY_CLUSTER, f"the driver ended with exit code {result.exit_code}", f"{log} says why"),)
    reports = read_reports(path_to_result)
    environment_result = check_environment(environment, request.env_dir, result.bring_up)
    if errors := [f"{node}: {report.error}" for node, report in reports.items() if report.error is not None]:
        return (environment_result, failed(RAY_CLUSTER, f"a task does not run: {'; '.join(errors[:3])}", f"{log} has the details"))
    # `bring_up` may be None, because the driver may see all nodes and end before the launcher reads the last agent's message.
    bring_up = str(result.bring_up or "Ray is up")
    cluster_result = ok(RAY_CLUSTER, f"{bring_up}; a task ran on each node")
    if not with_torch:
        return (environment_result, cluster_result)
    return (
        environment_result,
        cluster_result,
        check_torch(nodes, {node: report.torch for node, report in reports.items() if report.torch}),
    )
