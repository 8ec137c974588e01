"""A folder of the user's own images, one folder a class, as torchvision's ImageFolder takes it:

    <folder>/train/<class>/*.png …    and    <folder>/test/<class>/*.png …
    <folder>/<class>/*.png …          of which a part is set aside for the test

All are brought to squares of one size: scaled, as much as the shorter side needs, and cropped around the centre.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from raysweep.common.errors import WorldError
from raysweep.common.machine import usable_cpus

logger = logging.getLogger("raysweep")

LAYOUT = "A folder of images has a folder for each class, or has folders `train` and `test` that do."


def read(folder: Path, size: int) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """The parts "train" and, where the folder has one, "test": images, uint8 [n, 3, size, size], and labels, int64 [n], in the order of their names; and the
    names of the classes. Raises WorldError where the folder is not laid out so, or an image cannot be read."""
    parts = {part: folder / part for part in ("train", "test") if (folder / part).is_dir()} or {"train": folder}
    if "train" not in parts:
        raise WorldError(f"{folder}: has a folder `test`, but no `train`. {LAYOUT}")
    if parts["train"] != folder and (beside := sorted({path.name for path in _folders_in(folder)} - {"train", "test"})):
        raise WorldError(
            f"{folder}: has {', '.join(beside)} beside train and test. The validation split is drawn from train: move those images there."
        )
    files = {part: _files_of_classes(root) for part, root in parts.items()}
    classes = list(files["train"])
    if "test" in files and (others := set(files["test"]) ^ set(classes)):
        raise WorldError(f"{folder}: train and test have different classes: only one of them has {', '.join(sorted(others))}.")
    return {part: _read_part(found, size) for part, found in files.items()}, classes


def _folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _files_of_classes(root: Path) -> dict[str, list[Path]]:
    """The image files of each class, by their names' endings."""
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}  # others it only writes
    found: dict[str, list[Path]] = {}
    passed_over = 0
    for folder in _folders_in(root):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder)))
        found[folder.name] = [path for path in files if path.suffix.lower() in endings]
        passed_over += len(files) - len(found[folder.name])
        if not found[folder.name]:
            raise WorldError(f"{folder}: holds no image, such as a .png or .jpg. {LAYOUT}")
    if len(found) < 2:
        raise WorldError(f"{root}: has {len(found)} folders of images; there have to be two classes or more. {LAYOUT}")
    if passed_over:
        logger.info("%s: %d files are no images by their names, and are passed over", root, passed_over)
    return found


def _read_part(files: dict[str, list[Path]], size: int) -> tuple[np.ndarray, np.ndarray]:
    paths = [path for of_class in files.values() for path in of_class]
    images = np.empty((len(paths), 3, size, size), np.uint8)
    with ThreadPoolExecutor(usable_cpus()) as pool:
        for row, image in enumerate(pool.map(partial(_read_image, size=size), paths)):
            images[row] = image
    return images, np.repeat(np.arange(len(files)), [len(of_class) for of_class in files.values()])


def _read_image(path: Path, size: int) -> np.ndarray:
    """uint8 [3, size, size]."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # which `convert` would cut off at 255
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            if upright.mode in ("I", "F"):
                raise ValueError(
                    f"its pixels are of Pillow's mode {upright.mode}, of which nobody knows the range; save it with 8 or 16 bits"
                )
            upright = upright.convert("RGB")
            return np.asarray(ImageOps.fit(upright, (size, size))).transpose(2, 0, 1)
    except Exception as error:  # a damaged file can raise nearly anything
        raise WorldError(f"{path}: cannot be read as an image ({error}). Mend it, or take it away.") from error
