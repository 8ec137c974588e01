"""Estimates the time and the resources that a sweep will need, before the sweep runs. `snakemake plan` prints the estimate.

The time of the sweep depends on the time of an epoch (speed.py), on the number of trials that run at the same time, and on the number of epochs that the
scheduler of the sweep saves by stopping trials early.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from raysweep.common.capacity import capacity
from raysweep.common.files import write_yaml
from raysweep.common.machine import NodeSize
from raysweep.common.patience import NO_BETTER_FOR
from raysweep.common.text import duration, plural
from raysweep.config.model import ConfirmConfig, Named, SweepConfig
from raysweep.config.space import num_combinations, parse_space
from raysweep.data.manifest import read_manifest
from raysweep.record.budget import may_begin_trials
from raysweep.record.file import read_sweep
from raysweep.record.node_times import used_hours
from raysweep.record.reopening import Reopening, reopening_of
from raysweep.record.sweep import Sweep
from raysweep.slurm.allocation import Allocation, Node, trial_resources
from raysweep.stages.speed import START_S, Speed, Work, measured_speed, recorded_speed
from raysweep.stages.stage import Stage
from raysweep.stages.sweep import reason_to_start_anew

MIN_TRIALS = 5  # smallest number of finished trials from which the share of the trained epochs is estimated


@dataclass(frozen=True)
class Range:
    """Contains an expected value, and the bounds between which the value is likely to lie."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> Range:
        return Range(self.low * factor, self.expected * factor, self.high * factor)

    def plus(self, value: float) -> Range:
        return Range(self.low + value, self.expected + value, self.high + value)


