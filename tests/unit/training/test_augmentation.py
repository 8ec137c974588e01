from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from raysweep.training.augmentation import cut_out, shifted


def some_images(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(1, 256, (*shape, 3, 5, 4), dtype=np.uint8))


def test_images_are_mirrored_and_shifted_as_the_draws_say() -> None:
    images = some_images(3)
    draws = torch.tensor([[1, 0, 0, 0, 0], [0, 2, -1, 0, 0], [1, -1, 1, 0, 0]], dtype=torch.int16)
    result = shifted(images, draws)
    assert result.dtype == torch.uint8
    assert torch.equal(result[0], images[0].flip(-1))
    # A crop of the padded image is the same as a shift, with black outside the image.
    assert torch.equal(result[1], F.pad(images[1], (4, 4, 4, 4))[:, 2:7, 5:9])
    assert torch.equal(result[2], F.pad(images[2], (4, 4, 4, 4))[:, 5:10, 3:7].flip(-1))


def test_many_stacks_of_images_are_changed_at_once() -> None:
    images = some_images(2, 3)
    draws = torch.from_numpy(np.random.default_rng(1).integers(0, 2, (2, 3, 5), dtype=np.int16))
    for change in (shifted, lambda images, draws: cut_out(images.double(), draws, 3)):
        together = change(images, draws)
        for member in range(2):
            assert torch.equal(together[member], change(images[member], draws[member]))


def test_a_square_is_cut_out_around_its_centre_and_at_the_edge() -> None:
    images = torch.ones(2, 1, 5, 4)
    result = cut_out(images, torch.tensor([[0, 0, 0, 2, 1], [0, 0, 0, 4, 0]]), 2)
    assert result[0, 0].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert result[1, 0].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]]
