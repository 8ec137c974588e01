"""However a sweep on Slurm ends, nothing of it is left, Snakemake ends too and says why, and the same command goes on.

All ways to end are seen in one run, at the same time, since to bring up a cluster takes longer than to end it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from slurm.cluster import SlurmCluster, wait_until
from slurm.sweeps import SlurmProject, left_of, processes_of, wait_until_idle
from sweeping import sweep_of

END_S = 90  # Slurm kills 30 s after it has asked (KillWait)
BEGIN_S = 400  # eight sweeps begin at once
ON_TWO_NODES = ("agent", "worker", "srun")
# Of a sweep's job, what is killed: a part of its command line, and on which of the job's nodes.
KILLED = {
    "driver": ("/drive.py --job", 0),
    "launcher": ("/run_sweep.py --sweep launcher ", 0),
    "srun": ("srun --overlap", 0),
    "agent": ("/agent.py", 0),
    "worker": ("/agent.py", 1),
}


class Sweeps(SlurmProject):
    """Some sweeps of a project, run by one Snakemake: name → trainable, minutes. Those of which a whole node is lost to them have two nodes."""

    def __init__(self, cluster: SlurmCluster, folder: Path, sweeps: dict[str, tuple[str, int]]) -> None:
        super().__init__(cluster, folder)
        allocation = {"cpus_per_node": 2, "gpus_per_node": 0, "mem_mb_per_node": 1000}
        two = {"nodes": 2, "cpus_per_node": 1}
        self.configure(
            sweeps={
                name: sweep_of(
                    function, num_samples=3, allocation=allocation | (two if name in ON_TWO_NODES else {}) | {"runtime": runtime}
                )
                for name, (function, runtime) in sweeps.items()
            }
        )
        self.jobs: dict[str, str] = {}
        self.node_killed: dict[str, str] = {}
        self.process = self.begin(*sweeps)

    def begin(self, *sweeps: str) -> subprocess.Popen[str]:
        return self.cluster.popen(self.command(*(f"results/{name}/best.yaml" for name in sweeps)), cwd=self.folder)

    def wait_for_trials(self, name: str) -> None:
        """Until two trials run, and the one that does not wait is done."""
        log = self.folder / "logs" / "run_sweep" / f"{name}.log"
        first = ["TERMINATED"] if self.config()["sweeps"][name]["trainable"].endswith(":waits_but_first") else []
        states = lambda: sorted(trial.status for trial in self.record(name).trials.values() if trial.status != "PENDING")  # noqa: E731
        wait_until(lambda: states() == ["RUNNING"] * 2 + first, f"the trials of {name} run: {log.exists() and log.read_text()}", BEGIN_S)

    def kill(self, name: str) -> None:
        """What is in KILLED. The command lines of `srun` and of Ray's raylet have the agent's on them too, or one like it."""
        what, index = KILLED[name]
        self.node_killed[name] = self.cluster.nodes_of(self.jobs[name])[index]
        found = {
            pid: line
            for pid, (where, line) in processes_of(self.cluster, self.jobs[name]).items()
            if where == self.node_killed[name] and what in line and "/raylet" not in line and (name == "srun" or "srun --" not in line)
        }
        assert found, f"{name}: there is nothing to kill"
        # srun has two processes, of which the second, when the first is gone, has Slurm kill the agents.
        victims = [pid for pid in found if name != "srun" or psutil.Process(pid).ppid() not in found]
        for number in (signal.SIGSTOP, signal.SIGKILL):  # of several, none is to act on the end of another
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def said(self) -> list[str]:
        self.output, _ = self.process.communicate(timeout=400)
        return self.output.splitlines()


@dataclass
class Ends:
    """What was seen: of each sweep its job, what was left of that after END_S, and of each Snakemake its exit code and its lines."""

    failing: Sweeps
    whole: Sweeps
    interrupted: Sweeps
    left: dict[str, list[str]] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)

    @property
    def jobs(self) -> dict[str, str]:
        return self.failing.jobs | self.whole.jobs | self.interrupted.jobs

    @property
    def projects(self) -> dict[str, Sweeps]:
        return {"failing": self.failing, "whole": self.whole, "interrupted": self.interrupted}


@pytest.fixture(scope="module")
def ends(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    base = tmp_path_factory.mktemp("ends")
    ways = {"limit": ("waits", 1), "cancelled": ("waits_but_first", 60)}
    ways |= dict.fromkeys(("driver", "launcher", "srun", "agent"), ("waits", 60))
    ends = Ends(
        Sweeps(slurm, base / "they fail", ways),
        Sweeps(slurm, base / "they end well", {"worker": ("waits", 60)}),
        Sweeps(slurm, base / "is interrupted", {"interrupted": ("waits", 60)}),
    )
    try:
        for project in ends.projects.values():
            for name in project.config()["sweeps"]:
                project.jobs[name] = project.job_of(name)
                if name != "limit":  # its time may be over before
                    project.wait_for_trials(name)
        for name in ("driver", "launcher", "srun", "agent"):
            ends.failing.kill(name)
        ends.whole.kill("worker")
        slurm.run(["scancel", ends.jobs["cancelled"]])
        os.killpg(ends.interrupted.process.pid, signal.SIGINT)
        (ends.whole.folder / "go").touch()
        see_the_end(slurm, ends)
        ends.lines = {name: project.said() for name, project in ends.projects.items()}
        yield ends
    finally:
        for job in ends.jobs.values():
            slurm.run(["scancel", job], check=False)
        for project in ends.projects.values():
            project.process.kill()
            project.process.communicate()
        # Nobody was left to remove what a killed agent had on its node's disk: the site does, and so does the next agent in that folder.
        for job in ends.jobs.values():
            for node in slurm.nodes_on:
                slurm.run(["sh", "-c", f"rm -rf /mnt/*.{job}.0/rs-*"], node=node)
    wait_until_idle(slurm)


def see_the_end(slurm: SlurmCluster, ends: Ends) -> None:
    """Note what is left of each job END_S after it was ended."""
    began = dict.fromkeys(ends.jobs, time.monotonic())
    latest = time.monotonic() + BEGIN_S
    while waiting := began.keys() - ends.left.keys():
        for name in waiting:
            job = ends.jobs[name]
            # Slurm comes to a limit when it does, and Snakemake to a Ctrl-C.
            if name in ("limit", "interrupted") and slurm.job_state(job) == "RUNNING" and time.monotonic() < latest:
                began[name] = time.monotonic()
            elif not (left := left_of(slurm, job)) or time.monotonic() - began[name] > END_S:
                ends.left[name] = left
        time.sleep(0.2)


@pytest.mark.parametrize("name", ["limit", "cancelled", "interrupted", "driver", "launcher"])
def test_no_process_and_no_file_is_left_on_any_node(ends: Ends, name: str) -> None:
    assert ends.left[name] == []


@pytest.mark.parametrize("name", ["agent", "worker", "srun"])
def test_of_a_node_whose_agent_was_killed_no_process_is_left(ends: Ends, name: str) -> None:
    assert [line for line in ends.left[name] if "/rs-" not in line or " " in line.split(": ", 1)[1]] == []


def test_snakemake_says_of_each_sweep_how_it_ended(ends: Ends) -> None:
    assert ends.failing.process.returncode == 1
    jobs, folder, node = ends.jobs, ends.failing.folder, ends.failing.node_killed["agent"]
    said = [line for line in ends.lines["failing"] if line.startswith("Error: ")]
    # Its driver ends it before Slurm does, unless this machine is so busy that Slurm ends the job first, or refuses a step of the job first.
    limit = said.pop(4)
    assert limit.startswith(
        (
            f"Error: sweep limit: incomplete, resumable: 0 of 3 trials done, and the time of job {jobs['limit']} is nearly up",
            f"Error: sweep limit: job {jobs['limit']} reached its time limit. Run the same command again to go on.",
            f"Error: sweep limit: Slurm ended job {jobs['limit']} at its time limit. What is finished is in the record",
        )
    )
    assert said == [
        f"Error: sweep agent: {node}: its agent ended: srun: error: {node}: task 0: Killed.",
        f"Error: sweep cancelled: job {jobs['cancelled']} was cancelled. Run the same command again to go on.",
        "Error: sweep driver: the driver was killed (signal 9): see logs/run_sweep/driver.log. Run the same command again to go on.",
        f"Error: sweep launcher: job {jobs['launcher']} failed: see logs/run_sweep/launcher.log and"
        f" {folder}/logs/slurm/rule_run_sweep/launcher/{jobs['launcher']}.log.",
        "Error: sweep srun: the agents went away: srun was killed (signal 9).",
    ]


def test_the_log_of_the_rule_says_what_slurm_did(ends: Ends) -> None:
    log = (ends.failing.folder / "logs/run_sweep/cancelled.log").read_text()
    assert f"Slurm job {ends.jobs['cancelled']} was cancelled or preempted. What is finished is in the record" in log


def test_a_ctrl_c_cancels_the_job_and_is_no_fault(ends: Ends) -> None:
    assert ends.interrupted.process.returncode == 1
    assert not [line for line in ends.lines["interrupted"] if line.startswith("Error: ") or "Traceback" in line]


def test_a_sweep_outlives_the_agent_of_another_node(ends: Ends) -> None:
    assert ends.whole.process.returncode == 0, "\n".join(ends.lines["whole"])
    assert {trial["status"] for trial in ends.whole.trials("worker")} == {"TERMINATED"}
    log = (ends.whole.folder / "logs/run_sweep/worker.log").read_text()
    node = ends.whole.node_killed["worker"]
    assert f"{node} is lost: its agent ended: srun: error: {node}: task 1: Killed. The sweep goes on without it." in log


def test_the_same_command_goes_on(ends: Ends) -> None:
    before = {name: ends.failing.record(name).trials for name in ("cancelled", "agent")}
    assert [trial.finished for trial in before["cancelled"].values()].count(True) == 1
    (ends.failing.folder / "go").touch()
    again = ends.failing.begin(*before)
    output, _ = again.communicate(timeout=400)
    assert again.returncode == 0, output
    for name, trials in before.items():
        after = ends.failing.record(name).trials
        assert [trial.status for trial in after.values()] == ["TERMINATED"] * 3
        for trial_id, trial in trials.items():
            assert after[trial_id].config == trial.config
            if trial.finished:
                assert after[trial_id].attempts == trial.attempts, "it was not run again"
