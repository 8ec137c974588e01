"""Reads CIFAR-10's "python version" (https://www.cs.toronto.edu/~kriz/cifar.html) without running code from the files of the data set.

The files are pickles, and loading a pickle can run any code. The unpickler of this module allows only the names that numpy's arrays need. For each of
these names the unpickler uses a stand-in, because numpy's functions would read memory outside the array for a forged dtype. A header or a pickle may
claim a false size. This module compares a claimed size with the largest size in CIFAR-10's format before memory of this size is allocated.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import pickletools
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from raysweep.common.errors import WorldError

# The address, the names and the MD5 digests are those in torchvision.datasets.CIFAR10. A test compares the values.
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
MAX_FILE_BYTES = 256 * 2**20  # A published batch has 31 MB. A file that claims to be larger than this limit is not read.
# Largest size of the unpacked archive in bytes. This size is enough for all files of the data set and for one more file, which covers other members.
MAX_ARCHIVE_BYTES = (len(FILE_MD5) + 1) * MAX_FILE_BYTES
READ_BYTES = 2**20  # Largest number of bytes that one call reads. The header of a member, with a long name, is never larger.
MAX_REASON_CHARACTERS = 200  # Largest length of an error's text in a message, because a damaged pickle can make this text very long.
OPCODES = {opcode.code.encode("latin1"): opcode for opcode in pickletools.opcodes}


def _text(value: str | bytes) -> str:
    """Return a string of the pickle as str. The pickle contains bytes where Python 2 has written the string."""
    return value.decode("latin1") if isinstance(value, bytes) else value


class _Dtype:
    """Replaces numpy.dtype in a pickle and allows integer types only."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        if not re.fullmatch(r"[iu][1248]", _text(code)):
            raise pickle.UnpicklingError(f"an array of type {_text(code)!r} is not one of integers")
        self.dtype = np.dtype(_text(code))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        byte_order: Any = _text(state[1])  # The other items of `state` describe fields and sizes, which integer types do not have.
        self.dtype = self.dtype.newbyteorder(byte_order)


class _Array:
    """Replaces numpy.ndarray, and the function that makes an empty array, in a pickle."""

    def __init__(self, *_: object) -> None:
        self.array = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if is_fortran else "C")


