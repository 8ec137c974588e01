"""Kills parts of sweeps at random moments, and looks at the costs: `make faults` writes the table of docs/faults.md, and three kills are part of `make test`.

Each kill is a SIGKILL, or a node that loses its power. After it the same command is given again, as a user would, until the sweep is complete; then
it must have exactly the trials and configurations of a sweep that nobody disturbed, and no trial that was finished may have been run again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

import job_faults
import sweeping
from raysweep.config.reference import with_table
from raysweep.config.space import configuration, parse_space
from raysweep.record.sweep import Sweep
from raysweep.record.trials import Trial
from slurm.cluster import REPOSITORY, SlurmCluster
from slurm.packages import reason_to_skip
from slurm.sweeps import SlurmProject, project_on
from sweeping import Project, ours, sweep_of, wait_until

SPACE = {"x": {"uniform": [0, 1]}, "pause_s": 0.3}
NUM_SAMPLES, EPOCHS = 6, 4
LONGEST_S = 12.0  # after the start of a run: bringing Ray up takes about three
# What is killed, by a part of its command line. "launcher" is what Snakemake starts.
PARTS = {
    "driver": "/drive.py --job",
    "agent": "/agent.py",
    "raylet": "/raylet/raylet ",
    "GCS": "/gcs_server ",
    "launcher": "/run_sweep.py ",
}


# Sweeps that are killed one after the other, with what each one adds to a plain sweep.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "more epochs": {"max_epochs": EPOCHS // 2, "keep_checkpoints": "all"},  # when the trials have finished, they go on to EPOCHS
    "what was known": {
        "search_algorithm": {"name": "optuna", "n_startup_trials": 2},
        "warm_start": "known.csv",
        "stop": {"no_better_for": EPOCHS},  # the value of each trial becomes better with each epoch
        "end_when": {"no_better_for": NUM_SAMPLES},
    },
    "objectives": {
        "trainable": "user.py:climb_and_cost",
        "search_algorithm": {"name": "optuna", "sampler": "nsga2"},
        "objectives": [{"metric": "score", "mode": "max"}, {"metric": "cost", "mode": "min"}],
    },
}
# As `climb`, with a second metric.
CLIMB_AND_COST = """
def climb_and_cost(config):
    report = tune.report
    tune.report = lambda metrics, checkpoint: report({**metrics, "cost": config["x"]}, checkpoint=checkpoint)
    try:
        climb(config)
    finally:
        tune.report = report
