from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.common import gpus
from raysweep.common.gpus import first_gpu_memory_mb, usable_gpus, visible_gpus


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that lists two GPUs, one of them split, and knows the memory of the second; on a PATH with nothing else."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "nvidia-smi"
    lines = ["GPU 0: NVIDIA A100 (UUID: GPU-1)", "  MIG 1g.5gb Device 0: (UUID: MIG-1)", "GPU 1: NVIDIA A100 (UUID: GPU-2)"]
    listed = "".join(f"echo '{line}'\n" for line in lines)
    memory = '[ "$*" = "--id=1 --query-gpu=memory.used,memory.total --format=csv,noheader,nounits" ] && { echo "2200, 10000"; exit 0; }\n'
    write(program, f'{memory}[ "$*" = --list-gpus ] || {{ echo "No devices were found"; exit 6; }}\n{listed}')
    return program


def write(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}")
    program.chmod(0o755)


def test_gpus_are_those_that_the_driver_lists(nvidia_smi: Path) -> None:
    assert visible_gpus() == (2, "nvidia-smi lists 2")
    assert usable_gpus() == 2


def test_slices_of_gpus_count_one_each(nvidia_smi: Path) -> None:
    slices = "".join(f"echo '  MIG 1g.5gb Device {number}: (UUID: MIG-{number})'\n" for number in range(7))
    write(nvidia_smi, f"echo 'GPU 0: NVIDIA A100 (UUID: GPU-1)'\n{slices}")
    assert visible_gpus() == (7, "nvidia-smi lists 7")


def test_without_the_driver_there_is_none(nvidia_smi: Path) -> None:
    nvidia_smi.unlink()
    assert visible_gpus() == (0, "there is no nvidia-smi")
    assert usable_gpus() == 0
    assert first_gpu_memory_mb() is None


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'GPU 0: seen before the driver failed'\nexit 9\n", "nvidia-smi says GPU 0: seen before the driver failed"),
        ("echo 'No devices  were\nfound' >&2\nexit 6\n", "nvidia-smi says No devices were found"),
        ("exit 9\n", "nvidia-smi ends with exit code 9"),
    ],
)
def test_a_driver_that_does_not_run_has_none(nvidia_smi: Path, script: str, reason: str) -> None:
    write(nvidia_smi, script)
    assert visible_gpus() == (0, reason)
    assert usable_gpus() == 0


def test_a_program_that_cannot_be_started_has_none(nvidia_smi: Path) -> None:
    nvidia_smi.write_text("#!/no/such/interpreter\n")
    assert visible_gpus() == (0, "nvidia-smi does not run (No such file or directory)")


def test_a_driver_that_does_not_answer_has_none(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "NVIDIA_SMI_DEADLINE_S", 0.2)
    write(nvidia_smi, "exec /bin/sleep 60\n")
    assert visible_gpus() == (0, "nvidia-smi does not answer within 0.2 s")


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("0,3", 2), (" 1 , 2 ", 2), ("MIG-1,MIG-2", 2), ("0,", 1)])
def test_cuda_visible_devices_counts_before_the_driver(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, visible: str, count: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert usable_gpus() == count


def test_memory_is_that_of_the_first_gpu_of_this_process(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert first_gpu_memory_mb() == (2200, 10000)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert first_gpu_memory_mb() is None


@pytest.mark.parametrize("printed", ["", "[N/A], [N/A]", "2200", "1, 2\n3, 4"])
def test_memory_that_the_driver_cannot_tell(nvidia_smi: Path, printed: str) -> None:
    write(nvidia_smi, f"echo '{printed}'\n")
    assert first_gpu_memory_mb() is None
