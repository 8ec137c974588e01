"""Times some training steps of a sweep's model on this machine, for `snakemake plan`. Runs in the environment of the trials."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from raysweep.config.space import parse_space
from raysweep.record.record import read_sweep
from raysweep.training.trainer import Trainer
from raysweep.tune.slots.engine import Engine
from raysweep.tune.slots.fusing import Layout, told_to_engines, why_not_as_seen, why_not_at_all
from raysweep.tune.trial import arrays
from raysweep.usercode.freeze import Code

logger = logging.getLogger("raysweep")

WARM_UP_STEPS = 3
LEAST_S = 0.7  # that a measurement takes, unless all the data takes less: shorter ones are the clock's, the cache's and the neighbours'
MOST_ROWS_EVALUATED = 2000


def measure(job: dict[str, Any], configs: list[dict[str, Any]], capacity: int) -> dict[str, Any]:
    """How long training takes. `job` is described in driver.py; `configs` are those to try; `capacity` is how many trials its nodes hold.

    Returns {device, rows, validation_rows, points: [{batch_size, row_s, validation_row_s}], together: {why_not} or {speed_up, seats, processes, way,
    look_s}}: seconds for a row of a trial by itself, and how much faster trials train together, where they do.
    """
    os.chdir(job["root"])
    sweep = job["sweep"]
    device = torch.device("cuda" if torch.cuda.is_available() and job["trial_resources"]["gpu"] else "cpu")
    job = {**job, "trial_resources": {**job["trial_resources"], "gpu": job["trial_resources"]["gpu"] if device.type == "cuda" else 0}}
    torch.set_num_threads(max(1, int(job["trial_resources"]["cpu"])))
    model_class, _ = Code.from_json(job["code"]).load()
    train, validation = (arrays(job["data_dir"], split, device) for split in ("train", "validation"))
    points = []
    for number, config in enumerate(configs):
        options = {"loss": sweep["loss"], "optimizer": sweep["optimizer"], "order_seed": sweep["seed"]}
        trainer = Trainer(model_class, config, seed=number, device=device, **options)
        points.append(
            {
                "batch_size": trainer.batch_size,
                "row_s": _training_row_s(trainer, *train),
                "validation_row_s": _evaluation_row_s(trainer, *validation),
            }
        )
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "rows": len(train[1]),
        "validation_rows": len(validation[1]),
        "points": points,
        "together": _together(job, capacity),
    }


def _training_row_s(trainer: Trainer, images: torch.Tensor, labels: torch.Tensor) -> float:
    few = WARM_UP_STEPS * trainer.batch_size
    trainer.train_epoch(images[:few], labels[:few], 1)
    rows = min(2 * few, len(labels))
    while True:
        seconds = _seconds(lambda: trainer.train_epoch(images[:rows], labels[:rows], 1))  # noqa: B023
        if seconds >= LEAST_S or rows == len(labels):
            return seconds / rows
        rows = min(max(2 * rows, int(1.2 * rows * LEAST_S / seconds)), len(labels))


def _evaluation_row_s(trainer: Trainer, images: torch.Tensor, labels: torch.Tensor) -> float:
    rows = min(MOST_ROWS_EVALUATED, len(labels))
    trainer.evaluate(images[:rows], labels[:rows])
    return _seconds(lambda: trainer.evaluate(images[:rows], labels[:rows])) / rows


def _seconds(action: Callable[[], Any]) -> float:
    """How long it takes. It returns numbers, so a GPU has done its work by then."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _together(job: dict[str, Any], capacity: int) -> dict[str, Any]:
    """Whether trials would be trained together, and what that gives: what the sweep itself looks at when it begins."""
    sweep = job["sweep"]
    if sweep["fuse"] == "off":
        return {"why_not": "fuse is off"}
    space, recorded = parse_space(sweep["search_space"]), read_sweep(Path(job["record"]))
    layout = Layout.of(job, recorded, capacity)
    if why := why_not_at_all(sweep, space, recorded):
        return {"why_not": why}
    if layout.seats < 2:
        return {"why_not": f"no two of {layout.trials} share a device"}
    began = time.perf_counter()
    seen = Engine(told_to_engines(job, space, layout), layout.threads, layout.memory_mb(sweep)).look()
    if why := why_not_as_seen(seen, sweep):
        return {"why_not": why}
    return {
        "why_not": None,
        "speed_up": seen["speed_up"],
        "seats": seen["seats"],
        "processes": layout.engines,
        "way": seen["way"],
        "look_s": time.perf_counter() - began,
    }
