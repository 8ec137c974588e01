"""The typed facts that travel between driver and engines. This module needs neither Ray nor PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysweep.training.spec import TrainingSpec
from raysweep.usercode.freeze import Code


@dataclass(frozen=True)
class EngineJob:
    """The facts that an engine needs to know of its sweep."""

    root: Path  # folder in which the user started Snakemake
    code: Code  # the model's class
    data_dir: Path | None
    spec: TrainingSpec
    metric: str
    max_epochs: int
    needs_gpu: bool
    threads: int  # of PyTorch
    compiler_threads: int  # of all engines of the node: one engine compiles, and the other engines find its work
    memory_mb: float  # that the engine may take on a CPU
    micro_batch_size: int  # rows of a trial in one step
    share_rows: bool  # whether all trials are at the same epoch and take the same rows, see StackSettings
    max_slots: int
    trials: int  # about how many trials the engine trains over the sweep
    samples: tuple[dict[str, Any], ...]  # configurations that differ as those of the sweep do


@dataclass(frozen=True)
class EngineSetup:
    """The way in which an engine trains: the same for all engines of a sweep."""

    slots: int  # trials at a time
    is_prepared: bool  # whether the step is compiled, or a CUDA graph
    unfolds: bool  # whether convolutions are matrix products


@dataclass(frozen=True)
class Benchmark:
    """What an engine measured before the sweep relies on it."""

    setup: EngineSetup
    speed_up: float  # how many times as fast as one by one trials are together
    way: str  # how steps run, in words
