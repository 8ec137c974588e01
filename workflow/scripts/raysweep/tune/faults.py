"""The first fault of a session, and full disks."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from raysweep.common.errors import is_full_disk

PROBE_BYTES = 2**20  # a disk that takes so much more is not the disk that is full


class FirstFault:
    """The first fault that a part of the callback met.

    Tune swallows some of the exceptions that callbacks raise. A full disk must end the sweep, so the fault is kept here, and the stopper
    (stopping.EndOfTrial) ends the experiment.
    """

    def __init__(self) -> None:
        self.fault: BaseException | None = None

    def note(self, fault: BaseException | None) -> None:
        """Keep the fault, unless an earlier one is kept."""
        if self.fault is None:
            self.fault = fault

    def guard(self, action: Callable[[], None]) -> None:
        """Do the action and keep its fault. After the first fault no action is done, because the record must not change any more."""
        if self.fault is None:
            try:
                action()
            except Exception as error:
                self.fault = error


def disk_error(folder: Path) -> OSError | None:
    """Return the error that a write to the folder meets, as when its disk or the user's quota is full; None where the write succeeds."""
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(bytes(PROBE_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        return error
    return None


def full_disk_in(error: BaseException) -> OSError | None:
    """Return the error of a full disk or quota in the chain of an error; None where the chain has no such error."""
    return next(
        (
            cause
            for cause in _chain(error)
            # shutil.Error has no errno of its own.
            if isinstance(cause, OSError) and (cause.errno in (errno.ENOSPC, errno.EDQUOT) or is_full_disk(str(cause)))
        ),
        None,
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and the errors that it was raised from or during."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
