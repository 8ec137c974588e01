"""This module contains the function that Tune runs for a trial, in a worker process of Ray.

The function trains a `model`, or calls the user's own Tune function.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY
from ray.tune.trainable import wrap_function
from ray.tune.utils import flatten_dict

from raysweep.cluster.job import ConfirmJob, SearchJob, TaskKind, TuneJob
from raysweep.common.capacity import TrialResources
from raysweep.common.files import write_yaml
from raysweep.common.gpus import first_gpu_memory_mb
from raysweep.common.numeric import is_number
from raysweep.common.typed_json import to_json
from raysweep.data.split import fold_dir
from raysweep.record.results import PREDICTIONS
from raysweep.tune.private import copied_checkpoint, ends_thread, join_train_runs, wrap_report
from raysweep.tune.reports import without_tune_names
from raysweep.usercode.working_dir import WorkingDirs

if TYPE_CHECKING:
    import torch

    from raysweep.training.trainer import Trainer

# Key of the TrialFacts in a trial's configuration. `run` removes this key before the model or the user's function gets the configuration.
RESERVED_KEY = "_raysweep"
# Key in a report. The value contains the used memory and the total memory of the trial's GPU in MB, or is None if the memory is unknown.
GPU_MEMORY_MB = "_raysweep_gpu_memory_mb"

_WORKING_DIRS = WorkingDirs()


@dataclass(frozen=True)
class TrialFacts:
    """Contains the facts about one trial that are not part of the trial's configuration."""

    seed: int
    task: TaskKind
    measures_gpu: bool  # whether the first report contains the memory that the trial uses on its GPU
    fold: int = 0  # number of the fold on which the trial trains; 0 where the data set has no folds


def trainable(job: SearchJob | ConfirmJob, resources: TrialResources) -> Any:
    """Return the class of which Tune makes an object for each trial of `job`. Tune reserves the resources of a trial and of its workers together."""
    base: Any = wrap_function(tune.with_parameters(run, job=job))

    class TrialOfJob(base):
        def cleanup(self) -> None:
            """Remove the trial's working directory when Tune stops the trial. Afterwards Ray kills this process within a tenth of a second."""
            try:
                super().cleanup()
            finally:
                remove_ended_dirs()

    bundles = [{"CPU": cpus, "GPU": gpus} for cpus, gpus in resources.bundles]
    with_resources: Any = tune.with_resources(TrialOfJob, tune.PlacementGroupFactory(bundles))
    with_resources.__name__ = with_resources.__qualname__ = "trial"  # Ray shows this name before each line that a trial prints
    return with_resources


def remove_ended_dirs() -> None:
    """Remove the working directories of this process's trials that have ended or that Tune has stopped.

    The class of `trainable` travels to this process with all objects that the class names, and needs this function, which is imported here, to find the
    directories of this process.
    """
    _WORKING_DIRS.remove_ended()


def run(config: dict[str, Any], job: SearchJob | ConfirmJob) -> Any:
    """Run one trial of a sweep or of a confirmation. Tune calls this function."""
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # at level INFO, Ray logs a line for each checkpoint
    config = dict(config)
    facts: TrialFacts = config.pop(RESERVED_KEY)
    os.environ["RAYSWEEP_SEED"] = str(facts.seed)
    os.environ["RAYSWEEP_MAX_EPOCHS"] = str(job.max_epochs)
    if job.data_dir:
        job = replace(job, data_dir=fold_dir(job.data_dir, facts.fold))
        os.environ["RAYSWEEP_DATA_DIR"] = str(job.data_dir)
    shield_reports(job.sweep.compared_metrics, facts.measures_gpu)
    if job.sweep.trainable is not None:
        with _WORKING_DIRS.own(tune.get_context().get_trial_id(), job.root, job.workflow_dirs) as folder:
            join_train_runs(folder)
            return run_function(config, facts, job)
    os.chdir(job.root)  # relative paths in the file of the model start at the folder in which the user started Snakemake
    target, _ = job.code.load()
    if isinstance(job, SearchJob):
        return search_model(target, config, facts.seed, job)
    return {"confirm": confirm_model, "evaluate": evaluate_model}[facts.task](target, config, facts.seed, job)


