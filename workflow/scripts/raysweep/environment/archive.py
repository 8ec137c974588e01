"""Packs the virtualenv into one file, so that each node gets exactly the virtualenv that was built and checked on a machine with network access.

    resources/env/<key>/env.tar     the virtualenv between two copies of its record

The first copy of the record identifies the virtualenv. The last copy shows that the archive is complete. One import of torch opens 19,000 files,
so an environment belongs on a node's own disk. A shared file system reads one large file faster than many small files. The archive is not
compressed, because decompressing takes longer than reading.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import socket
import stat
import tarfile
import time
from dataclasses import replace
from pathlib import Path

from raysweep.common.errors import WorldError, is_full_disk
from raysweep.environment.aside import made_aside
from raysweep.environment.commands import run_captured
from raysweep.environment.manifest import VENV_MANIFEST, Environment

logger = logging.getLogger(__name__)

ARCHIVE = "env.tar"
# Size of the unpacked files divided by the size of the archive. The ratio is above 1, because files use whole blocks of a disk. The measured ratio
# was 1.01 with torch's CUDA build.
UNPACKED_TO_PACKED = 1.1
COMPILING_PROCESSES = "4"  # The number of processes is small, because other users work on a login node too.


def pack(env_dir: Path) -> None:
    """Make sure that the archive of the virtualenv in `env_dir` exists and is current.

    The function does nothing where the archive is current, or with `wheels: none`. Several processes may pack at the same time. Raises WorldError
    where the disk is full.
    """
    environment = Environment.load(env_dir)
    if environment.wheels == "none" or _is_current(env_dir):
        return
    started = time.monotonic()
    logger.info("Packing the environment for the nodes")
    _compile_modules(environment)
    archive = env_dir / ARCHIVE
    with made_aside(archive) as aside:
        try:
            _write_archive(aside, env_dir / "venv")
        except OSError as error:
            if not is_full_disk(str(error)):
                raise
            raise WorldError(
                f"{archive}, the copy of the environment for the nodes, cannot be written: the disk is full. Free some space."
            ) from None
        size_gb = aside.stat().st_size / 1e9
        # If another process has packed the virtualenv in the meantime, nodes may be reading that archive, so that archive stays.
        if not _is_current(env_dir):
            aside.replace(archive)
    logger.info("Environment packed for the nodes: %.1f GB in %.0f s", size_gb, time.monotonic() - started)


def unpack(env_dir: Path, folder: Path, cache_dir: Path | None = None) -> Environment:
    """Return the environment of `env_dir`, unpacked to `folder`/venv. With `wheels: none` nothing is unpacked.

    With `cache_dir` the environment is unpacked into `cache_dir` and stays there for later jobs. Raises WorldError, with one line that names
    the node, where the disk lacks space, the archive is not complete, or the Python on which the environment is based is missing.
    """
    environment = Environment.load(env_dir)
    if environment.wheels != "none":
        archive = env_dir / ARCHIVE
        try:
            record = _record_in(archive)
        except (OSError, tarfile.TarError) as error:
            raise _broken(archive, (error.strerror or str(error)) if isinstance(error, OSError) else str(error)) from None
        if cache_dir is not None:
            folder = _unpack_once(archive, _private_folder(cache_dir) / hashlib.sha256(record).hexdigest()[:16])
        else:
            _extract(archive, folder)
        environment = replace(environment, python=folder.absolute() / "venv" / "bin" / "python")
    environment.check_python()
    return environment


# ---------------------------------------------------------------------------------------------------------------- packing


def _is_current(env_dir: Path) -> bool:
    """Return whether the archive in `env_dir` contains the virtualenv of `env_dir`, which is true when both have an equal record."""
    try:
        return _record_in(env_dir / ARCHIVE) == (env_dir / "venv" / VENV_MANIFEST).read_bytes()
    except (OSError, tarfile.TarError):
        return False


def _record_in(archive: Path) -> bytes:
    """Return the record of the virtualenv in `archive`. Raises OSError or TarError where the archive does not begin with a record."""
    with tarfile.open(archive, "r:") as tar:
        first = tar.next()
        content = tar.extractfile(first) if first and first.name == VENV_MANIFEST else None
        if content is None:
            raise tarfile.ReadError("it does not begin with a record")
        return content.read()


def _compile_modules(environment: Environment) -> None:
    """Compile all modules to bytecode, so that the nodes do not have to compile them.

    Python compares the modification time of a source file with the time in the bytecode, and the archive keeps that modification time. This check is
    Python's default, so bytecode that an import has already written stays valid. compileall skips files that this version of Python cannot compile,
    such as templates in packages.
    """
    library = environment.python.parent.parent / "lib"
    argv = ["-m", "compileall", "-q", "-j", COMPILING_PROCESSES, "--invalidation-mode", "timestamp", str(library)]
    run = run_captured(environment.command(argv))
    logger.debug("compileall ended with exit code %d: %s %s", run.returncode, run.stdout, run.stderr)


def _write_archive(archive: Path, venv: Path) -> None:
    """Write the archive of the virtualenv `venv` to `archive` and flush the archive to the disk."""
    with archive.open("wb") as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
            tar.add(venv / VENV_MANIFEST, VENV_MANIFEST, filter=_without_owner)
            for path in sorted(venv.rglob("*")):
                # A file with .pyc. in its name is incomplete, because another process that packs is compiling this module.
                if path != venv / VENV_MANIFEST and ".pyc." not in path.name:
                    tar.add(path, path.relative_to(venv.parent), recursive=False, filter=_without_owner)
            tar.add(venv / VENV_MANIFEST, f"venv/{VENV_MANIFEST}", filter=_without_owner)
        stream.flush()
        os.fsync(stream.fileno())


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a member of an archive without its owner, because on the node the file belongs to the user who unpacks the archive."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


# ---------------------------------------------------------------------------------------------------------------- unpacking


def _extract(archive: Path, folder: Path) -> None:
    """Unpack `archive` to `folder`/venv.

    Raises WorldError where the disk is too small or is mounted with the option noexec, or where the archive is not complete.
    """
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
            # This filter allows links to places outside the folder, such as the link to Python. Python before 3.11.4 has no filters. Unpacking without
            # a filter is safe, because the user has made the archive.
            tar.extraction_filter = getattr(tarfile, "tar_filter", None)
            tar.extractall(folder)
    except tarfile.TarError as error:
        raise _broken(archive, str(error)) from None
    except OSError as error:
        if is_full_disk(str(error)):
            raise _no_room(folder, f"the environment, which takes {needed_gb:.1f} GB, has filled the disk") from None
        raise
    if not (folder / "venv" / VENV_MANIFEST).is_file():
        raise _broken(archive, "it was cut short")
    logger.debug("%s: environment unpacked to %s in %.1f s", socket.gethostname(), folder, time.monotonic() - started)


def _broken(archive: Path, reason: str) -> WorldError:
    """Return the WorldError for an archive that is not complete."""
    remedy = "remove it, if it is there, and run the same command again, which packs it anew"
    return WorldError(f"{socket.gethostname()}: {archive} is not a whole environment ({reason}): {remedy}.")


def _no_room(folder: Path, reason: str) -> WorldError:
    """Return the WorldError for a disk of the node that is too small for the environment."""
    remedy = "ask for nodes with more disk of their own (sbatch's --tmp or --constraint), for other nodes, or set TMPDIR to a larger disk"
    return WorldError(f"{socket.gethostname()}: no room at {folder}: {reason}. Next: {remedy}.")


def _unpack_once(archive: Path, folder: Path) -> Path:
    """Unpack the archive to `folder` unless an earlier job has unpacked it, and return `folder`. The environment stays in `folder` between jobs."""
    if not folder.exists():
        with made_aside(folder) as aside:
            aside.mkdir()
            _extract(archive, aside)
            try:
                aside.rename(folder)
            except OSError as error:  # These two error codes mean that another job has made `folder` in the meantime.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    return folder


def _private_folder(cache_dir: Path) -> Path:
    """Return the folder in `cache_dir` that belongs to this user alone.

    Raises WorldError where other users could replace that folder or change its files, because jobs run the programs in that folder.
    """
    node = socket.gethostname()
    try:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = cache_dir.stat().st_mode
        if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
            raise WorldError(f"{node}: env.cache_dir: others can rename what lies in {cache_dir}: `chmod go-w` it, or name another folder.")
        own = cache_dir / f"raysweep-{os.getuid()}"
        own.mkdir(mode=0o700, exist_ok=True)
        status = own.lstat()
    except OSError as error:
        raise WorldError(
            f"{node}: env.cache_dir: {cache_dir} cannot be used ({error.strerror}): name a folder on the nodes' own disk."
        ) from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise WorldError(f"{node}: env.cache_dir: {own} is not yours alone (mode 0700): remove it, or name another folder.")
    return own
