"""Print the microseconds of a training step of one model among those that are trained together: the engine's own code, compiled, one thread on a CPU."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from raysweep.training.spec import TrainingSpec
from raysweep.training.stacked.timing import seconds_per_row
from raysweep.training.stacked.trainer import StackedTrainer, StackSettings
from raysweep.training.stacked.verification import prepare
from raysweep.training.trainer import Trainer
from raysweep.usercode.freeze import load_target
from raysweep.usercode.target import find_target

MEMBERS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="path/to/file.py:Class")
    parser.add_argument("--batch-size", type=int, required=True)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (20_000, 3, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 10, (len(images),), device=device)
    model_class, _ = load_target(find_target(args.model, Path.cwd()))
    config = {"lr": 1e-3, "momentum": 0.9, "batch_size": args.batch_size}
    spec = TrainingSpec("cross_entropy", "sgd", order_seed=0)
    trainers = [Trainer(model_class, config, spec, seed=number, device=device) for number in range(MEMBERS)]
    stacked = prepare(StackedTrainer(StackSettings(args.batch_size, share_rows=True)), trainers, images, labels)
    if isinstance(stacked, str):
        raise SystemExit(f"The step cannot be compiled or captured: {stacked}")
    print(json.dumps({"microseconds": seconds_per_row(stacked, trainers, images, labels) / MEMBERS * args.batch_size * 1e6}))


if __name__ == "__main__":
    main()
