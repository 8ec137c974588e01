"""Data sets that tests stage in their own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raysweep.data import cifar10
from raysweep.data.manifest import DataManifest, DatasetSpec
from raysweep.data.stage import stage


def stage_into(
    folder: Path, source: str | Path, address: str = cifar10.ADDRESS, output_dir: Path | None = None, **values: Any
) -> DataManifest:
    """Stage a data set called cifar10 in `folder`/data; `values` are of its section in the config."""
    spec = {"name": "cifar10", "checksum": "none", "validation_fraction": 0.1, "seed": 0} | values
    return stage(DatasetSpec(source=str(source), **spec), folder / "downloads", output_dir or folder / "data", address=address)


def files_under(folder: Path) -> list[str]:
    """Return the paths of all files below a folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
