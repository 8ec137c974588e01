"""This module writes only complete files. Each file is written under a temporary name, flushed to the disk and then renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from raysweep.common.errors import is_full_disk

PROBE_BYTES = 2**20  # size of a test file in bytes. A disk that can still store 1 MiB is not full


@contextmanager
def disk_errors_name(path: Path) -> Iterator[None]:
    """Let each OSError of the block name `path` where the error names no file, so that the user learns which disk is full."""
    try:
        yield
    except OSError as error:
        number = error.errno or (errno.ENOSPC if is_full_disk(str(error)) else None)  # shutil.Error has only a text
        if error.filename is None and number is not None:
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def disk_error(folder: Path) -> OSError | None:
    """Return the error that a test write to the folder raises, for example when the disk or the user's quota is full. Return None if the write succeeds."""
    try:
        with disk_errors_name(folder), tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(bytes(PROBE_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        return error
    return None


@contextmanager
def written_aside(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Yield a stream to a temporary file in the folder of `path`.

    At the end of the block, the temporary file is flushed to the disk and renamed to `path`. Where the block raises, the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        text = "b" not in mode
        with disk_errors_name(path), os.fdopen(handle, mode, encoding="utf-8" if text else None, newline="" if text else None) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        # A file of mkstemp is readable for the user only. A result should have the usual permissions of the user's files.
        os.chmod(aside, 0o666 & ~umask)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


class OneLine(list[Any]):
    """Marks a list that `write_yaml` writes in one line, as `[1, 2, 3]`. `write_yaml` gives each value of other lists its own line."""


class _DumperWithoutAliases(yaml.SafeDumper):
    """Writes a shared value again at each place where the value occurs, because `&id001` and `*id001` would confuse a human reader."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_DumperWithoutAliases.add_representer(
    OneLine, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
)


def yaml_text(value: Any) -> str:
    """Return `value` as YAML. The keys keep the order of `value`."""
    text: str = yaml.dump(value, None, _DumperWithoutAliases, sort_keys=False, allow_unicode=True, width=120)
    return text


def write_yaml(path: Path, value: Any) -> None:
    """Write `value` to `path` as YAML. The keys keep the order of `value`."""
    with written_aside(path) as stream:
        stream.write(yaml_text(value))


def read_yaml(path: Path) -> Any:
    """Return the value that a YAML file contains."""
    with path.open(encoding="utf-8") as stream:
        return yaml.safe_load(stream)


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. The file is read in pieces, because a file may be larger than the memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush_path(path: Path) -> None:
    """Flush the file or folder `path`, the parent of `path`, and everything below `path` to the disk, so that names and contents survive a crash."""
    for entry in (*path.rglob("*"), path, path.parent):
        handle = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def replace_directory(source: Path, target: Path) -> None:
    """Copy the folder `source` to `target`. At no time is `target` incomplete or a mixture of old and new files."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with disk_errors_name(target):
            shutil.copytree(source, aside / target.name)
        flush_path(aside / target.name)
        if target.exists():
            shutil.rmtree(target)
        os.replace(aside / target.name, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
