from __future__ import annotations

import codecs
import gzip
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cifar_layout
from raysweep.common.errors import WorldError
from raysweep.data import cifar10

RECONSTRUCT = np.zeros(0).__reduce__()[0]  # numpy's own, whatever its module is called


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments, state) if state is not None else (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def dumps(name: str = "data_batch_1", protocol: int = 4, **changed: Any) -> bytes:
    content = cifar_layout.batch(name) | changed
    return pickle.dumps({key: value for key, value in content.items() if value is not None}, protocol=protocol)


def assemble(**replaced: bytes) -> Any:
    return cifar10.assemble(cifar_layout.files(**replaced).items(), "here")


def test_the_published_addresses_and_checksums_are_torchvisions() -> None:
    upstream = pytest.importorskip("torchvision.datasets").CIFAR10
    assert (upstream.url, upstream.filename, upstream.tgz_md5) == (cifar10.ADDRESS, cifar10.ARCHIVE_NAME, cifar10.ARCHIVE_MD5)
    assert upstream.base_folder == cifar10.FOLDER
    assert list(cifar10.TRAIN_MD5.items()) == [tuple(entry) for entry in upstream.train_list]
    assert list(cifar10.TEST_MD5.items()) == [tuple(entry) for entry in upstream.test_list]
    assert {upstream.meta["filename"]: upstream.meta["md5"]} == cifar10.META_MD5


def test_parts_hold_the_batches_in_the_published_order_whatever_the_order_of_the_files() -> None:
    parts, classes = cifar10.assemble(reversed(cifar_layout.files().items()), "here")
    images, labels = parts["train"]
    assert (images.dtype, images.shape) == (np.uint8, (100, 3, 32, 32))
    assert (labels.dtype, labels.shape) == (np.int64, (100,))
    for i, name in enumerate(cifar10.TRAIN_MD5):
        np.testing.assert_array_equal(images[20 * i : 20 * (i + 1)].reshape(20, -1), cifar_layout.batch(name)["data"])
    np.testing.assert_array_equal(parts["test"][0].reshape(20, -1), cifar_layout.batch("test_batch")["data"])
    np.testing.assert_array_equal(parts["test"][1], np.arange(20) % 10)
    assert classes == cifar_layout.CLASSES


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_reads_what_python_3_writes(protocol: int) -> None:
    found = cifar10.unpickle(dumps(protocol=protocol), "here")
    np.testing.assert_array_equal(found["data"], cifar_layout.batch("data_batch_1")["data"])
    assert found["labels"] == cifar_layout.batch("data_batch_1")["labels"]


def test_reads_what_python_2_wrote() -> None:
    content = {name: cifar_layout.python2_pickle(cifar_layout.batch(name)) for name in cifar_layout.BATCHES}
    content["batches.meta"] = cifar_layout.python2_pickle({"label_names": cifar_layout.CLASSES})
    assert pickle.loads(content["test_batch"], encoding="latin1")["data"].shape == (20, 3072)  # as torchvision would read it
    parts, classes = assemble(**content)
    expected, _ = assemble()
    for part in ("train", "test"):
        np.testing.assert_array_equal(parts[part][0], expected[part][0])
        np.testing.assert_array_equal(parts[part][1], expected[part][1])
    assert classes == cifar_layout.CLASSES


@pytest.mark.parametrize("array", [np.arange(20, dtype=">i4"), np.arange(20, dtype="<u8"), np.asfortranarray(np.arange(20).reshape(4, 5))])
def test_reads_integers_of_any_size_and_order(array: np.ndarray) -> None:
    np.testing.assert_array_equal(cifar10.unpickle(pickle.dumps({"x": array}), "here")["x"], array)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_code_is_refused_and_named(protocol: int, tmp_path: Path) -> None:
    evil = dumps(protocol=protocol, filenames=Calls(os.mkdir, str(tmp_path / "ran")))
    with pytest.raises(WorldError, match=r"^here: data_batch_2: .*asks for posix\.mkdir"):
        assemble(data_batch_2=evil)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Calls(eval, "1"), "builtins.eval"),
        (Calls(getattr, "x", "y"), "builtins.getattr"),
        (Calls(np.load, "x"), "numpy.load"),
        (Calls(np.array([]).tobytes), "builtins.getattr"),
        (Path("x"), "Posix"),
        (np.float64(1), "scalar"),
        (Calls(codecs.encode, "x", "rot13"), "encoding 'rot13'"),
    ],
)
def test_any_other_name_is_refused(value: Any, named: str) -> None:
    with pytest.raises(WorldError, match=named):
        cifar10.unpickle(dumps(filenames=value), "here")


