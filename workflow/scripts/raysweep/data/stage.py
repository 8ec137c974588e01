"""Stages a data set. Staging fetches or generates the data set, verifies and splits the data set, and writes arrays, which trials map into memory.

    <data_dir>/{train,validation,test}/images.npy     the inputs: images, uint8 [n, 3, height, width], or the rows of arrays, [n, …]
    <data_dir>/{train,validation,test}/labels.npy     the targets: labels, int64 [n], or the numbers of a regression, float64 [n]
    <data_dir>/manifest.yaml
    <data_dir>/fold-1/, …                             the same files for fold 1 and each later fold; the files above are those of fold 0

The validation split is sampled from the training set. In both splits the rows keep the order of the training set.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from raysweep.common.errors import ConfigError, logger
from raysweep.common.files import disk_errors_name, sha256_of_file, write_yaml, written_aside
from raysweep.common.typed_json import to_json
from raysweep.data import arrays, cifar10, synthetic
from raysweep.data.columns import Raw, encode, figures_of_table, fit
from raysweep.data.division import Division, divide, test_fraction_of
from raysweep.data.download import Checksum, fetch, parse_checksum
from raysweep.data.figures import figures_of
from raysweep.data.manifest import MANIFEST, Column, DataManifest, DatasetSpec, Figures, is_function, is_table, missing_source_message
from raysweep.data.mapped import Inputs, blocks_of
from raysweep.data.split import SPLITS, Arrays, fold_dir

IMAGE_SIZE = 32  # default side of the images of a folder, in pixels

UPSTREAM = Checksum("md5", cifar10.ARCHIVE_MD5)


@dataclass(frozen=True)
class Source:
    """Contains a data set before the validation split is sampled."""

    parts: Mapping[str, Arrays]  # arrays by split: "train", and "test" unless the user's own data have no test split
    synthetic: bool
    description: str
    checksum: str | None  # the checksum that was verified; None where no checksum was verified
    classes: tuple[str, ...]  # empty for a regression
    kind: Literal["arrays", "table"] | None = None
    raws: Sequence[Raw] = ()  # columns of a table
    groups: np.ndarray | None = None  # number of the group of each row of "train", int64 [n]; None without groups

    @property
    def noun(self) -> str:
        """Return the word for the rows of the data set in messages."""
        return "rows" if self.kind else "images"


def stage(spec: DatasetSpec, downloads_dir: Path, output_dir: Path, *, address: str = cifar10.ADDRESS) -> DataManifest:
    """Write the data set that `spec` describes to `output_dir`, and return its manifest.

    Raises ConfigError or WorldError, with one line. An earlier data set in `output_dir` stays where the error occurs before the new arrays are written.
    """
    _check_values(spec)
    scratch = output_dir.with_name(f".{output_dir.name}.unpacked")
    try:
        source = _read_source(spec, downloads_dir, address, scratch)
        division = divide(spec, source.parts, source.classes, source.groups)
        columns_of_folds = _fitted(spec, source, division)
        with _all_or_nothing(output_dir):
            manifest = _write_folds(spec, source, division, columns_of_folds, output_dir)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    counts = ", ".join(f"{count:,} {split}" for split, count in manifest.splits.items())
    size_mb = sum((output_dir / path).stat().st_size for path in manifest.files) / 1e6
    folds = f" in fold 0 of {spec.folds}, {size_mb:,.1f} MB in all" if spec.folds else ""
    origin = "synthetic" if source.synthetic else f"from {spec.source}"
    logger.info("%s: %s %s%s (%s) in %s", spec.name, counts, source.noun, folds, origin, output_dir)
    return manifest


def _check_values(spec: DatasetSpec) -> None:
    """Raise ConfigError for a fraction or a seed outside its range."""
    for key in ("validation_fraction", "test_fraction"):
        fraction = getattr(spec, key)
        if fraction is not None and not 0 < fraction < 1:
            raise ConfigError(f"datasets.{spec.name}.{key}: {fraction} is not allowed: it has to lie between 0 and 1, for instance 0.1.")
    if spec.seed < 0:
        raise ConfigError(f"datasets.{spec.name}.seed: {spec.seed} is not allowed: it has to be 0 or more.")


# ---------------------------------------------------------------------------------------------------------------- sources


def _read_source(spec: DatasetSpec, downloads_dir: Path, address: str, scratch: Path) -> Source:
    """Return the data set that `spec` describes. Temporary files are written to the folder `scratch`."""
    if is_function(spec.source) or (
        spec.source not in ("download", "synthetic") and arrays.is_array_source(Path(spec.source).expanduser())
    ):
        return _read_arrays(spec, scratch)
    if is_table(spec.source) and Path(spec.source).expanduser().is_file():
        return _read_table(spec)
    if Path(spec.source).suffix == ".npy":
        raise ConfigError(
            f"datasets.{spec.name}.source: {spec.source!r} is one array. Allowed: a folder with x.npy and y.npy, or a .npz file."
        )
    for key, value in (("task", spec.task), ("group", spec.group), ("split", spec.split)):
        if value not in (None, "classification", "random"):
            raise ConfigError(
                f"datasets.{spec.name}.{key}: {value} is for arrays, tables and functions, which {spec.source!r} is not. Leave it out."
            )
    return _read_image_folder(spec) if _is_image_folder(spec.source) else _read_cifar_or_synthetic(spec, downloads_dir, address)


def _read_arrays(spec: DatasetSpec, scratch: Path) -> Source:
    """Return the user's own arrays. The result has the split "test" only where the source contains a test part."""
    path = Path(spec.source).expanduser()
    if is_function(spec.source):
        from raysweep.data import function  # This import is here because the function runs only in the environment of the trials.

        path = scratch / "returned"
        function.save_arrays(spec.source, path)
    checksum = _verified_checksum(spec, path)
    parts, classes, groups = arrays.read(path, spec.task, scratch, spec.source, spec.group)
    _refuse_second_test_part(spec, parts)
    sizes = ", ".join(map(str, parts["train"][0].shape[1:]))
    targets = f"{len(classes)} classes" if classes else "numbers as targets"
    description = f"The user's own arrays: {parts['train'][0].dtype} [n, {sizes}], with {targets}."
    return Source(parts, False, description, checksum, classes, kind="arrays", groups=groups)


