"""Reads and writes the record of a sweep, which is an append-only file of events. This file alone decides which trials are finished.

Each line is one JSON object, so that `jq` can read the file. The last key of a line is a CRC-32 of the text before the key, continued from the CRC-32
of the preceding line. The CRC-32 shows whether a line was altered, removed or moved. An example of a line:

    {"event": "result", "trial": "00003", "epoch": 1, "metrics": {"accuracy": 0.41}, "time_s": 12.3, "node": "n1", "verdict": "CONTINUE", "at": "…",
     "crc": "8a1b2c3d"}

A line break is shown only here. `verdict` is the scheduler's answer to the report, or null where the scheduler was not asked.

Only the driver writes the file. A kill of the driver can leave an incomplete last line, and a power loss can leave zero bytes after the last line that
was flushed to the disk. The driver removes an incomplete line and zero bytes when the driver opens the record. Any other bad line means that somebody
changed the file. The reader then raises an error, because otherwise a finished trial could disappear without a message.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from raysweep.common.errors import RaysweepError
from raysweep.common.files import disk_errors_name, written_aside
from raysweep.record.events import DURABLE, SessionHeader
from raysweep.record.sweep import Sweep

DURABLE_LINES = tuple(f'{{"event": "{event}"'.encode() for event in sorted(DURABLE))


class Place(NamedTuple):
    """Describes how far a record has been read."""

    offset: int = 0  # number of bytes before the next line
    crc: int = 0  # CRC-32 of the last line
    num_lines: int = 0


def now() -> str:
    """Return the present time as ISO 8601 in UTC, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def encode(event: dict[str, Any], before: int = 0) -> tuple[str, int]:
    """Return the line of an event and the CRC of the line. The CRC continues the CRC of the preceding line, which is `before`."""
    body = json.dumps(event, ensure_ascii=False, allow_nan=True)[:-1]
    crc = zlib.crc32(body.encode(), before)
    return f'{body}, "crc": "{crc:08x}"}}\n', crc


def decode(line: str, before: int = 0) -> tuple[dict[str, Any], int] | None:
    """Return the event of a line and the CRC of the line.

    Returns None where the line is incomplete or altered, or where the line does not follow the line whose CRC is `before`.
    """
    body, _, tail = line.rpartition(', "crc": "')
    crc = zlib.crc32(body.encode(), before)
    if not body or tail != f'{crc:08x}"}}\n':
        return None
    event = json.loads(line)
    del event["crc"]
    return event, crc


def read_events(path: Path, start: Place = Place()) -> Iterator[tuple[dict[str, Any], Place]]:  # noqa: B008
    """Yield each event after `start`, and the place after the event's line.

    An incomplete last line is not yielded, whether the driver was killed or is writing the line now.
    Raises RaysweepError for a line that was altered, and for a line whose preceding line is missing.
    """
    if not path.exists():
        return
    offset, crc, num_lines = start
    with path.open("rb") as stream:
        stream.seek(offset)
        for number, line in enumerate(stream, start=num_lines + 1):
            if not line.endswith(b"\n"):
                return
            decoded = decode(line.decode("utf-8", errors="replace"), crc)
            if decoded is None:
                # A power loss leaves zero bytes in the place of data that was not on the disk yet. The driver flushes durable events to the disk.
                # Zero bytes before a durable event therefore have another cause than a power loss.
                if b"\0" in line and not any(later.startswith(DURABLE_LINES) for later in stream):
                    return
                raise RaysweepError(
                    f"{path}: line {number} was altered, or one before it was removed (its checksum does not fit). "
                    "Restore the file from a backup, or move it away to start the sweep anew."
                )
            event, crc = decoded
            offset += len(line)
            yield event, Place(offset, crc, number)


class RecordReader:
    """Reads a record repeatedly. After the first call, `read` reads only the lines that were added.

    Reading does not change the record, so other processes may read the record while the driver writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = Place()
        self._sweep = Sweep()
        self._inode: int | None = None

    def read(self) -> Sweep:
        """Return the sweep of all lines that are complete now, or an empty sweep where the file does not exist.

        All calls return, and change, the same object, as long as the file is the same. Raises RaysweepError where a line was altered or is missing.
        Each session of the driver replaces the file by a copy, and a sweep that starts anew begins another file. So a new file, and a
        file that has become shorter, are read from their beginning.
        """
        status = self.path.stat() if self.path.exists() else None
        inode = status and status.st_ino
        if inode != self._inode or (status and status.st_size < self.place.offset):
            self._sweep, self.place, self._inode = Sweep(), Place(), inode
        for event, place in read_events(self.path, self.place):
            self._sweep.apply(event)
            self.place = place
        return self._sweep


def read_sweep(path: Path) -> Sweep:
    """Return the sweep of the record at `path`, or an empty sweep where the file does not exist."""
    return RecordReader(path).read()


def first_header(path: Path) -> SessionHeader | None:
    """Return the description of the sweep in the first session of the record at `path`, or None where there is no session."""
    return next((SessionHeader.from_json(event["sweep"]) for event, _ in read_events(path)), None)


class Record:
    """Opens the record for the driver, applies the recorded events to `sweep`, repairs the end of the file, and appends events with `write`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        reader = RecordReader(path)
        self.sweep = reader.read()
        end, self._crc, _ = reader.place
        if path.exists():
            # The copy leaves out an incomplete last line. The copy is a new file, because the driver of an earlier session may still run on a node
            # without a connection. That driver then goes on writing to the old file, and not between the lines of this driver.
            with path.open("rb") as stream, written_aside(path, "wb") as aside:
                aside.write(stream.read(end))
        self._file = path.open("ab")

    def write(self, event: str, **values: Any) -> None:
        """Append an event to the file, and apply the event to `sweep`. Raises OSError when the disk is full."""
        entry = {"event": event, **values, "at": now()}
        line, self._crc = encode(entry, self._crc)
        with disk_errors_name(self.path):
            self._file.write(line.encode())
            self._file.flush()
            if event in DURABLE:
                os.fsync(self._file.fileno())
        # The event is converted to JSON and back, so that `sweep` has equal values now and after a later reading of the record.
        self.sweep.apply(json.loads(json.dumps(entry)))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
