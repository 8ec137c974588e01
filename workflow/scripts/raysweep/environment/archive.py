"""The virtualenv as one file, so that each node gets exactly what was built and checked where the network is.

    resources/env/<key>/env.tar     the virtualenv, between two copies of its record: the first says which one it is, the last that it is whole

One import of torch opens 19,000 files, so an environment belongs on a node's own disk; and to read one large file is what shared file
systems do best. Not compressed: that takes longer than to read it.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import socket
import stat
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path

from raysweep.common.errors import WorldError, is_full_disk
from raysweep.environment.build import RECORD, Environment, made_aside, process_environment

logger = logging.getLogger(__name__)

ARCHIVE = "env.tar"
UNPACKED_TO_PACKED = 1.1  # files take whole blocks on a disk; measured 1.01 with torch's CUDA build
COMPILING_PROCESSES = "4"  # a login node belongs to others too


def pack(env_dir: Path) -> None:
    """Make sure that the archive of the virtualenv in `env_dir` is there and current; does nothing where it is, or with `wheels: none`.

    Several may do so at a time. Raises WorldError where there is no room for it.
    """
    environment = Environment.load(env_dir)
    if environment.wheels == "none" or _is_current(env_dir):
        return
    started = time.monotonic()
    _compile(environment)
    archive = env_dir / ARCHIVE
    with made_aside(archive) as aside:
        try:
            _write(aside, env_dir / "venv")
        except OSError as error:
            if not is_full_disk(str(error)):
                raise
            raise WorldError(
                f"{archive}, the copy that nodes get of the environment beside it: the disk is full. Free some space."
            ) from None
        size_gb = aside.stat().st_size / 1e9
        if not _is_current(env_dir):  # else another has packed it meanwhile, and nodes may be reading that
            aside.replace(archive)
    logger.info("Environment packed for the nodes: %.1f GB in %.0f s", size_gb, time.monotonic() - started)


def unpack(env_dir: Path, folder: Path, cache_dir: Path | None = None) -> Environment:
    """The environment of `env_dir`, unpacked to `folder`/venv; with `wheels: none` as it is.

    With `cache_dir` it is unpacked there, unless an earlier job has left it there, and stays. Raises WorldError, with one line that names the
    node, where there is no room, no archive that is whole, or no Python under it.
    """
    environment = Environment.load(env_dir)
    if environment.wheels != "none":
        archive = env_dir / ARCHIVE
        try:
            record = _record_in(archive)
        except (OSError, tarfile.TarError) as error:
            raise _broken(archive, str(getattr(error, "strerror", error))) from None
        if cache_dir is not None:
            folder = _kept(archive, _private(cache_dir) / hashlib.sha256(record).hexdigest()[:16])
        else:
            _extract(archive, folder)
        environment = replace(environment, python=folder.absolute() / "venv" / "bin" / "python")
    environment.check_python()
    return environment


# ---------------------------------------------------------------------------------------------------------------- packing


def _is_current(env_dir: Path) -> bool:
    """Whether the archive is of the virtualenv that lies beside it."""
    try:
        return _record_in(env_dir / ARCHIVE) == (env_dir / "venv" / RECORD).read_bytes()
    except (OSError, tarfile.TarError):
        return False


def _record_in(archive: Path) -> bytes:
    """The record of the virtualenv that an archive holds. Raises OSError or TarError where there is none."""
    with tarfile.open(archive, "r:") as tar:
        first = tar.next()
        content = tar.extractfile(first) if first and first.name == RECORD else None
        if content is None:
            raise tarfile.ReadError("it does not begin with a record")
        return content.read()


def _compile(environment: Environment) -> None:
    """Compile all modules, so that nodes need not.

    Checked by the time of the source, which the archive keeps: Python's default, so that what an import has compiled is left as it is. Files that
    are no Python of this version, as packages have them among their templates, are passed over.
    """
    library = environment.python.parent.parent / "lib"
    argv = ["-m", "compileall", "-q", "-j", COMPILING_PROCESSES, "--invalidation-mode", "timestamp", str(library)]
    run = subprocess.run(
        environment.command(argv), capture_output=True, text=True, errors="replace", env=process_environment(), check=False
    )
    logger.debug("compileall ended with exit code %d: %s %s", run.returncode, run.stdout, run.stderr)


def _write(archive: Path, venv: Path) -> None:
    """Write the archive of a virtualenv, flushed to the disk."""
    with archive.open("wb") as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
            tar.add(venv / RECORD, RECORD, filter=_of_nobody)
            for path in sorted(venv.rglob("*")):
                if path != venv / RECORD and ".pyc." not in path.name:  # that is what another packer is just compiling
                    tar.add(path, path.relative_to(venv.parent), recursive=False, filter=_of_nobody)
            tar.add(venv / RECORD, f"venv/{RECORD}", filter=_of_nobody)
        stream.flush()
        os.fsync(stream.fileno())


def _of_nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without its owner: on the node it belongs to whoever unpacks it."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


# ---------------------------------------------------------------------------------------------------------------- unpacking


def _extract(archive: Path, folder: Path) -> None:
    """Unpack an archive to `folder`/venv."""
    started = time.monotonic()
    needed_gb = archive.stat().st_size * UNPACKED_TO_PACKED / 1e9
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < needed_gb:
        raise _no_room(folder, f"{free_gb:.1f} GB are free, the environment takes {needed_gb:.1f} GB")
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise WorldError(
            f"{socket.gethostname()}: {folder} is on a disk from which nothing may be run (noexec): set TMPDIR to another folder."
        )
    try:
        with tarfile.open(archive, "r:") as tar:
            # Admits links out of the folder, such as that to Python. Pythons before 3.11.4 have no filters: the archive is the user's own.
            tar.extraction_filter = getattr(tarfile, "tar_filter", None)
            tar.extractall(folder)
    except tarfile.TarError as error:
        raise _broken(archive, str(error)) from None
    except OSError as error:
        if is_full_disk(str(error)):
            raise _no_room(folder, f"the environment, which takes {needed_gb:.1f} GB, has filled the disk") from None
        raise
    if not (folder / "venv" / RECORD).is_file():
        raise _broken(archive, "it was cut short")
    logger.debug("%s: environment unpacked to %s in %.1f s", socket.gethostname(), folder, time.monotonic() - started)


def _broken(archive: Path, why: str) -> WorldError:
    return WorldError(
        f"{socket.gethostname()}: {archive} is not a whole environment ({why}): remove it, if it is there, and run the same command again, which packs it anew."
    )


def _no_room(folder: Path, what: str) -> WorldError:
    remedy = "ask for nodes with more disk of their own (sbatch's --tmp or --constraint), for others, or set TMPDIR to a larger one"
    return WorldError(f"{socket.gethostname()}: no room at {folder}: {what}. Next: {remedy}.")


def _kept(archive: Path, folder: Path) -> Path:
    """`folder`, in which the environment is kept between jobs; unpacked if none has done it before."""
    if not folder.exists():
        with made_aside(folder) as aside:
            aside.mkdir()
            _extract(archive, aside)
            try:
                aside.rename(folder)
            except OSError as error:  # another job has put it there meanwhile
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    return folder


def _private(cache_dir: Path) -> Path:
    """This user's own folder in `cache_dir`. Raises WorldError where others could put something else in its place: jobs run what lies there."""
    node = socket.gethostname()
    try:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = cache_dir.stat().st_mode
        if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
            raise WorldError(f"{node}: env.cache_dir: others can rename what lies in {cache_dir}: `chmod go-w` it, or name another folder.")
        mine = cache_dir / f"raysweep-{os.getuid()}"
        mine.mkdir(mode=0o700, exist_ok=True)
        found = mine.lstat()
    except OSError as error:
        raise WorldError(
            f"{node}: env.cache_dir: {cache_dir} cannot be used ({error.strerror}): name a folder on the nodes' own disk."
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise WorldError(f"{node}: env.cache_dir: {mine} is not yours alone (mode 0700): remove it, or name another folder.")
    return mine
