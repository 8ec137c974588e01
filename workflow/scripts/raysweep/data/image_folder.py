"""Reads a folder of the user's own images, which contains one folder for each class, as torchvision's ImageFolder requires.

All images become squares of one size. Each image is scaled until its shorter side has this size, and then cropped around the centre.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from raysweep.common.errors import WorldError
from raysweep.common.machine import usable_cpus
from raysweep.data.image_depth import Range, Scale, choose_scale, is_deep, range_of
from raysweep.data.image_layout import read_layout

T = TypeVar("T")


def read(folder: Path, size: int) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """Return the splits of the folder and the names of the classes. The splits are "train" and, where the folder has a test split, "test".

    A split consists of images, uint8 [n, 3, size, size], and labels, int64 [n], in the order of the classes and of the names of the files. Raises
    WorldError where the folder has a layout that is not allowed, or where an image cannot be read.
    """
    layout = read_layout(folder)
    paths = [path for files_of_class in layout.parts.values() for files in files_of_class.values() for path in files]
    # The threads run in parallel, because Pillow releases Python's global interpreter lock while Pillow decodes an image.
    with ThreadPoolExecutor(usable_cpus()) as pool:
        scale = choose_scale(folder, dict(zip(paths, pool.map(_read_range, paths), strict=True)))
        parts = {part: _read_part(files_of_class, size, scale, pool) for part, files_of_class in layout.parts.items()}
    return parts, layout.classes


def _read_part(
    files_of_class: dict[str, list[Path]], size: int, scale: Scale | None, pool: ThreadPoolExecutor
) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 [n, 3, size, size], and the labels, int64 [n], of one split. `files_of_class` maps each class to its image files."""
    paths = [path for paths in files_of_class.values() for path in paths]
    images = np.empty((len(paths), 3, size, size), np.uint8)
    for row, image in enumerate(pool.map(partial(_read_image, size=size, scale=scale), paths)):
        images[row] = image
    return images, np.repeat(np.arange(len(files_of_class)), [len(paths) for paths in files_of_class.values()])


def _read_range(path: Path) -> Range:
    """Return the range of the pixels of an image file."""
    return _with_image(path, range_of)


def _read_image(path: Path, size: int, scale: Scale | None) -> np.ndarray:
    """Return an image as uint8 [3, size, size]."""
    return _with_image(path, partial(_to_array, size=size, scale=scale))


def _to_array(image: Image.Image, size: int, scale: Scale | None) -> np.ndarray:
    """Return an image as uint8 [3, size, size], upright and in RGB colours. `scale` converts pixels of more than 8 bits."""
    upright = ImageOps.exif_transpose(image)
    if scale is not None and is_deep(upright):  # Without the scale, `convert` would replace all values above 255 by 255.
        upright = Image.fromarray(scale.apply(np.asarray(upright)))
    return np.asarray(ImageOps.fit(upright.convert("RGB"), (size, size))).transpose(2, 0, 1)


def _with_image(path: Path, function: Callable[[Image.Image], T]) -> T:
    """Return the result of `function` for the image in the file `path`. Raises WorldError where the file cannot be read as an image."""
    try:
        with Image.open(path) as image:
            return function(image)
    except Exception as error:  # A damaged file can raise nearly every type of exception.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WorldError(f"{path}: cannot be read as an image ({reason}). Mend it, or take it away.") from error
