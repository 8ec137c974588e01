"""Arrays of the user's own: which files are read, what their rows become, and what is refused in one line."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysweep.common.errors import RaysweepError
from raysweep.common.files import read_yaml, sha256_of_file
from raysweep.data.manifest import read_manifest
from raysweep.data.split import SPLITS, load_split
from staging import files_under, stage_into

GENERATOR = np.random.default_rng(0)
FLOATS = GENERATOR.normal(5, 3, (60, 4)).astype(np.float32)
IMAGES = GENERATOR.integers(0, 256, (60, 8, 8), dtype=np.uint8)
LABELS = np.arange(60) % 3
NUMBERS = FLOATS[:, 0] * 100.0


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "own.npz"
    np.savez(path, **arrays)
    return path


def rows_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of all splits together, sorted by the first value of a row, with their targets."""
    x, y = (np.concatenate(parts) for parts in zip(*(load_split(folder, split) for split in SPLITS), strict=True))
    order = np.argsort(x.reshape(len(x), -1)[:, 0], kind="stable")
    return x[order], y[order]


def test_floats_with_numbers_as_targets_are_a_regression_with_the_figures_of_the_training_part(tmp_path: Path) -> None:
    manifest = stage_into(tmp_path, npz(tmp_path, x=FLOATS, y=NUMBERS[:, None]), seed=5)
    assert read_manifest(tmp_path / "data") == manifest
    assert (manifest.task, manifest.kind, manifest.classes, manifest.image_shape) == ("regression", "arrays", (), (4,))
    assert manifest.splits == {"train": 43, "validation": 5, "test": 12}
    x, y = load_split(tmp_path / "data", "train")
    assert (x.dtype, x.shape, y.dtype, y.shape) == (np.float32, (43, 4), np.float64, (43,))
    assert manifest.inputs is not None
    assert manifest.target is not None
    np.testing.assert_allclose(manifest.inputs.mean, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(manifest.inputs.deviation, x.astype(np.float64).std(0), rtol=1e-12)
    assert (manifest.target.mean[0], manifest.target.deviation[0]) == (pytest.approx(y.mean()), pytest.approx(y.std()))
    all_x, all_y = rows_of(tmp_path / "data")
    order = np.argsort(FLOATS[:, 0], kind="stable")
    np.testing.assert_array_equal(all_x, FLOATS[order])
    np.testing.assert_array_equal(all_y, NUMBERS[order])
    assert files_under(tmp_path / "data") == sorted([*manifest.files, "manifest.yaml"]), "the unpacked arrays are removed"
    assert files_under(tmp_path) == sorted(["own.npz", *(f"data/{path}" for path in files_under(tmp_path / "data"))])


def test_integers_and_text_are_classes_of_which_each_split_has_the_same_share(tmp_path: Path) -> None:
    manifest = stage_into(tmp_path, npz(tmp_path, x=FLOATS, y=LABELS))
    assert (manifest.task, manifest.target, manifest.classes) == ("classification", None, ("0", "1", "2"))
    for split, count in (("train", 14), ("validation", 2), ("test", 4)):
        assert np.bincount(load_split(tmp_path / "data", split)[1]).tolist() in (
            [count] * 3,
            [15, 14, 14],
            [14, 15, 14],
            [14, 14, 15],
            [2, 2, 1],
            [2, 1, 2],
            [1, 2, 2],
        )
    named = stage_into(tmp_path, npz(tmp_path, x=FLOATS, y=np.array(["oak", "ash", "fir"])[LABELS]))
    assert named.classes == ("ash", "fir", "oak")
    booleans = stage_into(tmp_path, npz(tmp_path, x=FLOATS, y=LABELS > 0))
    assert booleans.classes == ("0", "1")


def test_the_config_says_the_task_where_the_targets_do_not(tmp_path: Path) -> None:
    assert stage_into(tmp_path, npz(tmp_path, x=FLOATS, y=LABELS * 1.0), task="classification").classes == ("0", "1", "2")
    assert stage_into(tmp_path, npz(tmp_path, x=FLOATS, y=LABELS * 100), task="regression").classes == ()


def test_uint8_stays_as_it_is_and_images_without_colours_have_one_channel(tmp_path: Path) -> None:
    manifest = stage_into(tmp_path, npz(tmp_path, x=IMAGES, y=LABELS))
    assert (manifest.inputs, manifest.image_shape) == (None, (1, 8, 8))
    x, _ = rows_of(tmp_path / "data")
    assert x.dtype == np.uint8
    assert sorted(image.tobytes() for image in x) == sorted(image.tobytes() for image in IMAGES)


def test_a_folder_and_a_file_with_a_test_part_give_the_same_data(tmp_path: Path) -> None:
    parts = {"x_train": FLOATS[:40], "y_train": LABELS[:40], "x_test": np.asfortranarray(FLOATS[40:]), "y_test": LABELS[40:]}
    manifest = stage_into(tmp_path, npz(tmp_path, **parts))
    assert manifest.splits == {"train": 36, "validation": 4, "test": 20}
    assert manifest.test_fraction is None
    np.testing.assert_array_equal(load_split(tmp_path / "data", "test")[0], FLOATS[40:])
    (tmp_path / "folder").mkdir()
    for name, array in parts.items():
        np.save(tmp_path / f"folder/{name}.npy", array)
    assert stage_into(tmp_path, tmp_path / "folder").data_sha256 == manifest.data_sha256
    path = tmp_path / "compressed.npz"
    np.savez_compressed(path, **parts)
    digest = f"sha256:{sha256_of_file(path)}"
    compressed = stage_into(tmp_path, path, checksum=digest)
    assert (compressed.data_sha256, compressed.checksum) == (manifest.data_sha256, digest)


def test_figures_are_those_of_channels_and_constant_columns_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x = GENERATOR.normal(1e6, 1, (60, 3, 5))
    x[:, 1] = 0.1
    with caplog.at_level("INFO", "raysweep"):
        manifest = stage_into(tmp_path, npz(tmp_path, x=x, y=LABELS, extra=LABELS))
    train = load_split(tmp_path / "data", "train")[0]
    assert manifest.inputs is not None
    np.testing.assert_allclose(manifest.inputs.mean, train.mean((0, 2)), rtol=1e-12)
    np.testing.assert_allclose(manifest.inputs.deviation, [train[:, 0].std(), 1, train[:, 2].std()], rtol=1e-9)
    assert "cifar10: inputs: 1 columns have one value in all training rows: 1" in caplog.text
    assert "own.npz: 1 arrays with other names are ignored (extra)" in caplog.text
    assert read_yaml(tmp_path / "data/manifest.yaml")["inputs"]["mean"] == list(manifest.inputs.mean)


def with_values(array: np.ndarray, values: dict[tuple[int, ...], float]) -> np.ndarray:
    changed = array.copy()
    for place, value in values.items():
        changed[place] = value
    return changed


@pytest.mark.parametrize(
    ("arrays", "values", "line"),
    [
        ({"a": FLOATS, "y": LABELS}, {}, r"own\.npz: has the arrays a, y\. Allowed: x and y, or x_train, y_train, x_test and y_test"),
        ({"x": FLOATS}, {}, r"has the arrays x\. Allowed"),
        ({"x": FLOATS, "y": LABELS[1:]}, {}, r"own\.npz: x has 60 rows, but y has 59\. Both need one row"),
        (
            {"x_train": FLOATS, "y_train": LABELS, "x_test": FLOATS[:, 1:], "y_test": LABELS},
            {},
            r"x_train is float32 \[n, 4\] and x_test is float32 \[n, 3\]",
        ),
        (
            {"x": with_values(FLOATS, {(7, 2): np.nan, (9, 0): np.inf}), "y": LABELS},
            {},
            r"own\.npz: x has 2 values that are NaN or infinite, the first in row 7, column 2\. Allowed: numbers",
        ),
        (
            {"x": FLOATS, "y": with_values(NUMBERS, {(3,): np.nan})},
            {},
            r"own\.npz: y has 1 targets that are NaN or infinite, the first in row 3",
        ),
        ({"x": FLOATS, "y": LABELS + 1}, {}, r"own\.npz: y has labels up to 3, but no row has the label 0\. Allowed: the labels 0 to n-1"),
        (
            {"x": FLOATS, "y": np.where(LABELS == 1, 10**12, LABELS)},
            {},
            r"y has labels up to 1000000000000, but no row has the label 1\. .*task: regression",
        ),
        ({"x": FLOATS, "y": LABELS - 1}, {}, r"own\.npz: y has 20 targets that are no labels, the first is -1 in row 0"),
        ({"x": FLOATS, "y": LABELS / 2}, {"task": "classification"}, r"y has 20 targets that are no labels, the first is 0\.5 in row 1"),
        ({"x": FLOATS, "y": np.array(["a", "b"])[LABELS % 2]}, {"task": "regression"}, r"y has the type <U1\. Allowed: numbers\."),
        ({"x": FLOATS, "y": LABELS * 0}, {}, r"own\.npz: y: all training targets are 0\. Allowed: at least two values"),
        ({"x": FLOATS, "y": NUMBERS * 0}, {}, r"own\.npz: y: all training targets are 0\.0"),
        ({"x": FLOATS, "y": (np.arange(60) == 9) * 1}, {}, r"datasets\.cifar10\.source: each class needs at least 3 rows, .*: '1' \(1\)"),
        ({"x_train": FLOATS, "y_train": LABELS % 2, "x_test": FLOATS, "y_test": LABELS}, {}, r"only the test part has the class '2'"),
        (
            {"x_train": FLOATS, "y_train": LABELS, "x_test": FLOATS, "y_test": NUMBERS},
            {},
            r"y has the type int64 in the training part and float32 in the test part\. Allowed: one type",
        ),
        ({"x": FLOATS.astype(int), "y": LABELS}, {}, r"own\.npz: x has the type int64\. Allowed: uint8 \(images, 0 to 255\) or float16"),
        ({"x": FLOATS, "y": FLOATS}, {}, r"own\.npz: y has the shape \[60, 4\]\. Allowed: \[n\] or \[n, 1\]"),
        (
            {"x": np.zeros((60, 8, 8, 3), np.uint8), "y": LABELS},
            {},
            r"x has the shape \[n, 8, 8, 3\]\. Allowed: \[n, channels, height, width\]",
        ),
        ({"x": np.array([{}] * 60), "y": LABELS}, {}, r"own\.npz: x: cannot be read as an array"),
        ({"x": np.float32(1), "y": LABELS}, {}, r"own\.npz: x: is a single value"),
        ({"x": FLOATS, "y": LABELS}, {"image_size": 8}, r"datasets\.cifar10\.image_size: 8 is for a folder of images"),
        ({"x": FLOATS, "y": LABELS}, {"checksum": f"md5:{'0' * 32}"}, r"own\.npz: its checksum is md5:.*, expected was md5:0000"),
        (
            {"x_train": FLOATS, "y_train": LABELS, "x_test": FLOATS, "y_test": LABELS},
            {"test_fraction": 0.5},
            r"datasets\.cifar10\.test_fraction: 0\.5 is for a source without a test part",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arrays: dict[str, Any], values: dict[str, Any], line: str) -> None:
    path = npz(tmp_path, **arrays)
    with pytest.raises(RaysweepError, match=line) as raised:
        stage_into(tmp_path, path, **values)
    assert len(str(raised.value).splitlines()) == 1
    assert files_under(tmp_path) == ["own.npz"]


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    path = npz(tmp_path, x=FLOATS, y=LABELS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RaysweepError, match=r"own\.npz: cannot be read as a \.npz file"):
        stage_into(tmp_path, path)
    encrypted = bytearray(npz(tmp_path, x=FLOATS, y=LABELS).read_bytes())
    for mark, flags in (
        (b"PK\x03\x04", 6),
        (b"PK\x01\x02", 8),
    ):  # the lowest bit of the flags of a member says that the member is encrypted
        for match in re.finditer(re.escape(mark), bytes(encrypted)):
            encrypted[match.start() + flags] |= 1
    path.write_bytes(encrypted)
    with pytest.raises(RaysweepError, match=r"own\.npz: cannot be read as a \.npz file \(File 'x\.npy' is encrypted"):
        stage_into(tmp_path, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"no array")
        archive.writestr("y.npy", b"no array")
    with pytest.raises(RaysweepError, match=r"own\.npz: x: cannot be read as an array"):
        stage_into(tmp_path, path)


def test_one_npy_file_is_no_data_set(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", FLOATS)
    with pytest.raises(
        RaysweepError, match=r"source: '.*x\.npy' is one array\. Allowed: a folder with x\.npy and y\.npy, or a \.npz file\.$"
    ):
        stage_into(tmp_path, tmp_path / "x.npy")


def test_images_are_no_regression(tmp_path: Path) -> None:
    with pytest.raises(
        RaysweepError,
        match=r"datasets\.cifar10\.task: regression is for arrays, tables and functions, which 'synthetic' is not\. Leave it out\.",
    ):
        stage_into(tmp_path, "synthetic", task="regression")


@pytest.mark.slow
def test_arrays_that_are_larger_than_the_memory_are_staged(tmp_path: Path) -> None:
    """The program may have 110 MB more than it has after the imports, and the array has 160 MB."""
    folder = tmp_path / "folder"
    folder.mkdir()
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (40_000, 1_000))
    x[:, 0] = np.arange(40_000)
    del x
    np.save(folder / "y.npy", np.arange(40_000) % 2)
    program = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from staging import stage_into
from pathlib import Path
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
manifest = stage_into(Path({str(tmp_path)!r}), {str(folder)!r})
used_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
assert used_mb < 110, used_mb
assert manifest.splits == {{"train": 28_800, "validation": 3_200, "test": 8_000}}
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    train = load_split(tmp_path / "data", "train")[0]
    assert (np.diff(train[:, 0]) > 0).all()
