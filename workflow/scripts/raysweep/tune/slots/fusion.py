"""This module decides whether the trials of a sweep are trained together (`fuse`), and how many engines and slots the sweep uses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray

from raysweep.cluster.job import SearchJob
from raysweep.common.capacity import capacity
from raysweep.common.errors import RaysweepError, logger
from raysweep.common.machine import NodeSize
from raysweep.config.distributions import Choice, Distribution, Numeric, quantized
from raysweep.config.model import SweepConfig
from raysweep.config.recipe import STACKED_OPTIMIZERS
from raysweep.config.space import configuration, fill, sets_training
from raysweep.record.events import FusionPlan, NotFused
from raysweep.record.file import Record
from raysweep.record.sweep import Sweep
from raysweep.training.spec import TrainingSpec
from raysweep.tune.samplers import is_adaptive
from raysweep.tune.slots.manager import EngineProcess, SlotManager
from raysweep.tune.slots.messages import MIN_SPEED_UP, Benchmark, EngineJob

# Maximum number of values in a range of numbers. From a wider range of batch sizes only the lowest and the highest batch size are used. With a wider range of
# an argument of the constructor, the forms of the model are not listed, so trials are trained one by one.
MAX_VALUES = 4096
ROUNDING = 1e-9  # largest rounding error of a bound that is divided by a step
MAX_MICRO_BATCH = 64  # maximum number of rows of one trial in one step, because more rows need more memory but do not use a device better
MAX_FORMS = 8  # maximum number of forms of the model, because with more forms few trials have company
MAX_SAMPLE_SIZES = 4  # maximum number of batch sizes of which each is used in the benchmark
MIN_SAMPLES = 3  # minimum number of configurations in the benchmark, so that the settings of the optimiser differ
MEMORY_SHARE = 0.8  # fraction of a node's memory that all engines of the node may use together
# Maximum number of slots of an engine. With more trials the training is not faster, but each round takes longer, and checkpoints are saved only after a round.
MAX_SLOTS = 32
# Time limit for the benchmark in seconds. The benchmark may import torch from a slow disk and compile a large model.
BENCHMARK_DEADLINE_S = 900
# Number of additional threads of an engine. The engine also has two threads for each trial: one thread trains the trial, and one thread ends the trial.
SPARE_THREADS = 8

# Environment variables of an engine. An engine frees and allocates large tensors in each step. By default glibc returns the freed memory to the system each
# time, which causes 2,000 page faults per step and takes a fifth of the time of the step:
# https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",  # with several arenas, glibc would always return large blocks of the additional arenas to the system
    "MALLOC_MMAP_THRESHOLD_": str(2**28),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
}


@dataclass(frozen=True)
class Fusion:
    """Describes the engines that train the trials of a sweep together."""

    slots: SlotManager
    # Factor by which a trial's time limit for a report is longer than without engines. A trial waits until a round begins, and then until all trials of the
    # round have trained their epoch.
    patience: float
    threads: int = 1  # number of CPUs of an engine without a GPU
    has_gpus: bool = False  # whether each engine has a GPU

    @property
    def total(self) -> int:
        """Return the number of trials that all engines together train at the same time."""
        return len(self.slots.engines) * self.slots.setup.slots

    def follow(self, nodes: Callable[[], Sequence[NodeSize]], trials_left: Callable[[], int], is_leaving: Callable[[str], bool]) -> None:
        """Start engines on nodes that join from now on, and end the engines for which no trials are left, so that their nodes can leave.

        `is_leaving(address)` returns whether the node at this address gets no more trials.
        """
        slots = self.slots.setup.slots
        self.slots.follow(lambda: min(num_engines(nodes(), self.threads, self.has_gpus), math.ceil(trials_left() / slots)), is_leaving)


def num_engines(nodes: Iterable[NodeSize], threads: int, has_gpus: bool) -> int:
    """Return the number of engines that fit on the nodes. Each GPU has one engine. On CPUs each engine has `threads` CPUs."""
    return sum(node.gpus if has_gpus else node.cpus // threads for node in nodes)


@dataclass(frozen=True)
class Layout:
    """Describes the engines that a sweep would start, and the number of slots in each engine.

    Each GPU has at most one engine. On CPUs each engine has as many CPUs as one trial.
    """

    trials: int  # number of trials that are not finished
    threads: int  # number of threads with which an engine trains
    engines: int  # number of engines on all nodes
    engines_per_node: int  # number of engines that fit on the largest node
    slots: int  # number of slots of each engine

    def memory_mb(self, sweep: SweepConfig) -> float:
        """Return how much memory in MB an engine may use on its node."""
        return float(MEMORY_SHARE * sweep.allocation.mem_mb_per_node / self.engines_per_node)

    @property
    def reason_needless(self) -> str | None:
        """Return the reason why there are no trials to train together. Return None if each engine would have at least two slots."""
        return None if self.slots > 1 else f"no two of {self.trials} share a device"

    @classmethod
    def of(cls, job: SearchJob, nodes: Sequence[NodeSize], recorded: Sweep, capacity: int) -> Layout:
        """Return the layout of the engines for a job on `nodes`.

        `capacity` is the number of trials that fit on the nodes at the same time, according to the resources of a trial.
        """
        sweep, resources = job.sweep, job.trial_resources
        left = job.total - sum(trial.finished for trial in recorded.trials.values())
        at_a_time = min(left, sweep.max_concurrent or left, capacity if is_adaptive(sweep.search_algorithm) else left)
        threads = max(1, int(resources.cpu))
        per_node = [num_engines([node], threads, bool(resources.gpu)) for node in nodes]
        engines = max(1, min(sum(per_node), at_a_time))
        return cls(left, threads, engines, max(1, *per_node), min(MAX_SLOTS, math.ceil(at_a_time / engines)))


def begin_fusion(job: SearchJob, nodes: Sequence[NodeSize], space: dict[str, Any], record: Record, num_jobs: int = 1) -> Fusion | None:
    """Start the engines of a sweep on `nodes`, and measure whether the engines save time. Return None if each trial is trained separately.

    `num_jobs` is the number of Slurm jobs that may work on the sweep together, each of which has as many nodes. The log and the record contain the decision
    and the reason. Raises RaysweepError if the config has `fuse: on` and trials cannot be trained together.
    """
    sweep = job.sweep
    if sweep.fuse == "off":
        return None
    resources = replace(job.trial_resources, gpu=0) if job.packs_gpus else job.trial_resources
    all_nodes = tuple(nodes) * num_jobs
    layout = Layout.of(job, all_nodes, record.sweep, capacity(all_nodes, resources))
    reason = reason_by_config(job, space, record.sweep)
    is_needless = reason is None and layout.reason_needless is not None
    if reason is None and not is_needless:
        logger.info("%s: measuring whether trials that are trained together are faster. This may take minutes.", job.name)
        has_gpus = bool(job.trial_resources.gpu)
        engines = start_engines(job, space, layout, max(1, min(layout.engines, num_engines(nodes, layout.threads, has_gpus))))
        if not isinstance(engines, NotFused):
            return replace(_announce(job.name, record, *engines), threads=layout.threads, has_gpus=has_gpus)
        reason = engines.reason
    # Too few trials for a shared device are no error, because only the last trials of an interrupted sweep may be left.
    if sweep.fuse == "on" and not is_needless:
        raise RaysweepError(
            f"{job.name}: trials cannot be trained together, as `fuse: on` asks: {reason}. Set sweeps.{job.name}.fuse to auto"
        )
    not_fused = NotFused(reason or str(layout.reason_needless))
    record.write("fused", **not_fused.as_event())
    logger.info("%s: trials are trained one by one: %s.", job.name, not_fused.reason)
    return None


def _announce(name: str, record: Record, slots: SlotManager, plan: FusionPlan) -> Fusion:
    """Write to the record and to the log how trials are trained together, and return the description of the engines."""
    record.write("fused", **replace(plan, speed_up=round(plan.speed_up, 2)).as_event())
    place = f"each of {plan.processes} processes" if plan.processes > 1 else "one process"
    logger.info(
        "%s: trials are trained together, up to %d in %s, %.1f times as fast as one by one (%s).",
        name,
        plan.slots,
        place,
        plan.speed_up,
        plan.way,
    )
    return Fusion(slots, patience=2 * max(1.0, plan.slots / plan.speed_up))


def reason_by_config(job: SearchJob, space: dict[str, Any], recorded: Sweep) -> str | None:
    """Return the reason in the config or in the record why trials cannot be trained together. Return None if there is no such reason.

    None means that only a benchmark can show whether the trials can be trained together.
    """
    sweep = job.sweep
    if sweep.model is None:
        return "a Ray Tune function runs in a process of its own"
    assert sweep.training is not None  # Reading the config sets the recipe of a model.
    if sweep.optimizer not in STACKED_OPTIMIZERS:
        return f"the optimiser {sweep.optimizer} changes the weights of one model at a time"
    if job.header.has_folds:
        return "each trial of a configuration trains on another fold, and the trials of a stack share their rows"
    if (forms := forms_of(space)) is None:
        searched = sorted(key for key, value in space.items() if isinstance(value, Distribution) and not sets_training(key))
        return f"{', '.join(searched)} of the model's constructor is searched, so models have more than {MAX_FORMS} forms"
    unfinished = (trial.config for trial in recorded.trials.values() if not trial.finished)
    if any({key: value for key, value in config.items() if not sets_training(key)} not in forms for config in unfinished):
        return "trials of an earlier search space have models of another form"
    return None


def forms_of(space: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the arguments of the model's constructor for each form of the model, or None where the model has more than MAX_FORMS forms."""
    arguments = {key: value for key, value in space.items() if not sets_training(key)}
    values = {key: _values_of(value) for key, value in arguments.items() if isinstance(value, Distribution)}
    if math.prod(map(len, values.values())) not in range(1, MAX_VALUES):
        return None
    forms: list[dict[str, Any]] = []
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        form = fill(arguments, lambda key, _: chosen[key])  # noqa: B023
        forms += [] if form in forms else [form]
    return forms if len(forms) <= MAX_FORMS else None


