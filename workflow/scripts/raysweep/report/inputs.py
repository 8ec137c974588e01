"""Reads the record of a sweep and the files beside the record. Text, table and figures of the report use the contents in one common form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

from raysweep.common.errors import RaysweepError
from raysweep.common.files import read_yaml
from raysweep.common.typed_json import from_json, read_yaml_as
from raysweep.config.model import Mode
from raysweep.data.manifest import DataManifest, read_manifest
from raysweep.record.events import Session, SessionHeader
from raysweep.record.file import read_sweep
from raysweep.record.gpu_use import GpuUse, read_gpu_use
from raysweep.record.node_times import NodeTime, array_jobs, node_times
from raysweep.record.results import BestResult, Confirmation
from raysweep.record.sweep import Sweep
from raysweep.record.trials import Candidate, Result, Trial
from raysweep.report.documents import EnvironmentManifest, Plan
from raysweep.report.keys import Key, keys_of

# State of an attempt after which the trial started again. The attempt was interrupted, was paused by the scheduler, or failed and was tried again.
CONTINUED = "continued later"


@dataclass(frozen=True)
class Attempt:
    """Describes an uninterrupted run of a trial on one node. The times are seconds of the sweep's running time."""

    trial: Trial
    node: str
    start_s: float
    end_s: float
    state: str  # status of the trial if this is the last attempt of the trial, otherwise CONTINUED


@dataclass(frozen=True)
class SweepResult:
    """Contains a sweep, its best trial and the confirmation. Nothing changes after the files were read, so computed values are cached."""

    sweep: Sweep
    best: BestResult
    confirmed: Confirmation

    @cached_property
    def header(self) -> SessionHeader:
        return self.sweep.header

    @cached_property
    def sessions(self) -> list[Session]:
        return self.sweep.sessions

    @property
    def name(self) -> str:
        return self.header.name

    @property
    def metric(self) -> str:
        return self.header.metric

    @property
    def metrics(self) -> list[str]:
        """Return the metrics of all objectives."""
        return [objective.metric for objective in self.sweep.objectives] or [self.metric]

    @property
    def mode(self) -> Mode:
        return self.header.mode

    @property
    def sign(self) -> int:
        """Return the factor, 1 or -1, by which a value of the metric is multiplied so that a better value is larger."""
        return 1 if self.mode == "max" else -1

    @property
    def trials(self) -> list[Trial]:
        return list(self.sweep.trials.values())

    @property
    def winner(self) -> Trial:
        return self.sweep.trials[self.best.trial_id]

    def value(self, trial: Trial) -> float | None:
        """Return the trial's best value of the metric, or None if the trial has no report that may be the best."""
        result = trial.best(self.metric, self.mode)
        return None if result is None else result.metrics[self.metric]

    @cached_property
    def ranked(self) -> list[tuple[Trial, float]]:
        """Return the trials that did not fail and have a best value, with this value, best trial first. Trials with equal values are sorted by id."""
        ordered = sorted(self.trials, key=lambda trial: trial.rank(self.metric, self.mode))
        return [(trial, result.metrics[self.metric]) for trial in ordered if (result := trial.counted(self.metric, self.mode))]

    @cached_property
    def value_range(self) -> tuple[float, float]:
        """Return the smallest and the largest value of the trials of `ranked`."""
        # The mean of several trials can fulfil bounds that no single trial fulfils. The list is then empty, and only the winner has a value.
        values = [value for _, value in self.ranked] or [self.best.value]
        return min(values), max(values)

    @cached_property
    def compared(self) -> list[tuple[Candidate, float]]:
        """Return the candidates for the winner with their values, best first.

        The candidates are the trials of `ranked`. But if each configuration is trained with several seeds, the candidates are the configurations, and the
        value of a configuration is the mean over the seeds.
        """
        ordered = sorted(self.sweep.candidates, key=lambda candidate: candidate.rank(self.metric, self.mode))
        return [(candidate, result.metrics[self.metric]) for candidate in ordered if (result := candidate.counted(self.metric, self.mode))]

    @cached_property
    def points(self) -> list[tuple[Candidate, Result]]:
        """Return the candidates with their last reports, by which several objectives compare the candidates. The list is empty with one objective."""
        counted = ((candidate, candidate.counted(self.metric, self.mode)) for candidate in self.sweep.candidates)
        return [(candidate, result) for candidate, result in counted if result] if self.sweep.objectives else []

    @cached_property
    def keys(self) -> list[Key]:
        """Return the keys of the search space, followed by the other keys of the configurations."""
        return keys_of(self.header.search_space, [trial.config for trial in self.trials])

    @property
    def varying_keys(self) -> list[Key]:
        """Return the keys that have more than one value."""
        return [key for key in self.keys if key.varies]

    @cached_property
    def clock(self) -> Clock:
        return Clock(self.sessions)

    @cached_property
    def node_times(self) -> list[NodeTime]:
        """Return the times in which nodes were a part of the sweep."""
        return node_times(self.sweep)

    @cached_property
    def several_jobs(self) -> list[str]:
        """Return the ids of the Slurm jobs that worked on the sweep together. The list is empty where no session had nodes of several jobs."""
        jobs = array_jobs(self.sweep)
        return jobs if len(jobs) > 1 else []

    @cached_property
    def attempts(self) -> list[Attempt]:
        """Return every attempt of every trial, sorted by the start of the attempt."""
        attempts = (attempt for trial in self.trials for attempt in _attempts_of(trial, self.clock))
        return sorted(attempts, key=lambda a: (a.start_s, a.trial.trial_id))

    def unfinished(self) -> int:
        """Return the number of planned trials that have no final result yet. A complete sweep begins no further trial."""
        planned = len(self.trials) if self.is_complete else max(self.header.num_trials, len(self.trials))
        return planned - sum(t.finished for t in self.trials)

    @property
    def is_complete(self) -> bool:
        """Return whether the latest session left no trial, also where a budget or `end_when` ended the sweep before the last trial."""
        return self.sessions[-1].outcome == "complete"

    def not_begun(self) -> int:
        """Return the number of planned trials that a complete sweep did not begin."""
        return max(0, self.header.num_trials - len(self.trials)) if self.is_complete else 0


