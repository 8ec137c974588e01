"""The function that a trial runs, in a worker process of Ray: the training of a `model`, or the user's own Tune function."""

from __future__ import annotations

import logging
import math
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.utils import flatten_dict

from raysweep.cluster.job import ConfirmJob, SearchJob, TaskKind, TuneJob
from raysweep.common.gpus import first_gpu_memory_mb
from raysweep.common.numeric import is_number
from raysweep.tune.private import wrap_report

if TYPE_CHECKING:
    from raysweep.training.trainer import Trainer

# The key under which TrialFacts travel in a configuration. They are taken out before the model or the user's function sees the configuration.
RESERVED_KEY = "_raysweep"
GPU_MEMORY_MB = "_raysweep_gpu_memory_mb"  # in a report: memory in use and all memory of the GPU, or None


@dataclass(frozen=True)
class TrialFacts:
    """The facts of one trial that are not part of its configuration."""

    seed: int
    task: TaskKind
    measures_gpu: bool  # whether the first report says how much memory of its GPU the trial takes


def run(config: dict[str, Any], job: SearchJob | ConfirmJob) -> Any:
    """Run one trial, whatever the sweep trains. Tune calls this function."""
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # at INFO each checkpoint has a line
    config = dict(config)
    facts: TrialFacts = config.pop(RESERVED_KEY)
    # The folder in which the user started Snakemake, so that relative paths in the user's function are right.
    os.chdir(job.root)
    os.environ["RAYSWEEP_SEED"] = str(facts.seed)
    os.environ["RAYSWEEP_MAX_EPOCHS"] = str(job.max_epochs)
    if job.data_dir:
        os.environ["RAYSWEEP_DATA_DIR"] = str(job.data_dir)
    shield_reports(job.sweep.metric, facts.measures_gpu)
    # A worker runs many trials, and the top level of a user's file may keep values of one trial, such as a seed.
    target, module = job.code.load(anew=job.sweep.trainable is not None)
    if facts.task == "confirm" and job.sweep.trainable is not None:
        return _checked(module.confirm(config, facts.seed, job.max_epochs))
    if job.sweep.trainable is not None:
        returned = target(config)
        # A function may return its only report, which does not pass through `tune.report`.
        return {**returned, GPU_MEMORY_MB: gpu_memory_mb()} if facts.measures_gpu and isinstance(returned, dict) else returned
    if isinstance(job, SearchJob):
        return search_model(target, config, facts.seed, job)
    return {"confirm": confirm_model, "evaluate": evaluate_model}[facts.task](target, config, facts.seed, job)


def check_finite(metric: str, metrics: dict[str, Any]) -> None:
    """Raise FloatingPointError where the metric is NaN or infinite."""
    value = metrics.get(metric)
    if is_number(value) and not math.isfinite(value):
        raise FloatingPointError(f"reported {metric} = {value}, which is not finite")


def gpu_memory_mb() -> tuple[int, int] | None:
    """Return the memory in use of this process's GPU, by all processes, and all its memory, in MB; None where neither PyTorch nor nvidia-smi can say."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        return (total - free) // 2**20, total // 2**20
    return first_gpu_memory_mb()


def shield_reports(metric: str, measures_gpu: bool) -> None:
    """Have `tune.report` raise where the metric is NaN or infinite: the trial has failed, and must not continue from the checkpoint of that report.

    `measures_gpu`: the first report also says how much memory of its GPU the trial takes.
    """

    def wrap(report: Callable[..., Any]) -> Callable[..., Any]:
        def checked(metrics: dict[str, Any], *arguments: Any, **options: Any) -> Any:
            nonlocal measures_gpu
            if isinstance(metrics, dict):
                check_finite(metric, flatten_dict(metrics))
                if measures_gpu:
                    metrics = {**metrics, GPU_MEMORY_MB: gpu_memory_mb()}
                    measures_gpu = False
            return report(metrics, *arguments, **options)

        return checked

    wrap_report(wrap)


def _checked(metrics: Any) -> dict[str, Any]:
    if not isinstance(metrics, dict):
        raise TypeError(f"confirm() must return a map of test metrics but returned {metrics!r}")
    return metrics


def _trainer(model_class: Any, config: dict[str, Any], seed: int, job: TuneJob) -> Trainer:
    import torch

    from raysweep.training.arrays import read_image_shape
    from raysweep.training.spec import TrainingSpec
    from raysweep.training.trainer import Trainer, select_device

    device = select_device(needs_gpu=bool(job.trial_resources.gpu))
    # By default torch takes a thread for each core. Several such processes on one node stall one another.
    torch.set_num_threads(max(1, int(job.sweep.trial_resources.cpu)))
    return Trainer(model_class, config, TrainingSpec.of(job.sweep), seed=seed, device=device, image_shape=read_image_shape(job.data_dir))


def search_model(model_class: Any, config: dict[str, Any], seed: int, job: TuneJob) -> None:
    """Train on the training part, report on the validation part after each epoch, and checkpoint."""
    from raysweep.training.arrays import load_tensors

    trainer = _trainer(model_class, config, seed, job)
    train, validation = (load_tensors(job.data_dir, split, trainer.device) for split in ("train", "validation"))
    epoch = 0
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as folder:
            epoch = trainer.load(Path(folder))
    while epoch < job.max_epochs:
        epoch += 1
        train_loss = trainer.train_epoch(*train, epoch)
        metrics = {**trainer.evaluate(*validation), "train_loss": train_loss}
        with tempfile.TemporaryDirectory() as folder:
            trainer.save(Path(folder), epoch)
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


def confirm_model(model_class: Any, config: dict[str, Any], seed: int, job: ConfirmJob) -> dict[str, float]:
    """Train on all training data, validation part included, for as many epochs as the best trial had. Evaluate on the test set, once.

    Where the settings of the best trial changed in between (population based training), they change at the same epochs.
    """
    import torch

    from raysweep.training.arrays import load_tensors

    trainer = _trainer(model_class, config, seed, job)
    parts = [load_tensors(job.data_dir, split, trainer.device) for split in ("train", "validation")]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    train_loss = 0.0
    changes = {step.from_epoch: step.config for step in job.schedule}
    for epoch in range(1, job.max_epochs + 1):
        if epoch - 1 in changes:
            trainer.change(changes[epoch - 1])
        train_loss = trainer.train_epoch(images, labels, epoch)
    return {**trainer.evaluate(*load_tensors(job.data_dir, "test", trainer.device)), "train_loss": train_loss}


def evaluate_model(model_class: Any, config: dict[str, Any], seed: int, job: ConfirmJob) -> dict[str, float]:
    """Return the test metrics of the model that the sweep published."""
    from safetensors.torch import load_model

    from raysweep.training.arrays import load_tensors
    from raysweep.training.trainer import MODEL_FILE

    trainer = _trainer(model_class, config, seed, job)
    load_model(trainer.model, str(job.model_dir / MODEL_FILE), device=str(trainer.device))
    return trainer.evaluate(*load_tensors(job.data_dir, "test", trainer.device))
