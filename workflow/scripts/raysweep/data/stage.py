"""Data sets as trials see them: arrays that are memory-mapped, and a manifest that says what they are and exists only when they are complete.

    <data_dir>/{train,validation,test}/images.npy     uint8 [n, 3, height, width]
    <data_dir>/{train,validation,test}/labels.npy     int64 [n]
    <data_dir>/manifest.yaml

The validation split is taken from the training set; both keep its order.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raysweep.common.errors import ConfigError, WorldError
from raysweep.common.files import read_yaml, sha256_of_file, write_yaml, written_aside
from raysweep.data import cifar10, synthetic

logger = logging.getLogger("raysweep")

SPLITS = ("train", "validation", "test")
MANIFEST = "manifest.yaml"
IMAGE_SIZE, TEST_FRACTION = 32, 0.2  # of a folder of images, where the config does not say
OF_TEST = 2**64  # added to the seed by which a test set is drawn: another draw than that of the validation split
DIGEST_LENGTHS = {"md5": 32, "sha256": 64}  # hexadecimal digits

Arrays = tuple[np.ndarray, np.ndarray]  # images, labels


class Checksum(NamedTuple):
    algorithm: str
    digest: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digest}"

    def new_hash(self) -> Any:
        return hashlib.new(self.algorithm, usedforsecurity=False)  # else MD5 is refused where the system is set to FIPS mode


UPSTREAM = Checksum("md5", cifar10.ARCHIVE_MD5)


def read_manifest(data_dir: Path) -> dict[str, Any]:
    """What the staged data set is. Raises WorldError where none is complete."""
    if not (data_dir / MANIFEST).is_file():
        raise WorldError(f"{data_dir}: holds no complete data set (it has no {MANIFEST}). Run the rule stage_data.")
    return read_yaml(data_dir / MANIFEST)


def refuse_another(data_dir: Path, manifest: dict[str, Any], name: str, wanted: dict[str, Any]) -> None:
    """Raise WorldError where the set that is staged is not the one of the config, as where projects share a `resources_dir` and a name in it."""
    found = {**manifest, "image_size": manifest["image_shape"][-1]}
    for key in ("source", "validation_fraction", "seed", "image_size", "test_fraction"):
        if wanted[key] not in (None, found.get(key)):
            raise WorldError(
                f"{data_dir} was staged with {key} {found.get(key)!r}, and datasets.{name}.{key} is {wanted[key]!r}: if another project shares that folder, "
                f"give the set another name; else stage it anew (-R stage_data)."
            )


def load_split(data_dir: Path, split: str) -> Arrays:
    """Images, uint8 [n, 3, height, width], and labels, int64 [n], of "train", "validation" or "test".

    They are memory-mapped, so all trials of a node share one copy; copy-on-write, because torch.from_numpy wants arrays that can be written to.
    """
    if split not in SPLITS:
        raise ValueError(f"no split is called {split!r}: there are {', '.join(SPLITS)}")
    read_manifest(data_dir)
    images, labels = (np.load(data_dir / split / f"{name}.npy", mmap_mode="c") for name in ("images", "labels"))
    return images, labels


def stage(
    *,
    name: str,
    source: str,
    checksum: str,
    validation_fraction: float,
    seed: int,
    downloads_dir: Path,
    output_dir: Path,
    image_size: int | None = None,
    test_fraction: float | None = None,
    address: str = cifar10.ADDRESS,
) -> dict[str, Any]:
    """Bring the data set from `source` (download, synthetic or a path) to `output_dir`, and return its manifest. `image_size`, in pixels, and
    `test_fraction` are for a folder of images."""
    key = f"datasets.{name}"
    for fraction_key, fraction in (("validation_fraction", validation_fraction), ("test_fraction", test_fraction)):
        if fraction is not None and not 0 < fraction < 1:
            raise ConfigError(f"{key}.{fraction_key}: {fraction} is not allowed: it has to lie between 0 and 1, for instance 0.1.")
    if seed < 0:
        raise ConfigError(f"{key}.seed: {seed} is not allowed: it has to be 0 or more.")
    if _is_image_folder(source):
        parts, facts = _get_image_folder(key, source, checksum, image_size or IMAGE_SIZE)
        if "test" not in parts:
            fraction = test_fraction or TEST_FRACTION
            parts["train"], parts["test"] = _divided(*parts["train"], fraction, OF_TEST + seed, f"{key}.test_fraction", ("train", "test"))
            facts["test_fraction"] = fraction
        elif test_fraction is not None:
            raise ConfigError(
                f"{key}.test_fraction: {test_fraction} is for a folder without a folder `test`, which {source!r} has. Leave it out."
            )
    else:
        for other, value in (("image_size", image_size), ("test_fraction", test_fraction)):
            if value is not None:
                raise ConfigError(f"{key}.{other}: {value} is for a folder of images, which {source!r} is not. Leave it out.")
        parts, facts = _get(key, source, checksum, downloads_dir, address)

    where = f"{key}.validation_fraction"
    train, validation = _divided(*parts["train"], validation_fraction, seed, where, ("train", "validation"))
    splits = {"train": train, "validation": validation, "test": parts["test"]}
    images = train[0]
    with _all_or_nothing(output_dir):
        files = _write(splits, output_dir)
        manifest = {
            "name": name,
            "source": source,
            **facts,
            "image_shape": list(images.shape[1:]),
            "splits": {split: len(splits[split][1]) for split in SPLITS},
            "validation_fraction": validation_fraction,
            "seed": seed,
            "files": files,
            "data_sha256": hashlib.sha256("".join(f"{digest}  {path}\n" for path, digest in sorted(files.items())).encode()).hexdigest(),
        }
        write_yaml(output_dir / MANIFEST, manifest)
    counts = ", ".join(f"{n:,} {split}" for split, n in manifest["splits"].items())
    logger.info("%s: %s images (%s) in %s", name, counts, "synthetic" if manifest["synthetic"] else f"from {source}", output_dir)
    return manifest


def _is_image_folder(source: str) -> bool:
    """Whether that is a folder, and not one of CIFAR-10's files."""
    path = Path(source).expanduser()
    return source not in ("download", "synthetic") and path.is_dir() and not cifar10.is_its_folder(path)


