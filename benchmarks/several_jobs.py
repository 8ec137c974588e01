"""Print the times of a sweep on one job and on several jobs of the tests' Slurm, with free nodes and with nodes that become free one after the other.

The trials sleep, so that the CPUs of this machine, which all nodes share, do not limit the sweep.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from slurm.cluster import SlurmCluster
from slurm.sweeps import SlurmProject, wait_until_idle

NUM_NODES = 4
TRIAL_S = 4.0  # length of a trial in seconds
# Shapes of a sweep: its jobs, and the nodes of each job.
SHAPES = {"1 job of 1 node": (1, 1), "2 jobs of 1 node": (2, 1), "4 jobs of 1 node": (4, 1), "1 job of 4 nodes": (1, 4)}


def measure(cluster: SlurmCluster, name: str, shape: str, num_trials: int, free_after_s: list[float]) -> float:
    """Return the seconds from the start of Snakemake to the results of a sweep. Another job holds node n for `free_after_s[n]` seconds."""
    project = SlurmProject(cluster, cluster.shared / name)
    num_jobs, nodes = SHAPES[shape]
    options = {"num_samples": num_trials, "search_space": {"x": {"uniform": [0, 1]}, "pause_s": TRIAL_S}, "max_epochs": 1}
    project.sweep("climb", nodes=nodes, cpus=1, trial_resources={"cpu": 1}, allocation={"jobs": num_jobs}, **options)
    for node, seconds in zip(cluster.nodes, free_after_s, strict=True):
        if seconds:
            cluster.run(
                ["sbatch", f"--nodelist={node}", "--exclusive", "--output=/dev/null", f"--wrap=sleep {seconds}"], cwd=project.folder
            )
    began_at_s = time.monotonic()
    project.best()
    took_s = time.monotonic() - began_at_s
    assert len(project.trials("s")) == num_trials
    wait_until_idle(cluster)
    return took_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--apart", type=float, default=60.0, help="seconds between the nodes that become free")
    args = parser.parse_args()
    queue = [number * args.apart for number in range(NUM_NODES)]
    cases = [("all nodes are free", shape, [0.0] * NUM_NODES) for shape in SHAPES]
    cases += [(f"a node becomes free every {args.apart:.0f} s", shape, queue) for shape in ("1 job of 4 nodes", "4 jobs of 1 node")]
    found: dict[tuple[str, str], list[float]] = {}
    with SlurmCluster(Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp")), nodes=NUM_NODES, cpus=1) as cluster:
        for number in range(args.rounds):
            for case, shape, free_after_s in cases:
                took_s = measure(cluster, f"{number} {case[:5]} {shape}", shape, args.trials, free_after_s)
                found.setdefault((case, shape), []).append(took_s)
                print(f"{case}, {shape}: {took_s:.0f} s", flush=True)
    for (case, shape), seconds in found.items():
        print(f"median of {args.rounds}: {case}, {shape}: {statistics.median(seconds):.0f} s for {args.trials} trials of {TRIAL_S:g} s")


if __name__ == "__main__":
    main()