@dataclass(frozen=True)
class Inputs(SweepResult):
    """Contains all information that the report of one sweep shows."""

    config_text: str
    data: DataManifest | None  # None if the trainable brings its own data
    data_dir: Path | None
    env: EnvironmentManifest
    model_dir: Path
    plan: Plan | None  # plan of all trials that `snakemake plan` made before the sweep, or None if such a plan does not exist
    gpu_use: tuple[GpuUse, ...] = ()  # how busy the GPUs were; empty where the sweep had no GPUs, or GPUs that cannot be measured


def seconds_between(start: str, end: str) -> float:
    """Return the seconds from `start` to `end`. Both are times in ISO 8601."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)) / timedelta(seconds=1)


class Clock:
    """Converts times of the record to seconds of running time. The running time leaves out the gaps between the sessions of a sweep."""

    def __init__(self, sessions: list[Session]) -> None:
        self.sessions = [(session.at, session.last_at) for session in sessions]
        self.session_s = [session.duration_s for session in sessions]
        self.total_s = sum(self.session_s)

    def session_of(self, at: str) -> int:
        """Return the index of the last session that began before or at the time `at`."""
        return max((i for i, (start, _) in enumerate(self.sessions) if start <= at), default=0)

    def is_running(self, at: str) -> bool:
        """Return whether a session was running at the time `at`."""
        return any(start <= at <= end for start, end in self.sessions)

    def seconds(self, at: str) -> float:
        """Return the running time in seconds from the beginning of the sweep to `at`, which is a time of the record."""
        session = self.session_of(at)
        before_s = sum(self.session_s[:session])
        return before_s + max(seconds_between(self.sessions[session][0], at), 0.0)


def _attempts_of(trial: Trial, clock: Clock) -> Iterator[Attempt]:
    """Yield the attempts of a trial in the order in which they started."""
    next_starts = [*(a.at for a in trial.attempts[1:]), None]
    for attempt, next_start in zip(trial.attempts, next_starts, strict=True):
        end = clock.sessions[clock.session_of(attempt.at)][1]
        if next_start is None:
            end = trial.ended or end
        elif next_start < end:
            # The scheduler paused the trial, or the trial was tried again. So the attempt counts until its last report.
            end = max((r.at for r in trial.results if attempt.at <= r.at <= next_start), default=next_start)
        state = trial.status if next_start is None else CONTINUED
        yield Attempt(trial, attempt.node or "not known", clock.seconds(attempt.at), clock.seconds(end), state)


@dataclass(frozen=True)
class InputPaths:
    """Contains the paths of the files from which a report is made."""

    path_to_record: Path
    path_to_best: Path
    path_to_confirmed: Path
    path_to_config: Path
    path_to_env_manifest: Path
    path_to_data_manifest: Path | None = None
    path_to_plan: Path | None = None


def read_result(sweep_name: str, path_to_record: Path, path_to_best: Path, path_to_confirmed: Path) -> SweepResult:
    """Return a sweep with its best trial and its confirmation. Only reports within the constraint of `best.yaml` count.

    Raises RaysweepError if the record or `best.yaml` belongs to another sweep than `sweep_name`, or if the record lacks the trial of `best.yaml`.
    """
    sweep, best = read_sweep(path_to_record), BestResult.read(path_to_best)
    for path, name in ((path_to_record, sweep.header.name), (path_to_best, best.sweep)):
        if name != sweep_name:
            raise RaysweepError(f"{path}: it belongs to the sweep {name!r}, not to {sweep_name!r}. Give the files of one sweep.")
    if best.trial_id not in sweep.trials:
        raise RaysweepError(
            f"{path_to_best}: trial {best.trial_id} is not in the record {path_to_record}. "
            "Write the outputs anew from the record: run Snakemake with -R run_sweep."
        )
    sweep.set_goal(best.constraint, best.objectives, best.choose)
    return SweepResult(sweep, best, Confirmation.read(path_to_confirmed))


def read_inputs(sweep_name: str, paths: InputPaths) -> Inputs:
    """Return all information for the report, read from the files of `paths`. Raises RaysweepError as `read_result` does."""
    result = read_result(sweep_name, paths.path_to_record, paths.path_to_best, paths.path_to_confirmed)
    data = paths.path_to_data_manifest
    return Inputs(
        sweep=result.sweep,
        best=result.best,
        confirmed=result.confirmed,
        config_text=paths.path_to_config.read_text(encoding="utf-8"),
        data=None if data is None else read_manifest(data.parent),
        data_dir=None if data is None else data.parent,
        env=read_yaml_as(EnvironmentManifest, paths.path_to_env_manifest),
        model_dir=paths.path_to_best.parent / "model",
        plan=_read_plan(paths.path_to_plan, result.header.num_trials),
        gpu_use=tuple(use for use in read_gpu_use(paths.path_to_record.parent) if result.clock.is_running(use.at)),
    )


def _read_plan(path: Path | None, num_trials: int) -> Plan | None:
    """Return the plan, or None if no plan of all trials exists.

    A plan of only some trials is not used, because the cost of some trials does not tell the cost of all trials.
    """
    if path is None or not path.exists() or not (values := read_yaml(path)):
        return None
    plan = from_json(Plan, values)
    return plan if plan.num_trials == plan.trials_left == num_trials else None
