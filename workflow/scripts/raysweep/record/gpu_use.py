"""Keeps how busy the GPUs of a sweep were, in a folder beside the record, for the report and for `make watch`.

The agent of each node writes a file of its own, because only the driver writes the record. A line of a file is a JSON object:

    {"at": "2026-11-30T21:04:05.123Z", "node": "n1", "percent": [97.5, 12.0]}

No trial depends on these files. So a file that cannot be written or read is left out.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from raysweep.record.file import now

FOLDER = "gpu-use"
TAIL_BYTES = 4096  # the last bytes of a file that contain the last line


@dataclass(frozen=True)
class GpuUse:
    """Describes how busy the GPUs of one node were in a minute, or in a shorter time at the beginning of a job."""

    at: str  # end of that time, as ISO 8601 in UTC
    node: str
    percent: tuple[float, ...]  # mean of each GPU


class GpuUseFile:
    """Is the file of one agent."""

    def __init__(self, state_dir: Path, job: str | None, node: str) -> None:
        """`state_dir` is the folder of the record. `job` is the id of the node's Slurm job, or None outside of Slurm."""
        self.path, self.node = state_dir / FOLDER / f"{job or 'no-job'}-{node}.jsonl", node

    def append(self, percent: Sequence[float]) -> None:
        """Append a line. Raises OSError where the line cannot be written."""
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(GpuUse(now(), self.node, tuple(round(each, 1) for each in percent)))) + "\n")


def read_gpu_use(state_dir: Path, only_last: bool = False) -> list[GpuUse]:
    """Return the contents of all files below the folder of a record, or only the last line of each file."""
    uses = []
    for path in sorted((state_dir / FOLDER).glob("*.jsonl")):
        for line in _last_line(path) if only_last else path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # the agent was killed while it wrote the line
                entry = json.loads(line)
                uses.append(GpuUse(entry["at"], entry["node"], tuple(map(float, entry["percent"]))))
    return uses


def _last_line(path: Path) -> list[bytes]:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return stream.read().splitlines()[-1:]
