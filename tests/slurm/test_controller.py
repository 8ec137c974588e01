"""What a user sees when Slurm refuses a job, and when his Snakemake dies. On a real Slurm, with a small workflow that submits as the project does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm.cluster import ACCOUNT, REPOSITORY, SlurmCluster, wait_until
from slurm.tiny import Workflow, ended

Factory = Callable[..., SlurmCluster]
Begin = Callable[[str], Workflow]
DETACH = REPOSITORY / "workflow/scripts/detach.py"
WAIT = 'while [ ! -e go ]; do sleep 0.1; done; mkdir -p results; hostname > "$2"'


@pytest.fixture
def begin(slurm: SlurmCluster, tmp_path: Path) -> Iterator[Begin]:
    """Makes the workflow of a test, with that job. What a test that failed has left on the cluster, the next ones do not meet."""
    begun: list[Workflow] = []

    def begin(job: str) -> Workflow:
        begun.append(Workflow(slurm, tmp_path / "a project", job))
        return begun[-1]

    yield begin
    for job in [job for workflow in begun for job in workflow.jobs()]:
        slurm.run(["scancel", job], check=False)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--default-resources", "slurm_partition=nosuch"],
            "Error: sweep a: Slurm refused the job: invalid partition specified: nosuch; Invalid partition name specified. Change slurm_partition"
            " (now nosuch) in cluster/config.yaml; `sinfo --summarize` lists what there is.",
        ),
        (
            ["--config", "partitions=main,nosuch"],
            "Error: sweep a: Slurm refused the job: invalid partition specified: nosuch; Invalid partition name specified. Change"
            " sweeps.a.allocation.partitions (now main,nosuch); `sinfo --summarize` lists what there is.",
        ),
        (
            ["--config", "nodes=9"],
            "Error: sweep a: Slurm refused the job: More processors requested than permitted. Change sweeps.a.allocation.nodes (now 9) or"
            " cpus_per_node (now 10), or slurm_partition (now empty) in cluster/config.yaml.",
        ),
        (
            ["--config", "runtime=30", "--default-resources", "slurm_partition=short"],
            "Error: sweep a: Slurm refused the job: Requested time limit is invalid (missing or exceeds some limit). Change"
            " sweeps.a.allocation.runtime (now 30 minutes), or slurm_partition (now short) in cluster/config.yaml.",
        ),
    ],
)
def test_what_slurm_refuses_is_the_last_line(begin: Begin, arguments: list[str], line: str) -> None:
    workflow = begin("true")
    code, lines = workflow.run(*arguments)
    assert code == 1
    assert lines[-1] == line
    assert [said for said in lines if said.startswith("Error: ")] == [line]
    assert workflow.jobs() == []


def test_an_account_that_does_not_exist_is_the_last_line(start_slurm: Factory) -> None:
    cluster = start_slurm(nodes=1, accounting=True)
    workflow = Workflow(cluster, cluster.shared / "a project", 'mkdir -p results; hostname > "$2"')
    code, lines = workflow.run("--default-resources", "slurm_account=nosuch")
    assert code == 1
    assert lines[-1].startswith(
        "Error: sweep a: the job was not submitted: The given account nosuch appears to be invalid. Available accounts: "
    )
    assert lines[-1].endswith("Change slurm_account (now nosuch) or slurm_partition (now not set) in cluster/config.yaml.")
    code, lines = workflow.run("--default-resources", f"slurm_account={ACCOUNT}")
    assert code == 0


def test_a_job_for_which_no_nodes_are_free_in_time_is_given_up(slurm: SlurmCluster, begin: Begin) -> None:
    """With what `max_wait: 1` asks for, see test_allocation.py."""
    workflow = begin("true")
    others = slurm.sbatch("--nodes=3", "--exclusive", "--wrap=sleep 600")
    try:
        wait_until(lambda: slurm.job_state(others) == "RUNNING", "others have the nodes")
        code, lines = workflow.run("--config", "runtime=1", "options=--deadline=now+2minutes")
    finally:
        slurm.run(["scancel", others])
    assert code == 1
    assert lines[-1].startswith("Error: sweep a: no nodes were free for job ")
    assert "within allocation.max_wait. Change sweeps.a.allocation (nodes, " in lines[-1]


def test_a_job_whose_snakemake_was_killed_is_taken_up_if_nothing_has_changed(slurm: SlurmCluster, begin: Begin) -> None:
    workflow = begin(WAIT)
    process = workflow.start()
    job = workflow.running_job()
    os.kill(process.pid, signal.SIGKILL)
    ended(process)

    code, lines = workflow.run("--config", "runtime=20")
    assert code == 1
    assert lines[-1] == (
        f"Error: sweep a: its job {job} of an earlier run is still there (RUNNING) and was submitted with other options of sbatch and another command of"
        f" Snakemake, so no second one is started. Wait for its end (`make watch` follows it) and run the same command again, or end it with `scancel {job}`."
    )
    assert workflow.jobs() == [job]

    process = workflow.start()
    wait_until(lambda: '"taken_up": true' in notes_of(workflow), "the job is taken up")
    (workflow.folder / "go").touch()
    assert_reported(workflow, process, [job])
    assert f"Job {job} was submitted by an earlier run, and nothing has changed. It is followed to its end." in (
        "".join(path.read_text() for path in (workflow.folder / ".snakemake/log").iterdir())
    )


def test_detached_jobs_go_on_and_are_taken_up_whether_they_wait_run_or_have_ended(slurm: SlurmCluster, begin: Begin) -> None:
    """A job that waits in the queue needs nothing of the Snakemake that submitted it, which removes its files at its end."""
    workflow = begin(WAIT)
    others = slurm.sbatch("--nodes=3", "--exclusive", "--wrap=sleep 600")
    wait_until(lambda: slurm.job_state(others) == "RUNNING", "others have the nodes")
    process = workflow.start()
    wait_until(lambda: '"job"' in notes_of(workflow), "the job is submitted")
    [job] = workflow.jobs()
    message = f"Snakemake has left to Slurm: job {job} (sweep a). The same command follows it again."
    for state in ("PENDING", "RUNNING"):
        detached = slurm.run([sys.executable, DETACH, "--directory", workflow.folder])
        assert detached.stderr + detached.stdout == f"{message}\n"
        code, lines = ended(process)
        assert (code, lines[-1]) == (1, message)
        assert not [line for line in lines if line.startswith("Error: ") or "Traceback" in line]
        assert slurm.job_state(job) == state
        assert list(workflow.folder.glob(".snakemake/tmp.*")) == []
        if state == "PENDING":
            process = workflow.start()
            wait_until(lambda: '"taken_up": true' in notes_of(workflow), "the job is taken up")
            slurm.run(["scancel", others])
            wait_until(lambda: slurm.job_state(job) == "RUNNING", "the job runs")
    (workflow.folder / "go").touch()
    wait_until(lambda: slurm.job_state(job) == "COMPLETED", "the job ends while no Snakemake is there")
    assert not (workflow.folder / "reported_on").exists()
    assert_reported(workflow, workflow.start(), [job])
    nobody = slurm.run([sys.executable, DETACH, "--directory", workflow.folder], check=False)
    assert (nobody.returncode, f"Error: no Snakemake is at work in {workflow.folder}." in nobody.stderr) == (1, True)


def notes_of(workflow: Workflow) -> str:
    return "".join(path.read_text() for path in workflow.folder.glob(".snakemake/raysweep/*/notes.jsonl"))


def assert_reported(workflow: Workflow, process: subprocess.Popen[str], jobs: list[str]) -> None:
    """The run ends well, and these were its only jobs."""
    code, lines = ended(process)
    assert code == 0, "\n".join(lines)
    assert workflow.jobs() == jobs
    assert list((workflow.folder / ".snakemake/incomplete").iterdir()) == []
    assert (workflow.folder / "results/a").read_text().startswith("node")
    assert (workflow.folder / "reported_on").read_text() == "login\n"


def test_ctrl_c_cancels_the_job(slurm: SlurmCluster, begin: Begin) -> None:
    workflow = begin(WAIT)
    process = workflow.start()
    job = workflow.running_job()
    cpus_name_partitions = slurm.run(["squeue", "--noheader", f"--jobs={job}", "--format=%C %j %P"]).stdout.split()
    assert cpus_name_partitions == ["10", "raysweep-a", "main"]  # the CPUs are those of the job, whatever `local-cores` says
    wait_until(lambda: '"state": "RUNNING"' in notes_of(workflow), f"Snakemake knows of its job: {notes_of(workflow)}")
    os.killpg(process.pid, signal.SIGINT)
    code, lines = ended(process)
    assert code == 1
    assert not [line for line in lines if line.startswith("Error: ") or "Traceback" in line]
    wait_until(lambda: slurm.job_state(job) == "CANCELLED", "the job is cancelled")
    assert not (workflow.folder / "results/a").exists()


def test_ctrl_c_while_snakemake_asks_a_slow_squeue_cancels_all_jobs(slurm: SlurmCluster, begin: Begin, tmp_path: Path) -> None:
    workflow = begin(f'if [ "$1" = b ]; then mkdir -p results; hostname > "$2"; exit; fi; {WAIT}')
    programs = tmp_path / "slow"
    programs.mkdir()
    real = slurm.run(["sh", "-c", "command -v squeue"]).stdout.strip()
    (programs / "squeue").write_text(f'#!/bin/sh\n: > "{tmp_path}/asking"\nsleep 4\nexec "{real}" "$@"\n')
    (programs / "squeue").chmod(0o755)
    process = slurm.popen(
        ["sh", "-c", f'PATH="{programs}:$PATH"; exec "$@"', "sh", *workflow.argv("--jobs", "2", "--config", "sweeps=a,b", "runtime=20")],
        cwd=workflow.folder,
    )
    states = lambda: sorted(str(slurm.job_state(job)) for job in workflow.jobs())  # noqa: E731
    wait_until(lambda: states() == ["COMPLETED", "RUNNING"], "one job ends, the other runs")
    (tmp_path / "asking").unlink(missing_ok=True)
    wait_until((tmp_path / "asking").exists, "Snakemake asks for the states of its jobs")
    os.killpg(process.pid, signal.SIGINT)
    code, lines = ended(process)
    assert code == 1
    assert not [line for line in lines if "Unable to cancel" in line or "Traceback" in line]
    said = "\n".join(lines)
    wait_until(lambda: states() == ["CANCELLED", "COMPLETED"], f"the other job is cancelled: {states()}\n{said}")