@pytest.mark.parametrize("data", [np.array([None]), np.zeros(2), np.array(["a"]), np.zeros(2, [("x", "u1")])])
def test_arrays_of_anything_but_integers_are_refused(data: np.ndarray) -> None:
    with pytest.raises(WorldError, match="not one of integers"):
        cifar10.unpickle(dumps(data=data), "here")


def test_a_forged_array_is_refused_where_numpy_would_follow_its_pointers() -> None:
    forged_dtype = Calls(np.dtype, "O8", False, True, state=(3, "|", None, None, None, -1, -1, 0))
    forged = Calls(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (4,), forged_dtype, False, b"\x10" * 32))
    with pytest.raises(WorldError, match="'O8' is not one of integers"):
        cifar10.unpickle(dumps(data=forged), "here")


def test_an_array_that_claims_more_than_its_bytes_is_refused() -> None:
    forged = Calls(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (10**15,), np.dtype("u1"), False, b"x" * 32))
    with pytest.raises(WorldError, match="cannot reshape"):
        cifar10.unpickle(dumps(data=forged), "here")


@pytest.mark.parametrize("data", [b"", b"\x80", b"not a pickle", dumps()[:-1], dumps()[:1000], pickle.dumps([1, 2])])
def test_damaged_pickles_are_one_line(data: bytes) -> None:
    with pytest.raises(WorldError, match=r"^here: test_batch: not a file of CIFAR-10: \S.*Get the data set again\.$"):
        assemble(test_batch=data)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": None}, "holds no 'data'"),
        ({"data": None, "labels": None}, "holds no 'data' and no 'labels'"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, r"'data' is uint8 \[0, 3072\]"),
        ({"data": np.zeros((20, 3071), np.uint8)}, r"'data' is uint8 \[20, 3071\]"),
        ({"data": np.zeros(3072, np.uint8)}, r"'data' is uint8 \[3072\]"),
        ({"data": np.zeros((20, 3072), np.int64)}, "'data' is int64"),
        ({"data": [[0] * 3072]}, "'data' is list"),
        ({"labels": [0] * 19}, "'labels' has to be 20 integers from 0 to 9, one an image; it has 19. Get the data set again"),
        ({"labels": [0] * 21}, "it has 21"),
        ({"labels": []}, "it has 0"),
        ({"labels": [0.5] * 20}, "20 integers.*label 0 is of type float"),
        ({"labels": ["cat"] * 20}, "20 integers.*label 0 is of type str"),
        ({"labels": [0] * 19 + [True]}, "20 integers.*label 19 is of type bool"),
        ({"labels": [[0]] * 20}, "20 integers.*label 0 is of type list"),
        ({"labels": [0] * 18 + [[1, 2], [3]]}, "20 integers.*label 18 is of type list"),
        ({"labels": [np.zeros(2, np.uint8)] * 20}, r"20 integers.*label 0 is an array uint8 \[2\]"),
        ({"labels": np.zeros((20, 1), np.uint8)}, r"20 integers.*it is an array uint8 \[20, 1\]"),
        ({"labels": 3}, "20 integers.*it is of type int"),
        ({"labels": [0] * 19 + [10]}, "labels from 0 to 10"),
        ({"labels": [0] * 19 + [-1]}, "labels from -1 to 0"),
        ({"labels": [0] * 19 + [2**80]}, f"labels from 0 to {2**80}"),
    ],
)
def test_a_batch_of_another_shape_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(WorldError, match=f"^here: data_batch_3: .*{message}"):
        assemble(data_batch_3=dumps(**changed))


def test_a_list_of_labels_that_holds_itself_many_times_is_not_multiplied() -> None:
    labels: list[Any] = [0] * 20
    for _ in range(20):
        labels = [labels] * 20
    with pytest.raises(WorldError, match=r"20 integers.*label 0 is of type list"):
        assemble(data_batch_3=dumps(labels=labels))


def test_labels_may_be_an_array_of_integers() -> None:
    parts, _ = assemble(data_batch_1=dumps(labels=np.arange(20, dtype=np.uint8) % 10))
    assert parts["train"][1][:20].tolist() == [*range(10)] * 2


