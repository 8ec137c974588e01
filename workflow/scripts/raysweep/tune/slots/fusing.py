"""Whether the trials of a sweep are trained together (fuse), in how many engines, and how many at a time."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from raysweep.common.errors import RaysweepError
from raysweep.config.space import TRAINING_KEYS, Choice, Distribution, Numeric, configuration, flattened
from raysweep.record.record import Record, Sweep
from raysweep.tune.samplers import is_adaptive
from raysweep.tune.slots.seats import EngineProcess, Seats

logger = logging.getLogger("raysweep")

MOST_BATCH_SIZES = 4096  # that are looked at one by one, of a space of whole numbers
LARGEST_MICRO_BATCH = 64  # rows of a trial: more use no device better, and take memory
MEMORY_SHARE = 0.8  # of a node's memory, for all its engines
LEAST_SPEED_UP = 1.3  # with less it is not worth it that trials share a process
MOST_SEATS = 32  # in an engine: more go no faster, while each makes a round longer, and nothing is saved before its end
LOOK_DEADLINE_S = 900  # torch is imported from a slow disk, and a large model compiled
SPEAKERS = 8  # threads of an engine beside two for each trial, one that trains and one that ends it


# An engine frees and takes large tensors at each step. By default glibc gives them back to the system in between, which costs 2,000 page faults a step, and a
# fifth of the time: https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",  # in the others of a process large blocks are always given back
    "MALLOC_MMAP_THRESHOLD_": str(2**28),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
}


@dataclass(frozen=True)
class Fusion:
    """How the trials of a sweep are trained together."""

    seats: Seats
    total: int  # how many at a time, over all engines
    patience: float  # how many times as long as by itself a trial may take to report: it waits for a round, and then for all in it


def begin(job: dict[str, Any], space: dict[str, Any], record: Record, capacity: int) -> Fusion | None:
    """Start the engines of a sweep, and look whether they can do it; None where its trials are trained one by one.

    `capacity` is how many trials the nodes hold by what each takes. Log and record say which way, and why. Raises RaysweepError where the config insists.
    """
    sweep = job["sweep"]
    if sweep["fuse"] == "off":
        return None
    layout = Layout.of(job, record.sweep, capacity)
    why = why_not_at_all(sweep, space, record.sweep)
    # That no two are left to share a device is nothing against it: it may be the end of a sweep that was interrupted.
    needless = None if why or layout.seats > 1 else f"no two of {layout.trials} share a device"
    found = why or needless or _start(job, space, record, layout)
    if isinstance(found, Fusion):
        return found
    if sweep["fuse"] == "on" and not needless:
        raise RaysweepError(
            f"{job['name']}: its trials cannot be trained together, as `fuse: on` asks: {found}. Set sweeps.{job['name']}.fuse to auto"
        )
    record.write("fused", why_not=found)
    logger.info("%s: trials are trained one by one: %s.", job["name"], found)
    return None


@dataclass(frozen=True)
class Layout:
    """Engines, one a GPU or one for the CPUs of a trial, and how many trials at a time each would have."""

    trials: int  # that are left
    threads: int  # of an engine
    engines: int
    engines_per_node: int  # where there are most
    seats: int

    def memory_mb(self, sweep: dict[str, Any]) -> float:
        """What an engine may take of its node's memory."""
        return MEMORY_SHARE * sweep["allocation"]["mem_mb_per_node"] / self.engines_per_node

    @classmethod
    def of(cls, job: dict[str, Any], recorded: Sweep, capacity: int) -> Layout:
        sweep, resources = job["sweep"], job["trial_resources"]
        left = job["total"] - sum(trial.finished for trial in recorded.trials.values())
        at_a_time = min(left, sweep["max_concurrent"] or left, capacity if is_adaptive(sweep["search_algorithm"]) else left)
        threads = max(1, int(resources["cpu"]))
        each = [node["gpus"] if resources["gpu"] else int(node["cpus"] // threads) for node in job["nodes"]]
        engines = max(1, min(sum(each), at_a_time))
        return cls(left, threads, engines, max(1, *each), min(MOST_SEATS, math.ceil(at_a_time / engines)))


def why_not_at_all(sweep: dict[str, Any], space: dict[str, Any], recorded: Sweep) -> str | None:
    """What can be said against it without a look at the model."""
    if "model" not in sweep:
        return "a Ray Tune function runs in a process of its own"
    form = {key: value for key, value in space.items() if key not in TRAINING_KEYS}
    if searched := sorted(key for key, value in form.items() if isinstance(value, Distribution)):
        return f"{', '.join(searched)} of the model's constructor is searched, so models differ in form"
    unfinished = (flattened(trial.config) for trial in recorded.trials.values() if not trial.finished)
    if any({key: value for key, value in config.items() if key not in TRAINING_KEYS} != form for config in unfinished):
        return "trials of an earlier search space have models of another form"
    return None


def batch_sizes_of(space: dict[str, Any]) -> list[int]:
    """The batch sizes that a search space holds, the smallest first; of a wide range its ends."""
    found = space["batch_size"]
    if isinstance(found, Choice):
        return sorted({int(value) for value in found.values})
    if isinstance(found, Numeric):
        low, high = max(1, math.ceil(found.low)), math.floor(found.high) - found.integer
        step = int(found.step or 1)
        return [low, high] if (high - low) / step > MOST_BATCH_SIZES else [*range(low, high + 1, step)]
    return [int(found)]


def micro_batch_size(batch_sizes: list[int]) -> int:
    """How many rows of a trial one step takes: what divides all batch sizes, unless that is much less than the smallest."""
    smallest, common = batch_sizes[0], math.gcd(*batch_sizes)
    size = common if 2 * common >= smallest else smallest
    while size > LARGEST_MICRO_BATCH and size % 2 == 0:
        size //= 2
    return min(size, LARGEST_MICRO_BATCH)


def samples_of(space: dict[str, Any], seed: int, batch_sizes: list[int]) -> list[dict[str, Any]]:
    """Configurations to try it with, which differ as those of the sweep do."""
    sizes = [batch_sizes[0], batch_sizes[len(batch_sizes) // 2], batch_sizes[-1]]
    return [{**configuration(space, seed, index), "batch_size": size} for index, size in enumerate(sizes)]


def why_not_as_seen(seen: dict[str, Any], sweep: dict[str, Any]) -> str | None:
    """What can be said against it after an engine's look (Engine.look)."""
    if seen["why_not"] is not None:
        return str(seen["why_not"])
    if seen["seats"] < 2:
        return "memory holds no two of them"
    if seen["speed_up"] < LEAST_SPEED_UP and sweep["fuse"] == "auto":
        return f"together they would be {seen['speed_up']:.2g} times as fast as one by one"
    return None


def told_to_engines(job: dict[str, Any], space: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """The job, and under `fuse` what an engine needs to know besides."""
    sweep = job["sweep"]
    batch_sizes = batch_sizes_of(space)
    size = micro_batch_size(batch_sizes)
    # Trials that a scheduler stops are at epochs of all kinds.
    shares = (sweep["scheduler"]["name"] == "none" or sweep["max_epochs"] == 1) and all(
        batch_size % size == 0 for batch_size in batch_sizes
    )
    return {
        **job,
        "fuse": {
            "micro_batch_size": size,
            "share_rows": shares,
            "seats": layout.seats,
            "trials": math.ceil(layout.trials / layout.engines),  # of each engine, over the sweep
            "samples": samples_of(space, sweep["seed"], batch_sizes),
            "compiler_threads": layout.threads * layout.engines_per_node,  # of all engines there: one compiles, the others find its work
        },
    }


def _start(job: dict[str, Any], space: dict[str, Any], record: Record, layout: Layout) -> Fusion | str:
    """The engines, or why there are none."""
    sweep, resources = job["sweep"], job["trial_resources"]
    memory_mb = layout.memory_mb(sweep)
    options = {
        "num_cpus": 1 if resources["gpu"] else layout.threads,
        "num_gpus": int(bool(resources["gpu"])),
        "max_concurrency": 2 * layout.seats + SPEAKERS,
        "runtime_env": {"env_vars": KEEP_MEMORY},
    }
    told = told_to_engines(job, space, layout)
    start = partial(ray.remote(EngineProcess).options(**options).remote, told, layout.threads, memory_mb)
    actors = [start() for _ in range(layout.engines)]
    try:
        seen = ray.get(actors[0].look.remote(), timeout=LOOK_DEADLINE_S)
    except ray.exceptions.GetTimeoutError:
        seen = {"why_not": f"it was not seen within {LOOK_DEADLINE_S // 60} minutes whether they can be"}
    except ray.exceptions.RayError as error:
        seen = {"why_not": f"the process for it failed: {str(error).strip().splitlines()[-1][:200]}"}
    if why := why_not_as_seen(seen, sweep):
        for actor in actors:
            ray.kill(actor)
        return why
    found = Seats(start, seen["seats"], seen["is_prepared"], seen["unfolds"])
    for actor in actors:
        found.add(actor)
    record.write("fused", why_not=None, processes=layout.engines, seats=found.seats, speed_up=round(seen["speed_up"], 2), way=seen["way"])
    where = f"each of {layout.engines} processes" if layout.engines > 1 else "one process"
    logger.info(
        "%s: trials are trained together, up to %d in %s, %.1f times as fast as one by one (%s).",
        job["name"],
        found.seats,
        where,
        seen["speed_up"],
        seen["way"],
    )
    return Fusion(found, layout.engines * found.seats, patience=2 * max(1.0, found.seats / seen["speed_up"]))
