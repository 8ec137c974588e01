"""A tiny data set in CIFAR-10's layout, for tests: 20 images a batch instead of 10,000."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from raysweep.data import cifar10

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = [*cifar10.TRAIN_MD5, *cifar10.TEST_MD5]
N = 20  # images a batch, two of each class


def batch(name: str) -> dict[str, Any]:
    """A batch, different for each name."""
    images = np.random.default_rng(BATCHES.index(name)).integers(0, 256, (N, 3072), dtype=np.uint8)
    return {"batch_label": name, "labels": [i % 10 for i in range(N)], "data": images, "filenames": [f"{i}.png" for i in range(N)]}


def files(**replaced: bytes) -> dict[str, bytes]:
    """Content by name of all files, with some replaced."""
    content = {name: pickle.dumps(batch(name), protocol=4) for name in BATCHES}
    content["batches.meta"] = pickle.dumps({"num_cases_per_batch": N, "label_names": CLASSES, "num_vis": 3072}, protocol=4)
    return content | replaced


def write_folder(folder: Path, content: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


def write_archive(path: Path, content: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    """A .tar.gz with `content` in its folder, and `more` members without content."""
    with tarfile.open(path, "w:gz") as archive:
        folder = tarfile.TarInfo(cifar10.FOLDER)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for member in more:
            archive.addfile(member)
        for name, data in content.items():
            member = tarfile.TarInfo(f"{cifar10.FOLDER}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def python2_pickle(value: Any) -> bytes:
    """`value` as Python 2 and numpy 1 pickled it, which is how the published files were made: str are bytes, numpy's modules have their old names."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: Any) -> bytes:
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case str():
            return b"T" + struct.pack("<i", len(value)) + value.encode("latin1")
        case tuple():
            return b"(" + b"".join(map(_python2, value)) + b"t"
        case list():
            return b"](" + b"".join(map(_python2, value)) + b"e"
        case dict():
            return b"}(" + b"".join(_python2(k) + _python2(v) for k, v in value.items()) + b"u"
        case np.ndarray():
            empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _python2((0,)) + _python2("b") + b"tR"
            dtype = b"cnumpy\ndtype\n" + _python2(("u1", 0, 1)) + b"R" + _python2((3, "|", None, None, None, -1, -1, 0)) + b"b"
            return (
                empty
                + b"("
                + _python2(1)
                + _python2(value.shape)
                + dtype
                + _python2(False)
                + _python2(value.tobytes().decode("latin1"))
                + b"tb"
            )
    raise TypeError(type(value))