def _values_of(distribution: Distribution) -> Sequence[Any]:
    """Return all values of a distribution, or no values where the distribution has more than MAX_VALUES values."""
    if isinstance(distribution, Choice):
        return distribution.values
    if not isinstance(distribution, Numeric) or not (distribution.integer or distribution.step):
        return ()
    low, high, step = distribution.low, distribution.high - distribution.integer, distribution.step or 1
    multiples = range(math.ceil(low / step - ROUNDING), math.floor(high / step + ROUNDING) + 1)
    if len(multiples) > MAX_VALUES:
        return ()
    return multiples if distribution.integer else [quantized(multiple * step, low, high, step) for multiple in multiples]


def batch_sizes_of(space: dict[str, Any]) -> list[int]:
    """Return the batch sizes of a search space in ascending order. For a wide range return only the lowest and the highest batch size."""
    batch_size = space["batch_size"]
    if not isinstance(batch_size, Distribution):
        return [int(batch_size)]
    sizes = _values_of(batch_size)
    if not sizes and isinstance(batch_size, Numeric):
        sizes = (math.ceil(batch_size.low), math.floor(batch_size.high) - batch_size.integer)
    return sorted({max(1, int(size)) for size in sizes})


def micro_batch_size(batch_sizes: list[int]) -> int:
    """Return how many rows of a trial are trained in one step.

    The basis is the greatest common divisor of all batch sizes, or the smallest batch size if the divisor is less than half of the smallest batch size. A
    basis above MAX_MICRO_BATCH is halved while the basis is even, and then limited to MAX_MICRO_BATCH.
    """
    smallest, common = batch_sizes[0], math.gcd(*batch_sizes)
    size = common if 2 * common >= smallest else smallest
    while size > MAX_MICRO_BATCH and size % 2 == 0:
        size //= 2
    return min(size, MAX_MICRO_BATCH)


