"""What the report is made from: a sweep's record and the files beside it, in the shape that text, table and figures share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

from raysweep.common.errors import RaysweepError
from raysweep.common.files import read_yaml
from raysweep.config.model import Mode
from raysweep.data.manifest import DataManifest, read_manifest
from raysweep.record.events import Session, SessionHeader
from raysweep.record.file import read_sweep
from raysweep.record.results import BestResult, Confirmation
from raysweep.record.trials import Candidate, Sweep, Trial
from raysweep.report.documents import EnvironmentManifest, Plan
from raysweep.report.keys import Key, keys_of

CONTINUED = "continued later"  # an attempt that was cut off, paused by the scheduler, or failed and was tried again


@dataclass(frozen=True)
class Attempt:
    """A stretch of time in which a trial ran on a node, in seconds of the sweep's running time."""

    trial: Trial
    node: str
    start_s: float
    end_s: float
    state: str  # the trial's status, or CONTINUED


@dataclass(frozen=True)
class SweepResult:
    """A sweep with its best trial and the confirmation. Nothing changes after it was read, so figures are computed once."""

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
    def mode(self) -> Mode:
        return self.header.mode

    @property
    def sign(self) -> int:
        """A value times this sign is larger when the value is better."""
        return 1 if self.mode == "max" else -1

    @property
    def trials(self) -> list[Trial]:
        return list(self.sweep.trials.values())

    @property
    def winner(self) -> Trial:
        return self.sweep.trials[self.best.trial_id]

    def value(self, trial: Trial) -> float | None:
        """Return the trial's best value of the metric, None where the trial reported no value."""
        result = trial.best(self.metric, self.mode)
        return None if result is None else result.metrics[self.metric]

    @cached_property
    def ranked(self) -> list[tuple[Trial, float]]:
        """Trials without an error that reported a value, best first; of equal trials the lowest id first."""
        ordered = sorted(self.trials, key=lambda trial: trial.rank(self.metric, self.mode))
        return [(trial, result.metrics[self.metric]) for trial in ordered if (result := trial.counted(self.metric, self.mode))]

    @cached_property
    def compared(self) -> list[tuple[Candidate, float]]:
        """The candidates for the winner, best first: the trials of `ranked`, or, with several seeds of each, configurations by their mean."""
        ordered = sorted(self.sweep.candidates, key=lambda candidate: candidate.rank(self.metric, self.mode))
        return [(candidate, result.metrics[self.metric]) for candidate in ordered if (result := candidate.counted(self.metric, self.mode))]

    @cached_property
    def keys(self) -> list[Key]:
        """The keys of the search space, then the other keys of the configurations."""
        return keys_of(self.header.search_space, [trial.config for trial in self.trials])

    @property
    def varying_keys(self) -> list[Key]:
        """The keys that have more than one value."""
        return [key for key in self.keys if key.varies]

    @cached_property
    def clock(self) -> Clock:
        return Clock(self.sessions)

    @cached_property
    def attempts(self) -> list[Attempt]:
        """Every attempt of every trial, by start."""
        attempts = (attempt for trial in self.trials for attempt in _attempts_of(trial, self.clock))
        return sorted(attempts, key=lambda a: (a.start_s, a.trial.trial_id))

    def unfinished(self) -> int:
        """Return how many of the planned trials have no final result yet."""
        return max(self.header.num_trials, len(self.trials)) - sum(t.finished for t in self.trials)


@dataclass(frozen=True)
class Inputs(SweepResult):
    """All that the report of one sweep shows."""

    config_text: str
    data: DataManifest | None  # None: the trainable brings its own data
    data_dir: Path | None
    env: EnvironmentManifest
    model_dir: Path
    plan: Plan | None  # the plan that `snakemake plan` made of all trials, before the sweep


def seconds_between(start: str, end: str) -> float:
    """Return the seconds between two times in ISO 8601."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)) / timedelta(seconds=1)


class Clock:
    """Turns times into seconds of running time, which leaves out the gaps between a sweep's sessions."""

    def __init__(self, sessions: list[Session]) -> None:
        self.sessions = [(session.at, session.last_at) for session in sessions]
        self.session_s = [seconds_between(start, end) for start, end in self.sessions]
        self.total_s = sum(self.session_s)

    def session_of(self, at: str) -> int:
        """Return the number of the session in which a time lies."""
        return max((i for i, (start, _) in enumerate(self.sessions) if start <= at), default=0)

    def seconds(self, at: str) -> float:
        """Return the running time until a time of the record."""
        session = self.session_of(at)
        before_s = sum(self.session_s[:session])
        return before_s + max(seconds_between(self.sessions[session][0], at), 0.0)


def _attempts_of(trial: Trial, clock: Clock) -> Iterator[Attempt]:
    """Yield the attempts of a trial, in their order."""
    next_starts = [*(a.at for a in trial.attempts[1:]), None]
    for attempt, next_start in zip(trial.attempts, next_starts, strict=True):
        end = clock.sessions[clock.session_of(attempt.at)][1]
        if next_start is None:
            end = trial.ended or end
        elif next_start < end:  # paused by the scheduler, or tried again: the attempt ran until its last report
            end = max((r.at for r in trial.results if attempt.at <= r.at <= next_start), default=next_start)
        state = trial.status if next_start is None else CONTINUED
        yield Attempt(trial, attempt.node or "not known", clock.seconds(attempt.at), clock.seconds(end), state)


@dataclass(frozen=True)
class InputPaths:
    """The files that a report is made from."""

    path_to_record: Path
    path_to_best: Path
    path_to_confirmed: Path
    path_to_config: Path
    path_to_env_manifest: Path
    path_to_data_manifest: Path | None = None
    path_to_plan: Path | None = None


def read_inputs(sweep_name: str, paths: InputPaths) -> Inputs:
    """Read the files. Raises RaysweepError where the record or `best.yaml` does not belong to the sweep `sweep_name`."""
    sweep, best = read_sweep(paths.path_to_record), BestResult.read(paths.path_to_best)
    for path, name in ((paths.path_to_record, sweep.header.name), (paths.path_to_best, best.sweep)):
        if name != sweep_name:
            raise RaysweepError(f"{path}: it belongs to the sweep {name!r}, not to {sweep_name!r}. Give the files of one sweep.")
    if best.trial_id not in sweep.trials:
        raise RaysweepError(
            f"{paths.path_to_best}: trial {best.trial_id} is not in the record {paths.path_to_record}. "
            "Write the outputs anew from the record: run Snakemake with -R run_sweep."
        )
    sweep.set_constraint(best.constraint)
    data = paths.path_to_data_manifest
    return Inputs(
        sweep=sweep,
        best=best,
        confirmed=Confirmation.read(paths.path_to_confirmed),
        config_text=paths.path_to_config.read_text(encoding="utf-8"),
        data=None if data is None else read_manifest(data.parent),
        data_dir=None if data is None else data.parent,
        env=EnvironmentManifest.read(read_yaml(paths.path_to_env_manifest)),
        model_dir=paths.path_to_best.parent / "model",
        plan=_read_plan(paths.path_to_plan, sweep.header.num_trials),
    )


def _read_plan(path: Path | None, num_trials: int) -> Plan | None:
    """Return the plan, None where there is no plan of all trials: a plan of some of them does not tell what all of them cost."""
    if path is None or not path.exists() or not (values := read_yaml(path)):
        return None
    plan = Plan.read(values)
    return plan if plan.num_trials == plan.trials_left == num_trials else None
