"""Stores how busy the GPUs of a sweep were in a folder beside the record. The report and `make watch` read this folder.

Each agent writes its own file, because only the driver may write to the record. A line of a file is a JSON object:

    {"at": "2026-11-30T21:04:05.123Z", "node": "n1", "seconds": 60.4, "percent": [97.5, 12.0]}

No trial depends on these files. So a file or a line that cannot be read is left out.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from raysweep.record.file import now

FOLDER = "gpu-use"
TAIL_BYTES = 4096  # the last bytes of a file that contain the last line
LATEST_S = 90.0  # age in seconds of a file, which gets a line once a minute, up to which the last line says how busy the GPUs are now


@dataclass(frozen=True)
class GpuUse:
    """Describes how busy the GPUs of one agent were, on average over `seconds` seconds. This time is about a minute, and shorter for the first lines."""

    agent: str  # the agent's Slurm job and node; two jobs can have GPUs of one node
    node: str
    at: str  # end of the time, as ISO 8601 in UTC
    seconds: float
    percent: tuple[float, ...]  # of each GPU


class GpuUseFile:
    """Appends the measurements of one agent to the file of this agent."""

    def __init__(self, state_dir: Path, job: str | None, node: str) -> None:
        """`state_dir` is the folder of the record. `job` is the id of the node's Slurm job, or None outside of Slurm."""
        self.path, self.node = state_dir / FOLDER / f"{job or 'no-job'}-{node}.jsonl", node

    def append(self, seconds: float, percent: Sequence[float]) -> None:
        """Append a line. Raises OSError where the line cannot be written."""
        self.path.parent.mkdir(exist_ok=True)
        line = json.dumps({"at": now(), "node": self.node, "seconds": round(seconds, 1), "percent": [round(each, 1) for each in percent]})
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(f"\n{line}\n")  # a killed agent leaves an incomplete last line, to which nothing must be appended


def read_gpu_use(state_dir: Path) -> list[GpuUse]:
    """Return the measurements beside the record in `state_dir`, file by file."""
    return [use for path in _files(state_dir) for use in _lines_of(path)]


def latest_gpu_use(state_dir: Path) -> list[GpuUse]:
    """Return the last line of each file that was written in the last LATEST_S seconds."""
    uses = []
    for path in _files(state_dir):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime < LATEST_S:
                uses += _lines_of(path, TAIL_BYTES)[-1:]
    return uses


def _files(state_dir: Path) -> list[Path]:
    return sorted((state_dir / FOLDER).glob("*.jsonl"))


def _lines_of(path: Path, last_bytes: int | None = None) -> list[GpuUse]:
    """Return the lines of a file, or only the lines that lie completely in the last `last_bytes` bytes of the file."""
    uses = []
    with contextlib.suppress(OSError), path.open("rb") as stream:
        if last_bytes is not None:
            stream.seek(max(0, path.stat().st_size - last_bytes))
        for line in stream:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                seconds, percent = float(entry["seconds"]), tuple(map(float, entry["percent"]))
                if datetime.fromisoformat(entry["at"]).tzinfo and percent and all(map(math.isfinite, (seconds, *percent))):
                    uses.append(GpuUse(path.stem, str(entry["node"]), entry["at"], seconds, percent))
    return uses
