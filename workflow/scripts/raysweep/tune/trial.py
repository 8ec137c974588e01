"""What a trial runs, in a worker process of Ray: the training of a `model`, or the user's own Tune function."""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.utils import flatten_dict

from raysweep.cluster.job import ConfirmJob, SearchJob, TuneJob
from raysweep.common.gpus import first_gpu_memory_mb
from raysweep.common.numeric import is_number

# The key under which a trial's own facts travel in its configuration; taken out before the model or the user's function sees it.
OWN = "_raysweep"
GPU_MEMORY_MB = "_raysweep_gpu_memory_mb"  # in a report: taken and total, or None


def run(config: dict[str, Any], job: SearchJob | ConfirmJob) -> Any:
    """The function that Tune runs for every trial, whatever the sweep trains."""
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # else a line for each checkpoint
    config = dict(config)
    own = config.pop(OWN)
    # The folder in which the user started Snakemake, so that the relative paths of his function mean what he means.
    os.chdir(job.root)
    os.environ["RAYSWEEP_SEED"] = str(own["seed"])
    os.environ["RAYSWEEP_MAX_EPOCHS"] = str(job.max_epochs)
    if job.data_dir:
        os.environ["RAYSWEEP_DATA_DIR"] = str(job.data_dir)
    shield_reports(job.sweep.metric, own["measures_gpu"])
    # A worker runs many trials, and what a user's file keeps at its top level, such as a seed, is one trial's own.
    target, module = job.code.load(anew=job.sweep.trainable is not None)
    if own["task"] == "confirm" and job.sweep.trainable is not None:
        return _checked(module.confirm(config, own["seed"], job.max_epochs))
    if job.sweep.trainable is not None:
        returned = target(config)
        # Where it returns its only report Tune has not been told of anything before.
        return {**returned, GPU_MEMORY_MB: gpu_memory_mb()} if own["measures_gpu"] and isinstance(returned, dict) else returned
    if isinstance(job, SearchJob):
        return search_model(target, config, own["seed"], job)
    return {"confirm": confirm_model, "evaluate": evaluate_model}[own["task"]](target, config, own["seed"], job)


def check_finite(metric: str, metrics: dict[str, Any]) -> None:
    """Raises FloatingPointError where the metric is NaN or infinite."""
    value = metrics.get(metric)
    if is_number(value) and not math.isfinite(value):
        raise FloatingPointError(f"reported {metric} = {value}, which is not finite")


def gpu_memory_mb() -> tuple[int, int] | None:
    """What is taken of this process's GPU, by whomever, and what it has, in MB; None where nobody can say."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        return (total - free) // 2**20, total // 2**20
    return first_gpu_memory_mb()


def shield_reports(metric: str, measures_gpu: bool) -> None:
    """Have `tune.report` raise where the metric is NaN or infinite: the trial has failed, and what it saved with that is nothing to go on from.

    `measures_gpu`: the first report says besides what the trial takes of its GPU.
    """
    report = getattr(tune.report, "of_tune", tune.report)  # a worker runs many trials

    @functools.wraps(report)
    def checked(metrics: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        nonlocal measures_gpu
        if isinstance(metrics, dict):
            check_finite(metric, flatten_dict(metrics))
            if measures_gpu:
                metrics = {**metrics, GPU_MEMORY_MB: gpu_memory_mb()}
                measures_gpu = False
        return report(metrics, *arguments, **options)

    checked.of_tune = report  # type: ignore[attr-defined]
    tune.report = checked


def _checked(metrics: Any) -> dict[str, Any]:
    if not isinstance(metrics, dict):
        raise TypeError(f"confirm() must return a map of test metrics but returned {metrics!r}")
    return metrics


def _trainer(model_class: Any, config: dict[str, Any], seed: int, job: TuneJob) -> Any:
    import torch

    from raysweep.training.spec import TrainingSpec
    from raysweep.training.trainer import Trainer, select_device

    device = select_device(needs_gpu=bool(job.trial_resources.gpu))
    # Several processes with torch's default number of threads each stall one another.
    torch.set_num_threads(max(1, int(job.sweep.trial_resources.cpu)))
    return Trainer(model_class, config, TrainingSpec.of(job.sweep), seed=seed, device=device)


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
    """Train on all training data, validation part included, for as many epochs as the best trial had; evaluate on the test set, once.

    Where its settings changed on the way (population based training) they change here at the same epochs.
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
    """The test metrics of the model that the sweep published."""
    from safetensors.torch import load_model

    from raysweep.training.arrays import load_tensors
    from raysweep.training.trainer import MODEL_FILE

    trainer = _trainer(model_class, config, seed, job)
    load_model(trainer.model, str(job.model_dir / MODEL_FILE), device=str(trainer.device))
    return trainer.evaluate(*load_tensors(job.data_dir, "test", trainer.device))
