"""This module measures how long some training steps of a sweep's model take on this machine, for `snakemake plan`.

The module runs in the node environment, as the trials do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from raysweep.cluster.job import Measurement, MeasurementInput, SearchJob, StepTimes
from raysweep.common.machine import NodeSize
from raysweep.config.space import parse_space
from raysweep.record.events import FusionPlan, NotFused
from raysweep.record.file import read_sweep
from raysweep.training.arrays import load_tensors
from raysweep.training.devices import select_device
from raysweep.training.trainer import Trainer
from raysweep.tune.slots.engine import Engine
from raysweep.tune.slots.fusion import Layout, engine_job, plan_fusion, reason_by_config
from raysweep.tune.trial import trainer_on

WARM_UP_STEPS = 3
# Minimum time of a measurement in seconds, unless all data takes less time. A shorter measurement depends too much on the clock, the cache and other processes.
MIN_MEASURED_S = 0.7
MAX_ROWS_EVALUATED = 2000


def measure(given: MeasurementInput) -> Measurement:
    """Measure the time of training steps for some configurations, and the speed at which an engine trains several trials together."""
    job = given.job
    os.chdir(job.root)
    device = select_device(needs_gpu=False) if job.trial_resources.gpu else torch.device("cpu")
    if device.type == "cpu":  # without a GPU here, the benchmark must not ask for a GPU
        job = replace(job, trial_resources=replace(job.trial_resources, gpu=0))
    torch.set_num_threads(max(1, int(job.trial_resources.cpu)))
    model_class, _ = job.code.load()
    train, validation = (load_tensors(job.data_dir, split, device) for split in ("train", "validation"))
    points = []
    for number, config in enumerate(given.configs):
        trainer = trainer_on(device, model_class, config, number, job)
        points.append(StepTimes(trainer.batch_size, _training_row_s(trainer, *train), _evaluation_row_s(trainer, *validation)))
    began = time.perf_counter()
    together = _plan_fusion(job, given.nodes, given.capacity)
    return Measurement(
        device=torch.get_device_module(device).get_device_name() if device.type != "cpu" else "CPU",
        rows=len(train[1]),
        validation_rows=len(validation[1]),
        points=tuple(points),
        together=together,
        benchmark_s=time.perf_counter() - began,
    )


def _training_row_s(trainer: Trainer, images: torch.Tensor, labels: torch.Tensor) -> float:
    few = WARM_UP_STEPS * trainer.batch_size
    trainer.train_epoch(images[:few], labels[:few], 1)
    rows = min(2 * few, len(labels))
    while True:
        seconds = _seconds(lambda: trainer.train_epoch(images[:rows], labels[:rows], 1))  # noqa: B023
        if seconds >= MIN_MEASURED_S or rows == len(labels):
            return seconds / rows
        rows = min(max(2 * rows, int(1.2 * rows * MIN_MEASURED_S / seconds)), len(labels))


def _evaluation_row_s(trainer: Trainer, images: torch.Tensor, labels: torch.Tensor) -> float:
    rows = min(MAX_ROWS_EVALUATED, len(labels))
    trainer.evaluate(images[:rows], labels[:rows])
    return _seconds(lambda: trainer.evaluate(images[:rows], labels[:rows])) / rows


def _seconds(action: Callable[[], Any]) -> float:
    """Return how many seconds an action takes. The action returns numbers, so a GPU has completed its work when the action returns."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _plan_fusion(job: SearchJob, nodes: Sequence[NodeSize], capacity: int) -> FusionPlan | NotFused:
    """Return whether and how trials would be trained together. A sweep makes the same decision when the sweep begins."""
    sweep = job.sweep
    if sweep.fuse == "off":
        return NotFused("fuse is off")
    space, recorded = parse_space(sweep.search_space), read_sweep(job.record)
    layout = Layout.of(job, nodes, recorded, capacity)
    if reason := reason_by_config(job, space, recorded) or layout.reason_needless:
        return NotFused(reason)
    # A plan keeps and uses no findings, because a plan often runs on a busy login node, whose folder for temporary files belongs to all users.
    engine = Engine(replace(engine_job(job, space, layout), compiled_dir=None))
    return plan_fusion(engine.benchmark(), layout, needs_speed_up=sweep.fuse == "auto")
