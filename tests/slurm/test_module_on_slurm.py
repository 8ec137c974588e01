"""The workflow as a module of another, on a real Slurm: what both submit, how its failures are told, and that it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from slurm.cluster import REPOSITORY, SlurmCluster
from slurm.sweeps import IMPATIENT, SlurmProject, project_on, python_in
from sweeping import ENV, sweep_of

SNAKEFILE = f"""
configfile: "config.yaml"
module tuning:
    snakefile: "{REPOSITORY}/Snakefile"
    config: config["tuning"]
    prefix: "tuning"
use rule * from tuning as tuning_*
rule paper:
    input: "tuning/results/s/best.yaml"
    output: "paper.txt"
    shell: "hostname > {{output}}"
"""


@pytest.fixture
def project(slurm: SlurmCluster, tmp_path: Path) -> Iterator[SlurmProject]:
    with project_on(slurm, tmp_path / "a project") as project:
        yield project


def test_its_jobs_and_those_of_the_outer_workflow_reach_slurm_and_a_failure_is_the_last_line(project: SlurmProject) -> None:
    project.write("Snakefile", SNAKEFILE)
    sweep = sweep_of("failing", num_samples=1, max_failures=0, allocation={"cpus_per_node": 2, "mem_mb_per_node": 2000, "runtime": 60})
    project.write("config.yaml", yaml.safe_dump({"tuning": {"env": ENV, "sweeps": {"s": sweep}}}))
    command = [python_in(project.folder), IMPATIENT, "--executor", "slurm", "--profile", REPOSITORY / "cluster", "paper"]
    run = project.cluster.run(command, cwd=project.folder, check=False)
    said = (run.stdout + run.stderr).splitlines()
    assert run.returncode == 1
    assert [line for line in said if line.startswith("Error: ")] == said[-1:], run.stdout + run.stderr
    assert said[-1].startswith("Error: sweep s, tuning_run_sweep: all 1 trials failed, 1 of them so: RuntimeError: out of ideas"), said[-1]
    project.write("ideas", "")
    run = project.cluster.run(command, cwd=project.folder)
    assert (project.folder / "paper.txt").read_text().startswith("node")
    comments = project.cluster.run(["squeue", "--noheader", "--states=all", "--format=%k"]).stdout.splitlines()
    jobs = [comment.partition(" [")[0] for comment in comments]  # without the digests of what a job was submitted with
    place = f"in {project.folder}/tuning/state"
    assert [f"rule_{what} {place}" for what in ("tuning_run_sweep_wildcards_s", "tuning_run_sweep_wildcards_s", "paper")] == [
        job for job in sorted(jobs, reverse=True) if job.endswith(place)
    ]
    assert list((project.folder / ".snakemake/raysweep").iterdir()) == []
