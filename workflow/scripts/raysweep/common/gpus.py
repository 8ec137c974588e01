"""Counts the GPUs of NVIDIA, AMD and Intel, and measures how busy the GPUs are, with the vendors' programs and environment variables.

No other module runs these programs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PROGRAM_DEADLINE_S = 60
ROCM_BIN = "/opt/rocm/bin"  # the folder of AMD's programs, which is often not on PATH
# Ray refuses ROCR_VISIBLE_DEVICES, and leaves ONEAPI_DEVICE_SELECTOR unchanged where it hides GPUs with ZE_AFFINITY_MASK (seen in Ray 2.60). The first
# variable of a pair is therefore replaced by the second.
REPLACED_VARIABLES = {"ROCR_VISIBLE_DEVICES": "HIP_VISIBLE_DEVICES", "ONEAPI_DEVICE_SELECTOR": "ZE_AFFINITY_MASK"}
# Values of ONEAPI_DEVICE_SELECTOR that select all GPUs, and entries of all variables that name no GPU.
ALL_GPUS, NO_GPU = ("*", "gpu", "*:*", "*:gpu"), ("", "-1", "NoDevFiles")


@dataclass(frozen=True)
class GpuProgram:
    """Describes a program that lists the GPUs of a vendor, and what the vendor's GPUs need."""

    name: str
    list_arguments: tuple[str, ...]
    # Each pattern matches a line for each GPU, or for each slice of a GPU. The pattern with the most matches counts.
    patterns: tuple[str, ...]
    # Variables that name the GPUs of a process. Of several variables that are set, the first is valid.
    variables: tuple[str, ...]
    memory_arguments: tuple[str, ...] = ()  # empty where the program cannot say the memory of a GPU in one call
    memory_pattern: str = ""  # with the groups `used` and `total`
    memory_units_per_mb: int = 1
    use_arguments: tuple[str, ...] = ()  # empty where the program cannot say how busy all GPUs are in one call
    use_pattern: str = ""  # with the groups `gpu` (number), `percent`, and `uuid` where the variables can contain UUIDs
    apptainer_options: tuple[str, ...] = ()  # what gives programs in a container the vendor's driver


