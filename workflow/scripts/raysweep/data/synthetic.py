"""Generates a ten-class data set of CIFAR-10's shape for a demo that downloads no data.

A small network can learn the data set, but not with every learning rate. Each class is a coarse random texture. An image shows the texture of its class
with a random shift, a random contrast and a random tint. A second random texture, which belongs to no class, and random pixel values are added. One
label in ten is sampled at random, so that no model predicts all labels correctly. The images are computed with integer arithmetic from PCG64's raw
output. All versions of numpy on all machines give equal raw output, but may change the methods of numpy's Generator. So the bytes of the data set are
equal on all machines.
"""

from __future__ import annotations

import numpy as np

CLASSES = [f"synthetic {label}" for label in range(10)]
NUM_TRAIN, NUM_TEST = 6_000, 1_000  # numbers of images, so small that a small network needs only seconds for an epoch
SEED = 1
SIZE = 32  # side of an image in pixels
GRID = 4  # number of points of a coarse texture along a side
SHIFTS = 12  # number of different shifts in each direction, from 0 to 11 pixels
BLOCK = 1_000  # number of images that are made at the same time, which is small to limit the use of memory


def _draw(bits: np.random.PCG64, upper: int, *shape: int) -> np.ndarray:
    """Return random integers in [0, upper), int32 of the given shape, scaled from the high halves of PCG64's 64-bit output."""
    raw = np.asarray(bits.random_raw(int(np.prod(shape)))).reshape(shape)
    scaled: np.ndarray = ((raw >> np.uint64(32)) * np.uint64(upper) >> np.uint64(32)).astype(np.int32)
    return scaled


def _draw_textures(bits: np.random.PCG64, n: int) -> np.ndarray:
    """Return `n` random textures with values around 0, int32 [n, 3, 32, 32].

    A texture is a linear interpolation of random values on a grid. The interpolation continues across the edges, so that a shifted texture has no seam.
    """
    step = SIZE // GRID
    distance = np.abs(np.arange(SIZE)[:, None] - step * np.arange(GRID)[None, :])
    weights = np.maximum(step - np.minimum(distance, SIZE - distance), 0).astype(np.int32)  # [32, 4]; the sum of each row is `step`
    textures: np.ndarray = weights @ _draw(bits, 256, n, 3, GRID, GRID) @ weights.T // step**2 - 128
    return textures


def _draw_block(bits: np.random.PCG64, prototypes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `n` images, uint8 [n, 3, 32, 32], and their labels, int64 [n]."""
    labels = np.arange(n, dtype=np.int64) % len(prototypes)  # Each class gets an equal number of images. No code may rely on this order.
    rows, columns = ((np.arange(SIZE) + _draw(bits, SHIFTS, n, 1)) % SIZE for _ in "yx")
    texture = prototypes[labels[:, None, None], :, rows[:, :, None], columns[:, None, :]].transpose(0, 3, 1, 2)
    contrast = 96 + _draw(bits, 128, n, 1, 1, 1)  # in units of 1/256
    clutter = 112 * _draw_textures(bits, n)  # in units of 1/256
    tint = _draw(bits, 64, n, 3, 1, 1) - 32
    noise = _draw(bits, 96, n, 3, SIZE, SIZE) - 48
    images = np.clip(128 + (contrast * texture + clutter) // 256 + tint + noise, 0, 255).astype(np.uint8)
    return images, np.where(_draw(bits, 10, n) == 0, _draw(bits, len(prototypes), n), labels)


def _draw_split(bits: np.random.PCG64, prototypes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `n` images, uint8 [n, 3, 32, 32], and the labels, int64 [n], of a split, which are generated in blocks of BLOCK images."""
    images, labels = zip(*(_draw_block(bits, prototypes, BLOCK) for _ in range(n // BLOCK)), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def generate() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the splits "train" and "test". Each split consists of images, uint8 [n, 3, 32, 32], and labels, int64 [n].

    Every call returns equal bytes.
    """
    bits = np.random.PCG64(SEED)
    prototypes = _draw_textures(bits, len(CLASSES))
    return {"train": _draw_split(bits, prototypes, NUM_TRAIN), "test": _draw_split(bits, prototypes, NUM_TEST)}
