"""Takes jobs from sweeps of several jobs at random moments, as a part of `make faults`: by scancel, requeue, a node's power, its cable, and the time limit."""

from __future__ import annotations

import random
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray.tune.schedulers import ASHAScheduler

from raysweep.config.space import configuration, parse_space
from raysweep.record.sweep import Sweep
from raysweep.tune.replay import RecordedHistory, RecordedVerdicts, ReplayController
from slurm.cluster import SlurmCluster
from slurm.conf import PREEMPTION
from slurm.sweeps import SlurmProject, project_on
from sweeping import wait_until

NUM_JOBS, NUM_TRIALS, EPOCHS = 4, 24, 40
NUM_EVENTS = 6  # events in a sweep; an event for which there is no such job is left out
ASHA = {"name": "asha", "grace_period": 4, "reduction_factor": 2}
SPACE = {"x": {"uniform": [0, 1]}, "pause_s": 0.3}
LONGEST_S = 20.0  # longest time in seconds between two events
CUT_S = (2.0, 40.0)  # for how long a cable is cut; Slurm counts a node as lost after 10 s
WORDS = {
    "cancel": "`scancel` of the job",
    "requeue": "Slurm starts the job again, as after a preemption without a grace time",
    "preempt": "a job of a higher priority takes the node, after a grace time of 30 s",
    "power": "the node of the job loses its power",
    "cable": "the cable of the node is cut for 2 to 40 s",
}
# Each event meets the leader or another job, whichever the name says.
EVENTS = tuple(f"{event} {whose}" for event in WORDS for whose in ("leader", "member"))


@dataclass
class Job:
    """A job of the array that runs."""

    id: str
    node: str


def jobs_of(project: SlurmProject) -> list[Job]:
    listed = project.cluster.run(["squeue", "--noheader", "--states=RUNNING", "--format=%i %N"], check=False).stdout
    return [Job(*line.split()) for line in listed.splitlines() if len(line.split()) == 2]


def leader_of(project: SlurmProject) -> str | None:
    sessions = project.record("s").sessions
    return sessions[-1].slurm_job if sessions else None


class Events:
    """Makes things happen to the jobs of one sweep, and counts them."""

    def __init__(self, cluster: SlurmCluster, rng: random.Random) -> None:
        self.cluster, self.rng = cluster, rng
        self.counts: Counter[str] = Counter()
        self.num_sweeps = self.num_leaders = 0
        self.cut: set[str] = set()  # nodes whose cables were cut during the present sweep
        self.seconds: dict[str, list[float]] = {
            event: [] for event in EVENTS
        }  # from the event to the next report, or to the end of the sweep

    def happen(self, event: str, project: SlurmProject, run: subprocess.Popen[str]) -> None:
        """Let an event happen to a running job, and wait until the sweep goes on. Do nothing where no such job runs."""
        leader, jobs = leader_of(project), jobs_of(project)
        what, whose = event.split()
        victims = [job for job in jobs if (job.id == leader) == (whose == "leader")]
        if not victims or len(jobs) < 2 or run.poll() is not None:
            return
        victim, before = self.rng.choice(victims), project.record("s")
        num_results = sum(len(trial.results) for trial in before.trials.values())
        began_at_s = time.monotonic()
        if what in ("cancel", "requeue"):
            self.cluster.run(["scancel", victim.id] if what == "cancel" else ["scontrol", "requeue", victim.id], check=False)
        elif what == "preempt":
            self.cluster.sbatch("--partition=high", f"--nodelist={victim.node}", "--exclusive", "--output=/dev/null", "--wrap=true")
        elif what == "power":
            self.cluster.power_off(victim.node)
        else:
            self.cluster.run(["ip", "link", "set", f"v{victim.node}", "down"])
        self.counts[event] += 1
        mend_at_s = began_at_s + (self.rng.uniform(*CUT_S) if what == "cable" else 0)

        def goes_on() -> bool:
            now = project.record("s")
            sessions_needed = len(before.sessions) + (whose == "leader" and what != "cable")
            results = sum(len(trial.results) for trial in now.trials.values())
            return run.poll() is not None or (len(now.sessions) >= sessions_needed and results != num_results)

        try:
            wait_until(goes_on, f"it goes on after {event} of {victim}: {project.log()[-3000:]}", 240)
            self.seconds[event].append(time.monotonic() - began_at_s)
        finally:
            if what == "cable":
                time.sleep(max(0.0, mend_at_s - time.monotonic()))
                self.cluster.run(["ip", "link", "set", f"v{victim.node}", "up"])
                self.cluster.wait_for_nodes(victim.node)
                self.cut.add(victim.node)
            elif what == "power":
                self.cluster.boot(victim.node)
                self.cluster.run(["sh", "-c", "rm -rf /mnt/*/rs-* /tmp/rs-* /dev/shm/*"], node=victim.node)  # as a node's start does

    def tidy_up(self) -> None:
        """Remove the files on nodes that came back after Slurm had given up their jobs, as an epilog of a site does. Slurm ends such a job with SIGKILL."""
        for node in self.cut:
            wait_until(lambda: self.cluster.node_processes(node) == {}, f"the processes on {node} have ended", 120)  # noqa: B023
            self.cluster.run(["sh", "-c", "rm -rf /mnt/*/rs-* /tmp/rs-*"], node=node)
        self.cut.clear()


