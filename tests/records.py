"""Records of sweeps for unit tests, written event by event."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

from raysweep.record import file as record_file
from raysweep.record.file import Record
from raysweep.record.sweep import Sweep


def new_record(folder: Path, **header: Any) -> Record:
    """Return a record with a session."""
    record = Record(folder / "record.jsonl")
    record.write("session", sweep=header, host="h", pid=1, nodes=[])
    return record


def two_trials(folder: Path) -> Record:
    """Return a record of two trials: the first has come to epoch 3, where its checkpoint lies, the second to epoch 2."""
    record = new_record(folder)
    for index, epochs in enumerate((3, 2)):
        trial = f"{index:05d}"
        config = {"lr": 0.01 * (index + 1), "batch_size": 4, "net": {"width": 3, "rate": 0.5}, "noise": 1.0, "fixed": 3}
        record.write("trial", trial=trial, index=index, repeat=0, seed=index, config=config)
        record.write("start", trial=trial, node="n", from_epoch=0)
        for epoch in range(1, epochs + 1):
            score = epoch / 10 if index == 0 else 0.9 - epoch / 10
            record.write("result", trial=trial, epoch=epoch, metrics={"score": score}, time_s=float(epoch), node="n")
        path = folder / "tune" / trial / f"checkpoint_{epochs}"
        path.mkdir(parents=True)
        (path / "weights").write_text(trial)
        record.write("checkpoint", trial=trial, epoch=epochs, path=str(path.relative_to(folder)))
    return record


def begin_repeat(record: Record, index: int, repeat: int) -> str:
    """Record the start of one trial of configuration `index`, and return the id of the trial."""
    trial = f"{index:05d}-{repeat}"
    record.write("trial", trial=trial, index=index, repeat=repeat, seed=10 * index + repeat, config={"x": index})
    record.write("start", trial=trial, node="n", from_epoch=0)
    return trial


def report_scores(record: Record, trial: str, *scores: float) -> None:
    """Record one report for each score, in the epochs that follow the epochs of the trial."""
    done = record.sweep.trials[trial].epochs
    for epoch, score in enumerate(scores, start=done + 1):
        record.write("result", trial=trial, epoch=epoch, metrics={"score": score, "other": 1.0}, time_s=float(epoch), node="n")


def two_hours_of_two_gpus(folder: Path) -> None:
    """Write the record of a session that had two GPUs for two hours, and finished one trial."""
    start = datetime(2026, 3, 1, tzinfo=UTC)
    with patch.object(record_file, "now", start.isoformat), Record(folder / "record.jsonl") as record:
        record.write("session", sweep={"metric": "score"}, host="h", pid=1, nodes=[{"name": "n", "cpus": 8, "gpus": 2}])
        record.write("trial", trial="00000", index=0, repeat=0, seed=0, config={"x": 0.5})
        record.write("start", trial="00000", node="n", from_epoch=0)
        with patch.object(record_file, "now", (start + timedelta(hours=2)).isoformat):
            record.write("finish", trial="00000", status="TERMINATED", reason="returned", error=None)


class History:
    """A sweep whose events come at given times in hours, without a file."""

    def __init__(self) -> None:
        self.sweep = Sweep()

    def tell(self, at_hours: float, event: str, **values: Any) -> None:
        at = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(hours=at_hours)
        self.sweep.apply({"event": event, **values, "at": at.isoformat().replace("+00:00", "Z")})

    def begin(self, at_hours: float, job: str | None, *nodes: tuple[str, int, int]) -> None:
        sizes = [{"name": name, "cpus": cpus, "gpus": gpus} for name, cpus, gpus in nodes]
        self.tell(at_hours, "session", sweep={}, host="h", pid=1, nodes=sizes, **({} if job is None else {"slurm_job": job}))

    def node(self, at_hours: float, name: str, state: str, job: str | None = None, cpus: int = 0, gpus: int = 0) -> None:
        facts = {} if job is None else {"job": job, "cpus": cpus, "gpus": gpus}
        self.tell(at_hours, "node", node=name, state=state, **facts)

    def end(self, at_hours: float, outcome: str = "complete") -> None:
        self.tell(at_hours, "session_end", outcome=outcome)
