from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from raysweep.common.processes import pid_namespace
from raysweep.environment.aside import made_aside

NAMESPACE = re.sub(r"[^0-9]", "", pid_namespace())
HOST = f"{socket.gethostname()}-{NAMESPACE}"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_place_aside_is_empty_before_and_gone_afterwards(tmp_path: Path, kind: str) -> None:
    for _ in range(2):
        with made_aside(tmp_path / "made") as aside:
            assert not aside.exists()
            assert aside.parent == tmp_path
            if kind == "file":
                aside.touch()
            else:
                (aside / "inner").mkdir(parents=True)
        assert list(tmp_path.iterdir()) == []


def test_what_was_renamed_to_its_place_stays(tmp_path: Path) -> None:
    with made_aside(tmp_path / "made") as aside:
        aside.touch()
        aside.rename(tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_only_abandoned_places_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    abandoned = [f"made.{HOST}.{dead.pid}", f"made.{HOST}.{dead.pid}.old", "made.another-host.1"]
    in_use = [f"made.{HOST}.{os.getppid()}", f"made.{HOST}.1", "made.another-host.2"]
    # Another container may have the same host name. The id of its process means nothing here.
    in_use += [f"made.{socket.gethostname()}-{NAMESPACE}1.{dead.pid}", f"made.{socket.gethostname()}.{dead.pid}"]
    for name in (*abandoned, *in_use):
        (tmp_path / name).touch()
    os.utime(tmp_path / "made.another-host.1", (0, 0))
    with made_aside(tmp_path / "made"):
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(set(in_use))  # in a container the parent may be process 1
