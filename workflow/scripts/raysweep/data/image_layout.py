"""Determines which folders in a folder of images are splits, which folders are classes, and which files are images.

    <folder>/train/<class>/*.png …    and    <folder>/test/<class>/*.png …
    <folder>/<class>/*.png …          from these images the test split is sampled

Public data sets spell `train` and `test` in many ways (Training, seg_train, Test). A folder is a split where its name means a split and where it
contains folders of classes. Where a layout may mean two things, this module raises an error, because after a wrong guess the model would learn the
names of the splits as classes.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from PIL import Image

from raysweep.common.errors import WorldError, logger

LAYOUT = "A folder of images has a folder for each class, or has folders `train` and `test` that do."
WORDS_OF_SPLITS = {
    "train": {"train", "training", "trainset", "traindata"},
    "test": {"test", "testing", "testset", "testdata"},
    "validation": {"val", "valid", "validation", "valset", "dev"},
}
FOLD = re.compile(r"(k?[-_ ]?fold|split)[-_ ]?\d+")
# Pillow recognises these file formats, but reads the pixels of such files only with libraries that are not part of Pillow.
UNREADABLE = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}


@dataclass(frozen=True)
class Layout:
    """Maps each split to its classes, and each class to its image files. The splits are "train" and, where the folder has a test split, "test"."""

    parts: dict[str, dict[str, list[Path]]]

    @property
    def classes(self) -> list[str]:
        """Return the names of the classes in the order of the labels."""
        return list(self.parts["train"])


@dataclass(frozen=True)
class _Folder:
    """Describes a folder. `images` and `other_files` are directly in the folder. `folders` contains the folders in it that are not hidden."""

    path: Path
    images: tuple[Path, ...]
    other_files: tuple[str, ...]
    folders: tuple[_Folder, ...]

    @property
    def is_nested(self) -> bool:
        """Return whether the images of this folder lie in folders inside it.

        This is true where at least two inner folders contain images. It is also true where exactly one inner folder contains images and no image lies
        directly in this folder.
        """
        num_folders = sum(1 for folder in self.folders if folder.num_images)
        return num_folders > 1 or (num_folders == 1 and not self.images)

    @property
    def num_images(self) -> int:
        """Return the number of images in this folder and in all folders below it."""
        return len(self.images) + sum(folder.num_images for folder in self.folders)

    @property
    def names_of_folders(self) -> set[str]:
        return {folder.path.name for folder in self.folders}

    def walk(self) -> Iterator[_Folder]:
        """Yield this folder and all folders below it."""
        yield self
        for folder in self.folders:
            yield from folder.walk()


def read_layout(path: Path) -> Layout:
    """Return the image files of a folder by split and class.

    Raises WorldError for a layout that is not allowed, with one line that describes the layouts that are allowed.
    """
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
    """Return the file name endings, such as .png, of the formats that Pillow can read."""
    return {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in UNREADABLE}


def _scan(path: Path, endings: set[str], parents: tuple[str, ...]) -> _Folder:
    """Return the folder `path` with all folders below it. Symbolic links are followed.

    Raises WorldError for a link whose target does not exist, and for a link whose target is a folder that contains the link.
    """
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
    """Return the image files of each class of one split. Raises WorldError where there are fewer than two classes, or where a class has no image."""
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
    """Log the number of files that are not used, which are files that are not images, and images beside the folders of the classes."""
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
    """Return the split that the name of a folder means, or None where the name means no split or two splits.

    With `is_exact` the whole name has to mean a split. Otherwise one word in the name is enough.
    """
    words = {name.casefold()} if is_exact else set(re.split(r"[^a-z]+", name.casefold()))
    splits = [split for split, spellings in WORDS_OF_SPLITS.items() if words & spellings]
    return splits[0] if len(splits) == 1 else None


def _splits_of(root: _Folder) -> dict[str, _Folder]:
    """Return the folder of each split, or {} where the folders in `root` are classes. Raises WorldError where two folders mean one split.

    A folder named `Train` is always a split. A folder named seg_train is a split only beside a folder of another split with common class names,
    because a folder named freight_train may be a class.
    """
    nested = [folder for folder in root.folders if folder.is_nested]
    candidates = [(split, folder) for folder in nested if (split := _split_in_name(folder.path.name, is_exact=True))]
    by_word = [(split, folder) for folder in nested if (split := _split_in_name(folder.path.name, is_exact=False))]
    train_classes = [_unwrapped(folder).names_of_folders for split, folder in by_word if split == "train"]
    shared = [split for split, folder in by_word if any(_unwrapped(folder).names_of_folders & classes for classes in train_classes)]
    if candidates or len(set(shared)) > 1:
        candidates = by_word
    splits: dict[str, _Folder] = {}
    for split, folder in candidates:
        if split in splits:
            raise WorldError(
                f"{root.path}: {splits[split].path.name} and {folder.path.name} both look like the {split} split. Keep one of them: {LAYOUT}"
            )
        splits[split] = folder
    return splits


def _unwrapped(folder: _Folder) -> _Folder:
    """Return the folder that contains the folders of the classes. Archives often contain a second folder, as in seg_train/seg_train/<class>."""
    while folder.is_nested and len(folder.folders) == 1 and folder.folders[0].is_nested:
        folder = folder.folders[0]
    return folder


def _refuse_other_than_train_and_test(root: _Folder, splits: dict[str, _Folder]) -> None:
    """Raise WorldError where `root` has splits but no train split, or has other folders beside the train split and the test split."""
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
    """Raise WorldError where the folders in `root` look like splits or cross-validation folds and not like classes."""
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
