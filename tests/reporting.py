"""Made-up sweeps as the report reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from raysweep.record.file import Record, read_sweep
from raysweep.record.sweep import Sweep
from raysweep.report.inputs import InputPaths, Inputs, read_inputs
from raysweep.report.notes import notes
from raysweep.report.ranking import Note
from recorded import header, write_outputs, write_record


def read_written(path_to_record: Path, files: dict[str, Any]) -> Inputs:
    """Return the inputs from a record and the files that `write_outputs` returned."""
    paths = {key: path for key, path in files.items() if key != "sweep_name"}
    return read_inputs(files["sweep_name"], InputPaths(path_to_record=path_to_record, **paths))


def inputs_of(path_to_record: Path, sweep: Sweep, **outputs: Any) -> Inputs:
    """Return the inputs of a sweep whose record lies at `path_to_record`, with made-up outputs beside it."""
    return read_written(path_to_record, write_outputs(path_to_record.parent, sweep, **outputs))


def made_up(folder: Path, outputs: dict[str, Any] | None = None, **sweep: Any) -> Inputs:
    """Return the inputs of a made-up sweep; arguments as in `write_record` and `write_outputs`."""
    path = folder / "record.jsonl"
    return inputs_of(path, write_record(path, **sweep), **(outputs or {}))


def note(inputs: Inputs, start: str) -> Note:
    """The one note whose title starts so."""
    found = [n for n in notes(inputs) if n.title.startswith(start)]
    assert len(found) == 1, [n.title for n in notes(inputs)]
    return found[0]


def titles(inputs: Inputs) -> list[str]:
    return [n.title for n in notes(inputs)]


def with_values(folder: Path, values: list[float], mode: str = "max", deviation: float | None = 0.01) -> Inputs:
    """Return a sweep of one epoch whose trials reported `values`, confirmed with that standard deviation."""
    path = folder / "record.jsonl"
    with Record(path) as record:
        record.write(
            "session", sweep=header(mode=mode, num_trials=len(values)), host="login-1", pid=1, nodes=[{"name": "n", "cpus": 1, "gpus": 0}]
        )
        for i, value in enumerate(values):
            trial = f"{i:05d}"
            record.write("trial", trial=trial, index=i, repeat=0, seed=i, config={"lr": 0.003 + i / 1e4, "batch_size": 8})
            record.write("start", trial=trial, node="n", from_epoch=0)
            record.write("result", trial=trial, epoch=1, metrics={"accuracy": value}, time_s=1.0, node="n")
            record.write("finish", trial=trial, status="TERMINATED", error=None)
        record.write("session_end", outcome="complete")
    inputs = inputs_of(path, read_sweep(path))
    return replace(inputs, confirmed=replace(inputs.confirmed, standard_deviation=deviation))
