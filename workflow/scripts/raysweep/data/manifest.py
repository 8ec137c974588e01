"""Defines the section of the config that describes a data set, and the manifest of the data set that was staged."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from raysweep.common.errors import WorldError
from raysweep.common.typed_json import OMIT_IF_EMPTY, Extensible, read_yaml_as

MANIFEST = "manifest.yaml"  # This file exists only when the data set is complete.

Task = Literal["classification", "regression"]
TABLE_ENDINGS = (".csv", ".parquet")


def is_table(source: str) -> bool:
    """Return whether `source` is the path of a table."""
    return Path(source).suffix in TABLE_ENDINGS


def is_function(source: str) -> bool:
    """Return whether `source` names a function of the user's own, as `path/to/file.py:function`."""
    return ".py:" in source


def needs_packages(source: str) -> bool:
    """Return whether the data set is staged in the environment of the trials, because staging needs packages of this environment."""
    return is_table(source) or is_function(source)


def is_missing(source: str, root: Path) -> bool:
    """Return whether `source` is a path at which no file or folder exists. A relative path starts at `root`."""
    return source not in ("download", "synthetic") and not (root / Path(source).expanduser()).exists()


def missing_source_message(source: str) -> str:
    """Return the error message for a source path that does not exist. The config check and the staging both use this message."""
    return (
        f"{source!r} does not exist. Allowed: download, synthetic, the path of CIFAR-10's .tar.gz or extracted folder, of a folder of images, "
        "of arrays (.npz, or a folder of .npy), or of a table (.csv or .parquet), or path/to/file.py:function"
    )


@dataclass(frozen=True)
class Validation:
    """Describes how the validation rows are chosen where the config has no `validation_fraction`."""

    folds: int  # Each row is a validation row of exactly one of the folds.


@dataclass(frozen=True)
class DatasetSpec:
    """Contains a section `datasets.<name>` of the config."""

    name: str
    source: str  # download, synthetic or a path
    checksum: str  # upstream, none, md5:… or sha256:…
    validation_fraction: float
    seed: int
    image_size: int | None = None  # side of the square images in pixels; only allowed for a folder of images
    test_fraction: float | None = None  # only allowed for a source without a test part
    task: Task | None = None  # None: the targets of the data set decide
    target: str | None = None  # column of a table that the model predicts
    group: str | None = None  # column or array; rows with equal values stay in one part
    split: Literal["random", "time"] = "random"  # time: the rows are in the order of time, and the last rows are set aside
    validation: Validation | None = None

    @property
    def folds(self) -> int | None:
        """Return the number of folds, or None where one part of the rows is set aside for validation."""
        return self.validation.folds if self.validation else None


@dataclass(frozen=True)
class Figures:
    """Contains the mean and the standard deviation of values in the training part. The tuples have one number for each column or channel."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]  # 1 where all values of a column are equal


@dataclass(frozen=True)
class Column:
    """Describes how a column of a table was converted to inputs of a model."""

    name: str
    fill: float | str  # the value that replaces missing values: the mean or the most frequent text of the training part
    missing: int = 0  # number of missing values in all rows
    categories: tuple[str, ...] = field(default=(), metadata=OMIT_IF_EMPTY)  # texts of the training part; empty for a column of numbers


@dataclass(frozen=True, kw_only=True)
class DataManifest(Extensible):
    """Describes a data set that was staged, as its manifest.yaml does."""

    name: str
    source: str
    synthetic: bool
    description: str
    checksum: str | None  # the checksum that was verified; None where no checksum was verified
    classes: tuple[str, ...]
    # None where the source already contains a test split; the manifest then lacks this key
    test_fraction: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    # None for images of CIFAR-10, of a folder, or generated.
    kind: Literal["arrays", "table"] | None = field(default=None, metadata=OMIT_IF_EMPTY)
    image_shape: tuple[int, ...]  # shape of one row of the inputs; for images (channels, height, width), the last two in pixels
    inputs: Figures | None = field(default=None, metadata=OMIT_IF_EMPTY)  # figures of float inputs; None for uint8
    target: Figures | None = field(default=None, metadata=OMIT_IF_EMPTY)  # figures of the target of a regression; None for classes
    columns: tuple[Column, ...] = field(default=(), metadata=OMIT_IF_EMPTY)  # columns of a table, without the target
    target_column: str | None = field(default=None, metadata=OMIT_IF_EMPTY)
    splits: dict[str, int]  # number of rows by split
    validation_fraction: float | None = field(default=None, metadata=OMIT_IF_EMPTY)  # None where the data set has folds
    folds: int | None = field(default=None, metadata=OMIT_IF_EMPTY)
    group: str | None = field(default=None, metadata=OMIT_IF_EMPTY)
    split: Literal["time"] | None = field(default=None, metadata=OMIT_IF_EMPTY)  # None: random
    seed: int
    files: dict[str, str]  # SHA-256 of each file by its path, which is relative to the folder of the data set
    data_sha256: str  # SHA-256 of the list in `files`; this digest is part of a sweep's identity

    @property
    def task(self) -> Task:
        """Return whether the targets are classes or numbers."""
        return "classification" if self.target is None else "regression"

    def check_spec(self, data_dir: Path, spec: DatasetSpec) -> None:
        """Raise WorldError where the data set staged in `data_dir` differs from the data set that the config describes.

        This difference occurs where two projects share a `resources_dir` and both use one name for different data sets.
        """
        staged = {
            "source": (self.source, spec.source),
            "validation_fraction": (self.validation_fraction, None if spec.folds else spec.validation_fraction),
            "validation.folds": (self.folds, spec.folds),
            "group": (self.group, spec.group),
            "split": (self.split or "random", spec.split),
            "seed": (self.seed, spec.seed),
            "image_size": (self.image_shape[-1], spec.image_size),
            "test_fraction": (self.test_fraction, spec.test_fraction),
            "task": (self.task, spec.task),
            "target": (self.target_column, spec.target),
        }
        for key, (value, wanted) in staged.items():
            if wanted != value and (wanted is not None or key in ("validation.folds", "group")):
                raise WorldError(
                    f"{data_dir} was staged with {key} {value!r}, and datasets.{spec.name}.{key} is {wanted!r}: if another project shares that "
                    "folder, give the set another name; else stage it anew (-R stage_data)."
                )


def read_manifest(data_dir: Path) -> DataManifest:
    """Return the manifest of the data set in `data_dir`. Raises WorldError where `data_dir` contains no complete data set."""
    if not (data_dir / MANIFEST).is_file():
        raise WorldError(f"{data_dir}: holds no complete data set (it has no {MANIFEST}). Run the rule stage_data.")
    return read_yaml_as(DataManifest, data_dir / MANIFEST)