class _ArrayUnpickler(pickle.Unpickler):
    """Loads a pickle that consists of containers, numbers, strings and integer arrays, and raises UnpicklingError for all other objects."""

    STAND_INS: ClassVar[dict[tuple[str, str], Any]] = {
        **{(f"{core}.multiarray", "_reconstruct"): _Array for core in ("numpy.core", "numpy._core")},  # names in numpy 1 and numpy 2
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
    }

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        # A pickle contains each text that it encodes. A pickle that encodes more bytes than its own size therefore encodes one text many times.
        self.num_bytes_to_encode = len(data)

    def encode(self, text: str, encoding: str) -> bytes:
        """Return `text` as bytes. This method replaces _codecs.encode, which Python 3 uses in pickles that Python 2 can read."""
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"the encoding {encoding!r} is not one that pickle uses")
        self.num_bytes_to_encode -= len(text)
        if self.num_bytes_to_encode < 0:
            raise pickle.UnpicklingError("it encodes more text than it holds")
        return text.encode("latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self.encode
        try:
            return self.STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of images needs: it may run code") from None


def _refuse_claims(data: bytes) -> None:
    """Raise UnpicklingError or ValueError for a pickle that claims a larger size, or a larger index in the memo, than its number of bytes allows.

    Without this check the unpickler would allocate the claimed memory. An index of 4 bytes in the memo can make the unpickler allocate 32 GiB.
    """
    stream = io.BytesIO(data)
    while code := stream.read(1):
        opcode = OPCODES.get(code)
        if opcode is None:
            raise pickle.UnpicklingError(f"{code!r} is no opcode of a pickle")
        value: Any = None
        if opcode.arg is pickletools.stringnl:
            stream.readline()  # The reader of pickletools would raise an error for a string of Python 2 that is not ASCII.
        elif opcode.arg is not None:
            value = opcode.arg.reader(stream)
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and value > len(data):
            raise pickle.UnpicklingError(f"it claims {value:,} places in the memo and has {len(data):,} bytes")
        if opcode.name == "STOP":
            return


def unpickle(data: bytes, place: str) -> dict[str, Any]:
    """Return the dict in the pickle `data`, with str keys and numpy arrays.

    Raises WorldError where `data` is damaged, contains code, or is not a dict. `place` is the name of the file in the error.
    """
    try:
        _refuse_claims(data)
        value = _ArrayUnpickler(data).load()
        if not isinstance(value, dict):
            raise pickle.UnpicklingError(f"it holds a {type(value).__name__}, not a dict")
        return {_text(key): item.array if isinstance(item, _Array) else item for key, item in value.items()}
    except Exception as error:  # A damaged pickle can raise nearly every type of exception.
        reason = " ".join(str(error)[:MAX_REASON_CHARACTERS].split()) or type(error).__name__
        raise WorldError(f"{place}: not a file of CIFAR-10: {reason}. Get the data set again.") from error


def _read_batch(data: bytes, place: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 [n, 3, 32, 32], and the labels, int64 [n], of a batch file. Raises WorldError where `data` is not a batch."""
    batch = unpickle(data, place)
    if missing := {"data", "labels"} - batch.keys():
        raise WorldError(f"{place}: holds no {' and no '.join(map(repr, sorted(missing)))}; a batch of CIFAR-10 has both.")
    images, width = batch["data"], int(np.prod(IMAGE_SHAPE))
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != width or not len(images):
        description = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise WorldError(f"{place}: 'data' is {description}; it has to be uint8 [n, {width}] with n of 1 or more.")
    return images.reshape(-1, *IMAGE_SHAPE), _read_labels(batch["labels"], len(images), place)


def _read_labels(labels: Any, num_images: int, place: str) -> np.ndarray:
    """Return the labels of a batch, int64 [num_images]. Raises WorldError, which says why the labels are wrong.

    Each label is checked before numpy receives the list, because numpy raises an error for a ragged list, and because numpy makes a huge array of a
    list that contains itself.
    """
    needed = f"'labels' has to be {num_images:,} integers from 0 to {NUM_CLASSES - 1}, one an image"
    if isinstance(labels, np.ndarray) and labels.ndim == 1:
        labels = labels.tolist()  # All arrays of this unpickler contain integers only.
    if not isinstance(labels, list):
        raise WorldError(f"{place}: {needed}; it is {_description_of(labels)}. Get the data set again.")
    for row, label in enumerate(labels):
        if type(label) is not int:
            raise WorldError(f"{place}: {needed}; label {row} is {_description_of(label)}. Get the data set again.")
    if len(labels) != num_images:
        raise WorldError(f"{place}: {needed}; it has {len(labels):,}. Get the data set again.")
    if min(labels) < 0 or max(labels) >= NUM_CLASSES:
        raise WorldError(f"{place}: {needed}; it has labels from {min(labels)} to {max(labels)}. Get the data set again.")
    return np.asarray(labels, np.int64)


def _description_of(value: Any) -> str:
    """Return the type of a value of a pickle as text. For an array, or a stand-in for an array, the text also contains the shape."""
    array = value.array if isinstance(value, _Array) else value
    return f"an array {array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else f"of type {type(value).__name__}"


def _read_classes(data: bytes, place: str) -> list[str]:
    """Return the names of the classes. Raises WorldError where the file does not contain these names."""
    names = unpickle(data, place).get("label_names")
    if not isinstance(names, list) or len(names) != NUM_CLASSES or not all(isinstance(name, str | bytes) for name in names):
        raise WorldError(f"{place}: 'label_names' has to be a list of {NUM_CLASSES} names.")
    return [_text(name) for name in names]


def is_cifar_folder(folder: Path) -> bool:
    """Return whether `folder` is the extracted data set, or contains the extracted data set, by the names of the files in `folder`."""
    return (folder / FOLDER).is_dir() or any((folder / name).exists() for name in FILE_MD5)


def files_of_folder(folder: Path, verify: bool = False) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each file of the extracted data set, which is `folder` or lies in `folder`.

    Raises WorldError where a file is missing or too large. With `verify` a file whose MD5 differs from the published MD5 also raises WorldError, before
    the content of this file is yielded.
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
    """Yield the name and the content of each file of the data set in a .tar.gz archive, in the order of the archive.

    No file is extracted to the disk. Raises WorldError where the archive is damaged or is not an archive of CIFAR-10.
    """
    try:
        with (
            gzip.open(archive_path) as unzipped,
            _BoundedReader(unzipped, archive_path) as reader,
            tarfile.open(fileobj=reader, mode="r:") as archive,
        ):
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
                    yield path.name, b"".join(iter(partial(content.read, READ_BYTES), b""))
            while reader.read(READ_BYTES):  # The loop reads to the end of the file, because gzip compares its checksum only there.
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, UnicodeError) as error:
        raise WorldError(f"{archive_path}: not a whole .tar.gz archive ({error}). Get it again: it was cut short or altered.") from error


class _BoundedReader(io.BufferedIOBase):
    """Reads an unzipped archive and raises WorldError for sizes that no archive of CIFAR-10 has.

    tarfile reads the header of a long name in one call, whatever size the header claims. A small .gz file can unpack to terabytes.
    """

    def __init__(self, unzipped: gzip.GzipFile, archive_path: Path) -> None:
        self._unzipped, self._archive_path = unzipped, archive_path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._unzipped.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET:
            self._refuse_position(offset)
        return self._unzipped.seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= READ_BYTES:
            claim = "a size" if size is None or size < 0 else f"{size:,} bytes"
            raise WorldError(
                f"{self._archive_path}: a header in it claims {claim}; one of CIFAR-10 has at most {READ_BYTES:,} bytes. Get the data set again."
            )
        self._refuse_position(self._unzipped.tell())
        return self._unzipped.read(size)

    def _refuse_position(self, position: int) -> None:
        """Raise WorldError for a position in bytes that is larger than the largest unpacked archive of CIFAR-10."""
        if position > MAX_ARCHIVE_BYTES:
            raise WorldError(
                f"{self._archive_path}: unpacks to more than {MAX_ARCHIVE_BYTES:,} bytes, which no archive of CIFAR-10 has. Get the data set again."
            )


def _refuse_large(num_bytes: int, place: str) -> None:
    """Raise WorldError for a file that is larger than every file of CIFAR-10."""
    if num_bytes > MAX_FILE_BYTES:
        raise WorldError(f"{place}: has {num_bytes:,} bytes; a file of CIFAR-10 has at most {MAX_FILE_BYTES:,}. Get the data set again.")


def assemble(files: Iterable[tuple[str, bytes]], place: str) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """Return the splits "train" and "test" and the names of the classes, from the names and the contents of the data set's files.

    The files may come in any order. A split consists of images, uint8 [n, 3, 32, 32], and labels, int64 [n], in the published order. Raises WorldError
    where a file is missing.
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