def run_function(config: dict[str, Any], facts: TrialFacts, job: TuneJob) -> Any:
    """Run one trial of the user's function, or of the user's `confirm`."""
    # A user's file is loaded again for each trial, because a worker runs many trials and the file's global variables may keep values of an earlier trial.
    function, module = job.code.load(anew=True)
    if facts.task == "confirm":
        return _checked(call(module.confirm, config, facts.seed, job.max_epochs))
    return call(function, config)


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the user. `sys.exit()` and `sys.exit(0)` in the function end the function like `return`.

    Raises RuntimeError for any other exit. The error says what argparse printed, because argparse exits where it does not understand the arguments.
    Raises TypeError where `function` is a class, which only `tune.Trainable` of Ray Tune would run.
    """
    if isinstance(function, type):
        raise TypeError(f"{function.__name__} is a class, but a trainable is a function that gets the configuration and calls tune.report")
    try:
        return function(*arguments)
    except SystemExit as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if ends_thread(frames[-1]):
            raise
        code = error.code
        messages = [frame.f_locals["message"] for frame in frames if frame.f_code is argparse.ArgumentParser.error.__code__]
    if messages:
        raise RuntimeError(f"argparse ended the function, and a trial has no command line (write parse_args([])): {messages[-1]}")
    if code:
        raise RuntimeError(f"the function ended with sys.exit({code!r})")
    return None


def check_finite(metric: str, metrics: dict[str, Any]) -> None:
    """Raise FloatingPointError if the metric is NaN or infinite."""
    value = metrics.get(metric)
    if is_number(value) and not math.isfinite(value):
        raise FloatingPointError(f"reported {metric} = {value}, which is not finite")


def gpu_memory_mb() -> tuple[int, int] | None:
    """Return the used memory and the total memory of this process's GPU, in MB. The used memory includes the memory of other processes.

    Return None if neither PyTorch nor the vendor's program can read the memory.
    """
    for name in ("cuda", "xpu"):
        gpu_module = getattr(sys.modules.get("torch"), name, None)  # old versions of PyTorch have no `xpu`
        if gpu_module is not None and gpu_module.is_initialized():
            free, total = gpu_module.mem_get_info()
            return (total - free) // 2**20, total // 2**20
    return first_gpu_memory_mb()


def shield_reports(metrics_compared: Sequence[str], measures_gpu: bool) -> None:
    """Change the reports of this process's trial so that they leave out Tune's own names, and raise FloatingPointError if a compared metric is not finite.

    Such a trial has failed, and must not continue later from the checkpoint of this report. If `measures_gpu` is true, the first report also gets the memory
    that the trial uses on its GPU. A report of Ray Train, which names its checkpoint only as a metric, gets this checkpoint.
    """

    def wrap(report: Callable[..., Any]) -> Callable[..., Any]:
        def checked(metrics: dict[str, Any], checkpoint: Any = None) -> None:
            nonlocal measures_gpu
            if isinstance(metrics, dict):
                metrics = without_tune_names(metrics)
                for metric in metrics_compared:
                    check_finite(metric, flatten_dict(metrics))
                if measures_gpu:
                    metrics = {**metrics, GPU_MEMORY_MB: gpu_memory_mb()}
                    measures_gpu = False
                if (copy := copied_checkpoint(str(metrics.get(CHECKPOINT_PATH_KEY, "")))) is not None:
                    report(metrics, checkpoint=tune.Checkpoint.from_directory(copy))
                    shutil.rmtree(copy)
                    return
            report(metrics, checkpoint=checkpoint)

        return checked

    wrap_report(wrap)


def _checked(metrics: Any) -> dict[str, Any]:
    if not isinstance(metrics, dict):
        raise TypeError(f"confirm() must return a map of test metrics but returned {metrics!r}")
    return without_tune_names(metrics)


def _trainer(model_class: Any, config: dict[str, Any], seed: int, job: TuneJob) -> Trainer:
    import torch

    from raysweep.training.devices import select_device

    device = select_device(needs_gpu=bool(job.trial_resources.gpu))
    # By default torch uses one thread for each core. Several such processes on one node would slow down all of these processes.
    torch.set_num_threads(max(1, int(job.sweep.trial_resources.cpu)))
    return trainer_on(device, model_class, config, seed, job)


def trainer_on(device: torch.device, model_class: Any, config: dict[str, Any], seed: int, job: TuneJob) -> Trainer:
    """Return the trainer of a configuration of a sweep that trains a `model`."""
    from raysweep.training.arrays import read_facts
    from raysweep.training.spec import TrainingSpec
    from raysweep.training.trainer import Trainer

    return Trainer(
        model_class,
        config,
        TrainingSpec.of(job.sweep),
        seed=seed,
        device=device,
        facts=read_facts(job.data_dir),
        own_loss=job.code.load_loss(),
    )


def search_model(model_class: Any, config: dict[str, Any], seed: int, job: TuneJob) -> None:
    """Train on the training split. After each epoch evaluate on the validation split, and report the metrics with a checkpoint."""
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
    """Train on the training split and the validation split together, for as many epochs as the best trial. Then evaluate once on the test split.

    If the configuration of the best trial changed during the training (population based training), the configuration changes at the same epochs here.
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
    """Evaluate the model that the sweep published on the test split, and return the metrics. Write the predictions for the report to PREDICTIONS."""
    from raysweep.training.arrays import load_tensors
    from raysweep.training.metrics import predictions_of

    trainer = _trainer(model_class, config, seed, job)
    trainer.load_published(job.model_dir)
    images, labels = load_tensors(job.data_dir, "test", trainer.device)
    predictions = predictions_of(trainer.predict(images, labels), labels, trainer.preparation.facts.num_classes)
    if predictions is not None:
        write_yaml(job.state_dir / PREDICTIONS, to_json(predictions))
    return trainer.evaluate(images, labels)
