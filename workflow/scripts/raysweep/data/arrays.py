"""Reads arrays of the user's own, from a .npz file or from a folder of .npy files.

    x, y                                  from these rows the test split is sampled
    x_train, y_train, x_test, y_test      the user chooses the test split

`x` contains one row of inputs for each example, and `y` contains the targets. uint8 inputs are images. Floats are features. An array of groups has a name
of the user's own, with the same endings.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Set
from pathlib import Path

import numpy as np

from raysweep.common.errors import ConfigError, WorldError, logger
from raysweep.common.text import plural
from raysweep.data.figures import refuse_non_finite
from raysweep.data.manifest import Task
from raysweep.data.mapped import MappedRows
from raysweep.data.split import Arrays
from raysweep.data.targets import read_targets

ALLOWED = "Allowed: x and y, or x_train, y_train, x_test and y_test (without a test part, x_train and y_train)"
COLOURS = (1, 3, 4)  # usual numbers of channels of images


def is_array_source(path: Path) -> bool:
    """Return whether `path` is a .npz file or a folder that directly contains .npy files."""
    return path.suffix == ".npz" or (path.is_dir() and any(path.glob("*.npy")))


def read(
    path: Path, task: Task | None, scratch: Path, place: str, group: str | None
) -> tuple[dict[str, Arrays], tuple[str, ...], np.ndarray | None]:
    """Return the parts "train" and, where the source contains a test part, "test"; the names of the classes (empty for a regression); and the number of
    the group of each row of "train", int64 [n], or None where `group` names no array.

    The inputs stay on the disk. The members of a .npz file are unpacked to the folder `scratch`, because only unpacked arrays can be mapped into memory.
    Raises ConfigError or WorldError, with one line that begins with `place`, where the arrays do not fit each other.
    """
    group_names = {f"{group}{end}" for end in ENDINGS} if group else set()
    files = _npy_files(path) if path.is_dir() else _unpacked(path, scratch, ALL_NAMES | group_names)
    splits = _names_of_parts(place, [name for name in files if name in ALL_NAMES or name not in group_names])
    inputs = {split: _read_inputs(files[f"x{end}"], f"{place}: x{end}") for split, end in splits.items()}
    targets = {split: _read_array(files[f"y{end}"], f"{place}: y{end}") for split, end in splits.items()}
    for split, end in splits.items():
        if len(inputs[split]) != len(targets[split]):
            raise WorldError(
                f"{place}: x{end} has {len(inputs[split]):,} rows, but y{end} has {len(targets[split]):,}. Both need one row for each example."
            )
    if "test" in splits and (inputs["train"].shape[1:], inputs["train"].dtype) != (inputs["test"].shape[1:], inputs["test"].dtype):
        shapes = " and ".join(f"x{end} is {inputs[split].dtype} [n, {_sizes(inputs[split])}]" for split, end in splits.items())
        raise WorldError(f"{place}: {shapes}. Both need one type and one shape of the rows.")
    for split, end in splits.items():
        refuse_non_finite(inputs[split], f"{place}: x{end}")
    labels, classes = read_targets(targets, task, f"{place}: y")
    groups = _read_groups(files, group, splits, labels, place) if group else None
    return {split: (inputs[split], labels[split]) for split in splits}, classes, groups


def _npy_files(folder: Path) -> dict[str, Path]:
    return {file.stem: file for file in sorted(folder.glob("*.npy"))}


def _unpacked(path: Path, scratch: Path, names: Set[str]) -> dict[str, Path]:
    """Return the members of a .npz file, unpacked to `scratch`. Members with other names than `names` are not unpacked."""
    files: dict[str, Path] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                files[name] = scratch / f"{len(files)}.npy"  # a name may contain a slash
                if name in names:
                    scratch.mkdir(parents=True, exist_ok=True)
                    with archive.open(member) as source, files[name].open("wb") as target:
                        shutil.copyfileobj(source, target, 2**20)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: the file is encrypted
        raise WorldError(f"{path}: cannot be read as a .npz file ({error}). Save it again with numpy.savez.") from error
    return files


ENDINGS = ("", "_train", "_test")
ALL_NAMES = frozenset(f"{array}{end}" for array in "xy" for end in ENDINGS)


def _names_of_parts(place: str, names: Iterable[str]) -> dict[str, str]:
    """Return the ending of the names of the arrays by split, such as {"train": "_train", "test": "_test"}."""
    known = set(names) & ALL_NAMES
    if ignored := sorted(set(names) - known):
        logger.info("%s: %d arrays with other names are ignored (%s)", place, len(ignored), ", ".join(ignored[:3]))
    for splits in ({"train": ""}, {"train": "_train"}, {"train": "_train", "test": "_test"}):
        if known == {f"{array}{end}" for array in "xy" for end in splits.values()}:
            return splits
    raise WorldError(f"{place}: has the arrays {', '.join(sorted(names)) or 'none'}. {ALLOWED}.")


def _read_groups(
    files: Mapping[str, Path], group: str, splits: Mapping[str, str], labels: Mapping[str, np.ndarray], place: str
) -> np.ndarray:
    """Return the number of the group of each row of "train", int64 [n]. Raises ConfigError where groups are missing, or where two parts share a group."""
    groups = {}
    for split, end in splits.items():
        name = f"{group}{end}"
        if name not in files:
            raise ConfigError(f"{place}: has no array {name!r}, which `group: {group}` needs. Allowed: one group for each row, [n].")
        values = _read_array(files[name], f"{place}: {name}")
        if values.shape != labels[split].shape or values.dtype.kind not in "biufUS":
            shape = ", ".join(map(str, values.shape))
            allowed = f"[{len(labels[split])}], whole numbers or text, one group for each row"
            raise ConfigError(f"{place}: {name} has the type {values.dtype} and the shape [{shape}]. Allowed: {allowed}.")
        if values.dtype.kind == "f" and len(missing := np.flatnonzero(np.isnan(values))):
            raise ConfigError(
                f"{place}: {name} has {plural(len(missing), 'missing group')}, the first in row {missing[0]}. Remove these rows."
            )
        groups[split] = values
    if "test" in groups and len(shared := np.intersect1d(groups["train"], groups["test"])):
        raise ConfigError(
            f"{place}: {plural(len(shared), 'group')} of {group}_train, such as {shared[0].item()!r}, also occur in {group}_test. Allowed: each group in "
            "one part."
        )
    numbers: np.ndarray = np.unique(groups["train"], return_inverse=True)[1]
    return numbers


def _read_array(path: Path, place: str) -> np.ndarray:
    MappedRows.of(path, place)  # this raises WorldError where the file is damaged
    array: np.ndarray = np.load(path)
    return array


def _read_inputs(path: Path, place: str) -> MappedRows:
    """Return the inputs in the file `path`. Raises ConfigError where a model cannot be trained on arrays of their type or shape."""
    inputs = MappedRows.of(path, place)
    if inputs.dtype != np.uint8 and inputs.dtype not in (np.float16, np.float32, np.float64):
        raise ConfigError(
            f"{place} has the type {inputs.dtype}. Allowed: uint8 (images, 0 to 255) or float16, float32 and float64 (features): "
            "convert the array with .astype(numpy.float32)."
        )
    sizes = inputs.row_shape
    if inputs.dtype == np.uint8 and len(sizes) == 3 and sizes[-1] in COLOURS and sizes[0] not in COLOURS:
        raise ConfigError(
            f"{place} has the shape [n, {_sizes(inputs)}]. Allowed: [n, channels, height, width]: write .transpose(0, 3, 1, 2)."
        )
    if not len(inputs) or 0 in sizes:
        raise ConfigError(f"{place} has the shape [{len(inputs)}, {_sizes(inputs)}]. Allowed: at least one row and one value in each row.")
    return inputs


def _sizes(inputs: MappedRows) -> str:
    return ", ".join(map(str, inputs.row_shape))
