"""What a sweep will take, before it is paid for: `snakemake plan`.

How long an epoch takes comes from the sweep's own record, or, where there is none, from some steps of its model that are timed on this machine
(measure.py). The time of the sweep follows from that, from how many trials run at a time, and from what its scheduler stops.
"""

from __future__ import annotations

import heapq
import itertools
import json
import logging
import math
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from raysweep.cluster.job import Measurement, MeasurementInput, StepTimes
from raysweep.common.errors import RaysweepError
from raysweep.common.files import write_yaml
from raysweep.common.machine import NodeSize
from raysweep.common.text import duration
from raysweep.common.typed_json import from_json, to_json
from raysweep.config.model import Named
from raysweep.config.space import configuration, num_combinations, parse_space
from raysweep.environment.commands import process_environment, seen_in_container
from raysweep.record.events import FusionPlan, NotFused
from raysweep.record.file import read_sweep
from raysweep.record.trials import Sweep
from raysweep.slurm.allocation import Allocation, Node, trial_resources
from raysweep.slurm.capacity import TrialResources, capacity
from raysweep.stages.stage import Stage
from raysweep.stages.sweep import reason_to_start_anew
from raysweep.usercode.target import SCRIPTS_DIR

POINTS = 6  # configurations that are measured
LOOKED_AT = 200  # among so many of the sweep's first ones those are chosen
MEASURE_DEADLINE_S = 900
START_S = 20  # until the first trial begins: Ray, and the imports of a driver and a worker; unpacking on a node's slow disk takes longer
FEW_TRIALS = 5  # of fewer it is not told what a scheduler stops
LEAST_UNCERTAINTY = 0.15  # two measurements of the same on one machine, some minutes apart, differ by as much

logger = logging.getLogger("raysweep")


