"""Nodes that lose their power in the middle of a sweep: one of many, and the first one, on which Ray's head and the driver run."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import psutil
import pytest

from slurm.cluster import SlurmCluster, wait_until
from slurm.conftest import Factory
from slurm.supervisor import is_alive
from slurm.sweeps import SlurmProject, processes_of, project_on


@pytest.fixture
def cluster(start_slurm: Factory) -> SlurmCluster:
    return start_slurm(slurmd_timeout_s=10, message_timeout_s=5)


@pytest.fixture
def project(cluster: SlurmCluster) -> Iterator[SlurmProject]:
    with project_on(cluster, cluster.shared / "a project") as project:
        yield project


def saved(project: SlurmProject) -> int:
    return sum(trial.status == "RUNNING" and bool(trial.checkpoints) for trial in project.record("s").trials.values())


def start(project: SlurmProject, epochs: int) -> subprocess.Popen[str]:
    """A sweep on two nodes, on each of which a trial runs that has saved something."""
    project.sweep("dawdles", nodes=2, cpus=1, num_samples=2, max_epochs=epochs, max_failures=0, trial_resources={"cpu": 1})
    run = project.start()
    wait_until(lambda: saved(project) == 2, f"both trials have saved something: {project.log()}", 300)
    return run


def continuous(project: SlurmProject, epochs: int) -> bool:
    """Whether each trial went through its epochs once, and went on from where it was."""
    trials = project.record("s").trials.values()
    return all([result.epoch for result in trial.results] == list(range(1, epochs + 1)) for trial in trials) and all(
        trial.results[-1].metrics["score"] == pytest.approx(epochs * trial.config["x"]) for trial in trials
    )


def test_the_sweep_goes_on_without_a_node_and_its_trials_go_on_elsewhere(project: SlurmProject) -> None:
    run = start(project, epochs=100)
    project.cluster.power_off("node2")
    wait_until(lambda: len(project.record("s").nodes) == 1, f"the loss is noticed: {project.log()}")
    (project.folder / "go").touch()
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 0, f"{said}\n{project.log()}"
    sweep = project.record("s")
    assert [trial.status for trial in sweep.trials.values()] == ["TERMINATED"] * 2, [trial.failures for trial in sweep.trials.values()]
    assert continuous(project, 100)
    [moved] = [trial for trial in sweep.trials.values() if len(trial.attempts) > 1]
    assert [failure.counted for failure in moved.failures] == [False], "it is not to blame"
    assert (moved.attempts[0].node, moved.attempts[-1].node) == ("node2", "node1")
    assert moved.attempts[-1].from_epoch > 0
    assert [(node.node, node.state) for node in sweep.nodes] == [("node2", "lost")]
    assert len(sweep.sessions) == 1


def test_when_the_first_node_is_lost_nothing_is_left_on_the_others_and_the_sweep_goes_on(project: SlurmProject) -> None:
    run = start(project, epochs=100)
    job = project.job_of("s")
    # Slurm may start it again on node2 at once.
    processes = [psutil.Process(pid) for pid, (node, _) in processes_of(project.cluster, job).items() if node == "node2"]
    files = [*project.cluster.node_path("node2", "/mnt").glob(f"*.{job}.0/*")]
    assert processes
    assert files
    left = lambda: [one for one in processes if is_alive(one)] + [path for path in files if path.exists()]  # noqa: E731
    project.cluster.power_off("node1")
    wait_until(lambda: left() == [], f"nothing is left on node2: {left()}", 120)
    (project.folder / "go").touch()
    said, _ = run.communicate(timeout=400)
    assert run.returncode == 0, f"{said}\n{project.log()}"
    sweep = project.record("s")
    assert [trial.status for trial in sweep.trials.values()] == ["TERMINATED"] * 2, project.log()
    assert continuous(project, 100)
    assert all(trial.attempts[-1].from_epoch > 0 for trial in sweep.trials.values())
    assert len({session.slurm_job for session in sweep.sessions}) == 1, "Slurm started it again"
