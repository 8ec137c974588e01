from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from raysweep.common.files import read_yaml, replace_directory, sha256_of_file, write_yaml, written_aside


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