def _read_table(spec: DatasetSpec) -> Source:
    """Return the user's own table, which has no test part. The columns are converted when the training rows are known."""
    from raysweep.data import table  # This import is here because the module imports pandas, which only the environment of the trials has.

    path, key = Path(spec.source).expanduser(), f"datasets.{spec.name}"
    assert spec.target is not None  # The checks of the config require the target of a table.
    checksum = _verified_checksum(spec, path)
    part, classes, raws, groups = table.read(path, spec.target, spec.task, key, spec.group)
    num_texts = sum(1 for raw in raws if raw.categories)
    description = f"The user's own table: {spec.target} from {len(raws)} columns, {num_texts} of them text."
    return Source({"train": part}, False, description, checksum, classes, kind="table", raws=raws, groups=groups)


def _verified_checksum(spec: DatasetSpec, path: Path) -> str | None:
    """Return the checksum that the config has for the user's own arrays or table, after the comparison with the file, or None."""
    if spec.image_size is not None:
        raise ConfigError(
            f"datasets.{spec.name}.image_size: {spec.image_size} is for a folder of images, which {spec.source!r} is not. Leave it out."
        )
    if path.is_dir():
        _refuse_checksum_of_folder(spec)
    elif spec.checksum != "upstream" and (checksum := parse_checksum(f"datasets.{spec.name}", spec.checksum, UPSTREAM)):
        checksum.check(checksum.digest_of(path), str(path))
        return str(checksum)
    return None


def _refuse_second_test_part(spec: DatasetSpec, parts: Mapping[str, Arrays]) -> None:
    """Raise ConfigError where the config has a `test_fraction` but the source already contains a test part."""
    if "test" in parts and spec.test_fraction is not None:
        raise ConfigError(
            f"datasets.{spec.name}.test_fraction: {spec.test_fraction} is for a source without a test part, which {spec.source!r} has. Leave it out."
        )


def _is_image_folder(source: str) -> bool:
    """Return whether `source` is a folder that does not contain CIFAR-10's files."""
    path = Path(source).expanduser()
    return source not in ("download", "synthetic") and path.is_dir() and not cifar10.is_cifar_folder(path)