@dataclass(frozen=True)
class Range:
    """What is expected, and between which bounds it is likely to lie."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> Range:
        return Range(self.low * factor, self.expected * factor, self.high * factor)

    def plus(self, value: float) -> Range:
        return Range(self.low + value, self.expected + value, self.high + value)


@dataclass(frozen=True)
class Speed:
    """How long trials take: `epoch_s`, in seconds, of the configurations that are left, each by itself."""

    epoch_s: Sequence[float]
    uncertainty: float  # relative, of their sum
    speed_up: float  # of trials that are trained together, in each of `processes`; 1 where they are not
    processes: int
    at_a_time: int
    start_s: float
    source: str  # where it is from, in words
    together: str  # whether trials are trained together, in words


@dataclass(frozen=True)
class Plan:
    """What a sweep will take."""

    sweep: str
    num_trials: int
    trials_left: int
    at_a_time: int
    waves: int
    measures_gpu: bool  # whether the first trial is to say how many share a GPU
    nodes: list[NodeSize]
    speed: Speed
    walltime_s: Range  # of what is left
    runtime_s: float | None  # that the job, with its restarts, has for it; None where there is no limit
    largest_num_trials: int | None  # of which all would fit, with those that are done
    confirm_s: Range
    confirm_runtime_s: float | None

    @property
    def fits(self) -> str:
        """Whether the time is enough: yes, no, or perhaps."""
        if self.runtime_s is None or self.walltime_s.high <= self.runtime_s:
            return "yes"
        return "perhaps" if self.walltime_s.low <= self.runtime_s else "no"

    def hours(self, kind: Literal["cpus", "gpus"]) -> Range:
        """GPU-hours ("gpus") or CPU-hours ("cpus") of what is left: what the allocation holds, used or not, as a cluster counts them."""
        return self.walltime_s.times(sum(getattr(node, kind) for node in self.nodes) / 3600)

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return {
            "sweep": self.sweep,
            "num_trials": self.num_trials,
            "trials_left": self.trials_left,
            "at_a_time": self.at_a_time,
            "waves": self.waves,
            "walltime_s": _rounded(self.walltime_s),
            "cpu_hours": _rounded(self.hours("cpus")),
            "gpu_hours": _rounded(self.hours("gpus")),
            "fits": self.fits,
            "largest_num_trials": self.largest_num_trials,
            "confirm_s": _rounded(self.confirm_s),
            "source": self.speed.source,
        }


def _rounded(found: Range) -> dict[str, float]:
    return {key: float(f"{value:.3g}") for key, value in asdict(found).items()}


def share_of_epochs(scheduler: Named, max_epochs: int) -> float:
    """What part of all epochs a scheduler lets trials train, if it stops as many as it means to.

    Of ASHA and HyperBand one of `reduction_factor` goes on at each rung; the median rule stops half after its grace period.
    """
    name, options = scheduler.name, scheduler.options
    if name in ("none", "pbt"):
        return 1.0
    if name == "median":
        return (float(options["grace_period"]) + max_epochs) / (2 * max_epochs)
    rung, alive, trained = float(options.get("grace_period", 1)), 1.0, 0.0
    before = 0.0
    while rung < max_epochs:
        trained += alive * (rung - before)
        before, alive, rung = rung, alive / options["reduction_factor"], rung * options["reduction_factor"]
    return (trained + alive * (max_epochs - before)) / max_epochs


def makespan_s(durations_s: Sequence[float], at_a_time: int) -> float:
    """When the last trial ends, of trials that begin in this order, so many at a time."""
    ends = [0.0] * max(1, min(at_a_time, len(durations_s)))
    for duration_s in durations_s:
        heapq.heapreplace(ends, ends[0] + duration_s)
    return max(ends)


def predicted_row_s(points: Sequence[StepTimes], key: str, batch_size: int) -> float:
    """Seconds for a row at a batch size: between those that were measured on a line over 1 / batch size, since a step takes a time of its own."""
    by_size: dict[int, list[float]] = {}
    for point in points:
        by_size.setdefault(point.batch_size, []).append(getattr(point, key))
    means = sorted((1 / size, statistics.fmean(values)) for size, values in by_size.items())
    x = 1 / batch_size
    if x <= means[0][0]:
        return means[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(means):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return means[-1][1] * x / means[-1][0]  # a smaller batch: as many steps more


def spread_of(points: Sequence[StepTimes]) -> float:
    """How far off the prediction is, relative, as of the mean of all: each measurement against the others, but at the ends, where those say little."""
    residuals = []
    for number, point in enumerate(points):
        others = [other for n, other in enumerate(points) if n != number]
        sizes = [other.batch_size for other in others]
        if others and min(sizes) <= point.batch_size <= max(sizes):
            residuals.append(point.row_s / predicted_row_s(others, "row_s", point.batch_size) - 1)
    return math.sqrt(sum(r * r for r in residuals)) / len(residuals) if residuals else 0.0


def chosen(configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of configurations some that differ in their batch size as all do."""
    ordered = sorted(configs, key=lambda config: config["batch_size"])
    count = min(POINTS, len(ordered))
    return [ordered[round(i * (len(ordered) - 1) / max(1, count - 1))] for i in range(count)]


