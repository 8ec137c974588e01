from __future__ import annotations

import pytest
import torch

from raysweep.training.devices import select_device


def test_a_gpu_that_pytorch_cannot_use_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device(needs_gpu=False) == torch.device("cpu")
    with pytest.raises(RuntimeError, match=r"cannot use the GPU that this process was given: see env\.torch_backend"):
        select_device(needs_gpu=True)


@pytest.mark.parametrize("name", ["cuda", "xpu"])
def test_the_gpus_of_nvidia_and_amd_are_cuda_and_those_of_intel_are_xpu(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No GPU of Intel was ever used: PyTorch only believes that it has one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: name == "cuda")
    monkeypatch.setattr(torch.xpu, "is_available", lambda: name == "xpu")
    assert select_device(needs_gpu=True) == torch.device(name)
