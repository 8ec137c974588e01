"""This module keeps the first fault of a session, and recognises full disks."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

from raysweep.common.errors import is_full_disk


class FirstFault:
    """Keeps the first fault that occurs in a part of the callback.

    Tune ignores some of the exceptions that callbacks raise. But a full disk must end the sweep. So this object keeps the fault, and the stopper
    (stopping.EndOfTrial) ends the experiment.
    """

    def __init__(self) -> None:
        self.fault: BaseException | None = None

    def note(self, fault: BaseException | None) -> None:
        """Keep the fault, unless an earlier fault is kept already."""
        if self.fault is None:
            self.fault = fault

    def guard(self, action: Callable[[], None]) -> None:
        """Call the action and keep the exception that the action raises. After the first fault do nothing, because the record must not change any more."""
        if self.fault is None:
            try:
                action()
            except Exception as error:
                self.fault = error


def full_disk_in(error: BaseException) -> OSError | None:
    """Return the error of a full disk or a full quota from the chain of causes of `error`. Return None if the chain has no such error."""
    return next(
        (
            cause
            for cause in _chain(error)
            # shutil.Error has no errno, so the text of the error is searched too.
            if isinstance(cause, OSError) and (cause.errno in (errno.ENOSPC, errno.EDQUOT) or is_full_disk(str(cause)))
        ),
        None,
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, then the error from which or during which Python raised that error, and so on."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
