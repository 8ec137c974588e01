"""CIFAR-10's "python version" (https://www.cs.toronto.edu/~kriz/cifar.html): where it is published, and how its files are read without running them.

The files are pickles, and a pickle is a program. The unpickler of this module admits only the four names that numpy's arrays need, and puts a
stand-in in the place of each, because numpy's own functions would follow a forged dtype into memory outside of the array.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from raysweep.common.errors import WorldError

# As in torchvision.datasets.CIFAR10; a test compares them.
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE_NAME = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDER = "cifar-10-batches-py"
TRAIN_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
TEST_MD5 = {"test_batch": "40351d587109b95175f43aff81a1287e"}
META_MD5 = {"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"}
FILE_MD5 = TRAIN_MD5 | TEST_MD5 | META_MD5
LAYOUT = f"CIFAR-10's python version has {', '.join(FILE_MD5)}."

IMAGE_SHAPE = (3, 32, 32)
NUM_CLASSES = 10
MAX_FILE_BYTES = 256 * 2**20  # a published batch has 31 MB; a file that claims to be much larger is not read at all


def _text(value: str | bytes) -> str:
    """Return a string of the pickle, which is bytes where Python 2 has written it."""
    return value.decode("latin1") if isinstance(value, bytes) else value


class _Dtype:
    """A stand-in for numpy.dtype that admits integer types only."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        if not re.fullmatch(r"[iu][1248]", _text(code)):
            raise pickle.UnpicklingError(f"an array of type {_text(code)!r} is not one of integers")
        self.dtype = np.dtype(_text(code))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        byte_order: Any = _text(state[1])  # the other items describe fields and sizes, which integers do not have
        self.dtype = self.dtype.newbyteorder(byte_order)


class _Array:
    """A stand-in for numpy.ndarray and for the function that makes an empty array."""

    def __init__(self, *_: object) -> None:
        self.array = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if is_fortran else "C")


