"""Sweeps on a real Slurm: one job becomes one Ray cluster that has what Slurm gave, on one node and on several."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import SlurmCluster, wait_until
from slurm.sweeps import SlurmProject, processes_of, project_on, seen

# The GPUs of the test cluster are symbolic links to /dev/null, which Slurm counts and hands out. The driver's program has to agree.
NVIDIA_SMI = """#!/bin/sh
[ -e "$BROKEN/$(hostname)" ] && echo "No devices were found" && exit 6
echo "GPU 0: made up (UUID: GPU-0)"
echo "GPU 1: made up (UUID: GPU-1)"
"""


@pytest.fixture
def project(slurm: SlurmCluster, tmp_path: Path) -> Iterator[SlurmProject]:
    with project_on(slurm, tmp_path / "a project") as project:
        yield project


@pytest.fixture
def gpus(project: SlurmProject, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder; its hold/<node> makes that node wait (see TASK_PROLOG), its broken/<node> breaks that node's GPUs."""
    folder = project.folder.parent
    for name in ("bin", "hold", "broken"):
        (folder / name).mkdir()
    (folder / "bin" / "nvidia-smi").write_text(NVIDIA_SMI)
    (folder / "bin" / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin"), prepend=":")
    monkeypatch.setenv("HOLD", str(folder / "hold"))
    monkeypatch.setenv("BROKEN", str(folder / "broken"))
    return folder


def test_twenty_trials_ten_at_a_time_share_the_one_gpu_of_six_cpus_with_a_made_up_nvidia_smi(project: SlurmProject, gpus: Path) -> None:
    project.sweep("crowds", gpus=1, num_samples=20, trial_resources={"cpu": 0.5, "gpu": 0.1})
    run = project.best()
    facts = seen(project)
    assert len(facts) == 20
    [total] = {json.dumps(fact["total"]) for fact in facts}
    given = json.loads(total)
    assert (given["CPU"], given["GPU"]) == (6, 1)
    assert given["memory"] + given["object_store_memory"] == 4000 * 2**20
    assert {fact["cuda"] for fact in facts} == {"0"}
    assert {fact["nodes"] for fact in facts} == {1}
    assert {trial["status"] for trial in project.trials("s")} == {"TERMINATED"}
    # The best configuration is printed, by the job.
    best = project.result("s", "best.yaml")
    assert f"best score {best['metric']['value']:.4g}, trial {best['trial_id']}" in project.log()
    assert run.returncode == 0


def test_three_nodes_without_gpus_and_what_set_resources_gives_counts(project: SlurmProject) -> None:
    project.sweep(nodes=3, num_samples=6, trial_resources={"cpu": 3}, search_space={"x": {"uniform": [0, 1]}, "pause_s": 3})
    project.best("--set-threads", "run_sweep=4", "--set-resources", "run_sweep:mem_mb=3000")
    facts = seen(project)
    assert {fact["nodes"] for fact in facts} == {3}
    assert {fact["total"]["CPU"] for fact in facts} == {12}
    assert {fact["total"]["GPU"] for fact in facts} == {0}
    assert {fact["total"]["memory"] + fact["total"]["object_store_memory"] for fact in facts} == {3 * 3000 * 2**20}
    # Trials without a GPU see none, and nothing that would make a library take itself for one task of many.
    assert {fact["cuda"] for fact in facts} == {""}
    assert {tuple(fact["slurm"]) for fact in facts} <= {("SLURM_CONF", "SLURM_JOB_ID", "SLURM_TMPDIR"), ("SLURM_JOB_ID", "SLURM_TMPDIR")}
    # What trials write for the moment lies on the node's own disk, and goes with the job.
    assert all(str(fact["tmp"]).startswith("/mnt/") for fact in facts)


def test_a_sweep_begins_with_min_nodes_and_a_slow_node_joins_and_they_are_one_cluster_with_a_made_up_nvidia_smi(
    project: SlurmProject, gpus: Path
) -> None:
    (gpus / "hold" / "node3").touch()
    project.sweep("waits", nodes=3, gpus=1, allocation={"min_nodes": 2}, num_samples=3, trial_resources={"cpu": 1, "gpu": 1})
    run = project.start()
    wait_until(lambda: "Ray is up on 2 of 3 nodes" in project.log() and project.begun() == 2, f"two nodes begin: {project.log()}", 400)
    (gpus / "hold" / "node3").unlink()
    wait_until(lambda: project.begun() == 3, f"the third trial runs on the third node: {project.log()}", 400)
    assert sum(" -m snakemake " in line for _, line in processes_of(project.cluster, project.job_of("s")).values()) == 1
    (project.folder / "go").touch()
    assert run.wait(400) == 0
    assert re.search(
        r"Ray is up on 2 of 3 nodes after [\d.]+ s: 12 CPUs, 2 GPUs \(start of the job \d+ s, environment [\d.]+ s, head [\d.]+ s, workers [\d.]+ s\)",
        project.log(),
    )
    assert re.search(r"node3 has joined after [\d.]+ s: 3 of 3 nodes", project.log())
    names = {"node1", "node2", "node3"}
    assert {trial["node"] for trial in project.trials("s")} == {fact["host"] for fact in seen(project)} == names
    assert {(fact["nodes"], fact["total"]["CPU"], fact["total"]["GPU"]) for fact in seen(project)} == {(3, 18, 3)}


def test_a_node_whose_gpu_is_not_there_is_named_in_snakemakes_own_output_with_a_made_up_nvidia_smi(
    project: SlurmProject, gpus: Path
) -> None:
    (gpus / "broken" / "node2").touch()
    project.sweep(nodes=2, gpus=1, trial_resources={"cpu": 1, "gpu": 1})
    run = project.best(check=False)
    assert run.returncode == 1
    [line] = [line for line in (run.stdout + run.stderr).splitlines() if line.startswith("Error") and "node2" in line]
    assert "Slurm gave 1 GPUs, but nvidia-smi says No devices were found" in line
    assert "Traceback" not in project.log()


@pytest.mark.parametrize(
    "around",
    [["salloc", "--ntasks=1"], ["sbatch", "--wait", "--time=60", "--cpus-per-task=2", "--mem=1G", "--wrap"]],
    ids=lambda around: around[0],
)
def test_from_inside_a_job_the_same_command_submits_new_jobs(project: SlurmProject, around: list[str]) -> None:
    project.sweep()
    command = project.command("results/s/best.yaml")
    if around[-1] == "--wrap":
        command = [shlex.join(map(str, command))]
    done = project.cluster.run([*around, *command], cwd=project.folder)
    printed = "".join(path.read_text() for path in project.folder.glob("slurm-*.out"))  # of what was wrapped
    assert "has been submitted with SLURM jobid" in done.stdout + done.stderr + printed
    [fact] = seen(project)
    assert fact["total"]["CPU"] == 6


def test_a_trial_with_a_worker_on_each_of_two_nodes_goes_on_after_a_sigkill(project: SlurmProject) -> None:
    resources = {"cpu": 1, "workers": {"num": 2, "cpu": 2}, "reuse_processes": False}
    project.sweep(
        "distributed", nodes=2, cpus=3, search_space={"x": {"grid": [2]}}, max_epochs=4, max_failures=0, trial_resources=resources
    )
    run = project.start()
    wait_until(lambda: any(2 in trial.checkpoints for trial in project.record("s").trials.values()), f"a checkpoint: {project.log()}", 400)
    [driver] = [pid for pid, (_, line) in processes_of(project.cluster, project.job_of("s")).items() if "drive.py" in line]
    os.kill(driver, signal.SIGKILL)
    assert run.wait(300) == 1
    (project.folder / "go").touch()
    project.best()
    [trial] = project.record("s").trials.values()
    assert [(result.epoch, result.metrics["score"]) for result in trial.results] == [(1, 4), (2, 8), (3, 12), (4, 16)]
    assert [attempt.from_epoch for attempt in trial.attempts] == [0, 2]
    facts = seen(project)  # of each worker in each epoch
    assert (len(facts), len({fact["host"] for fact in facts})) == (8, 2)
    assert all(fact["is_own_ray"] for fact in facts)
    assert (project.folder / "results/s/model/epoch").read_text() == "4"


def test_confirm_and_report_follow_on_one_node(project: SlurmProject) -> None:
    project.sweep(nodes=2, cpus=2, allocation={"partitions": ["main"], "runtime_min": 20, "resubmit": 1})
    project.cluster.run(project.command(), cwd=project.folder)
    job = project.cluster.run(["scontrol", "show", "job", project.job_of("s")]).stdout
    for fact in ("JobName=raysweep-s\n", "Requeue=1 ", "TimeMin=00:20:00\n", "Partition=main "):
        assert fact in job
    assert project.result("s", "confirmed.yaml")["n"] == 1
    assert (project.folder / "results" / "s" / "report.html").stat().st_size > 10_000
    confirm = (project.folder / "logs" / "confirm" / "s.log").read_text()
    assert re.search(r"Ray is up after [\d.]+ s: 2 CPUs, 0 GPUs", confirm)
    again = project.cluster.run(project.command(), cwd=project.folder)
    assert "Nothing to be done" in again.stdout + again.stderr
    planned = project.cluster.run(project.command("plan"), cwd=project.folder)
    assert re.search(r"\nsweep s\n  trials      1, all done\n  confirm     at most ", planned.stdout + planned.stderr)
    project.sweep(nodes=2, cpus=2, num_samples=3)
    planned = project.cluster.run(project.command("plan"), cwd=project.folder)
    assert re.search(r"\n  trials      3, 2 of them left: 2 at a time, .*\n  nodes       2, with 4 CPUs\n", planned.stdout + planned.stderr)
