"""Gives a process a temporary name for a file or a folder. The process makes the file under the temporary name and then renames the file.

Two processes may make one file at the same time, because the two processes use different temporary names. So the processes need no lock, which some
file systems of clusters do not support.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysweep.common.processes import pid_namespace

logger = logging.getLogger(__name__)

# A temporary file that has not changed for this time in seconds is removed. The age decides, because this process cannot see whether a process on
# another machine still runs.
ABANDONED_AFTER_S = 86_400


@contextmanager
def made_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that only this process uses, and remove that temporary path afterwards.

    Temporary files and folders that killed processes have left beside `path` are removed first.
    """
    _remove_abandoned(path)
    aside = path.with_name(f"{path.name}.{host_of_pids()}.{os.getpid()}")
    _remove(aside)
    try:
        yield aside
    finally:
        _remove(aside)


def host_of_pids() -> str:
    """Return the host name and the number of the namespace in which the id of this process is valid.

    The host name does not suffice, because two containers may share a host name and have different processes with the same id.
    """
    return f"{socket.gethostname()}-{re.sub(r'[^0-9]', '', pid_namespace())}"


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files and folders of killed processes beside `path`.

    A temporary file of this machine and this namespace is removed where its process no longer exists. Every temporary file is removed after one day.
    """
    for aside in path.parent.glob(f"{path.name}.*.*"):
        host, _, pid = aside.name.removesuffix(".old").removeprefix(f"{path.name}.").rpartition(".")
        try:
            is_abandoned = time.time() - aside.stat().st_mtime > ABANDONED_AFTER_S
        except FileNotFoundError:  # The process that made this temporary file has just removed it.
            continue
        if host == host_of_pids() and pid.isdecimal():
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                is_abandoned = True
            except PermissionError:
                pass  # The process still runs and belongs to another user.
        if is_abandoned:
            logger.debug("removing %s, which a killed process left", aside)
            _remove(aside)


def _remove(path: Path) -> None:
    """Remove the file or the folder `path`, if it exists."""
    if path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