@dataclass(frozen=True)
class Plan:
    """Describes the time and the resources that a sweep will need."""

    sweep: str
    num_trials: int
    trials_left: int  # number of trials that are not finished yet, or that go on after they were finished
    reopening: Reopening  # finished trials that go on
    at_a_time: int  # number of trials that run at the same time
    waves: int  # number of groups of `at_a_time` trials, when one group runs after the other
    measures_gpu: bool  # whether the sweep measures the GPU memory of the first trial to decide how many trials share a GPU
    nodes: tuple[NodeSize, ...]
    speed: Speed
    walltime_s: Range  # time in seconds that the trials that are left need
    runtime_s: float | None  # time in seconds that the job and its restarts give to trials; None where there is no time limit
    largest_num_trials: int | None  # largest num_trials with which the sweep would end in time; None where there is no time limit
    confirm_s: Range  # time in seconds that the confirmation needs
    confirm_runtime_s: float | None  # time limit in seconds of the confirmation's job; None where there is no time limit
    confirm_trainings: str = ""  # number of trainings of the confirmation, as a text for the user; "" where only the winner is confirmed
    jobs: int = 1  # number of Slurm jobs that have the nodes; the estimate assumes that all jobs run from the start
    may_end_early: str = ""  # rules by which trials or the sweep may end early; the estimate does not know whether they will

    @property
    def fits(self) -> str:
        """Return "yes", "no" or "perhaps" to the question whether the time of the job is enough for the trials."""
        if self.runtime_s is None or self.walltime_s.high <= self.runtime_s:
            return "yes"
        return "perhaps" if self.walltime_s.low <= self.runtime_s else "no"

    def hours(self, kind: Literal["cpus", "gpus"]) -> Range:
        """Return the GPU-hours ("gpus") or CPU-hours ("cpus") of the whole allocation while the trials that are left run.

        The hours include GPUs and CPUs that no trial uses, because a cluster charges the whole allocation.
        """
        return self.walltime_s.times(sum(getattr(node, kind) for node in self.nodes) / 3600)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of the plan's YAML file."""
        return {
            "sweep": self.sweep,
            "num_trials": self.num_trials,
            "trials_left": self.trials_left,
            "trials_going_on": len(self.reopening.trials),
            "epochs_of_going_on": self.reopening.epochs,
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


def _rounded(amount: Range) -> dict[str, float]:
    return {key: float(f"{value:.3g}") for key, value in asdict(amount).items()}


def share_of_epochs(scheduler: Named, max_epochs: int) -> float:
    """Return the share of all epochs that the trials of a sweep train, if the scheduler stops as many trials as its rule intends.

    With ASHA and HyperBand one trial of every `reduction_factor` trials goes on after each rung. The median rule stops half of the trials after the grace
    period.
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


def trainings_of(confirm: ConfirmConfig) -> str:
    """Return the number of trainings of a confirmation as a text for the user. Return "" where only the winner is confirmed."""
    return "" if confirm.top == 1 else f", {confirm.top * confirm.seeds} trainings: {confirm.seeds} of each of {confirm.top} configurations"


def early_ends(sweep: SweepConfig) -> str:
    """Return the rules of a sweep by which a trial, or the sweep, ends early, as a text for the user. Return "" where there are no such rules."""
    rules = []
    if (of_trials := sweep.stop.get(NO_BETTER_FOR)) is not None:
        rules.append(f"a trial after {plural(int(of_trials['epochs']), 'epoch')} without a better value (stop)")
    if (of_sweep := sweep.end_when.no_better_for) is not None:
        rules.append(f"the sweep after {plural(of_sweep.configurations, 'configuration')} without a better value (end_when)")
    return " and ".join(rules)


def makespan_s(durations_s: Sequence[float], at_a_time: int) -> float:
    """Return the time in seconds until the last trial ends, if trials begin in the given order and `at_a_time` trials run at the same time."""
    ends = [0.0] * max(1, min(at_a_time, len(durations_s)))
    for duration_s in durations_s:
        heapq.heapreplace(ends, ends[0] + duration_s)
    return max(ends)


class Planner:
    """Makes the plan of a sweep. The plan is for the Slurm job of the sweep if `on_slurm` is True, and otherwise for a run on this machine."""

    def __init__(self, stage: Stage, on_slurm: bool) -> None:
        self.sweep, self.on_slurm, self.name = stage.sweep, on_slurm, stage.name
        self.total, self.data_dir = self.sweep.num_trials, stage.data_dir
        allocation = planned_allocation(stage) if on_slurm else Allocation.local(self.sweep.allocation, stage.call.threads)
        self.nodes = tuple(node.size for node in allocation.nodes)
        self.resources = trial_resources(self.sweep, allocation)
        recorded, identity = read_sweep(stage.path_to_record), stage.identity()
        self.recorded = Sweep() if reason_to_start_anew(recorded, identity, self.sweep.resume) else recorded
        self.recorded.set_goal(self.sweep.constraint, self.sweep.objectives, self.sweep.choose)
        self.reopening = reopening_of(self.recorded, stage.state_dir, self.sweep.max_epochs, self.sweep.stop)
        if not may_begin_trials(self.recorded, self.sweep):
            self.total = len(self.recorded.trials)
        finished = sum(trial.finished for trial in self.recorded.trials.values()) - len(self.reopening.trials)
        self.left = max(0, self.total - finished)
        share = self.recorded.gpu_share if self.sweep.trial_resources.gpu == "auto" else None
        self.has_share = share is not None
        if share is not None and self.resources.gpu:
            self.resources = replace(self.resources, gpu=share)
        most = capacity(self.nodes, self.resources)
        trials_at_a_time = min(most, self.sweep.max_concurrent or most)
        self.work = Work(stage, identity.sha256, allocation, self.recorded, self.left, trials_at_a_time, needs_gpu=self.resources.gpu > 0)

    def plan(self) -> Plan | str:
        """Return the plan, or a sentence that says why no plan can be made."""
        speed = recorded_speed(self.work) or measured_speed(self.work)
        return speed if isinstance(speed, str) else self._plan(speed)

    def _plan(self, speed: Speed) -> Plan:
        runtime_s = self.runtime_s() if self.on_slurm else None
        return Plan(
            sweep=self.name,
            num_trials=self.total,
            trials_left=self.left,
            reopening=self.reopening,
            at_a_time=min(speed.at_a_time, max(self.left, 1)),
            waves=math.ceil(self.left / speed.at_a_time),
            measures_gpu=self.sweep.trial_resources.gpu == "auto" and not self.has_share and self.resources.gpu > 0 and speed.speed_up == 1,
            nodes=self.nodes,
            speed=speed,
            walltime_s=self.walltime(speed),
            runtime_s=runtime_s,
            largest_num_trials=None if runtime_s is None else self.largest(speed, runtime_s),
            confirm_s=self.confirm_time(speed),
            confirm_runtime_s=self.sweep.confirm.runtime_s if self.on_slurm else None,
            confirm_trainings=trainings_of(self.sweep.confirm),
            jobs=self.sweep.allocation.jobs if self.on_slurm else 1,
            may_end_early=early_ends(self.sweep),
        )

    def walltime(self, speed: Speed) -> Range:
        """Return the time in seconds that the trials that are left need, with the start of Ray."""
        if not self.left:
            return Range(0.0, 0.0, 0.0)
        share, most = self.expected_share()
        expected_s = self.seconds(speed, share)
        walltime = Range(expected_s * (1 - speed.uncertainty), expected_s, self.seconds(speed, most) * (1 + speed.uncertainty))
        walltime = walltime.plus(speed.start_s)
        # No trial begins after a budget is used up, but a trial that has begun trains to its end.
        most_s = max(0.0, self.budget_s()) + speed.start_s + max(speed.epoch_s) * self.sweep.max_epochs
        return Range(*(min(value, most_s) for value in (walltime.low, walltime.expected, walltime.high)))

    def budget_s(self) -> float:
        """Return the time in seconds in which new trials may begin, which `time_budget` and `max_gpu_hours` leave. Return infinity without these keys."""
        budgets_s = [math.inf]
        if self.sweep.time_budget_s is not None:
            budgets_s.append(self.sweep.time_budget_s - self.recorded.used_s)
        if self.sweep.max_gpu_hours is not None and (gpus := sum(node.gpus for node in self.nodes)):
            budgets_s.append((self.sweep.max_gpu_hours - used_hours(self.recorded, "gpus")) / gpus * 3600)
        return min(budgets_s)

    def confirm_time(self, speed: Speed) -> Range:
        """Return the time in seconds that the confirmation needs, if the best epoch of the sweep is the last epoch.

        The configurations that `confirm.top` confirms are trained one after the other, each with a start of Ray.
        """
        top = self.sweep.confirm.top
        waves = top * math.ceil(self.sweep.confirm.seeds / max(1, capacity(self.nodes[:1], self.resources)))
        # A trial of a confirmation is not trained together with other trials. A trial of a confirmation trains up to the epoch at which the best trial was
        # best.
        more_rows = 1.0
        if self.sweep.model is not None and self.data_dir is not None:  # the training data of a model includes the validation split
            splits = read_manifest(self.data_dir).splits
            more_rows += splits["validation"] / splits["train"]
        confirm_s = top * START_S + waves * statistics.fmean(speed.epoch_s) * self.sweep.max_epochs * more_rows
        return Range(top * START_S, confirm_s, confirm_s * (1 + speed.uncertainty))

    def expected_share(self) -> tuple[float, float]:
        """Return the share of all epochs that trials are expected to train, and the largest likely share.

        The shares are computed from the finished trials. Where fewer than MIN_TRIALS trials are finished, the shares follow from the rule of the scheduler.
        """
        reopened = {trial.trial_id for trial in self.reopening.trials}
        trials = [trial for trial in self.recorded.trials.values() if trial.status in ("TERMINATED", "STOPPED")]
        finished = [trial.epochs for trial in trials if trial.trial_id not in reopened]
        if len(finished) >= MIN_TRIALS:
            mean, error = statistics.fmean(finished), statistics.stdev(finished) / math.sqrt(len(finished))
            return min(1.0, mean / self.sweep.max_epochs), min(1.0, (mean + 2 * error) / self.sweep.max_epochs)
        return share_of_epochs(self.sweep.scheduler, self.sweep.max_epochs), 1.0

    def runtime_s(self) -> float:
        """Return the time in seconds that trials may train in the job and in the restarts of the job."""
        allocation = self.sweep.allocation
        return (allocation.runtime_s - min(allocation.walltime_margin_s, allocation.runtime_s / 2)) * (1 + allocation.resubmit)

    def seconds(self, speed: Speed, share: float) -> float:
        """Return the time in seconds that all trials that are left need, if the trials train the share `share` of their epochs."""
        epochs = [self.sweep.max_epochs - epoch for epoch in self.reopening.from_epochs]
        epochs += [self.sweep.max_epochs] * (self.left - len(epochs))
        durations_s = [epoch_s * share * number for epoch_s, number in zip(speed.epoch_s, epochs, strict=False)]
        if speed.speed_up > 1:
            return sum(durations_s) / (speed.speed_up * speed.processes)
        return makespan_s(durations_s, speed.at_a_time)

    def largest(self, speed: Speed, runtime_s: float) -> int:
        """Return the largest number of trials with which the sweep would end within `runtime_s` seconds at the slowest likely speed."""
        if not self.left:
            return self.total
        left_s = max(0.0, runtime_s - speed.start_s)
        trial_s = statistics.fmean(speed.epoch_s) * self.expected_share()[1] * self.sweep.max_epochs * (1 + speed.uncertainty)
        waves = int(left_s / trial_s) * speed.at_a_time
        more = waves if speed.speed_up == 1 else int(left_s * speed.speed_up * speed.processes / trial_s)
        combinations = num_combinations(parse_space(self.sweep.search_space)) * self.sweep.repeats
        return max(self.total - self.left, (self.total - self.left + more) // combinations * combinations)


def lines_of(plan: Plan) -> list[tuple[str, str]]:
    """Return the lines that show a plan to the user, as pairs of a name and a text."""
    speed, gpus = plan.speed, sum(node.gpus for node in plan.nodes)
    fits = ""
    if plan.confirm_runtime_s is not None and plan.confirm_s.high > plan.confirm_runtime_s:
        fits = f": more than confirm.runtime, {duration(plan.confirm_runtime_s)}, may be needed"
    confirm = ("confirm", f"at most {duration(plan.confirm_s.high)}{plan.confirm_trainings}{fits}")
    if not plan.trials_left:
        return [("trials", f"{plan.num_trials}, all done"), confirm]
    trials = f"{plan.num_trials}" + (f", {plan.trials_left} of them left" if plan.trials_left < plan.num_trials else "")
    at_least = "at least " if plan.measures_gpu else ""
    lines = [
        ("trials", f"{trials}: {at_least}{plan.at_a_time} at a time, in {plan.waves} wave{'s' * (plan.waves != 1)}"),
        *([("going on", str(plan.reopening))] if plan.reopening.trials else []),
        ("nodes", _nodes_text(plan)),
        ("an epoch", _spread(min(speed.epoch_s), statistics.fmean(speed.epoch_s), max(speed.epoch_s))),
        ("by", speed.source),
        ("together", speed.together),
        ("walltime", _times(plan.walltime_s)),
        ("CPU-hours", _numbers(plan.hours("cpus"))),
    ]
    if gpus:
        lines.append(("GPU-hours", _numbers(plan.hours("gpus"))))
    if plan.may_end_early:
        lines.append(("may end", f"{plan.may_end_early}; walltime and hours are estimated without this"))
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


def _nodes_text(plan: Plan) -> str:
    """Return the number of nodes with their CPUs and GPUs, and the number of jobs where several jobs have the nodes."""
    cpus, gpus = (sum(getattr(node, kind) for node in plan.nodes) for kind in ("cpus", "gpus"))
    devices = f"with {cpus} CPUs" + (f" and {gpus} GPUs" if gpus else "")
    if plan.jobs == 1:
        return f"{len(plan.nodes)}, {devices}"
    each = plural(len(plan.nodes) // plan.jobs, "node")
    return f"up to {len(plan.nodes)}, {devices}: {plan.jobs} jobs of {each}. The walltime holds where all jobs run from the start"


def _spread(low: float, mean: float, high: float) -> str:
    return f"{mean:.3g} s of a trial by itself" + (f", from {low:.3g} to {high:.3g}" if high > 1.05 * low else "")


def _times(amount: Range) -> str:
    return f"about {duration(amount.expected)} ({duration(amount.low)} to {duration(amount.high)})"


def _numbers(amount: Range) -> str:
    return f"about {amount.expected:.3g} ({amount.low:.3g} to {amount.high:.3g})"


def plan_path(state_dir: Path, sweep: str) -> Path:
    """Return the path of the file that contains the latest plan of a sweep. The report of the sweep reads this file."""
    return state_dir / ".plan" / f"{sweep}.yaml"


def planned_allocation(stage: Stage) -> Allocation:
    """Return the allocation that Slurm would give to the job of the sweep, or to all jobs of the sweep together (`allocation.jobs`)."""
    wanted = stage.sweep.allocation
    names = (f"node{number}" for number in range(1, wanted.jobs * wanted.nodes + 1))
    return Allocation(tuple(Node(name, wanted.cpus_per_node, wanted.gpus_per_node, wanted.mem_mb_per_node) for name in names), job_id="")


def keep(plan: Plan, path: Path) -> None:
    """Write a plan to the YAML file `path`."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_yaml(path, plan.as_dict())
