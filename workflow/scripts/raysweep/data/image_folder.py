"""A folder of the user's own images, with one folder for each class, as torchvision's ImageFolder takes it.

All images are brought to squares of one size: scaled, as much as the shorter side needs, and cropped around the centre.
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
    """Return the parts "train" and, where the folder has one, "test", and the names of the classes.

    A part is images, uint8 [n, 3, size, size], and labels, int64 [n], in the order of the files' names. Raises WorldError where the folder has
    another layout, or where an image cannot be read.
    """
    layout = read_layout(folder)
    paths = [path for files_of_class in layout.parts.values() for files in files_of_class.values() for path in files]
    with ThreadPoolExecutor(usable_cpus()) as pool:  # Pillow decodes without the lock of the interpreter
        scale = choose_scale(folder, dict(zip(paths, pool.map(_read_range, paths), strict=True)))
        parts = {part: _read_part(files_of_class, size, scale, pool) for part, files_of_class in layout.parts.items()}
    return parts, layout.classes


def _read_part(
    files_of_class: dict[str, list[Path]], size: int, scale: Scale | None, pool: ThreadPoolExecutor
) -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 [n, 3, size, size], and labels, int64 [n]."""
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
    """Return an image, upright, in 8 bits and in colour, as uint8 [3, size, size]."""
    upright = ImageOps.exif_transpose(image)
    if scale is not None and is_deep(upright):  # because `convert` would cut these off at 255
        upright = Image.fromarray(scale.apply(np.asarray(upright)))
    return np.asarray(ImageOps.fit(upright.convert("RGB"), (size, size))).transpose(2, 0, 1)


def _with_image(path: Path, function: Callable[[Image.Image], T]) -> T:
    """Return the function's value for an image file. Raises WorldError where the file cannot be read as an image."""
    try:
        with Image.open(path) as image:
            return function(image)
    except Exception as error:  # a damaged file can raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WorldError(f"{path}: cannot be read as an image ({reason}). Mend it, or take it away.") from error
