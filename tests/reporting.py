"""Made-up sweeps as the report reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raysweep.record.trials import Sweep
from raysweep.report.inputs import InputPaths, Inputs, read_inputs
from recorded import write_outputs, write_record


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
