"""The record of a sweep: an append-only file of events that alone decides what is finished.

One JSON object a line, whose last key is a CRC-32 of all text before it, so that the file stays readable with `jq`, and a line that was
altered, removed or moved is noticed:

    {"event": "result", "trial": "00003", "epoch": 1, "metrics": {"accuracy": 0.41}, "time_s": 12.3, "node": "n1", "at": "…", "crc": "8a1b2c3d"}

Only the driver writes it. A kill can tear the last line, and a power loss leave zeros behind the last line that was flushed to the disk;
that is cut off on opening. Any other bad line means that somebody changed the file, and is refused: no finished trial is ever dropped
silently.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from raysweep.common.bounds import Bounds, all_hold
from raysweep.common.errors import RaysweepError
from raysweep.common.files import written_aside
from raysweep.config.model import Mode

# Events after which the file is on the disk, not only in the system's memory: losing them would lose or repeat a trial.
DURABLE = frozenset({"session", "trial", "take_over", "start", "checkpoint", "failure", "finish", "session_end"})

DURABLE_LINES = tuple(f'{{"event": "{event}"'.encode() for event in sorted(DURABLE))

Status = Literal["PENDING", "RUNNING", "TERMINATED", "STOPPED", "ERROR"]


def now() -> str:
    """The time as ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def encode(event: dict[str, Any], before: int = 0) -> tuple[str, int]:
    """The line of an event, and its CRC, which goes on from that of the line `before` it."""
    body = json.dumps(event, ensure_ascii=False, allow_nan=True)[:-1]
    crc = zlib.crc32(body.encode(), before)
    return f'{body}, "crc": "{crc:08x}"}}\n', crc


def decode(line: str, before: int = 0) -> tuple[dict[str, Any], int] | None:
    """The event on a line and its CRC, or None where it is torn or altered, or does not follow the line whose CRC is `before`."""
    body, _, tail = line.rpartition(', "crc": "')
    crc = zlib.crc32(body.encode(), before)
    if not body or tail != f'{crc:08x}"}}\n':
        return None
    event = json.loads(line)
    del event["crc"]
    return event, crc


@dataclass
class Result:
    """What a trial reported at the end of one epoch."""

    epoch: int
    metrics: dict[str, float]
    time_s: float  # training time of the trial up to this report, over all its attempts
    at: str
    is_inherited: bool = False  # from a trial whose weights this one took over: its own it is not


class Judged:
    """What trials are compared as: a trial, or, where a configuration is trained with several seeds, all that have it (Group)."""

    trial_id: str
    index: int  # number of the configuration
    config: dict[str, Any]
    status: Status
    results: list[Result]
    constraint: Bounds  # what a report must fulfil to be the best

    @property
    def finished(self) -> bool:
        return self.status in ("TERMINATED", "STOPPED", "ERROR")

    @property
    def epochs(self) -> int:
        return self.results[-1].epoch if self.results else 0

    @property
    def members(self) -> list[Trial]:
        raise NotImplementedError

    def has_reported(self, metric: str) -> bool:
        """Whether there is a value to compare, be it one that may win or not."""
        return any(math.isfinite(result.metrics.get(metric, math.nan)) for result in self.results)

    def best(self, metric: str, mode: Mode, constraint: Bounds | None = None) -> Result | None:
        """The report with the best value of `metric`, of those that fulfil the constraint (its own, unless another is given); of equal ones the earliest."""
        constraint = self.constraint if constraint is None else constraint
        finite = [
            r
            for r in self.results
            if math.isfinite(r.metrics.get(metric, math.nan)) and all_hold(r.metrics, constraint) and not r.is_inherited
        ]
        if not finite:
            return None
        sign = 1 if mode == "max" else -1
        return max(finite, key=lambda r: (sign * r.metrics[metric], -r.epoch))

    def counted(self, metric: str, mode: Mode, constraint: Bounds | None = None) -> Result | None:
        """The best report, if the trial may win: one that ended in an error may not."""
        return None if self.status == "ERROR" else self.best(metric, mode, constraint)

    def rank(self, metric: str, mode: Mode, constraint: Bounds | None = None) -> tuple[float, str]:
        """A key that sorts the best trial first, of equal ones the lowest trial_id, and those that cannot win last."""
        result = self.counted(metric, mode, constraint)
        return math.inf if result is None else result.metrics[metric] * (-1 if mode == "max" else 1), self.trial_id


