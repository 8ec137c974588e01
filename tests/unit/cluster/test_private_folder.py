"""The private folders of an agent: who can enter them, and when they go."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raysweep.cluster import private_folder as folders
from raysweep.cluster.children import ended_by_signals
from raysweep.cluster.private_folder import private_folder, remove_left_behind
from raysweep.common.errors import WorldError
from sweeping import SCRIPTS


def test_the_private_folder_is_private_and_gone_at_the_end(tmp_path: Path) -> None:
    with private_folder(tmp_path) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


def test_a_folder_gets_its_name_unless_another_has_it(tmp_path: Path) -> None:
    with private_folder(tmp_path, "rs-named") as first, private_folder(tmp_path, "rs-named") as second:
        assert first == tmp_path / "rs-named"
        assert second != first
        assert second.name.startswith("rs-")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_the_private_folder_is_being_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = os.mkdir

    def mkdir_and_signal(path: Path, mode: int = 0o777) -> None:
        mkdir(path, mode)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(os, "mkdir", mkdir_and_signal)
    with pytest.raises(KeyboardInterrupt), ended_by_signals(), private_folder(tmp_path):
        pytest.fail("the signal has come before")
    assert list(tmp_path.iterdir()) == []


def unpack_into(folder: Path) -> None:
    (folder / "venv").mkdir()
    (folder / "venv/file").write_text("large")


def test_a_signal_while_the_private_folder_is_being_removed_does_not_stop_the_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = shutil.rmtree

    def signal_and_remove(path: Path, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", signal_and_remove)
    with pytest.raises(KeyboardInterrupt), ended_by_signals(), private_folder(tmp_path) as folder:
        unpack_into(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_an_agent_was_killed_in_removing_is_removed_by_the_next_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove_one_and_die(path: Path, **options: Any) -> None:
        path.rename(tmp_path / "removed")
        raise SystemExit

    monkeypatch.setattr(shutil, "rmtree", remove_one_and_die)
    with pytest.raises(SystemExit), private_folder(tmp_path) as folder:
        unpack_into(folder)
    monkeypatch.undo()
    assert (folder / "lock").exists()
    remove_left_behind(tmp_path)
    assert not folder.exists()


@pytest.mark.parametrize("owner", ["another node", "another user"])
def test_only_folders_of_this_node_and_user_are_removed(tmp_path: Path, owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "rs-other"
    other.mkdir()
    (other / "lock").write_text(socket.gethostname() if owner == "another user" else "node7")
    if owner == "another user":
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    remove_left_behind(tmp_path)
    assert (other / "lock").read_text() != ""
    assert other.exists()


def test_the_folder_of_a_killed_agent_goes_and_a_folder_in_use_stays(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, sys; sys.path.insert(0, {str(SCRIPTS)!r})
from raysweep.cluster.private_folder import private_folder
with private_folder(pathlib.Path({str(tmp_path)!r})) as folder:
    print(folder, flush=True)
    os.kill(os.getpid(), 9)
"""
    left = Path(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout.strip())
    assert left.is_dir()
    (tmp_path / "rs-of-no-agent").mkdir()
    with private_folder(tmp_path) as first, private_folder(tmp_path) as second:
        assert {path.name for path in tmp_path.iterdir()} == {first.name, second.name, "rs-of-no-agent"}


def test_ray_keeps_its_sockets_in_tmp_where_the_nodes_disk_has_a_long_path(tmp_path: Path) -> None:
    long = tmp_path / ("long" * 12)
    long.mkdir()
    assert folders.base_for_ray(long) == Path("/tmp")
    assert folders.base_for_ray(Path("/tmp")) == Path("/tmp")


def test_no_folder_with_a_short_path_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "LONGEST_TEMP_DIR", 5)
    with pytest.raises(WorldError, match="set TMPDIR to one"):
        folders.base_for_ray(Path("/tmp"))


def test_the_token_is_for_this_user_alone(tmp_path: Path) -> None:
    folders.write_secret(tmp_path / "token", "secret")
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert (tmp_path / "token").read_text() == "secret"
