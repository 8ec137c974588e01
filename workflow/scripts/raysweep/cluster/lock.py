"""One writer: a lock says who works on a sweep, so that a second run is refused, and one that is dead holds nobody up.

It is a file beside the record that says who holds it. No `flock`: on the file systems of clusters that is not reliable. To make a hard link is one
step on all of them, and fails where the name is taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import stat
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raysweep.common.errors import RaysweepError
from raysweep.common.files import written_aside
from raysweep.common.processes import pid_namespace, started, this_process
from raysweep.slurm.allocation import SlurmJob

DRIVER_LOCK = "driver.lock"


class Lock:
    """The file `name` in `folder`, held by this process inside a `with`. `what` is said to a user: sweep lenet. `job`: its job of Slurm."""

    def __init__(self, folder: Path, what: str, name: str = "lock", job: SlurmJob | None = None) -> None:
        self.path, self.what, self.job = folder / name, what, job

    def __enter__(self) -> Lock:
        """Raises RaysweepError when another run, which may be alive, holds it, or when others may write to the folder."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        refuse_if_others_write(self.path.parent)
        self.me = {"token": secrets.token_hex(8), **this_process(), "uid": os.getuid(), "job": asdict(self.job) if self.job else None}
        while not self._take():
            if (other := read(self.path)) is not None:
                if who := holder(other):
                    raise RaysweepError(
                        f"{self.what}: another run is at work on it: {who}. Wait for its end, or end it. If it is not there any more, remove {self.path}"
                    )
                self._break(other)
        return self

    def __exit__(self, *_: object) -> None:
        if (now := read(self.path)) is not None and now["token"] == self.me["token"]:
            self.path.unlink()

    def verify(self) -> None:
        """Raises RaysweepError when the lock is another's: of a node that was cut off for a while the job may have begun again on others."""
        if (now := read(self.path)) is None or now["token"] != self.me["token"]:
            raise RaysweepError(f"{self.what}: another run has taken the sweep over ({self.path} is not of this one any more)")

    def _take(self) -> bool:
        mine = self.path.with_name(f"{self.path.name}.{self.me['token']}")
        with written_aside(mine) as stream:
            json.dump(self.me, stream)
        try:
            os.link(mine, self.path)
        except FileExistsError:
            # NFS may have made the link and lost its answer: then the file has both names.
            return mine.stat().st_nlink == 2
        finally:
            mine.unlink()
        return True

    def _break(self, dead: dict[str, Any]) -> None:
        """Remove the lock of one that is dead. Of several that try at a time, one may get hold of another's new lock: that is put back."""
        aside = self.path.with_name(f"{self.path.name}.{self.me['token']}.broken")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        if (found := read(aside)) is not None and found["token"] != dead["token"]:
            with contextlib.suppress(FileExistsError):
                os.link(aside, self.path)
        aside.unlink()

    def follow(self, folder: Path) -> None:
        """The lock's folder was renamed to `folder`: hold the lock where it was. Raises RaysweepError when another run was faster."""
        self.path.parent.mkdir(mode=0o700)
        try:
            os.link(folder / self.path.name, self.path)
        except FileExistsError:
            raise RaysweepError(f"{self.what}: another run has just begun to work on it. Wait for its end") from None
        (folder / self.path.name).unlink()


def read(path: Path) -> dict[str, Any] | None:
    """Who a lock says that holds it; None where there is none. Raises RaysweepError where it says nothing."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise RaysweepError(f"{path} does not say who holds it. If no other run is at work on the sweep, remove it") from None


def holder(other: dict[str, Any]) -> str | None:
    """Who holds a lock, in words for the user; None when he has provably ended. One of whom nothing is known is taken for alive."""
    where = f"process {other['pid']} on {other['host']}"
    if other["job"] is not None:
        where = f"job {other['job']['id']} ({where})"
        if SlurmJob(**other["job"]).is_over():
            return None
    here = (other["host"], other["pids"], other["uid"]) == (socket.gethostname(), pid_namespace(), os.getuid())
    return None if here and started(other["pid"]) != other["started"] else where


def is_held(folder: Path) -> bool:
    """Whether another run is at work on the sweep whose state lies in `folder`, as far as is known."""
    try:
        return (other := read(folder / "lock")) is not None and holder(other) is not None
    except RaysweepError:
        return True


def refuse_if_others_write(folder: Path) -> None:
    """What lies there is believed, so only this user may have written it. Raises RaysweepError."""
    status = folder.stat()
    if status.st_uid != os.getuid():
        raise RaysweepError(
            f"{folder} belongs to another user, who could alter the sweep's record. Name another state_dir, or have it given to you"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RaysweepError(
            f"{folder} can be written to by others (mode {stat.S_IMODE(status.st_mode):o}), who could alter the sweep's record: `chmod go-w {folder}`,"
            " look whether all in it is yours, and run the same command again"
        )
