"""Records of sweeps for unit tests, written event by event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raysweep.record.file import Record


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
