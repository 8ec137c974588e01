"""This module counts NVIDIA GPUs with `nvidia-smi` and CUDA_VISIBLE_DEVICES. No other module runs `nvidia-smi`."""

from __future__ import annotations

import os
import shutil
import subprocess

NVIDIA_SMI_DEADLINE_S = 60


class NvidiaSmiError(Exception):
    """Reports that `nvidia-smi` is missing, fails or does not answer. The text of the error says which of the three happened."""


def _query(*arguments: str) -> str:
    """Return the text that `nvidia-smi` prints. Raises NvidiaSmiError where `nvidia-smi` cannot answer."""
    if not shutil.which("nvidia-smi"):
        raise NvidiaSmiError("there is no nvidia-smi")
    try:
        run = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, errors="replace", check=False, timeout=NVIDIA_SMI_DEADLINE_S
        )
    except subprocess.TimeoutExpired:
        raise NvidiaSmiError(f"nvidia-smi does not answer within {NVIDIA_SMI_DEADLINE_S} s") from None
    except OSError as error:
        raise NvidiaSmiError(f"nvidia-smi does not run ({error.strerror})") from None
    if run.returncode != 0:
        reason = " ".join((run.stdout + run.stderr).split())[:200]
        raise NvidiaSmiError(f"nvidia-smi says {reason}" if reason else f"nvidia-smi ends with exit code {run.returncode}")
    return run.stdout


def visible_gpus() -> tuple[int, str]:
    """Return the number of GPUs, or of GPU slices (MIG), that NVIDIA's driver lists on this machine, and a text that explains the number."""
    try:
        lines = [line.strip() for line in _query("--list-gpus").splitlines()]
    except NvidiaSmiError as error:
        return 0, str(error)
    count = max(sum(line.startswith(kind) for line in lines) for kind in ("GPU ", "MIG "))
    return count, f"nvidia-smi lists {count}"


def usable_gpus() -> int:
    """Return the number of NVIDIA GPUs that this process may use.

    The number counts the GPUs in CUDA_VISIBLE_DEVICES, or all GPUs that the driver lists where the variable is not set.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return visible_gpus()[0]


def first_gpu_memory_mb() -> tuple[int, int] | None:
    """Return the used and the total memory of this process's first GPU in MB, or None where `nvidia-smi` does not report the memory.

    The used memory is the memory of all processes on that GPU.
    """
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    try:
        printed = _query(f"--id={gpu}", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits")
        used_mb, total_mb = (int(number) for number in printed.split(","))
    except (NvidiaSmiError, ValueError):
        return None
    return used_mb, total_mb
