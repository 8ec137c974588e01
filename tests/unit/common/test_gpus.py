from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.common import gpus
from raysweep.common.gpus import apptainer_options, first_gpu_memory_mb, gpu_use_percent, usable_gpus, visible_gpus, with_replaced_variables


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that lists two GPUs, one of them split, and knows the memory of the second; on a PATH with nothing else."""
    only(tmp_path, monkeypatch)
    program = tmp_path / "nvidia-smi"
    lines = ["GPU 0: NVIDIA A100 (UUID: GPU-1)", "  MIG 1g.5gb Device 0: (UUID: MIG-1)", "GPU 1: NVIDIA A100 (UUID: GPU-2)"]
    listed = "".join(f"echo '{line}'\n" for line in lines)
    memory = '[ "$*" = "--id=1 --query-gpu=memory.used,memory.total --format=csv,noheader,nounits" ] && { echo "2200, 10000"; exit 0; }\n'
    write(program, f'{memory}[ "$*" = --list-gpus ] || {{ echo "No devices were found"; exit 6; }}\n{listed}')
    return program


def only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave only `folder` on PATH, and no variable that names GPUs."""
    for variable in {variable for program in gpus.PROGRAMS for variable in program.variables}:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(gpus, "ROCM_BIN", str(folder))
    monkeypatch.setenv("PATH", str(folder))


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
    assert visible_gpus() == (0, "there is no nvidia-smi, amd-smi, rocm-smi or xpu-smi")
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
    monkeypatch.setattr(gpus, "PROGRAM_DEADLINE_S", 0.2)
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


@pytest.mark.parametrize(
    ("variable", "num_gpus", "percent"),
    [
        (None, 2, [7, 93]),
        (None, 1, [7]),  # on a machine without Slurm, a sweep may use fewer GPUs than there are
        (None, 3, []),  # of the third GPU, the program says nothing
        ("1", 1, [93]),
        ("1,0", 2, [93, 7]),
        ("1,0", 1, [93]),
        ("GPU-1", 1, [7]),
        ("GPU-9d8e,GPU-1a2b", 2, [93, 7]),
        ("MIG-1", 1, []),
        ("1,2", 2, []),
    ],
)
def test_the_use_is_that_of_the_gpus_of_this_process(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, num_gpus: int, percent: list[int]
) -> None:
    arguments = "--query-gpu=index,uuid,utilization.gpu --format=csv,noheader,nounits"
    printed = "0, GPU-1a2b3c, 7\\n1, GPU-9d8e7f, 93\\n2, GPU-555555, [N/A]\\n"
    write(nvidia_smi, f'[ "$*" = "{arguments}" ] || exit 6\nprintf \'{printed}\'\n')
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert gpu_use_percent(num_gpus) == percent


@pytest.mark.parametrize("script", ["exit 9\n", "echo 'No devices were found'\n"])
def test_the_use_is_not_known_where_the_driver_does_not_say_it(nvidia_smi: Path, script: str) -> None:
    write(nvidia_smi, script)
    assert gpu_use_percent(1) == []


# What the programs print, as their documents show it. No GPU of AMD or Intel was there.
AMD_SMI = """case "$*" in
list) printf 'GPU: 0\\n    BDF: 0000:c1:00.0\\n    UUID: 1\\n\\nGPU: 1\\n    BDF: 0000:c6:00.0\\n    UUID: 2\\n\\n';;
"metric --usage") for use in 7 93; do printf 'GPU: %s\\n    USAGE:\\n        GFX_ACTIVITY: %s %%\\n        UMC_ACTIVITY: 1 %%\\n\\n' $((use > 50)) $use; done;;
"metric --gpu=1 --mem-usage") printf 'GPU: 1\\n    MEM_USAGE:\\n        TOTAL_VRAM: 10000 MB\\n        USED_VRAM: 2200 MB\\n        FREE_VRAM: 7800 MB\\n';;
*) exit 2;;
esac
"""
ROCM_SMI = """shown() { printf 'GPU[%s]\\t\\t: VRAM Total Memory (B): 10485760000\\nGPU[%s]\\t\\t: VRAM Total Used Memory (B): 2306867200\\n' "$1" "$1"; }
printf '\\n======= Memory Usage (Bytes) =======\\n'
case "$*" in
"--showmeminfo vram") shown 0; shown 1;;
"-d 1 --showmeminfo vram") shown 1;;
--showuse) printf 'GPU[0]\\t\\t: GPU use (%%): 7\\nGPU[1]\\t\\t: GPU use (%%): 93\\n';;
*) exit 2;;
esac
"""
XPU_SMI = """[ "$*" = "discovery --dump 1" ] && printf 'Device ID\\n0\\n1\\n\\n'
"""


@pytest.mark.parametrize(
    ("name", "script", "variable", "memory_mb"),
    [
        ("amd-smi", AMD_SMI, "HIP_VISIBLE_DEVICES", (2200, 10000)),
        ("rocm-smi", ROCM_SMI, "ROCR_VISIBLE_DEVICES", (2200, 10000)),
        ("xpu-smi", XPU_SMI, "ZE_AFFINITY_MASK", None),
    ],
)
def test_a_stand_in_for_the_program_of_amd_or_intel_lists_gpus_their_memory_and_their_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str, variable: str, memory_mb: tuple[int, int] | None
) -> None:
    only(tmp_path, monkeypatch)
    write(tmp_path / name, script)
    assert visible_gpus() == (2, f"{name} lists 2")
    assert usable_gpus() == 2
    monkeypatch.setenv(variable, "1")
    assert usable_gpus() == 1
    assert first_gpu_memory_mb() == memory_mb
    assert gpu_use_percent(1) == ([] if memory_mb is None else [93])


def test_the_stand_in_that_lists_a_gpu_goes_before_the_stand_in_of_another_vendor_that_lists_none(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(nvidia_smi.with_name("rocm-smi"), ROCM_SMI)
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "0,1,2")  # where Slurm does not detect the GPUs, it sets the variables of all vendors
    assert (visible_gpus(), usable_gpus()) == ((2, "nvidia-smi lists 2"), 2)
    assert apptainer_options() == ["--nv", "--rocm"]
    write(nvidia_smi, "echo 'No devices were found'; exit 6\n")
    assert (visible_gpus(), usable_gpus()) == ((2, "rocm-smi lists 2"), 3)


@pytest.mark.parametrize(
    ("env", "replaced"),
    [
        ({"ROCR_VISIBLE_DEVICES": "2,3"}, {"HIP_VISIBLE_DEVICES": "2,3"}),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "0"}, {"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "0"}),
        ({"ONEAPI_DEVICE_SELECTOR": "level_zero:1,2"}, {"ZE_AFFINITY_MASK": "1,2"}),
        ({"ONEAPI_DEVICE_SELECTOR": "level_zero:gpu"}, {"ONEAPI_DEVICE_SELECTOR": "level_zero:gpu"}),
        ({"ONEAPI_DEVICE_SELECTOR": "*:gpu"}, {"ONEAPI_DEVICE_SELECTOR": "*:gpu"}),
        ({"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "0"}),
    ],
)
def test_variables_that_ray_refuses_are_replaced(env: dict[str, str], replaced: dict[str, str]) -> None:
    assert with_replaced_variables(env) == replaced