def _read_image_folder(spec: DatasetSpec) -> Source:
    """Return the user's own images. The result has the split "test" only where the source contains a folder of the test split."""
    from raysweep.data import image_folder  # This import is here because the module imports Pillow, which other sources do not need.

    _refuse_checksum_of_folder(spec)
    size = spec.image_size or IMAGE_SIZE
    parts, classes = image_folder.read(Path(spec.source).expanduser(), size)
    _refuse_second_test_part(spec, parts)
    description = f"The user's own images, in {len(classes)} classes, scaled and cropped to {size} by {size} pixels."
    return Source(parts, synthetic=False, description=description, checksum=None, classes=tuple(classes))


def _refuse_checksum_of_folder(spec: DatasetSpec) -> None:
    """Raise ConfigError where the config contains the checksum of a file but the source is a folder or a function."""
    if spec.checksum not in ("upstream", "none"):
        raise ConfigError(
            f"datasets.{spec.name}.checksum: {spec.checksum!r} is for a file, but {spec.source!r} is none. Allowed: upstream, none."
        )


def _read_cifar_or_synthetic(spec: DatasetSpec, downloads_dir: Path, address: str) -> Source:
    """Return a data set in CIFAR-10's layout or the generated data set. Both contain the splits "train" and "test"."""
    for key, value in (("image_size", spec.image_size), ("test_fraction", spec.test_fraction)):
        if value is not None:
            raise ConfigError(f"datasets.{spec.name}.{key}: {value} is for a folder of images, which {spec.source!r} is not. Leave it out.")
    expected = parse_checksum(f"datasets.{spec.name}", spec.checksum, UPSTREAM)
    if spec.source == "synthetic":
        return _generate(spec)
    files, place = _cifar_files(spec, expected, downloads_dir, address)
    parts, classes = cifar10.assemble(files, str(place))
    if spec.checksum == "upstream":
        description = "CIFAR-10 as published: photographs of 32 by 32 pixels in ten classes."
    else:
        description = "Images in CIFAR-10's layout, which were not compared with the published ones."
    verified = str(expected) if expected else None
    if expected and place.is_dir():
        verified = "md5 of each file, as published"
    return Source(parts, synthetic=False, description=description, checksum=verified, classes=tuple(classes))


def _generate(spec: DatasetSpec) -> Source:
    """Return the generated data set."""
    if spec.checksum not in ("upstream", "none"):
        raise ConfigError(
            f"datasets.{spec.name}.checksum: {spec.checksum!r} is for a file, but `source: synthetic` has none. Leave the key out."
        )
    description = "Ten classes of coloured textures, generated by this workflow: not photographs, and not CIFAR-10."
    return Source(synthetic.generate(), synthetic=True, description=description, checksum=None, classes=tuple(synthetic.CLASSES))


def _cifar_files(
    spec: DatasetSpec, expected: Checksum | None, downloads_dir: Path, address: str
) -> tuple[Iterator[tuple[str, bytes]], Path]:
    """Return the names and contents of CIFAR-10's files, and the path of their archive or folder.

    With `source: download` the archive is downloaded first. An archive is compared with the `expected` checksum before any file is returned.
    """
    path = Path(spec.source).expanduser()
    if spec.source == "download":
        path = downloads_dir / cifar10.ARCHIVE_NAME
        if expected and path.is_file() and expected.digest_of(path) == expected.digest:
            logger.info("%s: downloaded before, its checksum fits", path)
        else:
            fetch(address, path, expected)
        return cifar10.files_of_archive(path), path
    if path.is_dir():
        _refuse_checksum_of_folder(spec)
        return cifar10.files_of_folder(path, verify=spec.checksum == "upstream"), path
    if path.is_file():
        if expected:
            expected.check(expected.digest_of(path), str(path))
        return cifar10.files_of_archive(path), path
    raise ConfigError(f"datasets.{spec.name}.source: {missing_source_message(spec.source)}.")


# ---------------------------------------------------------------------------------------------------------------- output


@contextmanager
def _all_or_nothing(output_dir: Path) -> Iterator[None]:
    """Remove the manifest and the folds after fold 0 in `output_dir`, and remove all arrays in `output_dir` where writing the new data set fails.

    A data set without a manifest counts as incomplete, so no trial reads a mixture of the earlier data set and the new data set.
    """
    (output_dir / MANIFEST).unlink(missing_ok=True)
    _remove_folds(output_dir)
    try:
        with disk_errors_name(output_dir):
            yield
    except BaseException:
        for split in SPLITS:
            shutil.rmtree(output_dir / split, ignore_errors=True)
        _remove_folds(output_dir)
        raise