def disturb(cluster: SlurmCluster, number: int, rng: random.Random, events: Events) -> Sweep:
    """Run a sweep on several jobs, let events happen to them, and return the record of the sweep at its end. A command that fails is given again."""
    with project_on(cluster, cluster.shared / f"jobs {number}") as project:
        allocation = {"jobs": NUM_JOBS, "resubmit": 50, "walltime_margin": 0.5, "partitions": ["low"]}
        options: dict[str, Any] = {"num_samples": NUM_TRIALS, "max_epochs": EPOCHS, "max_failures": 0, "search_space": SPACE}
        if number % 4 in (1, 2):
            options["scheduler"] = ASHA
        # Every other sweep has jobs of two minutes, each of which ends while the sweep runs.
        runtime = 2 if number % 2 else 60
        project.sweep("climb", cpus=1, runtime=runtime, trial_resources={"cpu": 1}, allocation=allocation, **options)
        run = project.start()
        wait_until(lambda: len(project.record("s").trials) > 1, f"the sweep has begun: {project.log()}", 180)
        for event in rng.sample(EVENTS, NUM_EVENTS):
            time.sleep(rng.uniform(0, LONGEST_S))
            events.happen(event, project, run)
        run.communicate(timeout=900)
        while run.returncode != 0:  # no job was left
            run = project.start()
            run.communicate(timeout=900)
        events.tidy_up()
        return project.record("s")


class ComparedVerdicts(RecordedVerdicts):
    """Compares each answer of a scheduler that nobody disturbs with the recorded one."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        assert self.inner.on_trial_result(tune_controller, trial, result) == self.verdict, (trial.trial_id, result)
        return self.verdict


def check_verdicts(sweep: Sweep) -> None:
    """Raise AssertionError unless a new ASHA scheduler decides about the recorded reports as the schedulers of all sessions did."""
    asha = ASHAScheduler(time_attr="training_iteration", metric="score", mode="max", max_t=EPOCHS, grace_period=4, reduction_factor=2)
    history = RecordedHistory(asha, sweep, "score")
    history.answers = history.scheduler = answers = ComparedVerdicts(asha)
    history.controller = ReplayController(answers)
    history.run()
    assert 0 < sum(trial.is_stopped for trial in sweep.trials.values()) < NUM_TRIALS


def check(sweep: Sweep) -> None:
    """Raise AssertionError unless the sweep has the trials, results and verdicts of one that nobody disturbed."""
    space = parse_space(SPACE)
    assert [trial.config for trial in sweep.trials.values()] == [configuration(space, 0, index) for index in range(NUM_TRIALS)]
    for trial in sweep.trials.values():
        assert trial.status == ("STOPPED" if trial.is_stopped else "TERMINATED"), (trial.trial_id, trial.error)
        epochs = len(trial.results) if trial.is_stopped else EPOCHS
        assert [result.epoch for result in trial.results] == list(range(1, epochs + 1))
        assert abs(trial.results[-1].metrics["score"] - epochs * trial.config["x"]) < 1e-9, "it went on where it was"
    if sweep.header.scheduler.name == "asha":
        check_verdicts(sweep)


def disturb_jobs(num_events: int, rng: random.Random) -> Events:
    """Let at least `num_events` events happen to the jobs of one sweep after the other, and check each sweep at its end."""
    base = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    with SlurmCluster(base, nodes=NUM_JOBS, cpus=1, slurmd_timeout_s=10, message_timeout_s=5, slurm_conf_extra=PREEMPTION) as cluster:
        events = Events(cluster, rng)
        while events.counts.total() < num_events:
            began_at_s = time.monotonic()
            sweep = disturb(cluster, events.num_sweeps, rng, events)
            check(sweep)
            events.num_sweeps += 1
            events.num_leaders += len(sweep.sessions)
            took = f"{len(sweep.sessions)} leaders, {time.monotonic() - began_at_s:.0f} s"
            print(f"sweep {events.num_sweeps} of several jobs: {took}, {events.counts.total()} events so far", flush=True)
    return events


def table(events: Events) -> str:
    """Return the table of the events in Markdown."""
    sweeps = f"{events.num_sweeps} sweeps with {NUM_JOBS} jobs of one node and {NUM_TRIALS} trials of {EPOCHS} epochs"
    lines = [
        f"On {datetime.now(UTC):%Y-%m-%d}, {events.counts.total()} events met the jobs of {sweeps}, at random moments.",
        f"{events.num_leaders} jobs led. Each second sweep had jobs of two minutes, so that its jobs reached their time limits too.",
        "At its end each sweep had exactly the trials, configurations, reports and verdicts of one that nobody disturbed.",
        "",
        "| what happened | to the leader: times | until the next report, s | to another job: times | until the next report, s |",
        "|---|---|---|---|---|",
    ]
    for what, words in WORDS.items():
        cells = [words]
        for whose in ("leader", "member"):
            seconds = events.seconds[f"{what} {whose}"]
            cells += [str(len(seconds)), f"{statistics.median(seconds):.0f} ({max(seconds):.0f})" if seconds else "–"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