def _divided(images: np.ndarray, labels: np.ndarray, fraction: float, seed: int, key: str, names: tuple[str, str]) -> tuple[Arrays, Arrays]:
    """What remains, and what is set aside."""
    aside = rows_set_aside(labels, fraction, seed)
    if not 0 < aside.sum() < len(labels):
        raise ConfigError(f"{key}: {fraction} of {len(labels)} images leaves {names[0] if aside.any() else names[1]} without any.")
    return (images[~aside], labels[~aside]), (images[aside], labels[aside])


def rows_set_aside(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which rows are set aside for validation or test, bool [n]: `fraction` of all, rounded, and of each class as near to it as that total allows.

    Rows are chosen by sorting random keys, since numpy keeps PCG64's raw output the same in all versions, but not the methods of its Generator.
    """
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * fraction
    take = np.floor(exact).astype(np.int64)
    largest_remainders = np.argsort(take - exact, kind="stable")
    take[largest_remainders[: round(len(labels) * fraction) - int(take.sum())]] += 1

    keys = np.asarray(np.random.PCG64(seed).random_raw(len(labels)))
    chosen = np.zeros(len(labels), dtype=bool)
    for label, n in zip(classes, take, strict=True):
        rows = np.flatnonzero(labels == label)
        chosen[rows[np.argsort(keys[rows], kind="stable")[:n]]] = True
    return chosen


def _get_image_folder(key: str, source: str, checksum: str, size: int) -> tuple[dict[str, Arrays], dict[str, Any]]:
    """As `_get`; "test" only where the folder has one."""
    from raysweep.data import image_folder  # needs Pillow, which trials, who import this module, may be without

    _refuse_checksum_of_folder(key, source, checksum)
    parts, classes = image_folder.read(Path(source).expanduser(), size)
    description = f"The user's own images, in {len(classes)} classes, scaled and cropped to {size} by {size} pixels."
    return parts, {"synthetic": False, "description": description, "checksum": None, "classes": classes}


def _refuse_checksum_of_folder(key: str, source: str, checksum: str) -> None:
    if checksum not in ("upstream", "none"):
        raise ConfigError(f"{key}.checksum: {checksum!r} is for an archive, but {source!r} is a folder. Allowed: upstream, none.")


def _get(key: str, source: str, checksum: str, downloads_dir: Path, address: str) -> tuple[dict[str, Arrays], dict[str, Any]]:
    """The parts "train" and "test", and what the manifest says of them: synthetic, description, checksum (the one that was verified), classes."""
    expected = _parse_checksum(key, checksum)
    path = Path(source).expanduser()
    verified = str(expected) if expected else None
    if source == "synthetic":
        if checksum not in ("upstream", "none"):
            raise ConfigError(f"{key}.checksum: {checksum!r} is for a file, but `source: synthetic` has none. Leave the key out.")
        description = "Ten classes of coloured textures, generated by this workflow: not photographs, and not CIFAR-10."
        return synthetic.generate(), {"synthetic": True, "description": description, "checksum": None, "classes": list(synthetic.CLASSES)}
    if source == "download":
        path = downloads_dir / cifar10.ARCHIVE_NAME
        if expected and path.is_file() and _digest(path, expected) == expected.digest:
            logger.info("%s: downloaded before, its checksum fits", path)
        else:
            fetch(address, path, expected)
        files = cifar10.files_of_archive(path)
    elif path.is_dir():
        _refuse_checksum_of_folder(key, source, checksum)
        files = cifar10.files_of_folder(path, verify=checksum == "upstream")
        verified = "md5 of each file, as published" if expected else None
    elif path.is_file():
        if expected:
            _refuse_other(_digest(path, expected), expected, str(path))
        files = cifar10.files_of_archive(path)
    else:
        raise ConfigError(
            f"{key}.source: {source!r} does not exist. Allowed: download, synthetic, the path of CIFAR-10's .tar.gz or extracted folder, "
            "or that of a folder of images."
        )
    parts, classes = cifar10.assemble(files, str(path))
    if checksum == "upstream":
        description = "CIFAR-10 as published: photographs of 32 by 32 pixels in ten classes."
    else:
        description = "Images in CIFAR-10's layout, which were not compared with the published ones."
    return parts, {"synthetic": False, "description": description, "checksum": verified, "classes": classes}


def _parse_checksum(key: str, text: str) -> Checksum | None:
    if text == "none":
        return None
    if text == "upstream":
        return UPSTREAM
    algorithm, _, digest = text.partition(":")
    if algorithm not in DIGEST_LENGTHS or not re.fullmatch(rf"[0-9a-fA-F]{{{DIGEST_LENGTHS[algorithm]}}}", digest):
        allowed = ", ".join(f"{a}: with {n} hexadecimal digits" for a, n in DIGEST_LENGTHS.items())
        raise ConfigError(f"{key}.checksum: {text!r} is not allowed: give upstream, none, {allowed}.")
    return Checksum(algorithm, digest.lower())


def _digest(path: Path, like: Checksum) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, like.new_hash).hexdigest()


def _refuse_other(found: str, expected: Checksum, where: str) -> None:
    if found != expected.digest:
        raise WorldError(
            f"{where}: its checksum is {expected.algorithm}:{found}, expected was {expected}. It was not unpacked: get it again, "
            "or, if you trust this very file, give its checksum in the config."
        )


def fetch(address: str, path: Path, expected: Checksum | None, timeout_s: float = 60) -> None:
    """Download `address` to `path`, which appears only when it is complete and `expected` fits."""
    logger.info("downloading %s to %s", address, path)
    with _naming(path), written_aside(path, "wb") as stream:
        digest = (expected or UPSTREAM).new_hash()
        for chunk in _chunks(address, timeout_s):
            digest.update(chunk)
            stream.write(chunk)
        if expected:
            _refuse_other(digest.hexdigest(), expected, address)


def _chunks(address: str, timeout_s: float) -> Iterator[bytes]:
    """The content at `address`, in pieces. Only what the network does wrong is caught here, not what the consumer's disk does."""
    try:
        with urllib.request.urlopen(address, timeout=timeout_s) as response:
            while chunk := response.read(2**20):
                yield chunk
            if response.length:  # what was announced and did not come
                raise http.client.IncompleteRead(b"", response.length)
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if type(error) is urllib.error.URLError else error
        raise WorldError(
            f"{address}: cannot be downloaded ({cause}). Run it again where the network is: on a cluster run `--until build_env` on a login node first; "
            "or fetch the file elsewhere, copy it here and give its path as `source:`."
        ) from error


@contextmanager
def _all_or_nothing(output_dir: Path) -> Iterator[None]:
    """Withdraw the data set that is there, and remove what was written of the new one when that fails."""
    (output_dir / MANIFEST).unlink(missing_ok=True)
    try:
        with _naming(output_dir):
            yield
    except BaseException:
        for split in SPLITS:
            shutil.rmtree(output_dir / split, ignore_errors=True)
        raise


def _write(splits: dict[str, Arrays], output_dir: Path) -> dict[str, str]:
    """Write all arrays; return the SHA-256 of each file by its path in `output_dir`."""
    files = {}
    for split, arrays in splits.items():
        for name, array in zip(("images", "labels"), arrays, strict=True):
            path, contiguous = output_dir / split / f"{name}.npy", np.ascontiguousarray(array)
            with written_aside(path, "wb") as stream:
                # Not np.save, whose error on a full disk does not say what is wrong.
                np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(contiguous))
                stream.write(contiguous.data)
            files[f"{split}/{name}.npy"] = sha256_of_file(path)
    return files


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Give an error of the system that names no file (a write to a full disk) the name of what was written."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
