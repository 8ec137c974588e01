"""How busy the GPUs were: what an agent writes beside the record, and what is read of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from raysweep.record.gpu_use import FOLDER, LATEST_S, GpuUse, GpuUseFile, latest_gpu_use, read_gpu_use

TORN = [
    '{"at": "2026',
    "\0\0\0",
    "[1]",
    '{"at": "2026-01-01T00:00:00Z", "node": "n", "seconds": 10}',
    '{"at": "today", "node": "n", "seconds": 10, "percent": [1]}',
    '{"at": 3, "node": "n", "seconds": 10, "percent": [1]}',
    '{"at": "2026-01-01T00:00:00Z", "node": "n", "seconds": 10, "percent": [null]}',
    '{"at": "2026-01-01T00:00:00Z", "node": "n", "seconds": 10, "percent": []}',
    '{"at": "2026-01-01T00:00:00Z", "node": "n", "seconds": 10, "percent": [NaN]}',
    '{"at": "2026-01-01T00:00:00", "node": "n", "seconds": 10, "percent": [1]}',
]


def test_what_agents_wrote_is_read_by_job_and_node_in_the_order_of_the_lines(tmp_path: Path) -> None:
    first, second = GpuUseFile(tmp_path, "12_0", "n1"), GpuUseFile(tmp_path, "12_1", "n1")
    first.append(10, [10, 20.26])
    second.append(60.04, [50])
    first.append(10, [30, 40])
    uses = read_gpu_use(tmp_path)
    assert [(use.agent, use.node, use.seconds, use.percent) for use in uses] == [
        ("12_0-n1", "n1", 10, (10, 20.3)),
        ("12_0-n1", "n1", 10, (30, 40)),
        ("12_1-n1", "n1", 60, (50,)),
    ]
    assert uses[0].at <= uses[1].at
    assert latest_gpu_use(tmp_path) == [uses[1], uses[2]]
    os.utime(first.path, (time.time() - LATEST_S - 1,) * 2)
    assert latest_gpu_use(tmp_path) == [uses[2]], "the first job has ended"


def test_without_a_measurement_there_is_none(tmp_path: Path) -> None:
    assert read_gpu_use(tmp_path) == latest_gpu_use(tmp_path) == []
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "no-job-n.jsonl").touch()
    assert read_gpu_use(tmp_path) == latest_gpu_use(tmp_path) == []


@pytest.mark.parametrize("torn", TORN)
def test_a_line_that_was_not_written_whole_takes_no_other_line_with_it(tmp_path: Path, torn: str) -> None:
    file = GpuUseFile(tmp_path, None, "n")
    file.append(10, [1])
    with file.path.open("a") as stream:
        stream.write(torn)
    [use] = read_gpu_use(tmp_path)
    assert use == GpuUse("no-job-n", "n", use.at, 10, (1,))
    assert latest_gpu_use(tmp_path) == [use]
    file.append(10, [2])
    assert [use.percent for use in read_gpu_use(tmp_path)] == [(1,), (2,)]


def test_a_file_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    GpuUseFile(tmp_path, "7", "n").append(10, [1])
    (tmp_path / FOLDER / "a folder.jsonl").mkdir()
    (tmp_path / FOLDER / "gone.jsonl").symlink_to(tmp_path / "gone")
    assert [use.percent for use in read_gpu_use(tmp_path)] == [use.percent for use in latest_gpu_use(tmp_path)] == [(1,)]


def test_the_last_line_of_a_long_file_is_found(tmp_path: Path) -> None:
    file = GpuUseFile(tmp_path, None, "n")
    for number in range(200):
        file.append(60, [number / 2] * 8)
    assert latest_gpu_use(tmp_path) == read_gpu_use(tmp_path)[-1:]


def test_the_folder_of_a_sweep_that_was_set_aside_does_not_appear_again(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        GpuUseFile(tmp_path / "gone", None, "n").append(10, [1])
    assert not (tmp_path / "gone").exists()