"""


@dataclass
class Fault:
    """What one kind of kill cost, over all of them."""

    name: str
    times: int = 0
    finished_before: int = 0
    finished_after: int = 0
    lost: int = 0
    run_twice: int = 0
    recovered_s: list[float] = field(default_factory=list)  # from the kill to the next report of a trial, or to the end of the sweep


def finished(sweep: Sweep) -> dict[str, Trial]:
    return {trial_id: trial for trial_id, trial in sweep.trials.items() if trial.finished}


def reports(sweep: Sweep) -> int:
    return sum(len(trial.results) for trial in sweep.trials.values()) + len(sweep.sessions) * 10_000  # a new attempt forgets some


def check_whole(sweep: Sweep, kind: str = "plain", epochs: int = EPOCHS) -> None:
    """Raise AssertionError unless the sweep is as one that nobody disturbed. An algorithm that learns proposes nothing twice."""
    configs = [trial.config for trial in sweep.trials.values()]
    if "search_algorithm" in KINDS[kind]:
        assert len({config["x"] for config in configs}) == NUM_SAMPLES, configs
    else:
        assert configs == [configuration(parse_space(SPACE), 0, index) for index in range(NUM_SAMPLES)]
    for trial in sweep.trials.values():
        assert trial.status == "TERMINATED", (trial.trial_id, trial.error)
        assert [result.epoch for result in trial.results] == list(range(1, epochs + 1))
        assert abs(trial.results[-1].metrics["score"] - epochs * trial.config["x"]) < 1e-9, "it went on where it was"


def compare(fault: Fault, before: dict[str, Trial], after: Sweep) -> None:
    """Note what has become of the trials that were finished when it was killed."""
    fault.finished_before += len(before)
    now = finished(after)
    fault.finished_after += sum(trial_id in now for trial_id in before)
    fault.lost += sum(trial_id not in now for trial_id in before)
    fault.run_twice += sum(trial_id in now and len(now[trial_id].attempts) != len(trial.attempts) for trial_id, trial in before.items())


# ------------------------------------------------------------------------------------------------------------------ on this machine


def part_of(process: subprocess.Popen[str], name: str) -> psutil.Process | None:
    """A part of a run, if it is there."""
    with contextlib.suppress(psutil.NoSuchProcess):
        whole = psutil.Process(process.pid)
        for one in (whole, *whole.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                if PARTS[name] in f"{' '.join(one.cmdline())} " and (name == "launcher") == (one == whole):
                    return one
    return None


def kill_parts(folder: Path, order: list[str], rng: random.Random) -> dict[str, Fault]:
    """Kill one part after the other of sweeps on this machine. Each is begun again until it is complete; then another one is begun."""
    faults = {name: Fault(name) for name in dict.fromkeys(order)}
    kinds = [*KINDS]
    rng.shuffle(kinds)
    number, kind = 0, kinds[0]
    project = begin(folder, number, kind)
    for name in order:
        process = project.start("run_sweep", "s")
        moment = time.monotonic() + rng.uniform(0, LONGEST_S)
        while process.poll() is None and (time.monotonic() < moment or part_of(process, name) is None):
            time.sleep(0.02)
        before = project.record("s")
        if process.poll() is None and (victim := part_of(process, name)):
            victim.kill()
            faults[name].times += 1
            killed = time.monotonic()
            output, _ = process.communicate(timeout=120)
            # Where the sweep had just come to its end, there was nothing to notice.
            outcomes = [session.outcome for session in project.record("s").sessions]
            assert process.returncode != 0 or outcomes[-1:] == ["complete"], f"{name} was killed, and nobody noticed: {output}"
            wait_until(lambda: ours(project.folder) == [], f"nothing is left of it: {ours(project.folder)}")  # noqa: B023
            again = project.start("run_sweep", "s")
            wait_until(lambda: again.poll() is not None or reports(project.record("s")) > reports(before), "it goes on", 120)  # noqa: B023
            faults[name].recovered_s.append(time.monotonic() - killed)
            # Half of them go on to their end, so that what follows meets sweeps of every age.
            if rng.random() < 0.5:
                again.communicate(timeout=300)
            else:
                again.send_signal(signal.SIGTERM)
                again.communicate(timeout=120)
            compare(faults[name], finished(before), project.record("s"))
        else:  # the sweep was complete before
            process.communicate()
        if len(finished(project.record("s"))) == NUM_SAMPLES:
            if project.record("s").header.max_epochs < EPOCHS:
                configure(project, kind, max_epochs=EPOCHS)
                continue
            check_whole(project.record("s"), kind)
            number += 1
            kind = kinds[number % len(kinds)]
            project = begin(folder, number, kind)
    configure(project, kind, max_epochs=EPOCHS)
    last = project.run("run_sweep", "s")
    assert last.returncode == 0, last.stderr
    check_whole(project.record("s"), kind)
    return faults


def begin(folder: Path, number: int, kind: str) -> Project:
    project = Project(folder / f"sweep {number}, {kind}")
    project.write("user.py", sweeping.TRAINABLES + CLIMB_AND_COST)
    project.write("known.csv", "config/x,config/pause_s,score\n0.25,0.3,0.25\n0.75,0.3,0.75\n0.5,0.3,0.5\n")
    configure(project, kind)
    return project


def configure(project: Project, kind: str, **changes: Any) -> None:
    """Write the config of a sweep of this kind."""
    plain = {"max_epochs": EPOCHS, "num_samples": NUM_SAMPLES, "search_space": SPACE, "max_failures": 0}
    sweep = sweep_of("climb", **plain | KINDS[kind] | changes)
    project.configure(sweeps={"s": {key: value for key, value in sweep.items() if key != "metric" or "objectives" not in sweep}})


# ---------------------------------------------------------------------------------------------------------------------- on Slurm


@contextlib.contextmanager
def slurm_sweep(cluster: SlurmCluster, folder: Path) -> Iterator[SlurmProject]:
    with project_on(cluster, folder) as project:
        options = {"num_samples": NUM_SAMPLES, "max_epochs": 8 * EPOCHS, "max_failures": 0, "search_space": SPACE}
        project.sweep("climb", nodes=2, cpus=1, trial_resources={"cpu": 1}, **options)
        yield project


def kill_on_slurm(cluster: SlurmCluster, kind: str, number: int, rng: random.Random, fault: Fault) -> None:
    """Begin a sweep on two of three nodes, take the power of one of them or kill Snakemake, and bring the sweep to its end."""
    with slurm_sweep(cluster, cluster.shared / f"{kind} {number}") as project:
        run = project.start()
        wait_until(lambda: len(project.record("s").trials) > 1, f"the sweep has begun: {project.log()}", 180)
        time.sleep(rng.uniform(0, LONGEST_S))
        before = project.record("s")
        killed = time.monotonic()
        fault.times += 1
        victim = ""
        if kind == "node":
            nodes = cluster.run(["squeue", "--noheader", "--format=%N", f"--jobs={project.job_of('s')}"]).stdout.strip()
            names = cluster.run(["scontrol", "show", "hostnames", nodes]).stdout.split()
            victim = rng.choice(names)
            cluster.power_off(victim)
        else:
            os.kill(run.pid, signal.SIGKILL)
        wait_until(lambda: reports(project.record("s")) > reports(before) or run.poll() is not None, "it goes on", 300)
        fault.recovered_s.append(time.monotonic() - killed)
        run.communicate(timeout=600)
        end = time.monotonic() + 600
        while project.best(check=False).returncode != 0:  # its job may still run: then it is named
            assert time.monotonic() < end, project.log()
            time.sleep(2)
        check_whole(project.record("s"), epochs=8 * EPOCHS)
        compare(fault, finished(before), project.record("s"))
        if victim:
            cluster.boot(victim)
            cluster.run(["sh", "-c", "rm -rf /mnt/*/rs-* /tmp/rs-* /dev/shm/*"], node=victim)  # as a node's start does


def kill_nodes_and_controllers(times: int, rng: random.Random) -> dict[str, Fault]:
    faults = {kind: Fault(kind) for kind in ("node", "controller")}
    base = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    with SlurmCluster(base, slurmd_timeout_s=10, message_timeout_s=5) as cluster:
        for number in range(times):
            for kind, fault in faults.items():
                kill_on_slurm(cluster, kind, number, rng, fault)
    return faults


# ---------------------------------------------------------------------------------------------------------------------- the table


WORDS = {
    "driver": "the driver, which runs Tune and writes the record: SIGKILL",
    "agent": "the agent of the node: SIGKILL",
    "raylet": "Ray's raylet: SIGKILL",
    "GCS": "Ray's GCS: SIGKILL",
    "launcher": "what Snakemake started: SIGKILL",
    "node": "one of the two nodes of a job of Slurm, the first or the other: power off",
    "controller": "Snakemake, while its job runs on Slurm: SIGKILL",
}


def table(faults: list[Fault], seed: int, took_s: float) -> str:
    import ray

    where = f"on {os.cpu_count()} CPUs with Python {platform.python_version()} and Ray {ray.__version__}"
    kills = sum(fault.times for fault in faults)
    lines = [
        f"Written by `make faults` on {datetime.now(UTC):%Y-%m-%d}, {where}: {kills} kills in {took_s / 60:.0f} minutes, seed {seed}.",
        "",
        f"Each sweep has {NUM_SAMPLES} trials, which save a checkpoint an epoch. A part of it is killed at a random moment of its first",
        f"{LONGEST_S:.0f} seconds, which begin with Ray's start; then the same command is given again. The sweeps take turns: "
        f"{', '.join(KINDS)}.",
        "At its end each sweep had exactly the trials and configurations of one that nobody disturbed. An algorithm that learns had proposed",
        "nothing twice.",
        "",
        "*Finished before*: trials that were finished when something was killed; *after*: how many of those were so afterwards. *Time to",
        "recover*: from the kill to the next report of a trial, or to the end of the sweep, a new start of Ray included; median and longest.",
        "",
        "| what was killed | times | finished before | after | lost | run twice | time to recover, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for fault in faults:
        recovered = f"{statistics.median(fault.recovered_s):.0f} ({max(fault.recovered_s):.0f})" if fault.recovered_s else "–"
        cells = [WORDS[fault.name], fault.times, fault.finished_before, fault.finished_after, fault.lost, fault.run_twice, recovered]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="of parts of sweeps on this machine")
    parser.add_argument("--slurm", type=int, default=4, help="of nodes, and as many of Snakemake, on a Slurm of the tests")
    parser.add_argument(
        "--jobs", type=int, default=30, help="events that meet the jobs of sweeps with several jobs, on a Slurm of the tests"
    )
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "faults.md")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    rng, began = random.Random(seed), time.monotonic()
    order = [*PARTS] * (args.kills // len(PARTS) + 1)
    rng.shuffle(order)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        faults = [*kill_until(Path(folder), order, args.kills, rng).values()]
    if reason := reason_to_skip():
        print(f"nodes and controllers are left out: {reason}")
    else:
        faults += kill_nodes_and_controllers(args.slurm, rng).values()
    text = table(faults, seed, time.monotonic() - began)
    if args.jobs and not reason:
        text += f"\n{job_faults.table(job_faults.disturb_jobs(args.jobs, rng))}"
    args.output.write_text(with_table(args.output.read_text(encoding="utf-8"), text, args.output), encoding="utf-8")
    print(text)
    if any(fault.lost or fault.run_twice for fault in faults):
        sys.exit("Error: a trial was lost, or run twice")


def kill_until(folder: Path, order: list[str], kills: int, rng: random.Random) -> dict[str, Fault]:
    """kill_parts until so many were killed: a sweep may be complete before its part's turn."""
    total: dict[str, Fault] = {}
    number = 0
    while sum(fault.times for fault in total.values()) < kills:
        left = kills - sum(fault.times for fault in total.values())
        for name, fault in kill_parts(folder / str(number), order[:left], rng).items():
            sums = total.setdefault(name, Fault(name))
            for key in ("times", "finished_before", "finished_after", "lost", "run_twice"):
                setattr(sums, key, getattr(sums, key) + getattr(fault, key))
            sums.recovered_s += fault.recovered_s
        number += 1
    return total


if __name__ == "__main__":
    main()
