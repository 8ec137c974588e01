"""A folder of the user's own images, with one folder for each class, as torchvision's ImageFolder takes it:

    <folder>/train/<class>/*.png …    and    <folder>/test/<class>/*.png …
    <folder>/<class>/*.png …          of which a part is set aside for the test

All images are brought to squares of one size: scaled, as much as the shorter side needs, and cropped around the centre.
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
    """Return the parts "train" and, where the folder has one, "test", and the names of the classes.

    A part is images, uint8 [n, 3, size, size], and labels, int64 [n], in the order of the files' names. Raises WorldError where the folder has
    another layout, or where an image cannot be read.
    """
    parts = {part: folder / part for part in ("train", "test") if (folder / part).is_dir()} or {"train": folder}
    if "train" not in parts:
        raise WorldError(f"{folder}: has a folder `test`, but no `train`. {LAYOUT}")
    if parts["train"] != folder and (misplaced := sorted({path.name for path in _folders_in(folder)} - {"train", "test"})):
        raise WorldError(
            f"{folder}: has {', '.join(misplaced)} beside train and test. The validation split is drawn from train: move those images there."
        )
    files = {part: _files_of_classes(root) for part, root in parts.items()}
    classes = list(files["train"])
    if "test" in files and (unshared := set(files["test"]) ^ set(classes)):
        raise WorldError(f"{folder}: train and test have different classes: only one of them has {', '.join(sorted(unshared))}.")
    return {part: _read_part(files_of_class, size) for part, files_of_class in files.items()}, classes


def _folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without the hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_hidden(path: Path) -> bool:
    """Return whether a file or one of the folders around it is hidden."""
    return any(part.startswith(".") for part in path.parts)


def _files_of_classes(root: Path) -> dict[str, list[Path]]:
    """Return the image files of each class, chosen by the endings of their names."""
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}  # Pillow only writes the other kinds
    files_of_class: dict[str, list[Path]] = {}
    num_passed_over = 0
    for folder in _folders_in(root):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder)))
        files_of_class[folder.name] = [path for path in files if path.suffix.lower() in endings]
        num_passed_over += len(files) - len(files_of_class[folder.name])
        if not files_of_class[folder.name]:
            raise WorldError(f"{folder}: holds no image, such as a .png or .jpg. {LAYOUT}")
    if len(files_of_class) < 2:
        raise WorldError(f"{root}: has {len(files_of_class)} folders of images; there have to be two classes or more. {LAYOUT}")
    if num_passed_over:
        logger.info("%s: %d files are no images by their names, and are passed over", root, num_passed_over)
    return files_of_class


def _read_part(files_of_class: dict[str, list[Path]], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 [n, 3, size, size], and labels, int64 [n]; the images are read in as many threads as there are CPUs."""
    paths = [path for paths in files_of_class.values() for path in paths]
    images = np.empty((len(paths), 3, size, size), np.uint8)
    with ThreadPoolExecutor(usable_cpus()) as pool:
        for row, image in enumerate(pool.map(partial(_read_image, size=size), paths)):
            images[row] = image
    return images, np.repeat(np.arange(len(files_of_class)), [len(paths) for paths in files_of_class.values()])


def _read_image(path: Path, size: int) -> np.ndarray:
    """Return an image as uint8 [3, size, size]. Raises WorldError where the file cannot be read as an image."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # because `convert` would cut 16 bits off at 255
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            if upright.mode in ("I", "F"):
                raise ValueError(f"its pixels are of Pillow's mode {upright.mode}, whose range is not known; save it with 8 or 16 bits")
            upright = upright.convert("RGB")
            return np.asarray(ImageOps.fit(upright, (size, size))).transpose(2, 0, 1)
    except Exception as error:  # a damaged file can raise nearly anything
        raise WorldError(f"{path}: cannot be read as an image ({error}). Mend it, or take it away.") from error
