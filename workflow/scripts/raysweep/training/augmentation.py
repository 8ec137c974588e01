"""Augments training images: mirrors them, shifts them and cuts a square out of them. The random numbers come from the plan of the epoch."""

from __future__ import annotations

import torch


def shifted(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Return images [n, channels, height, width] that are shifted and then mirrored as `draws`, int [n, NUM_DRAWS], say. The type of the pixels stays.

    Pixels that a shift moves into the image are 0, which is black. `images` and `draws` may have more than one dimension in the place of n.
    """
    height, width = images.shape[-2:]
    flips, down, right = (column[..., None] for column in draws[..., :3].long().unbind(-1))
    row, column = (torch.arange(size, device=images.device) for size in (height, width))
    y = row - down  # row of the image from which each row of the result comes, [n, height]
    x = torch.where(flips > 0, width - 1 - column, column) - right
    is_inside = ((y >= 0) & (y < height))[..., :, None] & ((x >= 0) & (x < width))[..., None, :]
    places = y.clamp(0, height - 1)[..., :, None] * width + x.clamp(0, width - 1)[..., None, :]
    pixels = images.flatten(-2).gather(-1, places.flatten(-2)[..., None, :].expand(*images.shape[:-2], height * width)).view_as(images)
    return pixels * is_inside[..., None, :, :]


def cut_out(images: torch.Tensor, draws: torch.Tensor, size: int) -> torch.Tensor:
    """Return normalised images [n, channels, height, width] in which a square of `size` pixels a side is 0, which is grey.

    `draws`, int [n, NUM_DRAWS], contains the centres of the squares. A square may reach beyond the edge of an image. (T. DeVries and G. W. Taylor,
    https://arxiv.org/abs/1708.04552)
    """
    is_cut = []
    for centre, side in zip(draws[..., 3:].long().unbind(-1), images.shape[-2:], strict=True):
        distance = torch.arange(side, device=images.device) - (centre[..., None] - size // 2)
        is_cut.append((distance >= 0) & (distance < size))
    return images * ~(is_cut[0][..., :, None] & is_cut[1][..., None, :])[..., None, :, :]
