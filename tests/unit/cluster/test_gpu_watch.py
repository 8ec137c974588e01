"""The agent measures the GPUs of its node, here with a program that stands in for nvidia-smi."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raysweep.cluster import gpu_watch
from raysweep.cluster.gpu_watch import MEASUREMENTS_PER_LINE, measured_gpus
from raysweep.record.gpu_use import GpuUseFile, read_gpu_use


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set what the made-up nvidia-smi prints."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()

    def write(script: str) -> None:
        aside = program.with_name("aside")
        aside.write_text(f"#!/bin/sh\n{script}\n")
        aside.chmod(0o755)
        aside.rename(program)

    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu_watch, "INTERVAL_S", 0.001)
    return write


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def num_threads() -> int:
    return sum("_measure" in thread.name for thread in threading.enumerate())


def test_first_each_measurement_has_a_line_and_then_the_mean_of_six_with_a_made_up_nvidia_smi(
    tmp_path: Path, answer: Callable[[str], None]
) -> None:
    counter = tmp_path / "asked"
    # 10 % at each first, third … measurement, 30 % at each second, fourth ….
    answer(
        f'echo >> "{counter}"; [ $(( $(wc -l < "{counter}") % 2 )) = 0 ] && used=30 || used=10; echo "0, GPU-1, $used"; echo "1, GPU-2, 50"'
    )
    with measured_gpus(GpuUseFile(tmp_path, "7", "n1"), 2):
        wait_until(lambda: len(read_gpu_use(tmp_path)) > MEASUREMENTS_PER_LINE)
    uses = read_gpu_use(tmp_path)
    assert {use.node for use in uses} == {"n1"}
    assert [use.percent for use in uses[:MEASUREMENTS_PER_LINE]] == [(10, 50), (30, 50)] * (MEASUREMENTS_PER_LINE // 2)
    assert uses[MEASUREMENTS_PER_LINE].percent == (20, 50)
    wait_until(lambda: num_threads() == 0)


def test_where_the_program_does_not_measure_nothing_is_written(tmp_path: Path, answer: Callable[[str], None]) -> None:
    answer('echo "0, GPU-1, [N/A]"')
    with measured_gpus(GpuUseFile(tmp_path, "7", "n1"), 1):
        wait_until(lambda: num_threads() == 0)
    assert read_gpu_use(tmp_path) == []


def test_a_measurement_that_fails_is_left_out(tmp_path: Path, answer: Callable[[str], None]) -> None:
    counter = tmp_path / "asked"
    answer(f'echo >> "{counter}"; [ $(( $(wc -l < "{counter}") % 2 )) = 0 ] && exit 9; echo "0, GPU-1, 40"')
    with measured_gpus(GpuUseFile(tmp_path, "7", "n1"), 1):
        wait_until(lambda: len(read_gpu_use(tmp_path)) > 1)
    assert {use.percent for use in read_gpu_use(tmp_path)} == {(40,)}


def test_a_folder_that_is_gone_ends_the_measurements(tmp_path: Path, answer: Callable[[str], None]) -> None:
    answer('echo "0, GPU-1, 40"')
    with measured_gpus(GpuUseFile(tmp_path / "gone", "7", "n1"), 1):
        wait_until(lambda: num_threads() == 0)
    assert not (tmp_path / "gone").exists()


def test_a_disk_that_is_full_for_a_while_costs_only_the_lines_of_that_time(
    tmp_path: Path, answer: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer('echo "0, GPU-1, 40"')
    append, calls = GpuUseFile.append, []

    def full(file: GpuUseFile, seconds: float, percent: list[float]) -> None:
        calls.append(seconds)
        if len(calls) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(file, seconds, percent)

    monkeypatch.setattr(GpuUseFile, "append", full)
    with measured_gpus(GpuUseFile(tmp_path, "7", "n1"), 1):
        wait_until(lambda: read_gpu_use(tmp_path) != [])
    assert len(calls) >= 3
