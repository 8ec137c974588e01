"""Compares the samplers on functions with a known optimum or a known front: `python benchmarks/search.py`, with workflow/scripts on PYTHONPATH.

Each sampler searches twice: as a sweep uses it, with the record in memory, and as Optuna itself uses it, with `Study.optimize`. The sides have different seeds,
so their results are independent. The table shows the median over the seeds, and two probabilities (Mann-Whitney, two-sided) that chance makes a difference as
large: between the two sides, and between the sampler and random search, both as a sweep.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from scipy.stats import mannwhitneyu

from raysweep.common.typed_json import from_json
from raysweep.config.model import SweepConfig
from raysweep.config.schema import load_schema, options_with_defaults, with_defaults
from raysweep.config.space import parse_space
from raysweep.record.pareto import hypervolume
from raysweep.record.sweep import Sweep
from raysweep.tune.optuna_sampler import CLASSES
from raysweep.tune.samplers import make_sampler

HARTMANN_A = np.array([[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]])
HARTMANN_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)
HARTMANN_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
ZDT1_LARGEST = 6.0  # more than the second objective of any point of ZDT1 with 6 variables is not counted


def branin(x: list[float]) -> tuple[float, ...]:
    """F. H. Branin, 1972: three equal minima of 0.397887."""
    a, b = x[0] * 15 - 5, x[1] * 15
    return ((b - 5.1 / (4 * math.pi**2) * a**2 + 5 / math.pi * a - 6) ** 2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(a) + 10,)


def hartmann6(x: list[float]) -> tuple[float, ...]:
    """J. K. Hartman, 1973: the minimum is -3.32237."""
    return (-float(HARTMANN_ALPHA @ np.exp(-(HARTMANN_A * (np.array(x) - HARTMANN_P) ** 2).sum(1))),)


def zdt1(x: list[float]) -> tuple[float, ...]:
    """E. Zitzler, K. Deb, L. Thiele, 2000: the front is f2 = 1 - sqrt(f1)."""
    g = 1 + 9 * sum(x[1:]) / (len(x) - 1)
    return x[0], g * (1 - math.sqrt(x[0] / g))


@dataclass(frozen=True)
class Problem:
    """A function of numbers between 0 and 1, and the number of trials that a search has."""

    name: str
    function: Callable[[list[float]], tuple[float, ...]]
    dimensions: int
    trials: int
    optimum: float | None  # None: several objectives

    @property
    def figure(self) -> str:
        return "hypervolume ÷ that of the true front" if self.optimum is None else "regret"

    def score(self, points: list[tuple[float, ...]]) -> float:
        """Return the regret of the best point, or the hypervolume as a fraction of the hypervolume of the true front."""
        if self.optimum is not None:
            return min(point[0] for point in points) - self.optimum
        front = [(f1, (1 - math.sqrt(f1)) / ZDT1_LARGEST) for f1 in np.linspace(0, 1, 2001)]
        return hypervolume([(f1, min(f2 / ZDT1_LARGEST, 1.0)) for f1, f2 in points]) / hypervolume(front)


PROBLEMS = (
    Problem("Branin", branin, 2, 40, 0.397887),
    Problem("Hartmann-6", hartmann6, 6, 60, -3.32237),
    Problem("ZDT1", zdt1, 6, 100, None),
)


def ours(problem: Problem, sampler: str, seed: int) -> list[tuple[float, ...]]:
    """Return the points of a search as a sweep makes it."""
    names = [f"x{number}" for number in range(problem.dimensions)]
    metrics = ["f1"] if problem.optimum is not None else ["f1", "f2"]
    algorithm = {"name": "random"} if sampler == "random" else {"name": "optuna", "sampler": sampler}
    values = {
        "search_space": {name: {"uniform": [0, 1]} for name in names},
        "metric": "f1",
        "mode": "min",
        "objectives": [{"metric": metric, "mode": "min"} for metric in metrics] if len(metrics) > 1 else [],
        "search_algorithm": options_with_defaults("search_algorithm", algorithm),
        "seed": seed,
        "num_samples": problem.trials,
    }
    config = from_json(SweepConfig, with_defaults(values, load_schema()["properties"]["sweeps"]["additionalProperties"]))
    sweep, points = Sweep(), []

    def write(kind: str, **event: Any) -> None:
        sweep.apply({"event": kind, "at": "2026-01-01T00:00:00+00:00", **event})

    write("session", sweep={"metric": "f1", "mode": "min", "objectives": values["objectives"]})
    made = make_sampler(config, parse_space(config.search_space), sweep, Path(), Path())
    for index in range(problem.trials):
        trial, configuration = f"{index:05d}", made.propose(index)
        assert configuration is not None
        point = problem.function([configuration[name] for name in names])
        write("trial", trial=trial, index=index, repeat=0, seed=0, config=configuration)
        write("start", trial=trial, node="n", from_epoch=0)
        write("result", trial=trial, epoch=1, metrics=dict(zip(metrics, point, strict=True)), time_s=1.0, node="n", verdict=None)
        write("finish", trial=trial, status="TERMINATED", reason="max_epochs", error=None)
        made.tell(sweep.trials[trial])
        points.append(point)
    return points


def optuna_alone(problem: Problem, sampler: str, seed: int) -> list[tuple[float, ...]]:
    """Return the points of a search that Optuna makes by itself, with the options that a sweep has by default."""
    options = {} if sampler == "random" else options_with_defaults("search_algorithm", {"name": "optuna", "sampler": sampler})
    options = {key: value for key, value in options.items() if key not in ("name", "sampler")}
    made = getattr(optuna.samplers, CLASSES.get(sampler, "RandomSampler"))(seed=seed + 1000, **options)
    study = optuna.create_study(sampler=made, directions=["minimize"] * (1 if problem.optimum is not None else 2))
    points: list[tuple[float, ...]] = []

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        points.append(problem.function([trial.suggest_float(f"x{number}", 0, 1) for number in range(problem.dimensions)]))
        return points[-1]

    study.optimize(objective, n_trials=problem.trials)
    return points


def timed(search: Callable[[], list[tuple[float, ...]]]) -> tuple[list[tuple[float, ...]], float]:
    begin_s = time.perf_counter()
    return search(), time.perf_counter() - begin_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", default="", help="samplers to run, with commas; all by default")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.captureWarnings(True)
    print(
        "| function | sampler | figure | as a sweep | Optuna alone | chance of such a difference | against random |"
        " ms per trial: sweep | ms per trial: Optuna |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for problem in PROBLEMS:
        of_random = [problem.score(ours(problem, "random", seed)) for seed in range(args.seeds)]
        for sampler in ("random", *CLASSES):
            if (args.only and sampler not in args.only.split(",")) or (sampler == "cmaes" and problem.optimum is None):
                continue
            scores: list[list[float]] = [[], []]
            times_ms: list[list[float]] = [[], []]
            for seed in range(args.seeds):
                for side, search in enumerate((ours, optuna_alone)):
                    points, time_s = timed(lambda: search(problem, sampler, seed))  # noqa: B023
                    scores[side].append(problem.score(points))
                    times_ms[side].append(1e3 * time_s / problem.trials)
            chances = [mannwhitneyu(scores[0], other).pvalue for other in (scores[1], of_random)]
            values = [f"{statistics.median(each):.3g}" for each in scores] + [f"{chance:.2g}" for chance in chances]
            values += [f"{statistics.median(each):.2f}" for each in times_ms]
            print(f"| {problem.name}, {problem.trials} trials | {sampler} | {problem.figure} | {' | '.join(values)} |", flush=True)


if __name__ == "__main__":
    main()
