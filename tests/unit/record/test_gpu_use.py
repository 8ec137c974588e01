"""How busy the GPUs were: what an agent writes beside the record, and what is read of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.record.gpu_use import FOLDER, GpuUse, GpuUseFile, read_gpu_use


def test_what_agents_wrote_is_read_by_job_and_node_in_the_order_of_the_lines(tmp_path: Path) -> None:
    first, second = GpuUseFile(tmp_path, "12_0", "n1"), GpuUseFile(tmp_path, "12_1", "n1")
    first.append([10, 20.26])
    second.append([50])
    first.append([30, 40])
    uses = read_gpu_use(tmp_path)
    assert [(use.node, use.percent) for use in uses] == [("n1", (10, 20.3)), ("n1", (30, 40)), ("n1", (50,))]
    assert uses[0].at <= uses[1].at
    assert read_gpu_use(tmp_path, only_last=True) == [uses[1], uses[2]]


def test_without_a_measurement_there_is_none(tmp_path: Path) -> None:
    assert read_gpu_use(tmp_path) == read_gpu_use(tmp_path, only_last=True) == []
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "no-job-n.jsonl").touch()
    assert read_gpu_use(tmp_path) == read_gpu_use(tmp_path, only_last=True) == []


@pytest.mark.parametrize(
    "torn",
    ['{"at": "2026', "\0\0\0", '{"at": "2026-01-01T00:00:00Z", "node": "n"}\n', "[1]\n", '{"at": "a", "node": "n", "percent": [null]}'],
)
def test_a_line_that_was_not_written_whole_is_left_out(tmp_path: Path, torn: str) -> None:
    file = GpuUseFile(tmp_path, None, "n")
    file.append([1])
    with file.path.open("a") as stream:
        stream.write(torn)
    [use] = read_gpu_use(tmp_path)
    assert use == GpuUse(use.at, "n", (1,))
    assert read_gpu_use(tmp_path, only_last=True) == []


def test_the_last_line_of_a_long_file_is_found(tmp_path: Path) -> None:
    file = GpuUseFile(tmp_path, None, "n")
    for number in range(200):
        file.append([number / 2] * 8)
    assert read_gpu_use(tmp_path, only_last=True) == read_gpu_use(tmp_path)[-1:]


def test_the_folder_of_a_sweep_that_was_set_aside_does_not_appear_again(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        GpuUseFile(tmp_path / "gone", None, "n").append([1])
    assert not (tmp_path / "gone").exists()
