from __future__ import annotations

import errno
import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from raysweep.common.errors import describe_os_error
from raysweep.common.files import OneLine, disk_error, read_yaml, replace_directory, sha256_of_file, write_yaml, written_aside


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "new folder/results.csv"
    with written_aside(path) as stream:
        stream.write("a\r\nü\n")
        stream.flush()
        assert not path.exists()
    assert path.read_bytes() == "a\r\nü\n".encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "best.yaml"
    path.write_text("old")

    def fail() -> None:
        with written_aside(path, "wb") as stream:
            stream.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_is_as_readable_as_any_other_of_the_user(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_yaml(tmp_path / "x.yaml", {})
        assert os.umask(umask) == umask, "the umask is as it was"
    finally:
        os.umask(before)
    assert (tmp_path / "x.yaml").stat().st_mode & 0o777 == mode


def test_yaml_writes_a_list_in_one_line_where_asked_to(tmp_path: Path) -> None:
    write_yaml(tmp_path / "x.yaml", {"rows": [OneLine([1, 2]), OneLine([3, 4])]})
    assert (tmp_path / "x.yaml").read_text() == "rows:\n- [1, 2]\n- [3, 4]\n"


def test_yaml_keeps_order_and_characters(tmp_path: Path) -> None:
    value = {"b": 1e-4, "a": ["ü", None, True], "c": {"error": "two\nlines"}}
    write_yaml(tmp_path / "x.yaml", value)
    assert read_yaml(tmp_path / "x.yaml") == value
    assert list(read_yaml(tmp_path / "x.yaml")) == ["b", "a", "c"]
    assert "ü" in (tmp_path / "x.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"", b"x" * 3_000_000])
def test_a_checksum_is_that_of_the_whole_content(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert sha256_of_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "results/model"
    (source / "sub").mkdir(parents=True)
    (source / "sub/weights").write_text("new")
    target.mkdir(parents=True)
    (target / "stale").write_text("old")
    replace_directory(source, target)
    assert [str(p.relative_to(target)) for p in sorted(target.rglob("*"))] == ["sub", "sub/weights"]
    assert (source / "sub/weights").exists(), "it is a copy"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_that_cannot_be_copied_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("old")
    with pytest.raises(FileNotFoundError):
        replace_directory(tmp_path / "nothing", target)
    assert (target / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_takes_a_write_has_no_fault_and_one_that_is_gone_has(tmp_path: Path) -> None:
    assert disk_error(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    error = disk_error(tmp_path / "gone")
    assert error is not None
    assert error.errno == errno.ENOENT


def test_a_full_disk_is_named_by_the_file_or_folder_that_did_not_fit(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(bytes(2**18))
    (disk := tmp_path / "results").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("a full disk needs the right to mount a tmpfs")
    try:
        with pytest.raises(OSError, match="No space left") as of_file, written_aside(disk / "trials.csv") as stream:
            stream.write("x" * 2**18)
        with pytest.raises(OSError, match="No space left") as of_folder:
            replace_directory(tmp_path / "model", disk / "model")
        assert list(disk.iterdir()) == []
        of_probe = disk_error(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    for error, path in ((of_file.value, disk / "trials.csv"), (of_folder.value, disk / "model"), (of_probe, disk)):
        assert isinstance(error, OSError)
        assert describe_os_error(error).startswith(f"No space left on the device ({path}). Nothing that was finished is lost")
