"""Print what TLS costs a sweep on two nodes of the tests' Slurm: the start of Ray, and trials that report one number. The two sides run in turn."""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
from datetime import datetime
from pathlib import Path

from measures import NO_OP
from slurm.cluster import SlurmCluster
from slurm.sweeps import SlurmProject, wait_until_idle

CPUS = 2  # of each node
BRING_UP = re.compile(r"environment ([\d.]+) s, head ([\d.]+) s, workers ([\d.]+) s")


def measure(project: SlurmProject, tls: str, num_samples: int) -> tuple[float, float]:
    """Return the seconds until Ray is up on both nodes, without the start of the job, and the milliseconds that each trial takes."""
    resources = {"cpu": 1, "reuse_processes": True}
    project.sweep(nodes=2, cpus=CPUS, trainable="noop.py:train", num_samples=num_samples, trial_resources=resources)
    project.configure(**project.config() | {"ray": {"tls": tls}})
    project.write("noop.py", NO_OP)
    project.best()
    [stages] = BRING_UP.findall(project.log())
    trials = project.trials("s")
    assert len(trials) == num_samples
    began, ended = (edge(datetime.fromisoformat(trial[key]) for trial in trials) for edge, key in ((min, "started"), (max, "ended")))
    return sum(map(float, stages)), 1000 * (ended - began).total_seconds() / num_samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=1000)
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {"off": [], "on": []}
    with SlurmCluster(Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))) as cluster:
        for number in range(args.rounds):
            for tls, runs in found.items():
                runs.append(measure(SlurmProject(cluster, cluster.shared / f"{tls}-{number}"), tls, args.trials))
                wait_until_idle(cluster)
                print(f"tls {tls}: Ray is up after {runs[-1][0]:.1f} s, {runs[-1][1]:.2f} ms for each trial", flush=True)
    for tls, runs in found.items():
        for name, function in (("median", statistics.median), ("lowest", min)):
            bring_up_s, trial_ms = map(function, zip(*runs, strict=True))
            print(
                f"{name} of {args.rounds}, tls {tls}: Ray is up after {bring_up_s:.1f} s, {trial_ms:.2f} ms for each trial of {args.trials}"
            )


if __name__ == "__main__":
    main()
