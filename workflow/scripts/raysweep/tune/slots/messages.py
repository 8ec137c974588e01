"""This module contains the types of the data that the driver and the engines exchange. The module needs neither Ray nor PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysweep.record.events import StepMode
from raysweep.training.spec import TrainingSpec
from raysweep.usercode.freeze import Code

MIN_SPEED_UP = 1.3  # minimum speed-up for training together, because a smaller speed-up does not justify that trials share a process


@dataclass(frozen=True)
class EngineJob:
    """Contains the facts about a sweep that an engine needs."""

    root: Path  # folder in which the user started Snakemake
    code: Code  # code of the model's class
    data_dir: Path | None
    compiled_dir: Path | None  # folder with the findings of earlier engines, see findings.py; None: nothing is kept
    versions: tuple[str, str]  # version of the workflow, and SHA-256 of the environment's lock
    spec: TrainingSpec
    metric: str
    max_epochs: int
    needs_gpu: bool
    threads: int  # number of PyTorch threads in the engine
    # Number of threads for the compiler. The compiler may use the threads of all engines of the node, because only one engine compiles and the other engines
    # use the compiled files.
    compiler_threads: int
    memory_mb: float  # memory in MB that the engine may use on a CPU node
    micro_batch_size: int  # number of rows of one trial in one step, unless steps have whole batches
    share_rows: bool  # whether all trials are at the same epoch and use the same rows, see StackSettings
    max_slots: int
    trials: int  # approximate number of trials that the engine trains during the sweep
    num_forms: int  # number of forms of the model, which are the different arguments of its constructor
    num_batch_sizes: int  # number of different batch sizes
    # Configurations for the benchmark, which differ from each other like the configurations of the sweep.
    samples: tuple[dict[str, Any], ...]
    num_kinds: int  # number of samples at the beginning of `samples` that contain each form of the model and each batch size of `samples`


@dataclass(frozen=True)
class EngineSetup:
    """Describes how an engine trains. All engines of a sweep train in the same way."""

    slots: int  # number of trials that the engine trains at the same time
    # Number of members for which the training step is compiled (on a CPU) or captured as a CUDA graph (on a GPU). 0 means that steps are eager.
    prepared_for: int
    unfolds: bool  # whether convolutions are computed as matrix products
    whole_batches: bool  # whether each step has a whole batch, as for batch normalisation


@dataclass(frozen=True)
class Benchmark:
    """Contains the result of an engine's benchmark, which decides whether the sweep uses engines."""

    setup: EngineSetup
    speed_up: float  # time of separate training divided by time of training together
    way: str  # description of how the training steps run, for the log and the record
    step_mode: StepMode = "eager"
