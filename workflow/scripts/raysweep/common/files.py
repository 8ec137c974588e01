"""Files that exist only when they are complete: each is written aside, flushed and renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml


@contextmanager
def written_aside(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Yield a file beside `path` to write to; on success flush it to the disk and rename it to `path`, on failure remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        text = "b" not in mode
        with os.fdopen(handle, mode, encoding="utf-8" if text else None, newline="" if text else None) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(aside, 0o666 & ~umask)  # mkstemp makes private files, and a result should be as readable as any other file of the user
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


class _DumperWithoutAliases(yaml.SafeDumper):
    """A dumper that writes a value twice where it stands in two places, because readers do not take `&id001` for a value."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_yaml(path: Path, value: Any) -> None:
    """Write `value` as YAML, keys in the order given."""
    with written_aside(path) as stream:
        yaml.dump(value, stream, _DumperWithoutAliases, sort_keys=False, allow_unicode=True, width=120)


def read_yaml(path: Path) -> Any:
    """Return the value in a YAML file."""
    with path.open(encoding="utf-8") as stream:
        return yaml.safe_load(stream)


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content, which is read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush_folder(folder: Path) -> None:
    """Flush all files below a folder, and their names, to the disk."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def replace_directory(source: Path, target: Path) -> None:
    """Copy the folder `source` to `target`, so that `target` is never incomplete or a mixture of old and new files."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        shutil.copytree(source, aside / target.name)
        flush_folder(aside / target.name)
        if target.exists():
            shutil.rmtree(target)
        os.replace(aside / target.name, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
