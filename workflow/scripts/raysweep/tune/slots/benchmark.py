"""This module measures whether an engine trains the trials of a sweep faster together than one by one, and which way of training together is the fastest.

The first engine of each session runs the benchmark. The benchmark uses the times of an earlier engine (findings.py) if the stack of that engine had about the
same size and the times favour training together. Otherwise the benchmark measures and keeps the times. Each benchmark verifies that training together gives
the results of training one by one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from raysweep.common.compiler import reason_not_to_compile
from raysweep.record.events import NotFused
from raysweep.training.private import cpp_compiler
from raysweep.training.stacked.timing import bytes_per_member, seconds_per_row, seconds_per_row_alone
from raysweep.training.stacked.trainer import StackedTrainer, StackSettings
from raysweep.training.stacked.verification import prepare, reason_not_stackable, with_unfolded_convolutions
from raysweep.training.trainer import Trainer
from raysweep.tune.slots.findings import Findings, FindingsFile
from raysweep.tune.slots.messages import MIN_SPEED_UP, Benchmark, EngineJob, EngineSetup

COMPILING_S = 25  # approximate time of torch.compile in seconds on one slow core
LOADING_S = 10  # approximate time in seconds for loading a step that an earlier engine has compiled, on one slow core
# Fraction of the training time that compiling saves, if a stack's many small operations take most of the training time.
COMPILING_SAVES = 0.5
MEMORY_SHARE = 0.5  # fraction of the engine's memory that the members of the stack may use
MAX_BATCH_SIZES = 4  # largest number of batch sizes for stacks of whole batches, because only trials of one batch size form such a stack
# Largest number of members of a kept stack, as a multiple of this engine's slots. A larger stack would spend too much time on filler members.
MAX_FILLED = 1.25


class EngineBenchmark:
    """Finds the way in which an engine trains. `make_trainer(config, seed)` returns a new trainer on `device`."""

    def __init__(
        self,
        job: EngineJob,
        make_trainer: Callable[[dict[str, Any], int], Trainer],
        train_data: tuple[torch.Tensor, torch.Tensor],
        device: torch.device,
        memory_bytes: float,
    ) -> None:
        self.job, self.make_trainer, self.train_data, self.device, self.memory_bytes = job, make_trainer, train_data, device, memory_bytes
        self.stacked = stacked_trainer(job, whole_batches=False)

    def run(self, file: FindingsFile) -> Benchmark | NotFused:
        """Return the fastest way of training and its speed-up, or NotFused if the trials cannot be stacked.

        After this call, `stacked` trains in the returned way.
        """
        all_kept = file.read()
        if reason := self._reason_not_stackable(was_whole=any(each.whole_batches for each in all_kept)):
            return NotFused(reason)
        slots = self._max_slots()
        kept = fitting(all_kept, slots)
        if kept and kept.unfolds:
            self.stacked = self._unfolded() or self.stacked
        found, way = self._prepare_if_worth_it(kept or self._measure(slots))
        if found != kept:
            file.write([*(each for each in all_kept if each.members != found.members), found])
        settings = self.stacked.settings
        return Benchmark(
            EngineSetup(slots, settings.prepared_for, settings.unfolds, settings.micro_batch_size is None),
            found.speed_up(slots, is_prepared=settings.prepared_for > 0),
            self._describe([way, *(["measured in an earlier run"] if kept else [])]),
            "eager" if not settings.prepared_for else "captured" if self.stacked.captures(self.device) else "compiled",
        )

    def _reason_not_stackable(self, was_whole: bool) -> str | None:
        """Return the reason why trials cannot be trained together, or None. Choose micro-batches if these give the right results, else whole batches.

        `was_whole` says that micro-batches did not give the right results to an earlier engine.
        """
        reason = None
        for whole_batches in (True,) if was_whole else (False, True):
            self.stacked = stacked_trainer(self.job, whole_batches)
            if (reason := reason_not_stackable(self.stacked, self._compared_trainers(), *self.train_data)) is None:
                break
        if reason is None and self.stacked.settings.micro_batch_size is None and self.job.num_batch_sizes > MAX_BATCH_SIZES:
            return (
                f"the rows of a batch depend on each other, as in batch normalisation, and trials have {self.job.num_batch_sizes} batch sizes,"
                f" and at most {MAX_BATCH_SIZES} are allowed"
            )
        return reason

    def _max_slots(self) -> int:
        """Return how many trials the engine may train at the same time."""
        settings, trainers = self.stacked.settings, self._sample_trainers(self.job.num_kinds)
        member_bytes = max(bytes_per_member(each, *self.train_data, settings.micro_batch_size or each.batch_size) for each in trainers)
        if self.device.type != "cpu" and settings.has_forms:
            # The CUDA graph of each form has tensors for all slots.
            member_bytes *= len({(trainer.model_form, trainer.batch_size) for trainer in trainers})
        return min(max(1, int(MEMORY_SHARE * self.memory_bytes / member_bytes)), self.job.max_slots)

    def _measure(self, slots: int) -> Findings:
        """Return the times of training alone and of training together with eager steps. Compute convolutions as matrix products if this is faster."""
        full = self._sample_trainers(slots)
        alone_s, eager_s = seconds_per_row_alone(full, *self.train_data), self._seconds_per_row(self.stacked, full)
        if (unfolded := self._unfolded()) and (unfolded_s := self._seconds_per_row(unfolded, full)) < eager_s:
            self.stacked, eager_s = unfolded, unfolded_s
        settings = self.stacked.settings
        return Findings(slots, settings.micro_batch_size is None, settings.unfolds, alone_s, eager_s)

    def _unfolded(self) -> StackedTrainer | None:
        return with_unfolded_convolutions(self.stacked, self._compared_trainers(), *self.train_data)

    def _prepare_if_worth_it(self, found: Findings) -> tuple[Findings, str]:
        """Compile the training step, or on a GPU capture the step as a CUDA graph, if this saves time.

        Return the findings with the time of the prepared step, if it was measured, and a description of how steps run from now on.
        """
        on_gpu, was_prepared = self.device.type == "cuda", found.prepared_s is not None
        if self.device.type == "xpu":
            return found, "eager, because a step is captured only on GPUs of NVIDIA and AMD"
        if found.members < self._num_stacks:
            return found, f"eager, because {self._num_stacks} forms have only {found.members} slots"
        if not on_gpu and (reason := self._reason_not_to_compile(found, was_prepared)):
            return found, f"eager, because {reason}"
        # Filler members complete the stack of each form to all slots, so the prepared steps of several forms may take longer.
        slower = f"eager, because {'CUDA graphs' if on_gpu else 'compiled steps'} of several forms take longer"
        if self._is_slower_prepared(found):
            return found, slower
        began, trainers = time.monotonic(), self._sample_trainers(found.members)
        prepared = prepare(self.stacked, trainers, *self.train_data, threads=self.job.compiler_threads)
        if isinstance(prepared, str):
            return found, f"eager, because the step cannot be {'captured' if on_gpu else 'compiled'}: {prepared}"
        took_s = time.monotonic() - began
        if not was_prepared:
            found = replace(found, prepared_s=self._seconds_per_row(prepared, trainers))
        if self._is_slower_prepared(found):
            return found, slower
        self.stacked = prepared
        return found, "as a CUDA graph" if on_gpu else f"{'loaded' if was_prepared else 'compiled'} in {took_s:.0f} s"

    def _is_slower_prepared(self, found: Findings) -> bool:
        return self.stacked.settings.has_forms and found.prepared_s is not None and found.prepared_s > found.eager_s

    def _reason_not_to_compile(self, found: Findings, was_compiled: bool) -> str | None:
        epochs = self.job.max_epochs * math.ceil(self.job.trials / found.members)
        saved_s = COMPILING_SAVES * epochs * len(self.train_data[1]) * found.eager_s
        if saved_s < (LOADING_S if was_compiled else COMPILING_S) * self._num_stacks:
            return f"the compiler would take longer than the {saved_s:.0f} s that it would save"
        return reason_not_to_compile(cpp_compiler())

    def _describe(self, parts: list[str]) -> str:
        """Return the description of how steps run, with the settings that differ from the usual ones."""
        settings = self.stacked.settings
        parts += ["in whole batches"] if settings.micro_batch_size is None else []
        parts += [f"in a stack for each of {self._num_stacks} forms"] if settings.has_forms else []
        parts += ["convolutions as matrix products"] if settings.unfolds else []
        return ", ".join(parts)

    @property
    def _num_stacks(self) -> int:
        """Return the number of forms of which trials form separate stacks. With whole batches, the batch size belongs to the form."""
        return self.job.num_forms * (self.job.num_batch_sizes if self.stacked.settings.micro_batch_size is None else 1)

    def _compared_trainers(self) -> list[Trainer]:
        """Return the trainers with which stacked and plain training are compared, one of each kind.

        With forms, each sample trains twice, with two seeds, because a trial without another trial of its form would train alone.
        """
        samples = self.job.samples[: self.job.num_kinds] * (1 + self.stacked.settings.has_forms)
        return [self.make_trainer(sample, number) for number, sample in enumerate(samples)]

    def _sample_trainers(self, count: int) -> list[Trainer]:
        return sample_trainers(self.job, self.make_trainer, count)

    def _seconds_per_row(self, stacked: StackedTrainer, trainers: list[Trainer]) -> float:
        return seconds_per_row(stacked, trainers, *self.train_data)


def fitting(all_kept: list[Findings], slots: int) -> Findings | None:
    """Return the findings of the smallest stack that holds `slots` trials, or None where no stack fits.

    Findings with which trials would be trained one by one do not count, because another process may have disturbed that measurement.
    """
    usable = [
        each
        for each in all_kept
        if slots <= each.members <= MAX_FILLED * slots and each.speed_up(slots, each.prepared_s is not None) >= MIN_SPEED_UP
    ]
    return min(usable, key=lambda each: each.members, default=None)


def stacked_trainer(job: EngineJob, whole_batches: bool) -> StackedTrainer:
    """Return a stacked trainer whose eager steps have micro-batches of one size, or whole batches."""
    size = None if whole_batches else job.micro_batch_size
    has_forms = job.num_forms > 1 or (whole_batches and job.num_batch_sizes > 1)
    return StackedTrainer(StackSettings(size, job.share_rows, has_forms))


def sample_trainers(job: EngineJob, make_trainer: Callable[[dict[str, Any], int], Trainer], count: int) -> list[Trainer]:
    """Return `count` trainers that differ from each other like the trainers of the sweep's trials."""
    return [make_trainer(job.samples[number % len(job.samples)], number) for number in range(count)]
