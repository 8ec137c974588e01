"""Measures each side of each figure in turn, round after round, and writes the table: `make bench`.

results/<date>-<machine>.csv          the figures: medians, their ratio and the goal
results/<date>-<machine>.md           the same as a table, with machine, versions, number of runs and what each trial reached
results/<date>-<machine>.runs.csv     every run; written after each, and gone on from by the next call on that day
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

from measures import NODES, NUM_SAMPLES, STOCK_NO_OPS, Bench, Measured, Unmeasurable

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("ray", "torch", "torchvision", "snakemake")


@dataclass(frozen=True)
class Figure:
    """Two sides and what they are to show. `goal` is a ratio, reference ÷ ours, and `at_least`; without a reference it is a value, at most."""

    name: str
    unit: str
    reference: str | None
    ours: str
    goal: float
    at_least: bool = True


FIGURES = (
    Figure("sweep of LeNet: reference ÷ ours", "s", "lenet/reference", "lenet/auto", 6),
    Figure("sweep of a perceptron (user's own): reference ÷ ours", "s", "perceptron/reference", "perceptron/auto", 4),
    Figure("sweep of strided convolutions (user's own): reference ÷ ours", "s", "strided/reference", "strided/auto", 4),
    Figure("sweep of LeNet, second run: reference ÷ ours", "s", "lenet/reference", "lenet/again", 7),
    Figure("sweep of a network with batch normalisation and dropout: reference ÷ ours", "s", "normalised/reference", "normalised/auto", 6),
    Figure("sweep of LeNet: fuse off ÷ fuse auto", "s", "lenet/off", "lenet/auto", 2),
    Figure("width and dropout, Optuna + ASHA, ten at a time: fuse off ÷ fuse auto", "s", "forms/off", "forms/auto", 1.5),
    Figure("Optuna + ASHA, ten at a time: fuse off ÷ fuse on", "s", "asha/off", "asha/on", 2),
    Figure("step at batch size 2: plain PyTorch ÷ ours", "µs", "step 2/reference", "step 2/fused", 4),
    Figure("step at batch size 16: plain PyTorch ÷ ours", "µs", "step 16/reference", "step 16/fused", 1.2),
    Figure(f"no-op trial: stock Tune ({STOCK_NO_OPS} fresh processes) ÷ ours (1,000 trials)", "ms", "no-op/stock", "no-op/1000", 20),
    Figure("no-op trial: ours at 10,000 ÷ ours at 1,000 trials", "ms", "no-op/10000", "no-op/1000", 1.2, at_least=False),
    Figure("node environment: venv + pip ÷ ours, nothing there before", "s", "node/venv + pip", "node/unpacked", 3),
    Figure("node environment: venv + pip ÷ ours, second job with cache_dir", "s", "node/venv + pip", "node/cached", 50),
    Figure(f"job start to Ray on all {NODES} nodes: the wiki's recipe ÷ ours", "s", "bring-up/recipe", "bring-up/ours", 3),
    Figure("memory (PSS) of ten concurrent trials: reference ÷ ours", "MB", "memory/reference", "memory/ours", 5),
    Figure("snakemake -n, whole process", "s", None, "dry run", 2, at_least=False),
)
# With a GPU: what it is for, the sweeps and their steps; on both sides as many trials at a time as there are cores.
GPU_FIGURES = (
    Figure("sweep of LeNet on one GPU: reference ÷ ours", "s", "lenet/reference", "lenet/auto", 20),
    Figure("sweep of a perceptron (user's own) on one GPU: reference ÷ ours", "s", "perceptron/reference", "perceptron/auto", 20),
    Figure("sweep of strided convolutions (user's own) on one GPU: reference ÷ ours", "s", "strided/reference", "strided/auto", 20),
    Figure("sweep of LeNet on one GPU: fuse off ÷ fuse auto", "s", "lenet/off", "lenet/auto", 2),
    Figure("step at batch size 2 on one GPU: plain PyTorch ÷ ours", "µs", "step 2/reference", "step 2/fused", 4),
    Figure("step at batch size 16 on one GPU: plain PyTorch ÷ ours", "µs", "step 16/reference", "step 16/fused", 1.2),
)


class Runs:
    """Every run of every side, in a CSV that grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.of: dict[str, list[Measured]] = {}
        if path.exists():
            with path.open(newline="") as stream:
                for row in csv.DictReader(stream):
                    accuracies = tuple(float(value) for value in row["accuracies"].split())
                    self.of.setdefault(row["side"], []).append(Measured(float(row["value"]), accuracies))

    def add(self, side: str, measured: Measured) -> None:
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            if is_new:
                writer.writerow(["side", "value", "accuracies", "at"])
            at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            writer.writerow([side, f"{measured.value:.6g}", " ".join(f"{value:.4f}" for value in measured.accuracies), at])
        self.of.setdefault(side, []).append(measured)

    def median(self, side: str) -> float | None:
        return statistics.median(run.value for run in self.of[side]) if side in self.of else None