def sample_configs(space: dict[str, Any], seed: int, batch_sizes: list[int], forms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return configurations for the benchmark, at least three, which differ from each other like the configurations of the sweep.

    Together they have all pairs of a form of the model and a batch size. If there are more than MAX_SAMPLE_SIZES batch sizes, only the smallest, the middle
    and the largest batch size are used.
    """
    sizes = batch_sizes
    if len(sizes) > MAX_SAMPLE_SIZES:
        sizes = [sizes[0], sizes[len(sizes) // 2], sizes[-1]]
    samples = []
    for index in range(max(MIN_SAMPLES, len(forms) * len(sizes))):
        training = {key: value for key, value in configuration(space, seed, index).items() if sets_training(key)}
        # Without the shift, the pairs would repeat after the least common multiple of both numbers.
        shift = index // math.lcm(len(forms), len(sizes))
        samples.append({**training, **forms[index % len(forms)], "batch_size": sizes[(index + shift) % len(sizes)]})
    return samples


def engine_job(job: SearchJob, space: dict[str, Any], layout: Layout) -> EngineJob:
    """Return the facts about a sweep that an engine of this layout needs."""
    sweep = job.sweep
    batch_sizes = batch_sizes_of(space)
    size = micro_batch_size(batch_sizes)
    forms = forms_of(space)
    assert forms is not None  # reason_by_config returns a reason where the model has too many forms
    # A scheduler stops trials at different epochs, so that the next trials of an engine begin at different times. Without a scheduler, or with only one epoch
    # per trial, all trials of an engine are at the same epoch.
    has_one_epoch = sweep.scheduler.name == "none" or sweep.max_epochs == 1
    return EngineJob(
        root=job.root,
        code=job.code,
        data_dir=job.data_dir,
        compiled_dir=job.resources_dir / "compiled",
        versions=(job.header.version, job.header.provenance.environment_sha256),
        spec=TrainingSpec.of(sweep),
        metric=sweep.metric,
        max_epochs=job.max_epochs,
        needs_gpu=bool(job.trial_resources.gpu),
        threads=layout.threads,
        compiler_threads=layout.threads * layout.engines_per_node,
        memory_mb=layout.memory_mb(sweep),
        micro_batch_size=size,
        share_rows=has_one_epoch and all(batch_size % size == 0 for batch_size in batch_sizes),
        max_slots=layout.slots,
        trials=math.ceil(layout.trials / layout.engines),
        num_forms=len(forms),
        num_batch_sizes=len(batch_sizes),
        samples=tuple(sample_configs(space, sweep.seed, batch_sizes, forms)),
        num_kinds=max(MIN_SAMPLES, len(forms), min(MAX_SAMPLE_SIZES, len(batch_sizes))),
    )


def plan_fusion(benchmark: Benchmark | NotFused, layout: Layout, needs_speed_up: bool) -> FusionPlan | NotFused:
    """Return how trials are trained together after an engine's benchmark, or the reason why trials are trained separately.

    If `needs_speed_up` is true (`fuse: auto`), trials are trained together only if this is faster.
    """
    if isinstance(benchmark, NotFused):
        return benchmark
    if benchmark.setup.slots < 2:
        return NotFused("the memory does not hold two trials")
    if benchmark.speed_up < MIN_SPEED_UP and needs_speed_up:
        return NotFused(f"together they would be {benchmark.speed_up:.2g} times as fast as one by one ({benchmark.way})")
    return FusionPlan(layout.engines, benchmark.setup.slots, benchmark.speed_up, benchmark.way, benchmark.step_mode)


def start_engines(job: SearchJob, space: dict[str, Any], layout: Layout, num_engines: int) -> tuple[SlotManager, FusionPlan] | NotFused:
    """Start `num_engines` engines, run the benchmark in the first engine, and return the slots of the engines and the plan.

    If the benchmark shows that trials are not trained together, end the engines and return the reason.
    """
    has_gpu = bool(job.trial_resources.gpu)
    actor_class = ray.remote(EngineProcess).options(
        num_cpus=1 if has_gpu else layout.threads,
        num_gpus=int(has_gpu),
        max_concurrency=2 * layout.slots + SPARE_THREADS,
        runtime_env={"env_vars": KEEP_MEMORY},
    )
    start: Callable[[], Any] = partial(actor_class.remote, engine_job(job, space, layout))
    actors = [start() for _ in range(num_engines)]
    benchmark = _benchmark_of(actors[0])
    plan = plan_fusion(benchmark, layout, needs_speed_up=job.sweep.fuse == "auto")
    if isinstance(plan, NotFused):
        for actor in actors:
            ray.kill(actor)
        return plan
    assert isinstance(benchmark, Benchmark)  # if the benchmark is NotFused, the plan is NotFused too
    slots = SlotManager(start, benchmark.setup)
    for actor in actors:
        slots.add(actor)
    return slots, plan


def _benchmark_of(actor: Any) -> Benchmark | NotFused:
    try:
        benchmark: Benchmark | NotFused = ray.get(actor.benchmark.remote(), timeout=BENCHMARK_DEADLINE_S)
    except ray.exceptions.GetTimeoutError:
        return NotFused(f"the benchmark of training together took longer than {BENCHMARK_DEADLINE_S // 60} minutes")
    except ray.exceptions.RayError as error:
        return NotFused(f"the process that benchmarks training together failed: {str(error).strip().splitlines()[-1][:200]}")
    return benchmark
