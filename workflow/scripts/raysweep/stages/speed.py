"""Estimates how long trials take, from the recorded trials of the sweep.

Where no trial has reported, the estimate follows from training steps of the sweep's model that are timed on this machine.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raysweep.cluster.job import Measurement, MeasurementInput
from raysweep.common.errors import RaysweepError, logger
from raysweep.common.machine import NodeSize
from raysweep.common.typed_json import from_json, to_json
from raysweep.config.space import configuration, parse_space
from raysweep.environment.commands import process_environment, seen_in_container
from raysweep.record.events import FusionPlan, NotFused
from raysweep.record.sweep import Sweep
from raysweep.slurm.allocation import Allocation
from raysweep.stages.stage import Stage
from raysweep.usercode.target import SCRIPTS_DIR

MAX_MEASURED = 6  # largest number of configurations whose steps are timed
MAX_EXAMINED = 200  # the configurations to time are chosen among at most this number of the sweep's configurations
MEASURE_DEADLINE_S = 900  # time limit of the measurement in seconds
# Time in seconds from the start of the job to the start of the first trial. In this time Ray starts, and the driver and a worker import packages.
# Unpacking the environment on the slow disk of a node can take longer.
START_S = 20
# Two measurements of one configuration on one machine, with some minutes between the measurements, differ by this relative amount.
MIN_UNCERTAINTY = 0.15


@dataclass(frozen=True)
class Speed:
    """Describes how fast the trials that are left train."""

    epoch_s: Sequence[float]  # time in seconds of an epoch for each configuration that is left, when a trial trains alone
    uncertainty: float  # relative error of the sum of `epoch_s`
    speed_up: float  # speed of each process that trains trials together, as a multiple of the speed of one trial alone; 1 where trials train alone
    processes: int  # number of processes that train trials together; 1 where trials train alone
    at_a_time: int  # number of trials that run at the same time
    start_s: float  # time in seconds from the start of the job to the start of the first trial
    source: str  # sentence for the user that says how the speed was measured
    together: str  # sentence for the user that says whether trials are trained together


@dataclass(frozen=True)
class Work:
    """Describes the trials of a sweep that are left, and the nodes that would run these trials."""

    stage: Stage
    identity: str
    allocation: Allocation
    recorded: Sweep  # sweep from the record; an empty sweep where the next run would start the sweep anew
    left: int  # number of trials that are left
    capacity: int  # number of trials that run on the nodes at the same time
    needs_gpu: bool  # whether a trial uses a GPU

    @property
    def nodes(self) -> tuple[NodeSize, ...]:
        return tuple(node.size for node in self.allocation.nodes)


def predicted_row_s(times: Sequence[tuple[int, float]], batch_size: int) -> float:
    """Return the predicted time in seconds for one row of the data at `batch_size`, from measured pairs of batch size and time for one row.

    Between measured batch sizes the time is linear in 1 / batch size, because each step takes a fixed time in addition to the time for the rows.
    """
    by_size: dict[int, list[float]] = {}
    for size, row_s in times:
        by_size.setdefault(size, []).append(row_s)
    means = sorted((1 / size, statistics.fmean(values)) for size, values in by_size.items())
    x = 1 / batch_size
    if x <= means[0][0]:
        return means[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(means):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return means[-1][1] * x / means[-1][0]  # for a smaller batch the number of steps grows in proportion to 1 / batch size


def spread_of(times: Sequence[tuple[int, float]]) -> float:
    """Return the relative error of the predicted mean time of all configurations.

    Each measurement is compared to the prediction from the other measurements. A measurement is left out where its batch size lies outside of the other
    batch sizes, because the prediction is poor there.
    """
    residuals = []
    for number, (batch_size, row_s) in enumerate(times):
        others = [*times[:number], *times[number + 1 :]]
        sizes = [size for size, _ in others]
        if others and min(sizes) <= batch_size <= max(sizes):
            residuals.append(row_s / predicted_row_s(others, batch_size) - 1)
    return math.sqrt(sum(r * r for r in residuals)) / len(residuals) if residuals else 0.0


def configs_to_measure(configs: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Return at most MAX_MEASURED of the configurations, with batch sizes spread from the smallest to the largest batch size of `configs`."""
    ordered = sorted(configs, key=lambda config: config["batch_size"])
    count = min(MAX_MEASURED, len(ordered))
    return tuple(ordered[round(i * (len(ordered) - 1) / max(1, count - 1))] for i in range(count))


