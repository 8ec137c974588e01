"""A place beside a file or a folder in which one process makes it, before it is renamed to its own place.

Two processes may make the same thing at the same time, each aside. They need no lock, which not all file systems of clusters keep.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

ABANDONED_AFTER_S = 86_400  # on another machine, whose processes cannot be asked


@contextmanager
def made_aside(path: Path) -> Iterator[Path]:
    """Yield a place beside `path` that only this process uses, and clear it afterwards.

    What killed processes have left beside `path` is removed first.
    """
    _remove_abandoned(path)
    aside = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    _remove(aside)
    try:
        yield aside
    finally:
        _remove(aside)


def _remove_abandoned(path: Path) -> None:
    """Remove the places aside of killed processes: of this machine those whose process is gone, and any that is older than a day."""
    for aside in path.parent.glob(f"{path.name}.*.*"):
        host, _, pid = aside.name.removesuffix(".old").removeprefix(f"{path.name}.").rpartition(".")
        try:
            is_abandoned = time.time() - aside.stat().st_mtime > ABANDONED_AFTER_S
        except FileNotFoundError:  # its owner has just removed it
            continue
        if host == socket.gethostname() and pid.isdecimal():
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                is_abandoned = True
            except PermissionError:
                pass  # the process lives and belongs to another user
        if is_abandoned:
            logger.debug("removing %s, which a killed process left", aside)
            _remove(aside)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
