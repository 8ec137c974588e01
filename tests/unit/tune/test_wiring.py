from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from raysweep.tune.wiring import disk_fault


def test_a_fault_that_is_no_full_disk_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    assert disk_fault(ValueError("a bug of ours"), tmp_path) is None
    assert disk_fault(OSError(errno.EACCES, "Permission denied"), tmp_path) is None


def test_a_disk_that_was_full_is_the_fault_although_it_has_room_again(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "snapshot"))
    with pytest.raises(RuntimeError) as raised:
        raise RuntimeError("Tune failed") from full
    assert disk_fault(raised.value, tmp_path) is full


def test_a_folder_that_takes_no_write_is_the_fault(tmp_path: Path) -> None:
    fault = disk_fault(ValueError("Tune failed"), tmp_path / "gone")
    assert fault is not None
    assert fault.errno == errno.ENOENT