@dataclass
class Trial(Judged):
    """One trial as the record knows it."""

    trial_id: str
    index: int
    repeat: int
    seed: int
    config: dict[str, Any]
    status: Status = "PENDING"
    results: list[Result] = field(default_factory=list)
    checkpoints: dict[int, str] = field(default_factory=dict)  # epoch → path, relative to the state folder
    attempts: list[dict[str, Any]] = field(default_factory=list)  # {node, at, from_epoch}
    failures: list[dict[str, Any]] = field(default_factory=list)  # {error, counted, at}: not counted where the trial was not to blame
    ended: str | None = None
    error: str | None = None
    constraint: Bounds = field(default_factory=dict)
    # With population based training the configurations by which its weights came about: {from_epoch, config}; empty where it is the one that it has.
    schedule: list[dict[str, Any]] = field(default_factory=list)

    @property
    def members(self) -> list[Trial]:
        return [self]

    def take_over(self, donor: Trial, epoch: int, config: dict[str, Any], path: str) -> None:
        """Go on as another trial was after `epoch`, whose checkpoint lies at `path`, with another configuration."""
        before = donor.schedule or [{"from_epoch": 0, "config": donor.config}]
        self.schedule = [one for one in before if one["from_epoch"] < epoch] + [{"from_epoch": epoch, "config": config}]
        self.config = config
        self.results = [replace(result, is_inherited=True) for result in donor.results if result.epoch <= epoch]
        self.checkpoints = {epoch: path}

    def latest_checkpoint(self, state_dir: Path) -> int:
        """The last epoch of which it has both a result and a checkpoint that is still there; 0 without any."""
        reported = {result.epoch for result in self.results}
        return max((e for e, path in self.checkpoints.items() if e in reported and (state_dir / path).is_dir()), default=0)

    def config_at(self, epoch: int) -> dict[str, Any]:
        """The configuration with which it goes on after `epoch`."""
        return next((one["config"] for one in reversed(self.schedule) if one["from_epoch"] <= epoch), self.config)

    def go_back_to(self, epoch: int) -> None:
        """Forget what came after `epoch`, from whose checkpoint it goes on."""
        self.config = self.config_at(epoch)
        held = [one for one in self.schedule if one["from_epoch"] <= epoch]
        self.schedule = held if len(held) > 1 else []
        self.results = [r for r in self.results if r.epoch <= epoch]
        self.checkpoints = {e: path for e, path in self.checkpoints.items() if e <= epoch}

    @property
    def num_failures(self) -> int:
        """How often it failed by its own fault."""
        return sum(failure["counted"] for failure in self.failures)

    @property
    def started(self) -> str | None:
        return self.attempts[0]["at"] if self.attempts else None

    @property
    def node(self) -> str | None:
        return self.attempts[-1]["node"] if self.attempts else None

    @property
    def time_s(self) -> float:
        return self.results[-1].time_s if self.results else 0.0


@dataclass
class Group(Judged):
    """The trials of one configuration, which differ in their seeds, seen as one: at each epoch that all have reported, by their mean.

    It is an error if one of them is: a configuration that fails with some seeds is none to recommend.
    """

    index: int
    repeats: int  # how many there are to be
    constraint: Bounds = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    _seen: tuple[tuple[int, ...], list[Result]] = ((), [])

    @property
    def trial_id(self) -> str:  # type: ignore[override]
        return f"{self.index:05d}"

    @property
    def config(self) -> dict[str, Any]:  # type: ignore[override]
        return self.trials[0].config

    @property
    def members(self) -> list[Trial]:
        return self.trials

    @property
    def status(self) -> Status:  # type: ignore[override]
        statuses = {trial.status for trial in self.trials}
        if len(self.trials) < self.repeats or statuses & {"PENDING", "RUNNING"}:
            return "RUNNING" if "RUNNING" in statuses else "PENDING"
        return "ERROR" if "ERROR" in statuses else "STOPPED" if "STOPPED" in statuses else "TERMINATED"

    @property
    def results(self) -> list[Result]:  # type: ignore[override]
        now = tuple(trial.epochs for trial in self.trials) if len(self.trials) == self.repeats else ()
        if now != self._seen[0]:
            by_epoch = [{result.epoch: result for result in trial.results} for trial in self.trials]
            common = sorted(set.intersection(*(set(results) for results in by_epoch)))
            self._seen = now, [_mean([results[epoch] for results in by_epoch]) for epoch in common]
        return self._seen[1]


