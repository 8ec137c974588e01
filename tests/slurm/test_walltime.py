"""The end of a job's time, and Slurm's own way to start a job again, cost no more than what was since the last checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from slurm.cluster import SlurmCluster, wait_until
from slurm.sweeps import SlurmProject, project_on
from sweeping import sweep_of

# A job has half of its time, and bringing Ray up is part of that. Trials of a second an epoch have more epochs than that has seconds.
RUNTIME_MINUTES = 4
EPOCHS = 150


@pytest.fixture(scope="module")
def project(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmProject]:
    """Three sweeps at a time: one that may start itself again, one that may not, and one that Slurm starts again."""
    with project_on(slurm, tmp_path_factory.mktemp("walltime") / "a project") as project:
        allocation = {"cpus_per_node": 2, "gpus_per_node": 0, "mem_mb_per_node": 1000}
        short = {"runtime": RUNTIME_MINUTES}
        allocations = {"goes_on": short | {"resubmit": 30}, "stops": short, "requeued": {"runtime": 60}}
        project.configure(
            sweeps={
                name: sweep_of("dawdles", allocation=allocation | own, num_samples=2, max_epochs=EPOCHS, max_failures=0)
                for name, own in allocations.items()
            }
        )
        run = project.cluster.popen(project.command(*(f"results/{name}/best.yaml" for name in allocations)), cwd=project.folder)
        saved = lambda: [trial for trial in project.record("requeued").trials.values() if trial.checkpoints]  # noqa: E731
        wait_until(lambda: len(saved()) == 2, f"the trials are on their way: {project.log('requeued')}", 300)
        slurm.run(["scontrol", "requeue", project.job_of("requeued")])
        partial = project.folder / "state" / "requeued" / "best.yaml"
        wait_until(partial.exists, "what is best so far can be read")
        project.best_so_far = yaml.safe_load(partial.read_text())
        wait_until(lambda: len(project.record("goes_on").sessions) > 1, f"it has started itself again: {project.log('goes_on')}", 600)
        wait_until(lambda: project.record("stops").sessions[-1].outcome is not None, f"it stops: {project.log('stops')}", 400)
        (project.folder / "go").touch()
        project.said, _ = run.communicate(timeout=900)
        project.code = run.returncode
        yield project


def continuous(project: SlurmProject, name: str) -> bool:
    """Whether each trial went through its epochs once, counting only what was kept, and went on from where it was."""
    trials = project.record(name).trials.values()
    return all([result.epoch for result in trial.results] == list(range(1, trial.epochs + 1)) for trial in trials) and all(
        trial.results[-1].metrics["score"] == pytest.approx(trial.epochs * trial.config["x"]) for trial in trials
    )


def test_a_job_whose_time_is_nearly_up_saves_and_starts_itself_again_under_its_id(project: SlurmProject) -> None:
    sweep = project.record("goes_on")
    assert [trial.status for trial in sweep.trials.values()] == ["TERMINATED"] * 2, project.log("goes_on")
    *begun_again, last = [session.outcome for session in sweep.sessions]
    assert begun_again == ["started again"] * len(begun_again) != []
    assert last == "complete"
    assert len({session.slurm_job for session in sweep.sessions}) == 1
    assert continuous(project, "goes_on")
    assert all(trial.attempts[-1].from_epoch > 0 for trial in sweep.trials.values()), "they were saved in time"
    assert all(trial.failures == [] for trial in sweep.trials.values())
    assert (project.folder / "results" / "goes_on" / "best.yaml").exists()


def test_without_leave_to_start_again_it_says_how_far_it_came(project: SlurmProject) -> None:
    assert project.code == 1
    [line] = [line for line in project.said.splitlines() if line.startswith("Error: ")]
    job = project.record("stops").sessions[-1].slurm_job
    assert line == (
        f"Error: sweep stops: incomplete, resumable: 0 of 2 trials done, and the time of job {job} is nearly up"
        " (with allocation.resubmit it would go on by itself). Run the same command again."
    )
    assert [session.outcome for session in project.record("stops").sessions] == ["out of time"]
    assert [trial.status for trial in project.record("stops").trials.values()] == ["PENDING"] * 2
    assert continuous(project, "stops")


def test_a_job_that_slurm_starts_again_goes_on(project: SlurmProject) -> None:
    sweep = project.record("requeued")
    assert [trial.status for trial in sweep.trials.values()] == ["TERMINATED"] * 2, project.log("requeued")
    assert len(sweep.sessions) == 2
    assert len({session.slurm_job for session in sweep.sessions}) == 1
    assert continuous(project, "requeued")
    assert all(trial.attempts[-1].from_epoch > 0 for trial in sweep.trials.values())
    logs = [path.read_text() for path in sorted((project.folder / "logs" / "run_sweep" / "requeued").iterdir())]
    assert [log.count("requeued: 2 trials") for log in logs] == [1, 1], "each session has a log of its own"


def test_what_is_best_so_far_is_read_while_it_runs(project: SlurmProject) -> None:
    best = project.best_so_far
    assert (best["sweep"], best["num_trials"]) == ("requeued", 2)
    assert best["metric"]["value"] > 0
    assert (project.folder / "state" / "stops" / "trials.csv").read_text().count("PENDING") == 2