def _remove_folds(output_dir: Path) -> None:
    for folder in output_dir.glob("fold-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _fitted(spec: DatasetSpec, source: Source, division: Division) -> list[tuple[Column, ...]]:
    """Return how the columns of a table are converted, for each fold. The tuples are empty where the source is no table."""
    if not source.raws:
        return [()] * len(division.validation)
    rest, test = np.asarray(division.rest[0]), np.asarray(division.test[0])
    num_missing = np.isnan(rest).sum(0) + np.isnan(test).sum(0)
    return [fit(source.raws, rest[~mask], num_missing, spec.source) for mask in division.validation]


def _encoded(source: Source, columns: tuple[Column, ...], splits: dict[str, Arrays]) -> dict[str, Arrays]:
    """Return the splits of a table with the inputs of a model. All other splits are returned as they are."""
    if not columns:
        return splits
    return {split: (encode(source.raws, columns, np.asarray(inputs)), targets) for split, (inputs, targets) in splits.items()}


def _write_folds(
    spec: DatasetSpec, source: Source, division: Division, columns_of_folds: Sequence[tuple[Column, ...]], output_dir: Path
) -> DataManifest:
    """Write the arrays and the manifest of each fold, and return the manifest of the data set.

    This manifest lists the files of all folds, and is written last. The manifest of a later fold lists the files of this fold.
    """
    files: dict[str, str] = {}
    for fold, columns in reversed(list(enumerate(columns_of_folds))):
        folder = fold_dir(output_dir, fold)
        splits = _encoded(source, columns, division.splits(fold))
        written = _write(splits, folder)
        manifest = _manifest(spec, source, splits, columns, written if fold else files | written)
        write_yaml(folder / MANIFEST, to_json(manifest))
        files |= {f"{folder.name}/{path}": digest for path, digest in written.items()}
    return manifest


def _manifest(
    spec: DatasetSpec, source: Source, splits: dict[str, Arrays], columns: tuple[Column, ...], files: dict[str, str]
) -> DataManifest:
    """Return the manifest of written arrays. `files` has the SHA-256 of each file."""
    inputs, targets = splits["train"]
    place = f"{spec.name}: inputs"
    if columns:
        figures: Figures | None = figures_of_table(columns, np.asarray(inputs), place)
    else:
        figures = None if inputs.dtype == np.uint8 else figures_of(inputs, place)
    listing = "".join(f"{digest}  {path}\n" for path, digest in sorted(files.items()))
    return DataManifest(
        name=spec.name,
        source=spec.source,
        synthetic=source.synthetic,
        description=source.description,
        checksum=source.checksum,
        classes=source.classes,
        kind=source.kind,
        image_shape=inputs.shape[1:],
        inputs=figures,
        target=None if source.classes else figures_of(targets[:, None], f"{spec.name}: target"),
        columns=columns,
        target_column=spec.target,
        splits={split: len(splits[split][1]) for split in SPLITS},
        validation_fraction=None if spec.folds else spec.validation_fraction,
        folds=spec.folds,
        group=spec.group,
        split=None if spec.split == "random" else spec.split,
        seed=spec.seed,
        files=files,
        data_sha256=hashlib.sha256(listing.encode()).hexdigest(),
        test_fraction=None if "test" in source.parts else test_fraction_of(spec),
    )


def _write(splits: dict[str, Arrays], output_dir: Path) -> dict[str, str]:
    """Write the arrays of all splits and return the SHA-256 of each file by its path relative to `output_dir`."""
    files = {}
    for split, arrays_of_split in splits.items():
        for name, array in zip(("images", "labels"), arrays_of_split, strict=True):
            path = output_dir / split / f"{name}.npy"
            _write_array(path, array)
            files[f"{split}/{name}.npy"] = sha256_of_file(path)
    return files


def _write_array(path: Path, array: Inputs) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    with written_aside(path, "wb") as stream:
        # np.save is not used, because its error on a full disk does not name the cause.
        np.lib.format.write_array_header_1_0(stream, header)
        for block in blocks_of(array):
            stream.write(block.data)
