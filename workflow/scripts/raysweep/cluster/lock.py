"""This module gives each sweep a lock, so that only one run writes to the sweep. A second run is refused, and the lock of a dead run is removed.

The lock is a file beside the sweep's record, and the file names the process that has the lock. The lock is not made with `flock`, because `flock` is not
reliable on the file systems of clusters. The lock is a hard link, because every such file system makes a hard link in one step, and refuses the link
where the name exists already. The controller's Python runs this module. The driver also uses this module, in the node environment.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raysweep.common.errors import RaysweepError
from raysweep.common.files import written_aside
from raysweep.common.processes import pid_namespace, started, this_process
from raysweep.common.typed_json import from_json, to_json
from raysweep.slurm.allocation import SlurmJob

LOCK = "lock"
DRIVER_LOCK = "driver.lock"


@dataclass(frozen=True)
class GateAddress:
    """Names the place where other jobs of a job array can join the Ray cluster of the holder of the lock (gate.py)."""

    array: str  # id of the job array
    job: str  # the number of the holder's job, which `srun` needs
    path: str  # path of a socket on the first node of the holder's job


@dataclass(frozen=True)
class LockHolder:
    """Describes the process that has a lock. The lock file contains this description as JSON."""

    token: str  # random text, which is different for each Lock object
    host: str
    pids: str  # the namespace in which `pid` is valid
    pid: int
    started: str | None  # start time of the process; a later process with the same id has another start time
    uid: int
    job: SlurmJob | None  # None when the process runs outside of a job
    gate: GateAddress | None = None  # where other jobs of the sweep can join; None: no other job can join

    @classmethod
    def this_process(cls, job: SlurmJob | None, gate: GateAddress | None = None) -> LockHolder:
        return cls(token=secrets.token_hex(8), **this_process(), uid=os.getuid(), job=job, gate=gate)

    @classmethod
    def read(cls, path: Path) -> LockHolder | None:
        """Return the process that the lock file names, or None where there is no lock file. Raises RaysweepError where the file names no process."""
        try:
            return from_json(cls, json.loads(path.read_text()))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):  # NFS says ESTALE where another node has just removed the file
                raise
            return None
        except (ValueError, TypeError):
            raise RaysweepError(f"{path} does not say who holds it. If no other run is at work on the sweep, remove it") from None

    def is_dead(self) -> bool:
        """Return whether the holder of the lock has certainly ended.

        The holder counts as alive where this process cannot find out whether the holder has ended.
        """
        if self.job is not None and self.job.is_over():
            return True
        on_this_machine = (self.host, self.pids, self.uid) == (socket.gethostname(), pid_namespace(), os.getuid())
        return on_this_machine and started(self.pid) != self.started

    def __str__(self) -> str:
        process = f"process {self.pid} on {self.host}"
        return process if self.job is None else f"job {self.job.id} ({process})"


class LockHeld(RaysweepError):
    """Reports that another run has the lock. `holder` describes this run."""

    def __init__(self, line: str, holder: LockHolder) -> None:
        super().__init__(line)
        self.holder = holder


class Lock:
    """Locks a sweep inside a `with` block. During the block, the file `file_name` in `folder` names this process.

    `title` names the sweep in messages for the user, such as "sweep lenet". `job` is the Slurm job that this process runs in, and `gate` the place where
    other jobs can join. `is_dead` returns whether another holder of the lock has certainly ended.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        file_name: str = LOCK,
        job: SlurmJob | None = None,
        gate: GateAddress | None = None,
        is_dead: Callable[[LockHolder], bool] = LockHolder.is_dead,
    ) -> None:
        self.path, self.title, self.holder, self.is_dead = folder / file_name, title, LockHolder.this_process(job, gate), is_dead

    def __enter__(self) -> Lock:
        """Acquire the lock.

        Raises LockHeld when another run has the lock and may be alive, and RaysweepError when other users may write to the folder.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        refuse_if_others_write(self.path.parent)
        while not self._take():
            if (other := LockHolder.read(self.path)) is not None:
                if not self.is_dead(other):
                    raise LockHeld(
                        f"{self.title}: another run is at work on it: {other}. Wait for its end, or end it. If it is not there any more,"
                        f" remove {self.path}",
                        other,
                    )
                self._remove_dead(other)
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_held():
            self.path.unlink()

    def verify(self) -> None:
        """Raise RaysweepError when another run has the lock.

        This can happen because Slurm may start a job again on other nodes while a node of the first start is only disconnected from the network.
        """
        if not self.is_held():
            raise RaysweepError(f"{self.title}: another run has taken the sweep over ({self.path} is not of this one any more)")

    def is_held(self) -> bool:
        """Return whether this process has the lock."""
        holder = LockHolder.read(self.path)
        return holder is not None and holder.token == self.holder.token

    def _take(self) -> bool:
        """Try once to acquire the lock, and return whether this process has the lock now."""
        own_file = self.path.with_name(f"{self.path.name}.{self.holder.token}")
        with written_aside(own_file) as stream:
            json.dump({key: value for key, value in to_json(self.holder).items() if key != "gate" or value is not None}, stream)
        try:
            os.link(own_file, self.path)
        except FileExistsError:
            # NFS may have made the link and lost its answer. In that case the file has both names.
            return own_file.stat().st_nlink == 2
        finally:
            own_file.unlink()
        return True

    def _remove_dead(self, dead: LockHolder) -> None:
        """Remove the lock of a process that has ended.

        Several processes may remove this lock at the same time. A slow process may then rename the new lock of a faster process.
        Therefore each process reads the file after the rename, and puts the file back where the file is such a new lock.
        """
        aside = self.path.with_name(f"{self.path.name}.{self.holder.token}.broken")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        if (renamed := LockHolder.read(aside)) is not None and renamed.token != dead.token:
            with contextlib.suppress(FileExistsError):
                os.link(aside, self.path)
        aside.unlink()

    def follow(self, folder: Path) -> None:
        """Keep the lock at the old path after the folder of the lock was renamed to `folder`.

        Raises RaysweepError when another run has created a lock at the old path in the meantime.
        """
        self.path.parent.mkdir(mode=0o700)
        try:
            os.link(folder / self.path.name, self.path)
        except FileExistsError:
            raise RaysweepError(f"{self.title}: another run has just begun to work on it. Wait for its end") from None
        (folder / self.path.name).unlink()


def is_held(folder: Path) -> bool:
    """Return whether a run may be at work on the sweep whose state lies in `folder`."""
    try:
        return (holder := LockHolder.read(folder / LOCK)) is not None and not holder.is_dead()
    except RaysweepError:
        return True


def refuse_if_others_write(folder: Path) -> None:
    """Raise RaysweepError where other users may write to `folder`.

    The workflow trusts all files in `folder`, so only this user may be able to write files there.
    """
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
