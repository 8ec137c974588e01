"""A generated ten-class data set of CIFAR-10's shape, for a demo that downloads no data: a small network can learn it, but not at any learning rate.

Each class is a coarse random texture. An image shows the texture of its class, shifted at random, with a contrast and a tint of its own, under a
texture of no class and pixel noise. One label in ten is drawn at random, so that no model gets all labels right. The images are made by integer
arithmetic on PCG64's raw output. numpy keeps that output the same in all versions and on all machines, but may change the methods of its
Generator; so the bytes are the same everywhere.
"""

from __future__ import annotations

import numpy as np

CLASSES = [f"synthetic {label}" for label in range(10)]
NUM_TRAIN, NUM_TEST = 6_000, 1_000  # a small network needs seconds for an epoch
SEED = 1
SIZE = 32  # pixels along a side
GRID = 4  # points of a coarse texture along a side
SHIFTS = 12  # pixels, in each direction
BLOCK = 1_000  # images made at once, to keep the memory low


def _draw(bits: np.random.PCG64, upper: int, *shape: int) -> np.ndarray:
    """Return integers in [0, upper), int32, scaled from the high halves of PCG64's 64-bit output."""
    raw = np.asarray(bits.random_raw(int(np.prod(shape)))).reshape(shape)
    scaled: np.ndarray = ((raw >> np.uint64(32)) * np.uint64(upper) >> np.uint64(32)).astype(np.int32)
    return scaled


def _draw_textures(bits: np.random.PCG64, n: int) -> np.ndarray:
    """Return textures around 0, int32 [n, 3, 32, 32]: random values on a grid, interpolated linearly and continued over the edges."""
    step = SIZE // GRID
    distance = np.abs(np.arange(SIZE)[:, None] - step * np.arange(GRID)[None, :])
    weights = np.maximum(step - np.minimum(distance, SIZE - distance), 0).astype(np.int32)  # [32, 4]; each row adds up to `step`
    textures: np.ndarray = weights @ _draw(bits, 256, n, 3, GRID, GRID) @ weights.T // step**2 - 128
    return textures


def _draw_block(bits: np.random.PCG64, prototypes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `n` images, uint8 [n, 3, 32, 32], and their labels, int64 [n]."""
    labels = np.arange(n, dtype=np.int64) % len(prototypes)  # the same number of each class; no code may rely on this order
    rows, columns = ((np.arange(SIZE) + _draw(bits, SHIFTS, n, 1)) % SIZE for _ in "yx")
    texture = prototypes[labels[:, None, None], :, rows[:, :, None], columns[:, None, :]].transpose(0, 3, 1, 2)
    contrast = 96 + _draw(bits, 128, n, 1, 1, 1)  # of 256
    clutter = 112 * _draw_textures(bits, n)  # of 256
    tint = _draw(bits, 64, n, 3, 1, 1) - 32
    noise = _draw(bits, 96, n, 3, SIZE, SIZE) - 48
    images = np.clip(128 + (contrast * texture + clutter) // 256 + tint + noise, 0, 255).astype(np.uint8)
    return images, np.where(_draw(bits, 10, n) == 0, _draw(bits, len(prototypes), n), labels)


def _draw_split(bits: np.random.PCG64, prototypes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and the labels of a part, drawn in blocks."""
    images, labels = zip(*(_draw_block(bits, prototypes, BLOCK) for _ in range(n // BLOCK)), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def generate() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the parts "train" and "test", each images, uint8 [n, 3, 32, 32], and labels, int64 [n]. The bytes are the same on every call."""
    bits = np.random.PCG64(SEED)
    prototypes = _draw_textures(bits, len(CLASSES))
    return {"train": _draw_split(bits, prototypes, NUM_TRAIN), "test": _draw_split(bits, prototypes, NUM_TEST)}
