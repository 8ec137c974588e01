"""Chooses the device on which PyTorch trains. The type `cuda` stands for the GPUs of NVIDIA and of AMD, and the type `xpu` for the GPUs of Intel."""

from __future__ import annotations

import torch

GPU_TYPES = ("cuda", "xpu")


def gpu_device() -> torch.device | None:
    """Return the GPU of this process, or None where PyTorch can use no GPU."""
    return next((torch.device(name) for name in GPU_TYPES if torch.get_device_module(name).is_available()), None)


def select_device(needs_gpu: bool) -> torch.device:
    """Return the GPU of this process, or the CPU where PyTorch can use no GPU.

    Raises RuntimeError where PyTorch can use no GPU although `needs_gpu` says that this process was given a GPU.
    """
    device = gpu_device()
    if device is None and needs_gpu:
        raise RuntimeError(f"PyTorch {torch.__version__} cannot use the GPU that this process was given: see env.torch_backend")
    return device or torch.device("cpu")