def _mean(results: list[Result]) -> Result:
    """The mean of what trials reported at one epoch; it was there when the last of them had."""
    keys = set.intersection(*(set(result.metrics) for result in results))
    metrics = {key: sum(result.metrics[key] for result in results) / len(results) for key in sorted(keys)}
    return Result(results[0].epoch, metrics, max(result.time_s for result in results), max(result.at for result in results))


@dataclass
class Sweep:
    """A sweep as folded from its record."""

    sessions: list[dict[str, Any]] = field(default_factory=list)  # one per run of the driver, with "ended" and "outcome" once it ended
    trials: dict[str, Trial] = field(default_factory=dict)  # in the order of their ids' first appearance
    groups: dict[int, Group] = field(default_factory=dict)  # the same by their configuration
    constraint: Bounds = field(default_factory=dict)  # what a report must fulfil to be a trial's best
    nodes: list[dict[str, Any]] = field(default_factory=list)  # {node, state: "lost" | "joined", at}, while a session ran
    fused: dict[str, Any] | None = None  # how trials are trained together, or {why_not}; None where nobody asked
    # What a trial takes of a GPU since the first one was measured, or one did not find room beside its neighbours.
    gpu_share: float | None = None
    gpu_memory_mb: tuple[int, int] | None = None  # what the first trial took of its GPU, of how much
    is_crowded: bool = False  # whether a trial did not find room

    @property
    def header(self) -> dict[str, Any]:
        """What the latest session said of the sweep: name, identity, metric, mode, num_trials, search_space, max_epochs, …"""
        return self.sessions[-1]["sweep"] if self.sessions else {}

    def judge_by(self, constraint: Bounds) -> None:
        """Have only reports that fulfil it be the best of a trial, from now on."""
        self.constraint = constraint
        for judged in (*self.trials.values(), *self.groups.values()):
            judged.constraint = constraint

    @property
    def repeats(self) -> int:
        """How many trials have one configuration."""
        return self.header.get("repeats", 1)

    @property
    def judged(self) -> list[Judged]:
        """What is compared: the trials, or their groups."""
        return list(self.trials.values() if self.repeats == 1 else self.groups.values())

    def judged_as(self, trial: Trial) -> Judged:
        """What a trial is compared as: itself, or its group."""
        return trial if self.repeats == 1 else self.groups[trial.index]

    def best_trial(self, metric: str, mode: Mode) -> tuple[Judged, Result] | None:
        """The best value that a trial (or a group of them) without error reported; of equal ones the lowest trial_id."""
        trial = min(self.judged, key=lambda trial: trial.rank(metric, mode), default=None)
        result = trial.counted(metric, mode) if trial else None
        return (trial, result) if trial and result else None

    @property
    def used_s(self) -> float:
        """Time used in seconds: of each session from its start to the last that was heard of it. Time between sessions does not count."""
        times = ((datetime.fromisoformat(s["at"]), datetime.fromisoformat(s["last_at"])) for s in self.sessions)
        return sum((last - first).total_seconds() for first, last in times)

    def is_complete(self, total: int, time_budget_s: float | None) -> bool:
        """Whether nothing is left to run: no trial is unfinished, and there are `total`, or the time is used up."""
        enough = len(self.trials) >= total or (time_budget_s is not None and self.used_s >= time_budget_s)
        return bool(self.trials) and enough and all(trial.finished for trial in self.trials.values())

    def apply(self, event: dict[str, Any]) -> None:
        """Fold one event in."""
        kind = event["event"]
        if kind == "session":
            self.sessions.append({k: v for k, v in event.items() if k != "event"} | {"last_at": event["at"]})
            self.judge_by(self.header.get("constraint", {}))
            for trial in self.trials.values():  # what ran when the last session broke off has to run again
                if trial.status == "RUNNING":
                    trial.status = "PENDING"
            return
        self.sessions[-1]["last_at"] = event["at"]
        if kind == "session_end":
            self.sessions[-1] |= {"ended": event["at"], "outcome": event["outcome"]}
            return
        if kind == "trial":
            trial = Trial(event["trial"], event["index"], event["repeat"], event["seed"], event["config"], constraint=self.constraint)
            self.trials[trial.trial_id] = trial
            self.groups.setdefault(trial.index, Group(trial.index, self.repeats, self.constraint)).trials.append(trial)
            return
        if kind == "node":
            self.nodes.append({key: event[key] for key in ("node", "state", "at")})
            return
        if kind == "fused":
            self.fused = {key: value for key, value in event.items() if key not in ("event", "at")}
            return
        if kind == "gpu_share":
            self.gpu_share = event["gpu"]
            if "used_mb" in event:
                self.gpu_memory_mb = event["used_mb"], event["total_mb"]
            else:
                self.is_crowded = True
            return
        trial = self.trials[event["trial"]]
        if kind == "start":
            trial.status, trial.ended, trial.error = "RUNNING", None, None
            trial.attempts.append({"node": event["node"], "at": event["at"], "from_epoch": event["from_epoch"]})
            # A new attempt repeats the epochs after its checkpoint: what the broken attempt said of them no longer counts.
            trial.go_back_to(event["from_epoch"])
        elif kind == "result":
            trial.results.append(Result(event["epoch"], event["metrics"], event["time_s"], event["at"]))
            trial.attempts[-1]["node"] = event["node"]
        elif kind == "take_over":
            trial.take_over(self.trials[event["donor"]], event["epoch"], event["config"], event["path"])
        elif kind == "pause":  # by a scheduler that waits for other trials, or by us, since time is nearly up
            trial.status = "PENDING"
        elif kind == "failure":  # it will be tried again
            trial.status = "PENDING"
            trial.failures.append({key: event[key] for key in ("error", "counted", "at")})
        elif kind == "checkpoint":
            trial.checkpoints[event["epoch"]] = event["path"]
        elif kind == "finish":
            trial.status, trial.ended, trial.error = event["status"], event["at"], event["error"]
        else:
            raise RaysweepError(f"the record holds an event {kind!r} that this version does not know: use the version that wrote it")