def _encode(text: str, encoding: str) -> bytes:
    """Return `text` as bytes: a stand-in for _codecs.encode, by which Python 3 writes bytes for Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not one that pickle uses")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that admits containers, numbers, strings and integer arrays."""

    STAND_INS: ClassVar[dict[tuple[str, str], Any]] = {
        **{(f"{core}.multiarray", "_reconstruct"): _Array for core in ("numpy.core", "numpy._core")},  # numpy 1 and 2
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of images needs: it may run code") from None


def unpickle(data: bytes, place: str) -> dict[str, Any]:
    """Return the dict in the pickle `data`, keys as str and arrays as numpy's. Raises WorldError; `place` names the file in errors."""
    try:
        value = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(value, dict):
            raise pickle.UnpicklingError(f"it holds a {type(value).__name__}, not a dict")
        return {_text(key): item.array if isinstance(item, _Array) else item for key, item in value.items()}
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise WorldError(f"{place}: not a file of CIFAR-10: {str(error) or type(error).__name__}. Get the data set again.") from error


def _read_batch(data: bytes, place: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 [n, 3, 32, 32], and the labels, int64 [n], of a batch. Raises WorldError where the file is not a batch."""
    batch = unpickle(data, place)
    if missing := {"data", "labels"} - batch.keys():
        raise WorldError(f"{place}: holds no {' and no '.join(map(repr, sorted(missing)))}; a batch of CIFAR-10 has both.")
    images, width = batch["data"], int(np.prod(IMAGE_SHAPE))
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != width or not len(images):
        description = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise WorldError(f"{place}: 'data' is {description}; it has to be uint8 [n, {width}] with n of 1 or more.")
    labels = np.asarray(batch["labels"]) if isinstance(batch["labels"], np.ndarray | list) else np.empty(0)
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise WorldError(f"{place}: 'labels' has to be {len(images)} integers, one an image.")
    if labels.min() < 0 or labels.max() >= NUM_CLASSES:
        raise WorldError(f"{place}: has labels from {labels.min()} to {labels.max()}; they have to be 0 to {NUM_CLASSES - 1}.")
    return images.reshape(-1, *IMAGE_SHAPE), labels.astype(np.int64)


def _read_classes(data: bytes, place: str) -> list[str]:
    """Return the names of the classes. Raises WorldError where the file does not hold them."""
    names = unpickle(data, place).get("label_names")
    if not isinstance(names, list) or len(names) != NUM_CLASSES or not all(isinstance(name, str | bytes) for name in names):
        raise WorldError(f"{place}: 'label_names' has to be a list of {NUM_CLASSES} names.")
    return [_text(name) for name in names]


def is_cifar_folder(folder: Path) -> bool:
    """Return whether a folder is, by the names in it, the extracted data set or the folder around it."""
    return (folder / FOLDER).is_dir() or any((folder / name).exists() for name in FILE_MD5)


def files_of_folder(folder: Path, verify: bool = False) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file of the extracted data set; `folder` is its folder or the folder around it.

    Raises WorldError, with `verify` also for a file whose MD5 is not the published one, before its content is yielded.
    """
    if (folder / FOLDER).is_dir():
        folder = folder / FOLDER
    for name, md5 in FILE_MD5.items():
        path = folder / name
        if not path.is_file():
            raise WorldError(f"{folder}: has no file {name}. {LAYOUT}")
        _refuse_large(path.stat().st_size, str(path))
        data = path.read_bytes()
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if verify and digest != md5:
            raise WorldError(
                f"{path}: its MD5 is {digest}, that of the published file is {md5}. Get the data set again, or, if you trust this folder, set `checksum: none`."
            )
        yield name, data


def files_of_archive(archive_path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each of the data set's files in the .tar.gz, in the order of the archive; nothing is extracted to the disk."""
    try:
        with gzip.open(archive_path) as unzipped, tarfile.open(fileobj=unzipped, mode="r|") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
                    raise WorldError(
                        f"{archive_path}: its member {member.name!r} leaves the folder or is no plain file. The archive is not to be trusted: get it again."
                    )
                if member.isreg() and path.name in FILE_MD5:
                    _refuse_large(member.size, f"{archive_path}: {member.name}")
                    content = archive.extractfile(member)
                    assert content is not None
                    yield path.name, content.read()
            while unzipped.read(2**20):  # gzip compares its checksum only at the end of the file
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise WorldError(f"{archive_path}: not a whole .tar.gz archive ({error}). Get it again: it was cut short or altered.") from error


def _refuse_large(num_bytes: int, place: str) -> None:
    """Raise WorldError for a file that is too large to be one of CIFAR-10's."""
    if num_bytes > MAX_FILE_BYTES:
        raise WorldError(f"{place}: has {num_bytes:,} bytes; a file of CIFAR-10 has at most {MAX_FILE_BYTES:,}. Get the data set again.")


def assemble(files: Iterable[tuple[str, bytes]], place: str) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """Return the parts "train" and "test" and the names of the classes, from the data set's files, given as name and content in any order.

    A part is images, uint8 [n, 3, 32, 32], and labels, int64 [n], in the published order. Raises WorldError where a file is missing.
    """
    batches: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    classes: list[str] = []
    for name, data in files:
        if name in META_MD5:
            classes = _read_classes(data, f"{place}: {name}")
        else:
            batches[name] = _read_batch(data, f"{place}: {name}")
    if missing := [name for name in FILE_MD5 if name not in batches and not (name in META_MD5 and classes)]:
        raise WorldError(f"{place}: has no file {', '.join(missing)}. {LAYOUT}")
    parts = {}
    for part, names in (("train", TRAIN_MD5), ("test", TEST_MD5)):
        images, labels = zip(*(batches.pop(name) for name in names), strict=True)
        parts[part] = np.concatenate(images), np.concatenate(labels)
    return parts, classes