def row_of(figure: Figure, runs: Runs) -> list[str] | None:
    """figure, unit, reference, ours, ratio, goal, met; None while a side is missing."""
    ours, reference = runs.median(figure.ours), runs.median(figure.reference) if figure.reference else None
    if ours is None or (figure.reference and reference is None):
        return None
    judged = reference / ours if reference is not None else ours
    met = judged >= figure.goal if figure.at_least else judged <= figure.goal
    sign = "≥" if figure.at_least else "≤"
    shown = (
        "" if reference is None else f"{reference:.4g}",
        f"{ours:.4g}",
        "" if reference is None else f"{judged:.3g}" if judged < 1000 else f"{judged:.0f}",
    )
    return [figure.name, figure.unit, *shown, f"{sign} {figure.goal:g}", "yes" if met else "no"]


def write_tables(runs: Runs, stem: Path) -> None:
    rows = {figure: row for figure in figures() if (row := row_of(figure, runs))}
    columns = ["figure", "unit", "reference", "ours", "ratio", "goal", "met"]
    with stem.with_name(f"{stem.name}.csv").open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([columns, *rows.values()])
    lines = [
        f"# {stem.name}",
        "",
        f"{describe_machine()}; Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in PACKAGES) + ".",
        "Medians; in brackets how many runs of each side. The two sides of a figure ran in turn." + ("" if has_gpu() else " No GPU."),
        "",
        "| " + " | ".join(columns) + " |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for figure, row in rows.items():
        count = {side: f" ({len(runs.of[side])})" for side in (figure.reference, figure.ours) if side}
        row = [*row[:2], row[2] + count.get(figure.reference or "", ""), row[3] + count[figure.ours], *row[4:]]
        lines.append("| " + " | ".join(row) + " |")
    lines += [
        "",
        f"Accuracy on 10,000 images after one epoch, of each of the {NUM_SAMPLES} configurations in their order (latest run):",
        "",
    ]
    lines += ["| sweep | best | of each |", "|---|--:|---|"]
    for side, found in runs.of.items():
        if accuracies := found[-1].accuracies:
            lines.append(f"| {side} | {max(accuracies):.3f} | {' '.join(f'{value:.2f}' for value in accuracies)} |")
    stem.with_name(f"{stem.name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def figures() -> tuple[Figure, ...]:
    return GPU_FIGURES if has_gpu() else FIGURES


def describe_machine() -> str:
    import torch

    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return (
        f"{len(os.sched_getaffinity(0))} cores ({model[1] if model else platform.machine()}), {psutil.virtual_memory().total / 1e9:.0f} GB"
        + (f", {torch.cuda.get_device_name()}" if has_gpu() else "")
    )


def name_of_machine() -> str:
    """A name by what it has, since a host name says nothing to others."""
    kind = "gpu" if has_gpu() else "cpu"
    return f"{len(os.sched_getaffinity(0))}-cores-{kind}"


def data_in(folder: Path | None, download_to: Path) -> Path:
    """The folder that holds cifar-10-batches-py."""
    if folder is not None:
        return folder
    from torchvision.datasets import CIFAR10

    CIFAR10(str(download_to), download=True)
    return download_to


def chosen(sides: dict[str, Callable[[], Measured]], only: str) -> list[str]:
    """The sides of the figures with a name, or a side, that holds one of these words; of all without any."""
    words = [word.strip() for word in only.split(",") if word.strip()]
    wanted = [
        side
        for figure in figures()
        if not words or any(word in f"{figure.name} {figure.reference} {figure.ours}" for word in words)
        for side in (figure.reference, figure.ours)
        if side
    ]
    if not wanted:
        sys.exit(f"Error: no figure has {only!r} in its name. There are: {'; '.join(figure.name for figure in figures())}")
    return [side for side in sides if side in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="words, separated by commas: figures that have one in their name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data-dir", type=Path, help="folder that holds cifar-10-batches-py; downloaded where it is not given")
    parser.add_argument("--resources-dir", type=lambda text: Path(text).resolve(), required=True, help="where downloads are kept")
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-{name_of_machine()}"
    runs = Runs(stem.with_name(f"{stem.name}.runs.csv"))
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as folder:  # nodes of the Slurm for tests share folders below /tmp
        machine = {"cpus": len(os.sched_getaffinity(0)), "gpus": 1} if has_gpu() else {}
        bench = Bench(Path(folder), data_in(args.data_dir, args.resources_dir / "data").resolve(), args.resources_dir / "wheels", **machine)
        sides = bench.sides()
        for number in range(args.rounds):
            for side in chosen(sides, args.only):
                began = time.monotonic()
                try:
                    measured = sides[side]()
                except Unmeasurable as reason:
                    print(f"{side}: not measured: {reason}", flush=True)
                    continue
                runs.add(side, measured)
                write_tables(runs, stem)
                took_s = time.monotonic() - began
                print(f"round {number + 1}  {side:22} {measured.value:10.4g}   ({took_s:.0f} s)", flush=True)
    print(stem.with_name(f"{stem.name}.md").read_text())


if __name__ == "__main__":
    main()
