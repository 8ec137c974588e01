"""The private folders of an agent on its node: only this user can enter them, and they go when the agent ends.

Runs in the controller's Python.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from raysweep.cluster.children import uninterrupted
from raysweep.common.errors import WorldError

# Ray puts sockets below its folder. The path of a socket has at most 107 bytes, which leaves 43 for the folder.
LONGEST_TEMP_DIR = 43


@contextlib.contextmanager
def private_folder(base: Path) -> Iterator[Path]:
    """Make a folder in `base` that only this user can enter. It is removed at the end or, after a SIGKILL, by the next agent on this node."""
    remove_left_behind(base)
    # mkdtemp would return the name only after it made the folder, and a signal in between would leave the folder for ever.
    folder = base / f"rs-{secrets.token_urlsafe(6)}"
    try:
        folder.mkdir(mode=0o700)
        # The lock tells a folder in use from a folder left behind. `base` is on a disk of this node, where `flock` is reliable. The file is locked
        # before it gets its name, so that no other agent sees it unlocked.
        with (folder / "lock.new").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(socket.gethostname())
            lock.flush()
            (folder / "lock.new").rename(folder / "lock")
            yield folder
    finally:
        with uninterrupted():
            _remove(folder)


def remove_left_behind(base: Path) -> None:
    """Remove the private folders of agents of this user that were killed on this node. All nodes may share `base`, which TMPDIR may name."""
    for lock_path in base.glob("rs-*/lock"):
        with contextlib.suppress(OSError):  # in use, gone, or another user's
            if lock_path.parent.lstat().st_uid == os.getuid():
                with lock_path.open("r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if lock.read() == socket.gethostname():
                        _remove(lock_path.parent)


def _remove(folder: Path) -> None:
    """Remove a private folder. The lock goes last: by the lock, the next agent recognises what a SIGKILL leaves of the folder."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def has_short_path(base: Path) -> bool:
    """Return whether Ray can keep its sockets in a private folder in `base`."""
    return len(os.fsencode(base)) + len("/rs-XXXXXXXX/ray") <= LONGEST_TEMP_DIR


def base_for_ray(local_dir: Path) -> Path:
    """Return where Ray's own folder can be made: `local_dir`, on the node's disk, or /tmp where the path of `local_dir` is too long.

    Raises WorldError where neither can be used.
    """
    for base in (local_dir, Path("/tmp")):
        if has_short_path(base) and os.access(base, os.W_OK):
            return base
    raise WorldError(f"no folder for temporary files with a path of at most {LONGEST_TEMP_DIR - 16} bytes: set TMPDIR to one")


def write_token(path: Path, token: str) -> None:
    """Write the token of the job to a new file that only this user can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(token)
