"""The layout of a folder of images: which of its folders are splits, which are classes, and which files are images.

    <folder>/train/<class>/*.png …    and    <folder>/test/<class>/*.png …
    <folder>/<class>/*.png …          of which a part is set aside for the test

Public data sets write `train` and `test` in many ways (Training, seg_train, Test). A folder is a split where its name says so and where it
holds folders of classes. A layout that may mean two things is refused, because a wrong guess trains on the names of the splits.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from PIL import Image

from raysweep.common.errors import WorldError

logger = logging.getLogger("raysweep")

LAYOUT = "A folder of images has a folder for each class, or has folders `train` and `test` that do."
WORDS_OF_SPLITS = {
    "train": {"train", "training", "trainset", "traindata"},
    "test": {"test", "testing", "testset", "testdata"},
    "validation": {"val", "valid", "validation", "valset", "dev"},
}
FOLD = re.compile(r"(k?[-_ ]?fold|split)[-_ ]?\d+")
UNREADABLE = {
    "BUFR",
    "GRIB",
    "HDF5",
    "MPEG",
    "WMF",
}  # Pillow names these kinds, but reads their pixels only with libraries that it does not bring


@dataclass(frozen=True)
class Layout:
    """The image files of each class, by the parts "train" and, where the folder has one, "test"."""

    parts: dict[str, dict[str, list[Path]]]

    @property
    def classes(self) -> list[str]:
        """Return the names of the classes in the order of the labels."""
        return list(self.parts["train"])


@dataclass(frozen=True)
class _Folder:
    """A folder with the images right in it, the names of its other files, and its folders that are not hidden."""

    path: Path
    images: tuple[Path, ...]
    other_files: tuple[str, ...]
    folders: tuple[_Folder, ...]

    @property
    def is_nested(self) -> bool:
        """Return whether the images lie in folders of this folder, but for images that lie beside two such folders or more."""
        num_folders = sum(1 for folder in self.folders if folder.num_images)
        return num_folders > 1 or (num_folders == 1 and not self.images)

    @property
    def num_images(self) -> int:
        """Return the number of images in this folder and in all folders below."""
        return len(self.images) + sum(folder.num_images for folder in self.folders)

    @property
    def names_of_folders(self) -> set[str]:
        return {folder.path.name for folder in self.folders}

    def walk(self) -> Iterator[_Folder]:
        """Yield this folder and all folders below."""
        yield self
        for folder in self.folders:
            yield from folder.walk()


def read_layout(path: Path) -> Layout:
    """Return the images of a folder by part and class. Raises WorldError for any other layout, with one line that says how to write it."""
    root = _scan(path, _image_endings(), ())
    splits = _splits_of(root)
    if splits:
        _refuse_other_than_train_and_test(root, splits)
    else:
        _refuse_folders_that_are_no_classes(root)
    roots = {split: _unwrapped(folder) for split, folder in splits.items()} or {"train": root}
    parts = {part: _files_of_classes(folder) for part, folder in roots.items()}
    if "test" in parts and (unshared := set(parts["test"]) ^ set(parts["train"])):
        names = " and ".join(splits[part].path.name for part in ("train", "test"))
        raise WorldError(f"{path}: {names} have different classes: only one of them has {', '.join(sorted(unshared))}.")
    _log_ignored_files(root, roots)
    return Layout(parts)


# ---------------------------------------------------------------------------------------------------------------- files


def _image_endings() -> set[str]:
    """Return the endings of the names of the files that Pillow can read."""
    return {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in UNREADABLE}


def _scan(path: Path, endings: set[str], parents: tuple[str, ...]) -> _Folder:
    """Return a folder with all below, links followed. Raises WorldError for a link that leads nowhere or to one of the folders around it."""
    real_path = os.path.realpath(path)
    if real_path in parents:
        raise WorldError(f"{path}: a link in this path leads back to {real_path}, which holds the link. Remove the link.")
    images: list[Path] = []
    other_files: list[Path] = []
    folders: list[_Folder] = []
    for child in sorted(path.iterdir()):
        if child.name.startswith("."):
            continue
        if child.is_dir():
            folders.append(_scan(child, endings, (*parents, real_path)))
        elif child.is_symlink() and not child.exists():
            raise WorldError(f"{child}: is a link to {os.readlink(child)!r}, which does not exist. Mend the link, or remove it.")
        elif child.is_file():
            (images if child.suffix.lower() in endings else other_files).append(child)
    return _Folder(path, tuple(images), tuple(file.name for file in other_files), tuple(folders))


def _files_of_classes(root: _Folder) -> dict[str, list[Path]]:
    """Return the image files of each class of a part."""
    files_of_class = {}
    for folder in root.folders:
        files_of_class[folder.path.name] = sorted(path for inner in folder.walk() for path in inner.images)
        if not files_of_class[folder.path.name]:
            raise WorldError(f"{folder.path}: holds no image, such as a .png or .jpg. {LAYOUT}")
    if len(files_of_class) < 2:
        hint = (
            f" If the classes lie in {root.folders[0].path.name}, give that folder as `source`."
            if any(f.is_nested for f in root.folders)
            else ""
        )
        raise WorldError(f"{root.path}: has {len(files_of_class)} folders of images; there have to be two classes or more. {LAYOUT}{hint}")
    return files_of_class


def _log_ignored_files(root: _Folder, roots: dict[str, _Folder]) -> None:
    """Log how many files are not used: files that are no images, and images that lie beside the folders of the classes."""
    names = [name for folder in root.walk() for name in folder.other_files]
    if names:
        endings = Counter(Path(name).suffix.lower() or "no ending" for name in names).most_common(3)
        shown = ", ".join(f"{count} {ending}" for ending, count in endings)
        logger.info("%s: %d files are not images by their names and are ignored (%s)", root.path, len(names), shown)
    num_used = sum(folder.num_images for part in roots.values() for folder in part.folders)
    if num_without_class := root.num_images - num_used:
        logger.warning(
            "%s: %d images lie beside the folders of the classes and are ignored, because they have no class", root.path, num_without_class
        )


# ---------------------------------------------------------------------------------------------------------------- splits


def _split_in_name(name: str, is_exact: bool) -> str | None:
    """Return the split that the name of a folder means: as a whole, or, unless `is_exact`, with one of its words."""
    words = {name.casefold()} if is_exact else set(re.split(r"[^a-z]+", name.casefold()))
    splits = [split for split, spellings in WORDS_OF_SPLITS.items() if words & spellings]
    return splits[0] if len(splits) == 1 else None


def _splits_of(root: _Folder) -> dict[str, _Folder]:
    """Return the folder of each split, {} where the folder holds classes. Raises WorldError where two folders are the same split.

    `Train` alone is a split. A name such as seg_train is one only beside another split with the same classes, because freight_train may be a class.
    """
    nested = [folder for folder in root.folders if folder.is_nested]
    found = [(split, folder) for folder in nested if (split := _split_in_name(folder.path.name, is_exact=True))]
    by_word = [(split, folder) for folder in nested if (split := _split_in_name(folder.path.name, is_exact=False))]
    train_classes = [_unwrapped(folder).names_of_folders for split, folder in by_word if split == "train"]
    shared = [split for split, folder in by_word if any(_unwrapped(folder).names_of_folders & classes for classes in train_classes)]
    if found or len(set(shared)) > 1:
        found = by_word
    splits: dict[str, _Folder] = {}
    for split, folder in found:
        if split in splits:
            raise WorldError(
                f"{root.path}: {splits[split].path.name} and {folder.path.name} both look like the {split} split. Keep one of them: {LAYOUT}"
            )
        splits[split] = folder
    return splits


def _unwrapped(folder: _Folder) -> _Folder:
    """Return the folder of the classes: archives often hold seg_train/seg_train/<class>."""
    while folder.is_nested and len(folder.folders) == 1 and folder.folders[0].is_nested:
        folder = folder.folders[0]
    return folder


def _refuse_other_than_train_and_test(root: _Folder, splits: dict[str, _Folder]) -> None:
    """Raise WorldError where a folder has splits without `train`, or has other folders beside `train` and `test`."""
    names = {split: folder.path.name for split, folder in splits.items()}
    if "train" not in splits:
        raise WorldError(f"{root.path}: has a folder `{next(iter(names.values()))}`, but no `train`. {LAYOUT}")
    if "validation" in splits:
        raise WorldError(
            f"{root.path}: has {names['validation']} beside {names['train']}. The validation split is drawn from {names['train']} "
            f"(validation_fraction): move the images of {names['validation']} there, class by class."
        )
    if misplaced := sorted(root.names_of_folders - set(names.values())):
        raise WorldError(
            f"{root.path}: has {', '.join(misplaced)} beside {' and '.join(names.values())}. Move the images of a class into "
            f"{names['train']}/<class>, and everything else out of this folder."
        )


def _refuse_folders_that_are_no_classes(root: _Folder) -> None:
    """Raise WorldError where the folders look like splits or folds rather than classes."""
    names = sorted(root.names_of_folders)
    with_split = [name for name in names if _split_in_name(name, is_exact=True)]
    if len({_split_in_name(name, is_exact=True) for name in with_split}) > 1 or (
        len({_split_in_name(name, is_exact=False) for name in names} - {None}) > 1
        and all(_split_in_name(name, is_exact=False) for name in names)
    ):
        raise WorldError(
            f"{root.path}: {', '.join(with_split or names)} look like splits, but do not hold the same folders of classes. Write "
            "train/<class>/… and test/<class>/…, or <class>/… without splits."
        )
    if folds := [name for name in names if FOLD.fullmatch(name.casefold())]:
        raise WorldError(
            f"{root.path}: {', '.join(folds[:3])} look like folds, not like classes. Write train/<class>/… and test/<class>/… with one fold as "
            "`test`, or <class>/… with all images, of which the splits are drawn."
        )
    folders = [(folder.path.name, folder.names_of_folders) for folder in root.folders if folder.is_nested] + [
        ("the folder itself", set(names))
    ]
    for (name, inner), (other_name, other_inner) in combinations(folders, 2):
        if len(inner & other_inner) > 1:
            raise WorldError(
                f"{root.path}: {name} and {other_name} hold the same folders {', '.join(sorted(inner & other_inner)[:3])}, so it is not clear "
                "which folders are the classes. Write <class>/… with the images right in it, or train/<class>/… and test/<class>/…"
            )
