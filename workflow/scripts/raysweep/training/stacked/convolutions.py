"""Computes convolutions as matrix products of unfolded images."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Pair = int | tuple[int, int]


class UnfoldedConvolutions(TorchFunctionMode):
    """Provides a context in which two-dimensional convolutions are computed as matrix products of unfolded images.

    Outside this context the convolutions of a stack are computed as grouped convolutions, which are slow on some devices.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.conv2d:
            return convolve_unfolded(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def convolve_unfolded(
    images: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> torch.Tensor:
    """Return the result of F.conv2d, computed as a matrix product. The arguments are the arguments of F.conv2d.

    F.conv2d itself computes convolutions with groups, with a named padding such as "same", or of images that are not [rows, channels, height, width].
    """
    if groups != 1 or isinstance(padding, str) or images.dim() != 4:
        return F.conv2d(images, weight, bias, stride, padding, dilation, groups)
    strides, paddings, dilations = (value if isinstance(value, tuple) else (value, value) for value in (stride, padding, dilation))
    (height, width), kernel = images.shape[2:], weight.shape[2:]
    columns = F.unfold(images, kernel, dilation=dilations, padding=paddings, stride=strides)  # [rows, channels · kernel, positions]
    size = [
        (whole + 2 * pad - dil * (edge - 1) - 1) // step + 1
        for whole, edge, step, pad, dil in zip((height, width), kernel, strides, paddings, dilations, strict=True)
    ]
    out = (weight.flatten(1) @ columns).unflatten(2, size)
    return out if bias is None else out + bias.view(-1, 1, 1)