ENCODE, LATIN1 = b"c_codecs\nencode\n", b"X\x06\0\0\0latin1tR"  # the call of a function, around its first argument


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x04]r\xff\xff\xff\x7f.", "claims 2,147,483,647 places in the memo"),
        (b"]p2147483647\n.", "claims 2,147,483,647 places in the memo"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.", "bytearray8"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "bytes8"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.", "unicodestring8"),
        (
            b"\x80\x02" + ENCODE + b"(X\x40\0\0\0" + b"x" * 64 + b"q\0" + LATIN1 + (ENCODE + b"(h\0" + LATIN1) * 40 + b".",
            "encodes more text",
        ),
    ],
)
def test_a_pickle_that_claims_gigabytes_takes_none(data: bytes, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(WorldError, match=f"^here: test_batch: not a file of CIFAR-10: .*{message}"):
            assemble(test_batch=data)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_reads_what_python_2_wrote_as_text() -> None:
    text = b"(dp0\nS'label_names'\np1\n(lp2\n" + b"".join(b"S'\\xe9%d'\na" % i for i in range(10)) + b"s."
    assert cifar10.unpickle(text, "here") == {"label_names": [b"\xe9%d" % i for i in range(10)]}


def test_the_reason_of_a_damaged_pickle_is_one_short_line() -> None:
    evil = b"\x80\x04\x8c\x05os\nxy\x8c\xc8" + b"n" * 200 + b"\x93."
    with pytest.raises(WorldError) as caught:
        cifar10.unpickle(evil, "here")
    assert "asks for os xy.nnn" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("names", [None, [], ["a"] * 9, [1] * 10, "abcdefghij"])
def test_other_than_ten_class_names_are_refused(names: Any) -> None:
    with pytest.raises(WorldError, match="'label_names' has to be a list of 10 names"):
        assemble(**{"batches.meta": pickle.dumps({"label_names": names})})


def test_reads_the_folder_and_the_folder_around_it(tmp_path: Path) -> None:
    folder = cifar_layout.write_folder(tmp_path / cifar10.FOLDER, cifar_layout.files())
    assert dict(cifar10.files_of_folder(folder)) == dict(cifar10.files_of_folder(tmp_path)) == cifar_layout.files()


def test_a_folder_without_one_file_is_refused(tmp_path: Path) -> None:
    folder = cifar_layout.write_folder(tmp_path / "x", cifar_layout.files())
    (folder / "data_batch_4").unlink()
    with pytest.raises(WorldError, match=r"x: has no file data_batch_4\..*has data_batch_1, "):
        list(cifar10.files_of_folder(folder))


def test_a_folder_is_compared_with_the_published_files_before_it_is_unpickled(tmp_path: Path) -> None:
    folder = cifar_layout.write_folder(tmp_path / "x", cifar_layout.files(data_batch_1=dumps(filenames=Calls(os.mkdir, "x"))))
    with pytest.raises(WorldError, match=r"data_batch_1: its MD5 is [0-9a-f]{32}, that of the published file is c99cafc1.*checksum: none"):
        cifar10.assemble(cifar10.files_of_folder(folder, verify=True), "here")


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    folder = cifar_layout.write_folder(tmp_path / "x", cifar_layout.files())
    os.truncate(folder / "data_batch_2", cifar10.MAX_FILE_BYTES + 1)
    with pytest.raises(WorldError, match="data_batch_2: has 268,435,457 bytes"):
        list(cifar10.files_of_folder(folder))


def test_reads_an_archive(tmp_path: Path) -> None:
    extra = tarfile.TarInfo(f"{cifar10.FOLDER}/readme.html")
    path = cifar_layout.write_archive(tmp_path / "x.tar.gz", cifar_layout.files(), extra)
    assert dict(cifar10.files_of_archive(path)) == cifar_layout.files()


@pytest.mark.parametrize("name", ["/tmp/data_batch_1", "../data_batch_1", "x/../../data_batch_1"])
def test_a_member_that_leaves_the_folder_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = cifar_layout.write_archive(tmp_path / "x.tar.gz", cifar_layout.files(), tarfile.TarInfo(name))
    with pytest.raises(WorldError, match=f"x.tar.gz: its member '{name}' leaves the folder"):
        list(cifar10.files_of_archive(path))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused_by_name(kind: bytes, tmp_path: Path) -> None:
    member = tarfile.TarInfo("data_batch_1")
    member.type, member.linkname = kind, "/etc/passwd"
    path = cifar_layout.write_archive(tmp_path / "x.tar.gz", cifar_layout.files(), member)
    with pytest.raises(WorldError, match="its member 'data_batch_1' leaves the folder or is no plain file"):
        list(cifar10.files_of_archive(path))


def test_a_member_that_claims_to_be_huge_is_not_read(tmp_path: Path) -> None:
    member = tarfile.TarInfo("data_batch_1")
    member.size = 2**40
    with gzip.open(tmp_path / "x.tar.gz", "wb") as stream:
        stream.write(member.tobuf())
    with pytest.raises(WorldError, match="data_batch_1: has 1,099,511,627,776 bytes"):
        list(cifar10.files_of_archive(tmp_path / "x.tar.gz"))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_that_claims_gigabytes_is_not_read(kind: bytes, tmp_path: Path) -> None:
    member = tarfile.TarInfo("data_batch_1")
    member.type, member.size = kind, 4 * 2**30
    with gzip.open(tmp_path / "x.tar.gz", "wb") as stream:
        stream.write(member.tobuf() + bytes(2**16))
    with pytest.raises(
        WorldError, match=r"x\.tar\.gz: a header in it claims 4,294,967,\d+ bytes; one of CIFAR-10 has at most 1,048,576 bytes"
    ):
        list(cifar10.files_of_archive(tmp_path / "x.tar.gz"))


def test_an_archive_that_unpacks_to_more_than_the_format_has_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("readme.html")
    member.size = 2**43
    with gzip.open(tmp_path / "x.tar.gz", "wb") as stream:
        stream.write(member.tobuf())
    with pytest.raises(WorldError, match=r"x\.tar\.gz: unpacks to more than 2,147,483,648 bytes, which no archive of CIFAR-10 has"):
        list(cifar10.files_of_archive(tmp_path / "x.tar.gz"))


def test_an_archive_without_one_file_is_refused(tmp_path: Path) -> None:
    content = cifar_layout.files()
    del content["test_batch"], content["batches.meta"]
    path = cifar_layout.write_archive(tmp_path / "x.tar.gz", content)
    with pytest.raises(WorldError, match=r"here: has no file test_batch, batches\.meta"):
        cifar10.assemble(cifar10.files_of_archive(path), "here")


@pytest.mark.parametrize("kept", [0, 5, 1000, 0.5, 0.99, -1])
def test_a_truncated_archive_is_one_line(kept: float, tmp_path: Path) -> None:
    path = cifar_layout.write_archive(tmp_path / "x.tar.gz", cifar_layout.files())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(
        WorldError, match=r"x\.tar\.gz: not a whole \.tar\.gz archive \(.+\)\. Get it again: it was cut short or altered\.$"
    ):
        list(cifar10.files_of_archive(path))


def test_a_truncated_archive_inside_a_whole_gzip_is_one_line(tmp_path: Path) -> None:
    whole = gzip.decompress(cifar_layout.write_archive(tmp_path / "x.tar.gz", cifar_layout.files()).read_bytes())
    (tmp_path / "y.tar.gz").write_bytes(gzip.compress(whole[: len(whole) // 2]))
    with pytest.raises(WorldError, match=r"y\.tar\.gz: not a whole \.tar\.gz archive"):
        list(cifar10.files_of_archive(tmp_path / "y.tar.gz"))


def test_an_altered_pixel_is_noticed(tmp_path: Path) -> None:
    path = cifar_layout.write_archive(tmp_path / "x.tar.gz", cifar_layout.files())
    stored = io.BytesIO()
    with gzip.GzipFile(fileobj=stored, mode="wb", compresslevel=0) as stream:  # not compressed: an altered byte is just another pixel
        stream.write(gzip.decompress(path.read_bytes()))
    altered = bytearray(stored.getvalue())
    pixel = altered.index(cifar_layout.batch("data_batch_3")["data"].tobytes()[:100]) + 50
    altered[pixel] ^= 1
    path.write_bytes(altered)
    with pytest.raises(WorldError, match="CRC check failed"):
        list(cifar10.files_of_archive(path))


@pytest.mark.parametrize("content", [b"<html>503 Service Unavailable</html>", gzip.compress(b"not a tar archive" * 100, mtime=0)])
def test_something_else_is_not_an_archive(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(content)
    with pytest.raises(WorldError, match=r"x\.tar\.gz: not a whole \.tar\.gz archive"):
        list(cifar10.files_of_archive(tmp_path / "x.tar.gz"))
