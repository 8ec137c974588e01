"""This module runs the three rules of `snakemake check_cluster`: check_login, check_nodes and check_cluster.

check_login checks Slurm on the machine where Snakemake runs. check_nodes runs in a job with the allocation of the largest sweep.
check_cluster prints the table of all results. Where a check of check_login fails, no job is submitted.
"""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from raysweep.cluster.check.node_checks import check_nodes
from raysweep.cluster.check.ray_checks import RAY_CLUSTER, check_ray
from raysweep.cluster.check.slurm_checks import check_slurm
from raysweep.cluster.check.table import CheckResult, Section, few_of, warning
from raysweep.cluster.launcher import LaunchRequest
from raysweep.common.errors import RaysweepError, logger
from raysweep.common.files import written_aside
from raysweep.common.typed_json import from_json, to_json
from raysweep.config.model import AllocationConfig, TlsChoice
from raysweep.environment.archive import pack
from raysweep.environment.manifest import Environment
from raysweep.slurm.allocation import Allocation


def run_login(allocations: Mapping[str, AllocationConfig], resources: Mapping[str, str], output: Path) -> None:
    """Run the rule check_login, which checks Slurm on the machine where Snakemake runs.

    `allocations` maps the name of each sweep to the allocation that the sweep asks for. `resources` are the resources that the Snakemake profile sets.
    Raises RaysweepError where a check fails, because a job could then wait for ever or be useless.
    """
    now = datetime.datetime.now().astimezone().isoformat(timespec="minutes")
    section = Section(f"Slurm, {now}", check_slurm(allocations, resources, Path.cwd()))
    if section.failed:
        print_table(section)
    raise_if_failed([section], "No job was submitted; then run the same command again")
    write_section(output, section)


def run_nodes(env_dir: Path, cache_dir: Path | None, tls: TlsChoice, output: Path, path_to_log: Path) -> None:
    """Run the rule check_nodes, which checks the nodes of the Slurm job that this process runs in."""
    allocation = Allocation.of_slurm()
    first = allocation.nodes[0]
    names = few_of([node.name for node in allocation.nodes])
    title = f"Job {allocation.job_id} on {names}: {first.cpus} CPUs, {first.gpus} GPUs, {first.mem_mb} MB each"
    request = LaunchRequest(allocation, env_dir, path_to_log, cache_dir=cache_dir, tls=tls)
    write_section(output, Section(title, check_job(request, output.parent)))


def run_table(inputs: Sequence[Path]) -> None:
    """Run the rule check_cluster, which prints the results of the other two rules. Raises RaysweepError where a check has failed."""
    sections = []
    for path in inputs:
        sections.append(from_json(Section, json.loads(path.read_text())))
        path.unlink()  # the file is removed now, so that a later run cannot print old results even when this run fails
        print_table(sections[-1])
    raise_if_failed(sections, "Then run the same command again")
    results = [result for section in sections for result in section.results]
    num_warnings = sum(result.state == "warning" for result in results)
    logger.info("check_cluster: %d checks, %s.", len(results), f"{num_warnings} warnings, nothing FAILED" if num_warnings else "all ok")


def check_job(request: LaunchRequest, work_dir: Path) -> tuple[CheckResult, ...]:
    """Return the results of all checks in the job. `work_dir` is a folder of the project, in which the nodes write files for each other."""
    pack(request.env_dir)
    environment = Environment.load(request.env_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    # `ignore_cleanup_errors` is set because a network file system may keep files that another node still has open.
    with tempfile.TemporaryDirectory(dir=work_dir, ignore_cleanup_errors=True) as folder:
        shared_dir = Path(folder).absolute()
        results = check_nodes(request.allocation, environment, request.env_dir, shared_dir, request.cache_dir)
        if failed := [result.name for result in results if result.has_failed]:
            skipped = warning(RAY_CLUSTER, f"not tried, since this has failed: {', '.join(failed)}", "Mend that first")
            return (*results, skipped)
        return results + check_ray(request, environment, shared_dir / "result.json")


def write_section(path: Path, section: Section) -> None:
    with written_aside(path) as stream:
        json.dump(to_json(section), stream)


def print_table(section: Section) -> None:
    logger.info("%s", section)


def raise_if_failed(sections: Sequence[Section], next_step: str) -> None:
    """Raise RaysweepError where a check has failed. `next_step` ends the message, and says what the user does after the repair."""
    num_checks = sum(len(section.results) for section in sections)
    if failed := [name for section in sections for name in section.failed]:
        raise RaysweepError(
            f"check_cluster: {len(failed)} of {num_checks} checks FAILED ({', '.join(failed)}): the table above says what to do. {next_step}"
        )
