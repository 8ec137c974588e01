"""Print how much faster ten trials train together than one by one, for models with dropout, batch normalisation and several forms, on one thread."""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
from typing import NamedTuple

import torch
from torch import nn

from raysweep.training.preparation import DataFacts
from raysweep.training.spec import TrainingSpec
from raysweep.training.stacked.timing import seconds_per_row, seconds_per_row_alone
from raysweep.training.stacked.trainer import StackedTrainer, StackSettings
from raysweep.training.stacked.verification import prepare
from raysweep.training.trainer import Trainer
from raysweep.tune.slots.fusion import KEEP_MEMORY, micro_batch_size

ROWS = 8000


class Dense(nn.Module):
    """Two hidden layers on 20 inputs, each with a normalisation and dropout."""

    def __init__(self, width: int, has_batch_norm: bool) -> None:
        super().__init__()
        norm = nn.BatchNorm1d if has_batch_norm else nn.LayerNorm
        layers = [[nn.Linear(inputs, width), norm(width), nn.ReLU(), nn.Dropout(0.3)] for inputs in (20, width)]
        self.layers = nn.Sequential(*itertools.chain(*layers), nn.Linear(width, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Convolutions(nn.Module):
    """Two strided convolutions, each with a normalisation, and dropout before the last layer."""

    def __init__(self, width: int, has_batch_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, out in ((3, width), (width, 2 * width)):
            norm = nn.BatchNorm2d(out) if has_batch_norm else nn.GroupNorm(4, out)
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), norm, nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.25), nn.Linear(2 * width, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Case(NamedTuple):
    """Describes the trials of a measurement."""

    model: type[nn.Module]
    has_batch_norm: bool
    batch_sizes: tuple[int, ...]
    widths: tuple[int, ...] = (16,)


CASES = (
    Case(Dense, False, (16, 32, 64)),
    Case(Dense, False, (16, 32, 64), (16, 32)),
    Case(Dense, True, (32,)),
    Case(Dense, True, (32,), (16, 32)),
    Case(Dense, True, (16, 32)),
    Case(Dense, True, (16, 32), (16, 32)),
    Case(Convolutions, True, (32,)),
    Case(Convolutions, True, (8,)),
)


def measure(case: Case, members: int, rounds: int, compiles: bool) -> str:
    """Return the speed-up of a case as text, which is the median of the rounds."""
    shape = (20,) if case.model is Dense else (3, 32, 32)
    data = torch.randint(0, 256, (ROWS, *shape), dtype=torch.uint8), torch.randint(0, 10, (ROWS,))
    pairs = list(itertools.product(case.widths, case.batch_sizes))
    spec = TrainingSpec("cross_entropy", "sgd", order_seed=0)
    trainers = []
    for number in range(members):
        width, batch_size = pairs[number % len(pairs)]
        config = {"lr": 1e-3, "momentum": 0.9, "batch_size": batch_size, "width": width, "has_batch_norm": case.has_batch_norm}
        trainers.append(Trainer(case.model, config, spec, seed=number, device=torch.device("cpu"), facts=DataFacts(shape)))
    size = None if case.has_batch_norm else micro_batch_size(list(case.batch_sizes))
    has_forms = len(case.widths) > 1 or (case.has_batch_norm and len(case.batch_sizes) > 1)
    stacked: StackedTrainer | str = StackedTrainer(StackSettings(size, share_rows=True, has_forms=has_forms))
    assert isinstance(stacked, StackedTrainer)
    if compiles:
        stacked = prepare(stacked, trainers, *data)
    if isinstance(stacked, str):
        return f"not compiled: {stacked}"
    times = [(seconds_per_row_alone(trainers, *data), seconds_per_row(stacked, trainers, *data)) for _ in range(rounds)]
    return f"{statistics.median(alone / together for alone, together in times):.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="measure compiled steps too, of which each takes about 25 s to compile")
    args = parser.parse_args()
    if not KEEP_MEMORY.keys() <= os.environ.keys():  # glibc reads these variables, which engines have, only at the start of a process
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for case in CASES:
        norm = "batch" if case.has_batch_norm else "layer" if case.model is Dense else "group"
        line = f"{case.model.__name__}, {norm} normalisation, batch sizes {case.batch_sizes}, widths {case.widths}:"
        for compiles in (False, True) if args.compile else (False,):
            line += f" {'compiled' if compiles else 'eager'} {measure(case, args.members, args.rounds, compiles)}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