def recorded_speed(work: Work) -> Speed | None:
    """Return the speed of the trials that have reported, or None where no trial has reported."""
    trials = [trial for trial in work.recorded.trials.values() if trial.results]
    paces_s = [trial.time_s / trial.epochs for trial in trials]
    if not paces_s:
        return None
    fused = work.recorded.fused if isinstance(work.recorded.fused, FusionPlan) else None
    # In a process that trains trials together, an epoch of one trial takes as long as an epoch of all trials of the process.
    alone = fused.speed_up / fused.slots if fused else 1.0
    mean_s = alone * statistics.fmean(paces_s)
    spread = alone * statistics.stdev(paces_s) / mean_s / math.sqrt(len(paces_s)) if len(paces_s) > 1 and mean_s else 1.0
    is_elsewhere = is_on_other_nodes(work)
    return Speed(
        epoch_s=[mean_s] * max(1, work.left),
        uncertainty=min(0.9, max(MIN_UNCERTAINTY, 2 * spread) + (0.25 if is_elsewhere else 0)),
        speed_up=fused.speed_up if fused else 1.0,
        processes=fused.processes if fused else 1,
        at_a_time=max(1, fused.processes * fused.slots if fused else work.capacity),
        start_s=START_S,
        source=f"{len(trials)} trials of this sweep" + (", on other nodes than it would have now" if is_elsewhere else ""),
        together=f"as those were: {'together' if fused else 'one by one'}",
    )


def is_on_other_nodes(work: Work) -> bool:
    """Return whether the nodes of the latest session differ in size or number from the nodes that would run the trials now.

    The number of nodes is not compared where several jobs work on the sweep, because their nodes come and go.
    """
    before, now = (sorted((node.cpus, node.gpus) for node in nodes) for nodes in (work.recorded.sessions[-1].nodes, work.nodes))
    return set(before) != set(now) if work.stage.sweep.allocation.jobs > 1 else before != now


def measured_speed(work: Work) -> Speed | str:
    """Return the speed of training steps that are timed on this machine, or a sentence that says why steps cannot be timed."""
    sweep = work.stage.sweep
    if sweep.trainable is not None:
        return "how long a function of your own takes is seen when it has run: set num_samples to 2, run the sweep, and plan again. The two trials are kept"
    space, total = parse_space(sweep.search_space), sweep.num_trials
    configs = [configuration(space, sweep.seed, index) for index in range(total - work.left, total)] or [
        configuration(space, sweep.seed, 0)
    ]
    header = work.stage.header(work.identity, total, sweep.max_epochs, sweep.repeats)
    job = work.stage.search_job(work.stage.path_to_record, header, work.allocation)
    some = configs_to_measure(configs[:: math.ceil(len(configs) / MAX_EXAMINED)])
    return _speed_of(work, configs, run_measurement(work.stage, MeasurementInput(job, work.nodes, some, work.capacity)))


def _speed_of(work: Work, configs: Sequence[dict[str, Any]], measured: Measurement) -> Speed:
    training = [(point.batch_size, point.row_s) for point in measured.points]
    validation = [(point.batch_size, point.validation_row_s) for point in measured.points]
    sizes = [int(config["batch_size"]) for config in configs]
    epoch_s = [
        predicted_row_s(training, size) * measured.rows + predicted_row_s(validation, size) * measured.validation_rows for size in sizes
    ]
    source = f"steps of {len(measured.points)} configurations, timed on this machine's {measured.device}"
    if work.needs_gpu and measured.device == "CPU":
        source += ", while trials get a GPU: expect less, or plan on a node that has one"
    uncertainty = min(0.9, max(MIN_UNCERTAINTY, 2 * spread_of(training)))
    plan = measured.together
    if isinstance(plan, NotFused):
        return Speed(epoch_s, uncertainty, 1.0, 1, max(1, work.capacity), START_S, source, f"no: {plan.reason}")
    at_a_time, start_s = max(1, plan.processes * plan.slots), START_S + measured.benchmark_s
    together = f"{plan.speed_up:.1f} times as fast as one by one ({plan.way})"
    return Speed(epoch_s, uncertainty, plan.speed_up, plan.processes, at_a_time, start_s, source, together)


def run_measurement(stage: Stage, measurement: MeasurementInput) -> Measurement:
    """Time training steps in the environment of the trials, with tune/measure.py, and return the times.

    Raises RaysweepError where the model cannot be trained, or where the steps take too long.
    """
    argv = stage.environment.command([str(SCRIPTS_DIR / "measure_steps.py")])
    env = seen_in_container(process_environment() | {"PYTHONPATH": str(SCRIPTS_DIR)}, [stage.call.root, stage.data_dir])
    text = json.dumps(to_json(measurement))
    try:
        run = subprocess.run(argv, input=text, env=env, capture_output=True, text=True, timeout=MEASURE_DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        raise RaysweepError(f"{stage.name}: some steps of its model were not over within {MEASURE_DEADLINE_S // 60} minutes") from None
    logger.debug("%s", run.stderr)
    if run.returncode:
        lines = [line.strip() for line in run.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise RaysweepError(f"{stage.name}: its model cannot be trained: {lines[-1]} ({stage.call.path_to_log} has more)")
    return from_json(Measurement, json.loads(run.stdout.splitlines()[-1]))
