"""This module makes the private folders of an agent. Only the user of the agent can enter these folders, and the folders are removed when the agent ends.

The controller's Python runs this module.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from raysweep.cluster.children import uninterrupted
from raysweep.common.errors import WorldError
from raysweep.common.files import disk_error

# Greatest length in bytes of the path of Ray's folder. Linux allows at most 107 bytes for the path of a socket, and Ray creates sockets below Ray's folder,
# so that 43 bytes are left for the path of the folder.
LONGEST_TEMP_DIR = 43


@contextlib.contextmanager
def private_folder(base: Path, name: str | None = None) -> Iterator[Path]:
    """Make a folder in `base` that only this user can enter, and remove the folder after the block.

    The folder is called `name` where nothing has this name. Where a SIGKILL prevents the removal, the next agent on this node removes the folder.
    """
    remove_left_behind(base)
    folder = None
    try:
        with uninterrupted():  # a signal between the making of the folder and the assignment would leave a folder that nobody removes
            folder = _make_folder(base, name)
        # Other agents see by the lock that this folder is in use. `flock` is reliable here, because `base` is on a disk of this node. The lock file is
        # renamed to "lock" only after `flock`, so that no other agent finds the file "lock" unlocked.
        with (folder / "lock.new").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(socket.gethostname())
            lock.flush()
            (folder / "lock.new").rename(folder / "lock")
            yield folder
    finally:
        with uninterrupted():
            if folder is not None:
                _remove(folder)


def _make_folder(base: Path, name: str | None) -> Path:
    if name is not None:
        with contextlib.suppress(FileExistsError):
            (base / name).mkdir(mode=0o700)
            return base / name
    folder = base / f"rs-{secrets.token_urlsafe(6)}"
    folder.mkdir(mode=0o700)
    return folder


def remove_left_behind(base: Path) -> None:
    """Remove the private folders of this user's agents that were killed on this node.

    Folders of other nodes stay, because TMPDIR may set `base` to a folder that all nodes share.
    """
    for lock_path in base.glob("rs-*/lock"):
        with contextlib.suppress(OSError):  # the folder is in use, was removed meanwhile, or belongs to another user
            if lock_path.parent.lstat().st_uid == os.getuid():
                with lock_path.open("r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if lock.read() == socket.gethostname():
                        _remove(lock_path.parent)


def _remove(folder: Path) -> None:
    """Remove a private folder.

    The lock file is removed last. If a SIGKILL interrupts the removal, the next agent recognises the incomplete folder by the lock file.
    """
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def has_short_path(base: Path) -> bool:
    """Return whether the path of `base` is short enough for Ray to create sockets in a private folder in `base`."""
    return len(os.fsencode(base)) + len("/rs-XXXXXXXX/ray") <= LONGEST_TEMP_DIR


def base_for_ray(local_dir: Path) -> Path:
    """Return the folder in which the private folder for Ray can be made: `local_dir` where possible, else /tmp.

    /tmp is used where the path of `local_dir` is too long, or where this user may not write to `local_dir`. Raises WorldError where neither `local_dir` nor
    /tmp can be used.
    """
    for base in (local_dir, Path("/tmp")):
        if has_short_path(base) and os.access(base, os.W_OK):
            return base
    raise WorldError(f"no folder for temporary files with a path of at most {LONGEST_TEMP_DIR - 16} bytes: set TMPDIR to one")


def check_space(base: Path) -> None:
    """Raise WorldError where a file in the folder `base` cannot be written, with the size and the free space of a disk that is full."""
    if (error := disk_error(base)) is not None:
        raise WorldError(describe_disk_error(base, error))


def describe_disk_error(base: Path, error: OSError) -> str:
    """Return one line on an error of the disk on which the private folders in `base` lie. Where the disk is full, the line says how full, and what to do."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return f"{base}: {error.strerror or error}"
    usage = shutil.disk_usage(base)
    return (
        f"{socket.gethostname()}: no room at {base} for temporary files, which Ray needs: {usage.free / 1e6:.0f} of {usage.total / 1e6:.0f} MB are free."
        " Next: remove files there, ask for nodes with a larger disk of their own, or set TMPDIR to a folder on another disk"
    )


def write_secret(path: Path, text: str) -> None:
    """Write `text` to a new file that only this user can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
