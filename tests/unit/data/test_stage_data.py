from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import cifar_layout
from raysweep.data.manifest import read_manifest
from raysweep.data.split import load_split

SCRIPT = Path(__file__).parents[3] / "workflow/scripts/stage_data.py"


def run(
    tmp_path: Path, source: str | Path, output_dir: Path | None = None, options: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(SCRIPT),
        "--name",
        "cifar10",
        "--source",
        str(source),
        "--checksum",
        "none",
        "--validation-fraction",
        "0.1",
        "--seed",
        "0",
    ]
    command += [
        "--downloads-dir",
        str(tmp_path / "downloads"),
        "--output-dir",
        str(output_dir or tmp_path / "a folder/data"),
        "--log",
        str(tmp_path / "x.log"),
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | environment)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a part of the test data."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a full disk needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_stages_a_folder(tmp_path: Path) -> None:
    done = run(tmp_path, cifar_layout.write_folder(tmp_path / "cifar", cifar_layout.files()))
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        f"cifar10: 90 train, 10 validation, 20 test images (from {tmp_path / 'cifar'}) in {tmp_path / 'a folder/data'}",
    ]
    assert read_manifest(tmp_path / "a folder/data").splits == {"train": 90, "validation": 10, "test": 20}
    assert "90 train" in (tmp_path / "x.log").read_text()


def test_stages_folds_of_groups(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=np.arange(80.0).reshape(40, 2), y=np.arange(40.0), site=np.arange(40) // 4)
    done = run(tmp_path, tmp_path / "own.npz", tmp_path / "data", options=("--group=site", "--split=random", "--folds=3"))
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "data")
    assert (manifest.group, manifest.split, manifest.folds) == ("site", None, 3)


def test_a_mistake_is_one_line_on_the_terminal_and_in_the_log(tmp_path: Path) -> None:
    done = run(tmp_path, tmp_path / "nothing")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"Error: datasets.cifar10.source: '{tmp_path}/nothing' does not exist.")
    assert "does not exist" in (tmp_path / "x.log").read_text()


def test_a_missing_network_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "download", https_proxy="http://127.0.0.1:1", no_proxy="")
    assert done.returncode == 1
    announcement, error = done.stderr.splitlines()
    assert announcement.startswith("downloading https://")
    assert error.startswith("Error: https://")
    assert "cannot be downloaded" in error
    assert "run `--until build_env` on a login node first" in error
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_full_disk_is_one_line_leaves_nothing_half_written_and_the_next_run_goes_on(tmp_path: Path, small_disk: Path) -> None:
    source = cifar_layout.write_folder(tmp_path / "cifar", cifar_layout.files())
    done = run(tmp_path, source, small_disk / "data")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"Error: No space left on the device ({small_disk / 'data'}")
    assert line.endswith(". Nothing that was finished is lost: free some space, then run the same command again.")
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
    assert run(tmp_path, source, small_disk / "data").returncode == 0
    assert load_split(small_disk / "data", "train")[0].shape == (90, 3, 32, 32)


def test_needs_neither_torch_nor_ray() -> None:
    code = "import sys, stage_data; sys.exit(bool({'torch', 'torchvision', 'ray', 'pandas'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, timeout=60).returncode == 0
