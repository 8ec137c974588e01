"""Several jobs work on one sweep: each joins when it starts, and another one leads on when the leader ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from raysweep.record.events import NodeEvent
from slurm.cluster import GUEST, GUEST_UID, REPOSITORY, SlurmCluster, wait_until
from slurm.conf import PREEMPTION
from slurm.packages import IS_ROOT
from slurm.sweeps import SlurmProject, left_of, project_on
from sweeping import SLOW_NET


@pytest.fixture
def project(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmProject]:
    with project_on(slurm, tmp_path_factory.mktemp("several") / "a project") as project:
        yield project


def jobs_of(project: SlurmProject) -> dict[str, str]:
    """The jobs of the sweep that run: id → node."""
    listed = project.cluster.run(["squeue", "--me", "--noheader", "--states=RUNNING", "--format=%i %N"]).stdout
    return dict(line.split() for line in listed.splitlines())


def leader_of(project: SlurmProject) -> str:
    job = project.record("s").sessions[-1].slurm_job
    assert job is not None
    return job


def watched(project: SlurmProject) -> str:
    """What `make watch` prints of the sweep, without spaces at the ends of lines."""
    script = REPOSITORY / "workflow/scripts/watch.py"
    text = project.cluster.run([sys.executable, script, "--once", "--state-dir", project.folder / "state"]).stdout
    return "\n".join(line.rstrip() for line in text.splitlines())


@contextlib.contextmanager
def sweep_of_another_user(cluster: SlurmCluster) -> Iterator[None]:
    """Another user's sweep of two jobs on the same nodes, which must have all its results at the end of the block."""
    if not IS_ROOT:
        yield
        return
    with project_on(cluster, cluster.shared / "a guest's project", GUEST) as project:
        project.sweep("climb", cpus=2, num_samples=6, max_epochs=20, trial_resources={"cpu": 1}, allocation={"jobs": 2})
        for path in (project.folder, *project.folder.rglob("*")):
            os.chown(path, GUEST_UID, GUEST_UID, follow_symlinks=False)
        run = project.start(env={"HOME": str(cluster.base / "home" / GUEST)})
        yield
        said, _ = run.communicate(timeout=300)
        assert run.returncode == 0, f"{said}\n{project.log()}"
        assert [(trial.status, trial.epochs) for trial in project.record("s").trials.values()] == [("TERMINATED", 20)] * 6


def test_the_jobs_of_a_sweep_are_one_ray_cluster_and_another_leads_on_when_the_leader_ends(project: SlurmProject) -> None:
    with sweep_of_another_user(project.cluster):
        sweep_that_loses_its_leader(project)


def sweep_that_loses_its_leader(project: SlurmProject) -> None:
    allocation = {"jobs": 3}
    project.sweep("dawdles", cpus=2, num_samples=6, max_epochs=200, max_failures=0, trial_resources={"cpu": 2}, allocation=allocation)
    run = project.start()
    saved = lambda: sum(bool(trial.checkpoints) for trial in project.record("s").trials.values())  # noqa: E731
    wait_until(lambda: saved() == 3, f"a trial on each job has saved something: {project.log()}", 120)
    jobs, leader = jobs_of(project), leader_of(project)
    assert len(jobs) == 3
    assert {event.job for event in project.record("s").nodes} == jobs.keys() - {leader}
    shown = watched(project)
    assert "jobs of" in shown
    assert re.search(rf"^{leader} +RUNNING +{jobs[leader]} +leads$", shown, re.MULTILINE), shown
    assert len(re.findall(r" joined$", shown, re.MULTILINE)) == 2, shown
    run.kill()  # Snakemake
    run.communicate()
    project.cluster.run(["scancel", leader])
    wait_until(lambda: len(project.record("s").sessions) == 2, f"another job leads: {project.log()}", 120)
    run = project.start()
    notes = lambda: "".join(path.read_text() for path in project.folder.glob(".snakemake/raysweep/*/notes.jsonl"))  # noqa: E731
    wait_until(lambda: '"taken_up": true' in notes(), "the second Snakemake follows the jobs of the first")
    wait_until(lambda: len(jobs_of(project)) == 2, "the leader is gone")
    assert leader_of(project) in jobs.keys() - {leader}
    (project.folder / "go").touch()
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 0, f"{said}\n{project.log()}"
    sweep = project.record("s")
    assert [trial.status for trial in sweep.trials.values()] == ["TERMINATED"] * 6
    for trial in sweep.trials.values():
        assert [result.epoch for result in trial.results] == list(range(1, 201))
        assert trial.results[-1].metrics["score"] == pytest.approx(200 * trial.config["x"])
    assert len(sweep.sessions) == 2
    assert (project.folder / "results/s/best.yaml").exists()
    wait_until(lambda: jobs_of(project) == {}, "all jobs have ended")
    assert [left_of(project.cluster, job) for job in jobs] == [[], [], []]
    logs = "".join(path.read_text() for path in (project.folder / "logs/slurm").rglob("*.log"))
    assert len(re.findall(r"s: joining job \d+_\d+\.", logs)) == 3
    assert len(re.findall(r"s: job \d+_\d+ leads", project.log())) == 2, "the sweep is finished once"


