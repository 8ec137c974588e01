"""The record of a sweep: an append-only file of events that alone decides what is finished.

One JSON object a line. Its last key is a CRC-32 of all text before the key, so that the file stays readable with `jq`, and a line that was
altered, removed or moved is noticed:

    {"event": "result", "trial": "00003", "epoch": 1, "metrics": {"accuracy": 0.41}, "time_s": 12.3, "node": "n1", "at": "…", "crc": "8a1b2c3d"}

Only the driver writes the file. A kill can tear the last line, and a power loss can leave zeros behind the last line that was flushed to the disk.
Opening the record cuts both off. Any other bad line means that somebody changed the file, and is refused: no finished trial is ever dropped silently.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raysweep.common.errors import RaysweepError
from raysweep.common.files import written_aside
from raysweep.record.events import DURABLE
from raysweep.record.trials import Sweep

DURABLE_LINES = tuple(f'{{"event": "{event}"'.encode() for event in sorted(DURABLE))


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def encode(event: dict[str, Any], before: int = 0) -> tuple[str, int]:
    """Return the line of an event and the CRC of the line. The CRC goes on from `before`, the CRC of the preceding line."""
    body = json.dumps(event, ensure_ascii=False, allow_nan=True)[:-1]
    crc = zlib.crc32(body.encode(), before)
    return f'{body}, "crc": "{crc:08x}"}}\n', crc


def decode(line: str, before: int = 0) -> tuple[dict[str, Any], int] | None:
    """Return the event of a line and the CRC of the line; None where the line is torn or altered, or does not follow the line whose CRC is `before`."""
    body, _, tail = line.rpartition(', "crc": "')
    crc = zlib.crc32(body.encode(), before)
    if not body or tail != f'{crc:08x}"}}\n':
        return None
    event = json.loads(line)
    del event["crc"]
    return event, crc


def read_events(path: Path) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Yield each event, the CRC of its line, and the offset of the next line in bytes. A torn line, or a line that is just being written, is left out.

    Raises RaysweepError for a line that was altered, and for a line whose predecessor is missing.
    """
    if not path.exists():
        return
    offset, crc = 0, 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                return
            decoded = decode(line.decode("utf-8", errors="replace"), crc)
            if decoded is None:
                # A power loss leaves zeros where data had not reached the disk. No durable event can follow the zeros.
                if b"\0" in line and not any(later.startswith(DURABLE_LINES) for later in stream):
                    return
                raise RaysweepError(
                    f"{path}: line {number} was altered, or one before it was removed (its checksum does not fit). "
                    "Restore the file from a backup, or move it away to start the sweep anew."
                )
            event, crc = decoded
            offset += len(line)
            yield event, crc, offset


def read_sweep(path: Path) -> Sweep:
    """Return the sweep of the record at `path`; an empty sweep where there is no record. Reading changes nothing, so it may run beside the driver."""
    sweep = Sweep()
    for event, _, _ in read_events(path):
        sweep.apply(event)
    return sweep


class Record:
    """The driver's handle on the record: opening folds and repairs the file, `write` appends an event."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.sweep = Sweep()
        end, self._crc = 0, 0
        for event, crc, offset in read_events(path):
            self.sweep.apply(event)
            end, self._crc = offset, crc
        if path.exists():
            # Without a torn last line, and as another file: a driver on a node that was cut off still writes to the old file, not between our lines.
            with path.open("rb") as stream, written_aside(path, "wb") as aside:
                aside.write(stream.read(end))
        self._file = path.open("ab")

    def write(self, event: str, **values: Any) -> None:
        """Append an event, and fold the event into `sweep`. Raises OSError when the disk is full."""
        entry = {"event": event, **values, "at": now()}
        line, self._crc = encode(entry, self._crc)
        self._file.write(line.encode())
        self._file.flush()
        if event in DURABLE:
            os.fsync(self._file.fileno())
        # Through JSON, so that the sweep is the same whether the event was written just now or is read again later.
        self.sweep.apply(json.loads(json.dumps(entry)))

    def close(self) -> None:
        self._file.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return only the path: Tune pickles whatever it is given into snapshots, and nobody reads the snapshots."""
        return {"path": self.path}

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
