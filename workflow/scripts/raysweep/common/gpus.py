"""NVIDIA GPUs as `nvidia-smi` and CUDA_VISIBLE_DEVICES describe them. The only module that runs `nvidia-smi`."""

from __future__ import annotations

import os
import shutil
import subprocess

NVIDIA_SMI_DEADLINE_S = 60


class NvidiaSmiError(Exception):
    """`nvidia-smi` is missing, fails or does not answer; the text says which of these."""


def _query(*arguments: str) -> str:
    """Return what `nvidia-smi` prints. Raises NvidiaSmiError."""
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
    """Return how many GPUs, or slices of GPUs (MIG), NVIDIA's driver lists on this machine, and the same in words."""
    try:
        lines = [line.strip() for line in _query("--list-gpus").splitlines()]
    except NvidiaSmiError as error:
        return 0, str(error)
    count = max(sum(line.startswith(kind) for line in lines) for kind in ("GPU ", "MIG "))
    return count, f"nvidia-smi lists {count}"


def usable_gpus() -> int:
    """Return the number of NVIDIA GPUs that this process may use: those that CUDA_VISIBLE_DEVICES names, else all that the driver lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return visible_gpus()[0]


def first_gpu_memory_mb() -> tuple[int, int] | None:
    """Return the used and the total memory of this process's first GPU, in MB; None where `nvidia-smi` cannot tell.

    The used memory counts all processes on that GPU.
    """
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    try:
        printed = _query(f"--id={gpu}", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits")
        used_mb, total_mb = (int(number) for number in printed.split(","))
    except (NvidiaSmiError, ValueError):
        return None
    return used_mb, total_mb
