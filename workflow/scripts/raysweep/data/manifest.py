"""What a data set is: the section of the config that asks for it, and the manifest of the data set that was staged."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raysweep.common.errors import WorldError
from raysweep.common.files import read_yaml

MANIFEST = "manifest.yaml"  # exists only when the data set is complete


def is_missing(source: str, root: Path) -> bool:
    """Return whether a source is a path, relative to `root`, at which nothing lies."""
    return source not in ("download", "synthetic") and not (root / Path(source).expanduser()).exists()


def missing_source_message(source: str) -> str:
    """Return the message for a source at which nothing lies: the config check and the staging say the same."""
    return f"{source!r} does not exist. Allowed: download, synthetic, the path of CIFAR-10's .tar.gz or extracted folder, or that of a folder of images"


@dataclass(frozen=True)
class DatasetSpec:
    """A section `datasets.<name>` of the config."""

    name: str
    source: str  # download, synthetic or a path
    checksum: str  # upstream, none, md5:… or sha256:…
    validation_fraction: float
    seed: int
    image_size: int | None = None  # in pixels; for a folder of images
    test_fraction: float | None = None  # for a folder of images without a folder `test`


@dataclass(frozen=True)
class DataManifest:
    """A data set that was staged, as its manifest.yaml describes it."""

    name: str
    source: str
    synthetic: bool
    description: str
    checksum: str | None  # the one that was verified
    classes: tuple[str, ...]
    image_shape: tuple[int, ...]  # channels, height, width
    splits: dict[str, int]  # number of images in train, validation and test
    validation_fraction: float
    seed: int
    files: dict[str, str]  # SHA-256 by path below the folder of the data set
    data_sha256: str  # over `files`: a part of a sweep's identity
    test_fraction: float | None = None  # None where the source has a test set of its own

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> DataManifest:
        """Return the data set that a manifest.yaml describes."""
        return cls(
            name=record["name"],
            source=record["source"],
            synthetic=record["synthetic"],
            description=record["description"],
            checksum=record["checksum"],
            classes=tuple(record["classes"]),
            image_shape=tuple(record["image_shape"]),
            splits=record["splits"],
            validation_fraction=record["validation_fraction"],
            seed=record["seed"],
            files=record["files"],
            data_sha256=record["data_sha256"],
            test_fraction=record.get("test_fraction"),
        )

    def to_record(self) -> dict[str, Any]:
        """Return what manifest.yaml holds; `test_fraction` stands there only where a test set was drawn, before `image_shape`."""
        record: dict[str, Any] = {}
        for key, value in asdict(self).items():
            if key == "image_shape" and self.test_fraction is not None:
                record["test_fraction"] = self.test_fraction
            if key != "test_fraction":
                record[key] = list(value) if isinstance(value, tuple) else value
        return record

    def check_spec(self, data_dir: Path, spec: DatasetSpec) -> None:
        """Raise WorldError where the data set staged in `data_dir` is not the one of the config.

        That happens where two projects share a `resources_dir` and a name in it.
        """
        staged = {
            "source": (self.source, spec.source),
            "validation_fraction": (self.validation_fraction, spec.validation_fraction),
            "seed": (self.seed, spec.seed),
            "image_size": (self.image_shape[-1], spec.image_size),
            "test_fraction": (self.test_fraction, spec.test_fraction),
        }
        for key, (value, wanted) in staged.items():
            if wanted not in (None, value):
                raise WorldError(
                    f"{data_dir} was staged with {key} {value!r}, and datasets.{spec.name}.{key} is {wanted!r}: if another project shares that "
                    "folder, give the set another name; else stage it anew (-R stage_data)."
                )


def read_manifest(data_dir: Path) -> DataManifest:
    """Return the manifest of the data set in `data_dir`. Raises WorldError where none is complete."""
    if not (data_dir / MANIFEST).is_file():
        raise WorldError(f"{data_dir}: holds no complete data set (it has no {MANIFEST}). Run the rule stage_data.")
    return DataManifest.from_record(read_yaml(data_dir / MANIFEST))