def preempt(project: SlurmProject, job: str) -> None:
    """Take the node of a job for a job of a higher priority, which ends at once, and wait until the sweep has the node again."""
    node, joined = jobs_of(project)[job], len(joins_of(project, job))
    project.cluster.sbatch("--partition=high", f"--nodelist={node}", "--exclusive", "--output=/dev/null", "--wrap=true")
    wait_until(lambda: len(joins_of(project, job)) > joined, f"job {job} has come back: {project.log()}", 240)


def joins_of(project: SlurmProject, job: str) -> list[NodeEvent]:
    return [event for event in project.record("s").nodes if event.job == job and event.state == "joined"]


@pytest.mark.skipif(not IS_ROOT, reason="only root can make a node's disk small")
def test_a_broken_node_takes_no_job_twice_and_a_preemption_with_a_grace_time_costs_no_epoch(
    start_slurm: Callable[..., SlurmCluster], tmp_path_factory: pytest.TempPathFactory
) -> None:
    cluster = start_slurm(slurm_conf_extra=PREEMPTION)
    fill = "mount -t tmpfs -o mode=1777,size=4k none /mnt; head -c 4096 /dev/zero > /mnt/full"
    cluster.run(["sh", "-c", fill], node="node1")  # Slurm gives out this node first
    with project_on(cluster, tmp_path_factory.mktemp("preempted") / "a project") as project:
        allocation = {"jobs": 2, "partitions": ["low"]}
        project.sweep("dawdles", cpus=12, num_samples=4, max_epochs=500, max_failures=0, trial_resources={"cpu": 6}, allocation=allocation)
        run = project.start()
        saved = lambda: sum(bool(trial.checkpoints) for trial in project.record("s").trials.values())  # noqa: E731
        wait_until(lambda: saved() == 4, f"two trials on each job have saved something: {project.log()}", 240)
        assert set(jobs_of(project).values()) == {"node2", "node3"}
        [excluded] = {line for line in cluster.run(["squeue", "--noheader", "--format=%x"]).stdout.split() if line != "(null)"}
        assert excluded == "node1"
        leader = leader_of(project)
        [member] = jobs_of(project).keys() - {leader}
        preempt(project, member)
        assert leader_of(project) == leader
        preempt(project, leader)
        assert leader_of(project) == member
        reported = lambda: [trial.epochs for trial in project.record("s").trials.values()]  # noqa: E731
        before = reported()
        wait_until(lambda: all(map(int.__lt__, before, reported())), f"all trials go on: {project.log()}")
        (project.folder / "go").touch()
        said, _ = run.communicate(timeout=300)
        assert run.returncode == 0, f"{said}\n{project.log()}"
        reports = [event for event in map(json.loads, (project.folder / "state/s/record.jsonl").open()) if event["event"] == "result"]
        assert Counter((event["trial"], event["epoch"]) for event in reports) == {
            (f"{trial:05d}", epoch): 1 for trial in range(4) for epoch in range(1, 501)
        }, "no epoch is trained twice"
        assert all(trial.failures == [] for trial in project.record("s").trials.values())


def test_trials_that_are_trained_together_spread_over_the_jobs_and_go_on_when_the_leader_ends(project: SlurmProject) -> None:
    project.write("net.py", SLOW_NET)
    space = {"lr": {"loguniform": [1e-3, 1e-1]}, "batch_size": {"choice": [32, 64]}, "pause_s": 0.005}
    model = {"dataset": "generated", "model": "net.py:Net", "metric": "accuracy", "search_space": space, "num_samples": 6, "max_epochs": 12}
    allocation = {"jobs": 3, "cpus_per_node": 1, "mem_mb_per_node": 12000, "runtime": 60}  # a node has the memory of one job
    sweep = {**model, "fuse": "on", "max_failures": 0, "allocation": allocation}
    project.configure(datasets={"generated": {"source": "synthetic"}}, sweeps={"s": sweep})
    run = project.start()
    saved = lambda: sum(bool(trial.checkpoints) for trial in project.record("s").trials.values())  # noqa: E731
    wait_until(lambda: saved() == 6, f"two trials on each node have saved something: {project.log()}", 240)
    assert sorted(jobs_of(project).values()) == ["node1", "node2", "node3"]
    project.cluster.run(["scancel", leader_of(project)])
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 0, f"{said}\n{project.log()}"
    recorded = project.record("s")
    assert len(recorded.sessions) == 2
    assert "up to 2 in each of 3 processes" in project.log()
    for trial in recorded.trials.values():
        assert (trial.status, [result.epoch for result in trial.results]) == ("TERMINATED", list(range(1, 13)))
        assert trial.failures == []
        assert trial.attempts[-1].from_epoch > 0