AMD_VARIABLES = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
NVIDIA_SMI = GpuProgram(
    "nvidia-smi",
    ("--list-gpus",),
    (r"^\s*GPU ", r"^\s*MIG "),
    ("CUDA_VISIBLE_DEVICES",),
    ("--id={gpu}", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"),
    r"^(?P<used>\d+), (?P<total>\d+)$",
    use_arguments=("--query-gpu=index,uuid,utilization.gpu", "--format=csv,noheader,nounits"),
    use_pattern=r"^(?P<gpu>\d+), (?P<uuid>\S+), (?P<percent>\d+)$",
    apptainer_options=("--nv",),
)
PROGRAMS = (
    NVIDIA_SMI,
    GpuProgram(
        "amd-smi",
        ("list",),
        (r"^GPU: \d+",),
        AMD_VARIABLES,
        ("metric", "--gpu={gpu}", "--mem-usage"),
        r"TOTAL_VRAM: (?P<total>\d+) MB\s+USED_VRAM: (?P<used>\d+) MB",
        use_arguments=("metric", "--usage"),
        use_pattern=r"^GPU: (?P<gpu>\d+)\s+USAGE:\s+GFX_ACTIVITY: (?P<percent>\d+) %",
        apptainer_options=("--rocm",),
    ),
    GpuProgram(
        "rocm-smi",
        ("--showmeminfo", "vram"),
        (r"VRAM Total Memory",),
        AMD_VARIABLES,
        ("-d", "{gpu}", "--showmeminfo", "vram"),
        r"VRAM Total Memory \(B\): (?P<total>\d+)\s+\S+\s+: VRAM Total Used Memory \(B\): (?P<used>\d+)",
        2**20,
        use_arguments=("--showuse",),
        use_pattern=r"^GPU\[(?P<gpu>\d+)\]\s*: GPU use \(%\): (?P<percent>\d+)",
        apptainer_options=("--rocm",),
    ),
    GpuProgram("xpu-smi", ("discovery", "--dump", "1"), (r"^\d+\s*$",), ("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR")),
)


class GpuProgramError(Exception):
    """Reports that a program is missing, fails or does not answer. The text of the error says which of the three happened."""


def _path_to(program: GpuProgram) -> str | None:
    return shutil.which(program.name, path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{ROCM_BIN}")


def _query(program: GpuProgram, *arguments: str) -> str:
    """Return the text that `program` prints. Raises GpuProgramError where `program` cannot answer."""
    name, path = program.name, _path_to(program)
    if path is None:
        raise GpuProgramError(f"there is no {', '.join(each.name for each in PROGRAMS[:-1])} or {PROGRAMS[-1].name}")
    try:
        run = subprocess.run([path, *arguments], capture_output=True, text=True, errors="replace", check=False, timeout=PROGRAM_DEADLINE_S)
    except subprocess.TimeoutExpired:
        raise GpuProgramError(f"{name} does not answer within {PROGRAM_DEADLINE_S} s") from None
    except OSError as error:
        raise GpuProgramError(f"{name} does not run ({error.strerror})") from None
    if run.returncode != 0:
        reason = " ".join((run.stdout + run.stderr).split())[:200]
        raise GpuProgramError(f"{name} says {reason}" if reason else f"{name} ends with exit code {run.returncode}")
    return run.stdout


def _listed_gpus(program: GpuProgram) -> tuple[int, str]:
    try:
        printed = _query(program, *program.list_arguments)
    except GpuProgramError as error:
        return 0, str(error)
    count = max(len(re.findall(pattern, printed, re.MULTILINE)) for pattern in program.patterns)
    return count, f"{program.name} lists {count}"


def gpu_program() -> GpuProgram:
    """Return the program of the vendor of this machine's GPUs.

    Of several installed programs, this is the first that lists a GPU, or the first program. Where no program is installed, this is `nvidia-smi`.
    """
    installed = [program for program in PROGRAMS if _path_to(program)] or [NVIDIA_SMI]
    if len(installed) == 1:
        return installed[0]
    return next((program for program in installed if _listed_gpus(program)[0]), installed[0])


def visible_gpus() -> tuple[int, str]:
    """Return the number of GPUs, or of GPU slices (MIG), that the vendor's program lists on this machine, and a text that explains the number."""
    return _listed_gpus(gpu_program())


def named_gpus(variables: Sequence[str], env: Mapping[str, str]) -> list[str] | None:
    """Return the GPUs that the first of `variables` in `env` names, or None where none of `variables` names GPUs."""
    value = next((env[variable] for variable in variables if variable in env), None)
    if value is None:
        return None
    gpus = [gpu.strip() for gpu in value.removeprefix("level_zero:").split(",")]
    return None if gpus[0] in ALL_GPUS else [gpu for gpu in gpus if gpu not in NO_GPU]


def usable_gpus() -> int:
    """Return the number of GPUs that this process may use.

    The number counts the GPUs that a variable such as CUDA_VISIBLE_DEVICES names, or all GPUs of this machine where no variable names GPUs.
    """
    program = gpu_program()
    gpus = named_gpus(program.variables, os.environ)
    return _listed_gpus(program)[0] if gpus is None else len(gpus)


def first_gpu_memory_mb() -> tuple[int, int] | None:
    """Return the used and the total memory of this process's first GPU in MB, or None where the vendor's program does not report the memory.

    The used memory is the memory of all processes on that GPU.
    """
    program = gpu_program()
    gpu = next(iter(named_gpus(program.variables, os.environ) or ()), "")
    if not program.memory_arguments:
        return None
    try:
        printed = _query(program, *(argument.format(gpu=gpu) for argument in program.memory_arguments))
    except GpuProgramError:
        return None
    matches = list(re.finditer(program.memory_pattern, printed, re.MULTILINE))
    if len(matches) != 1:  # no memory, or the memory of several GPUs
        return None
    used, total = (int(matches[0][group]) // program.memory_units_per_mb for group in ("used", "total"))
    return used, total


def gpu_use_percent(num_gpus: int) -> list[int]:
    """Return for each of the first `num_gpus` GPUs of this process the percentage of the program's last sampling period in which the GPU was busy.

    The list is empty where the vendor's program does not say this for all these GPUs. NVIDIA's program says nothing of slices of GPUs (MIG).
    """
    program = gpu_program()
    if not program.use_arguments:
        return []
    try:
        printed = _query(program, *program.use_arguments)
    except GpuProgramError:
        return []
    matches = [match.groupdict() for match in re.finditer(program.use_pattern, printed, re.MULTILINE)]
    names = named_gpus(program.variables, os.environ)
    if names is not None:
        # A variable may contain only the beginning of a UUID.
        matches = [match for name in names for match in matches if name == match["gpu"] or match.get("uuid", "").startswith(name)]
    return [int(match["percent"]) for match in matches[:num_gpus]] if len(matches) >= num_gpus else []


def apptainer_options() -> list[str]:
    """Return the options of `apptainer exec` that give programs in a container the drivers of this machine's GPUs."""
    return list(dict.fromkeys(option for program in PROGRAMS if _path_to(program) for option in program.apptainer_options))


def with_replaced_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` with the variables in REPLACED_VARIABLES replaced.

    Where both variables of a pair are set, both stay, because the numbers in the second variable then count among the GPUs that the first variable names.
    """
    replaced = dict(env)
    for old, new in REPLACED_VARIABLES.items():
        gpus = named_gpus((old,), env)
        if gpus is not None and new not in env:
            del replaced[old]
            replaced[new] = ",".join(gpus)
    return replaced