def read_events(path: Path) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Yield each event with the CRC of its line and the offset behind it, in bytes. What was torn, or is just being written, is left out.

    Raises RaysweepError for a line that was altered, and for one before which another is missing.
    """
    if not path.exists():
        return
    offset, crc = 0, 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                return
            found = decode(line.decode("utf-8", errors="replace"), crc)
            if found is None:
                # A power loss leaves zeros where data had not reached the disk. No durable event can follow those.
                if b"\0" in line and not any(later.startswith(DURABLE_LINES) for later in stream):
                    return
                raise RaysweepError(
                    f"{path}: line {number} was altered, or one before it was removed (its checksum does not fit). "
                    "Restore the file from a backup, or move it away to start the sweep anew."
                )
            event, crc = found
            offset += len(line)
            yield event, crc, offset


def read_sweep(path: Path) -> Sweep:
    """The sweep that the record at `path` tells of; an empty one where there is none. Changes nothing, so it may run beside the driver."""
    sweep = Sweep()
    for event, _, _ in read_events(path):
        sweep.apply(event)
    return sweep


class Record:
    """The driver's handle on the record: opening folds and repairs it, `write` appends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.sweep = Sweep()
        end, self._crc = 0, 0
        for event, crc, offset in read_events(path):
            self.sweep.apply(event)
            end, self._crc = offset, crc
        if path.exists():
            # Without a torn last line, and as another file: what a driver on a node that was cut off still writes does not get between our lines.
            with path.open("rb") as stream, written_aside(path, "wb") as aside:
                aside.write(stream.read(end))
        self._file = path.open("ab")

    def write(self, event: str, **values: Any) -> None:
        """Append an event, and fold it into `sweep`. Raises OSError when the disk is full."""
        entry = {"event": event, **values, "at": now()}
        line, self._crc = encode(entry, self._crc)
        self._file.write(line.encode())
        self._file.flush()
        if event in DURABLE:
            os.fsync(self._file.fileno())
        # Through JSON, so that the sweep is the same whether it was written just now or read again later.
        self.sweep.apply(json.loads(json.dumps(entry)))

    def close(self) -> None:
        self._file.close()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles whatever it is given into snapshots that nobody reads: of the record they hold only where it is."""
        return {"path": self.path}

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