class Planner:
    """Makes the plan of a stage. `on_slurm`: for the job that the sweep would be, else for a run on this machine."""

    def __init__(self, stage: Stage, on_slurm: bool) -> None:
        self.stage, self.sweep, self.on_slurm = stage, stage.sweep, on_slurm
        self.space = parse_space(self.sweep.search_space)
        self.total = self.sweep.num_trials
        wanted = self.sweep.allocation
        if on_slurm:
            nodes = (
                Node(f"node{number}", wanted.cpus_per_node, wanted.gpus_per_node, wanted.mem_mb_per_node)
                for number in range(1, wanted.nodes + 1)
            )
            self.allocation = Allocation(tuple(nodes), job_id="")
        else:
            self.allocation = Allocation.local(wanted, stage.call.threads)
        self.nodes = [node.size for node in self.allocation.nodes]
        self.resources = trial_resources(self.sweep, self.allocation)
        recorded, identity = read_sweep(stage.path_to_record), stage.identity()
        self.identity = identity
        self.recorded = Sweep() if reason_to_start_anew(recorded, identity, self.sweep.resume) else recorded
        self.left = max(0, self.total - sum(trial.finished for trial in self.recorded.trials.values()))
        share = self.recorded.gpu_share if self.sweep.trial_resources.gpu == "auto" else None
        self.has_share = share is not None
        if share is not None and self.resources.gpu:
            self.resources = TrialResources(self.resources.cpu, share)
        held = capacity(self.nodes, self.resources)
        self.capacity = min(held, self.sweep.max_concurrent or held)

    def plan(self) -> Plan | str:
        """The plan, or why there is none."""
        speed = self.recorded_speed() or self.measured_speed()
        if isinstance(speed, str):
            return speed
        share, most = self.expected_share()
        expected_s = self.seconds(speed, share)
        walltime = Range(expected_s * (1 - speed.uncertainty), expected_s, self.seconds(speed, most) * (1 + speed.uncertainty))
        walltime = walltime.plus(speed.start_s) if self.left else Range(0.0, 0.0, 0.0)
        if (budget_s := self.sweep.time_budget_s) is not None:
            # No trial begins after it; the last ones go on to their end.
            most_s = max(0.0, budget_s - self.recorded.used_s) + speed.start_s + max(speed.epoch_s) * self.sweep.max_epochs
            walltime = Range(*(min(value, most_s) for value in (walltime.low, walltime.expected, walltime.high)))
        runtime_s = self.runtime_s() if self.on_slurm else None
        epoch_s = statistics.fmean(speed.epoch_s)
        confirm_waves = math.ceil(self.sweep.confirm.seeds / max(1, self.confirm_capacity()))
        # A confirmation trains by itself, on the validation part too, for as many epochs as the best trial had.
        confirm_s = START_S + confirm_waves * epoch_s * self.sweep.max_epochs * (1 if self.sweep.trainable is not None else 1.1)
        return Plan(
            sweep=self.stage.name,
            num_trials=self.total,
            trials_left=self.left,
            at_a_time=min(speed.at_a_time, max(self.left, 1)),
            waves=math.ceil(self.left / speed.at_a_time),
            measures_gpu=self.sweep.trial_resources.gpu == "auto" and not self.has_share and self.resources.gpu > 0 and speed.speed_up == 1,
            nodes=self.nodes,
            speed=speed,
            walltime_s=walltime,
            runtime_s=runtime_s,
            largest_num_trials=None if runtime_s is None else self.largest(speed, runtime_s),
            confirm_s=Range(START_S, confirm_s, confirm_s * (1 + speed.uncertainty)),
            confirm_runtime_s=self.sweep.confirm.runtime_s if self.on_slurm else None,
        )

    def confirm_capacity(self) -> int:
        return capacity(self.nodes[:1], self.resources)

    def expected_share(self) -> tuple[float, float]:
        """What part of all epochs trials are expected to train, and at most: as those did that are done, else as the scheduler means to."""
        finished = [trial.epochs for trial in self.recorded.trials.values() if trial.status in ("TERMINATED", "STOPPED")]
        if len(finished) >= FEW_TRIALS:
            mean, error = statistics.fmean(finished), statistics.stdev(finished) / math.sqrt(len(finished))
            return min(1.0, mean / self.sweep.max_epochs), min(1.0, (mean + 2 * error) / self.sweep.max_epochs)
        return share_of_epochs(self.sweep.scheduler, self.sweep.max_epochs), 1.0

    def runtime_s(self) -> float:
        """How long trials may train in the job, and in those that it is started again for."""
        allocation = self.sweep.allocation
        return (allocation.runtime_s - min(allocation.walltime_margin_s, allocation.runtime_s / 2)) * (1 + allocation.resubmit)

    def seconds(self, speed: Speed, share: float) -> float:
        """How long the trials that are left train, all together, if they train this part of their epochs."""
        durations_s = [epoch_s * share * self.sweep.max_epochs for epoch_s in speed.epoch_s[: self.left]]
        if speed.speed_up > 1:
            return sum(durations_s) / (speed.speed_up * speed.processes)
        return makespan_s(durations_s, speed.at_a_time)

    def largest(self, speed: Speed, runtime_s: float) -> int:
        """With how many trials the sweep would still end in time, were it as slow as is likely."""
        if not self.left:
            return self.total
        left_s = max(0.0, runtime_s - speed.start_s)
        trial_s = statistics.fmean(speed.epoch_s) * self.expected_share()[1] * self.sweep.max_epochs * (1 + speed.uncertainty)
        waves = int(left_s / trial_s) * speed.at_a_time
        more = waves if speed.speed_up == 1 else int(left_s * speed.speed_up * speed.processes / trial_s)
        combinations = num_combinations(self.space) * self.sweep.repeats
        return max(self.total - self.left, (self.total - self.left + more) // combinations * combinations)

    def recorded_speed(self) -> Speed | None:
        """By the trials that are done."""
        trials = [trial for trial in self.recorded.trials.values() if trial.results]
        paces_s = [trial.time_s / trial.epochs for trial in trials]
        if not paces_s:
            return None
        fused = self.recorded.fused if isinstance(self.recorded.fused, FusionPlan) else None
        at_a_time = fused.processes * fused.slots if fused else self.capacity
        # Trained together, the epoch of a trial takes as long as the epochs of all trials of its process.
        alone = fused.speed_up / fused.slots if fused else 1.0
        mean_s = alone * statistics.fmean(paces_s)
        spread = alone * statistics.stdev(paces_s) / mean_s / math.sqrt(len(paces_s)) if len(paces_s) > 1 and mean_s else 1.0
        then, now = self.recorded.sessions[-1].nodes, self.nodes
        elsewhere = sorted((n.cpus, n.gpus) for n in then) != sorted((n.cpus, n.gpus) for n in now)
        return Speed(
            epoch_s=[mean_s] * max(1, self.left),
            uncertainty=min(0.9, max(LEAST_UNCERTAINTY, 2 * spread) + (0.25 if elsewhere else 0)),
            speed_up=fused.speed_up if fused else 1.0,
            processes=fused.processes if fused else 1,
            at_a_time=max(1, at_a_time),
            start_s=START_S,
            source=f"{len(trials)} trials of this sweep" + (", on other nodes than it would have now" if elsewhere else ""),
            together=f"as those were: {'together' if fused else 'one by one'}",
        )

    def measured_speed(self) -> Speed | str:
        """By steps that are timed here; or why they cannot be."""
        if self.sweep.trainable is not None:
            return "how long a function of your own takes is seen when it has run: set num_samples to 2, run the sweep, and plan again. The two trials are kept"
        configs = [configuration(self.space, self.sweep.seed, index) for index in range(self.total - self.left, self.total)]
        if not configs:
            configs = [configuration(self.space, self.sweep.seed, 0)]
        header = self.stage.header(self.identity, self.total, self.sweep.max_epochs)
        job = self.stage.search_job(self.stage.path_to_record, header, self.allocation)
        some = chosen(configs[:: math.ceil(len(configs) / LOOKED_AT)])
        found = run_measurement(self.stage, MeasurementInput(job, tuple(self.nodes), tuple(some), self.capacity))
        points = found.points

        def epoch_s(config: dict[str, Any]) -> float:
            size = int(config["batch_size"])
            return (
                predicted_row_s(points, "row_s", size) * found.rows
                + predicted_row_s(points, "validation_row_s", size) * found.validation_rows
            )

        together = found.together if isinstance(found.together, FusionPlan) else None
        without_gpu = self.resources.gpu and found.device == "CPU"
        return Speed(
            epoch_s=[epoch_s(config) for config in configs],
            uncertainty=min(0.9, max(LEAST_UNCERTAINTY, 2 * spread_of(points))),
            speed_up=together.speed_up if together else 1.0,
            processes=together.processes if together else 1,
            at_a_time=max(1, together.processes * together.slots if together else self.capacity),
            start_s=START_S + (found.benchmark_s if together else 0),
            source=f"steps of {len(points)} configurations, timed on this machine's {found.device}"
            + (", while trials get a GPU: expect less, or plan on a node that has one" if without_gpu else ""),
            together=f"{together.speed_up:.1f} times as fast as one by one ({together.way})"
            if together
            else f"no: {found.together.reason if isinstance(found.together, NotFused) else ''}",
        )


def run_measurement(stage: Stage, measurement: MeasurementInput) -> Measurement:
    """What measure.py finds, in the environment of the trials. Raises RaysweepError where the model cannot be trained."""
    argv = stage.environment.command([str(SCRIPTS_DIR / "measure_steps.py")])
    env = seen_in_container(process_environment() | {"PYTHONPATH": str(SCRIPTS_DIR)}, [stage.call.root, stage.data_dir])
    try:
        run = subprocess.run(
            argv, input=json.dumps(to_json(measurement)), env=env, capture_output=True, text=True, timeout=MEASURE_DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise RaysweepError(f"{stage.name}: some steps of its model were not over within {MEASURE_DEADLINE_S // 60} minutes") from None
    logger.debug("%s", run.stderr)
    if run.returncode:
        words = [line.strip() for line in run.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise RaysweepError(f"{stage.name}: its model cannot be trained: {words[-1]} ({stage.call.path_to_log} has more)")
    return from_json(Measurement, json.loads(run.stdout.splitlines()[-1]))


def lines_of(plan: Plan) -> list[tuple[str, str]]:
    """What to show of a plan: name and text of each line."""
    speed, cpus, gpus = plan.speed, *(sum(getattr(node, kind) for node in plan.nodes) for kind in ("cpus", "gpus"))
    fits = ""
    if plan.confirm_runtime_s is not None and plan.confirm_s.high > plan.confirm_runtime_s:
        fits = f": more than confirm.runtime, {duration(plan.confirm_runtime_s)}, may be needed"
    confirm = ("confirm", f"at most {duration(plan.confirm_s.high)}{fits}")
    if not plan.trials_left:
        return [("trials", f"{plan.num_trials}, all done"), confirm]
    trials = f"{plan.num_trials}" + (f", {plan.trials_left} of them left" if plan.trials_left < plan.num_trials else "")
    at_least = "at least " if plan.measures_gpu else ""
    lines = [
        ("trials", f"{trials}: {at_least}{plan.at_a_time} at a time, in {plan.waves} wave{'s' * (plan.waves != 1)}"),
        ("nodes", f"{len(plan.nodes)}, with {cpus} CPUs" + (f" and {gpus} GPUs" if gpus else "")),
        ("an epoch", _spread(min(speed.epoch_s), statistics.fmean(speed.epoch_s), max(speed.epoch_s))),
        ("by", speed.source),
        ("together", speed.together),
        ("walltime", _times(plan.walltime_s)),
        ("CPU-hours", _numbers(plan.hours("cpus"))),
    ]
    if gpus:
        lines.append(("GPU-hours", _numbers(plan.hours("gpus"))))
    if plan.runtime_s is not None:
        words = {
            "yes": "yes",
            "perhaps": "perhaps: set allocation.resubmit, or more runtime",
            "no": "no: more runtime, resubmit, or fewer trials",
        }
        lines.append(
            ("fits", f"{words[plan.fits]} ({duration(plan.runtime_s)} for trials; about {plan.largest_num_trials} trials would fit)")
        )
    return [*lines, confirm]


def _spread(low: float, mean: float, high: float) -> str:
    return f"{mean:.3g} s of a trial by itself" + (f", from {low:.3g} to {high:.3g}" if high > 1.05 * low else "")


def _times(found: Range) -> str:
    return f"about {duration(found.expected)} ({duration(found.low)} to {duration(found.high)})"


def _numbers(found: Range) -> str:
    return f"about {found.expected:.3g} ({found.low:.3g} to {found.high:.3g})"


def plan_path(state_dir: Path, sweep: str) -> Path:
    """Where the latest plan of a sweep is kept, for its report."""
    return state_dir / ".plan" / f"{sweep}.yaml"


def keep(plan: Plan, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_yaml(path, plan.as_dict())
