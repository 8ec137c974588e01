"""Folds, groups and rows in the order of time: which rows lie in which part, which files are written, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cifar_layout
from raysweep.common.errors import ConfigError, RaysweepError, WorldError
from raysweep.data.manifest import DatasetSpec, Validation, read_manifest
from raysweep.data.split import SPLITS, fold_dir, load_split
from staging import files_under, stage_into

ROWS = np.random.default_rng(0).normal(5, 3, (60, 4)).astype(np.float32)
LABELS = np.arange(60) % 3
NUMBERS = ROWS[:, 0] * 100.0
GROUPS = np.arange(60) // 5  # twelve groups of five rows, each with all labels
FIVE = Validation(5)


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "own.npz"
    np.savez(path, **arrays)
    return path


def rows_of(data_dir: Path, split: str) -> list[int]:
    """Return the numbers of the rows of a split in ROWS."""
    return [int(np.flatnonzero((row == ROWS).all(axis=1))[0]) for row in load_split(data_dir, split)[0]]


def test_the_folds_of_classes_are_disjoint_stratified_and_have_figures_of_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "raysweep"):
        manifest = stage_into(tmp_path, npz(tmp_path, x=ROWS, y=LABELS), validation=FIVE)
    data = tmp_path / "data"
    folds = [fold_dir(data, fold) for fold in range(5)]
    assert folds[:2] == [data, data / "fold-1"]
    test = rows_of(data, "test")
    assert len(test) == 12
    validation = [rows_of(fold, "validation") for fold in folds]
    assert sorted(sum(validation, test)) == list(range(60))
    for fold, rows in zip(folds, validation, strict=True):
        assert sorted([*rows_of(fold, "train"), *rows, *test]) == list(range(60))
        assert rows_of(fold, "test") == test
        assert np.bincount(LABELS[rows]).max() - np.bincount(LABELS[rows]).min() <= 1
        inputs, train = read_manifest(fold).inputs, load_split(fold, "train")[0].astype(np.float64)
        assert inputs is not None
        np.testing.assert_allclose((inputs.mean, inputs.deviation), (train.mean(0), train.std(0)))
    assert (manifest.folds, manifest.validation_fraction) == (5, None)
    assert files_under(data) == sorted(["manifest.yaml", *(f"fold-{fold}/manifest.yaml" for fold in range(1, 5)), *manifest.files])
    assert "38 train, 10 validation, 12 test rows in fold 0 of 5, 0.0 MB in all (from" in caplog.text


def test_fewer_folds_leave_no_files_of_the_earlier_folds_and_are_another_data_set(tmp_path: Path) -> None:
    source = npz(tmp_path, x=ROWS, y=NUMBERS)
    digests = {stage_into(tmp_path, source, validation=validation).data_sha256 for validation in (FIVE, Validation(2), None)}
    assert len(digests) == 3
    assert not list((tmp_path / "data").glob("fold-*"))


def test_the_folds_of_a_test_part_that_the_source_has(tmp_path: Path) -> None:
    folder = cifar_layout.write_folder(tmp_path / "cifar", cifar_layout.files())
    manifest = stage_into(tmp_path, folder, validation=FIVE)
    assert manifest.splits == {"train": 80, "validation": 20, "test": 20}
    assert np.bincount(load_split(tmp_path / "data/fold-4", "validation")[1]).tolist() == [2] * 10


@pytest.mark.parametrize("validation", [None, FIVE])
def test_no_group_is_in_two_parts(tmp_path: Path, validation: Validation | None) -> None:
    manifest = stage_into(tmp_path, npz(tmp_path, x=ROWS, y=LABELS, site=GROUPS), group="site", validation=validation)
    assert manifest.group == "site"
    assert manifest.image_shape == (4,)
    for fold in range(manifest.folds or 1):
        parts = [set(GROUPS[rows_of(fold_dir(tmp_path / "data", fold), split)]) for split in SPLITS]
        assert all(parts)
        assert sum(map(len, parts)) == 12
        assert set.union(*parts) == set(range(12))


def test_the_user_chooses_the_groups_of_the_test_part(tmp_path: Path) -> None:
    names = np.array([f"site {group}" for group in GROUPS])
    arrays = {"x_train": ROWS[:50], "y_train": LABELS[:50], "x_test": ROWS[50:], "y_test": LABELS[50:]}
    stage_into(tmp_path, npz(tmp_path, **arrays, site_train=names[:50], site_test=names[50:]), group="site")
    assert rows_of(tmp_path / "data", "test") == list(range(50, 60))
    with pytest.raises(
        ConfigError, match=r"own\.npz: 1 group of site_train, such as 'site 9', also occur in site_test\. Allowed: each group"
    ):
        stage_into(tmp_path, npz(tmp_path, **arrays, site_train=names[:50], site_test=names[49:59]), group="site")
    with pytest.raises(ConfigError, match="has no array 'site_test', which `group: site` needs"):
        stage_into(tmp_path, npz(tmp_path, **arrays, site_train=names[:50]), group="site")


def test_the_last_rows_in_the_order_of_time_are_the_test_and_the_validation_part(tmp_path: Path) -> None:
    manifest = stage_into(tmp_path, npz(tmp_path, x=ROWS, y=LABELS), split="time", validation_fraction=0.25)
    assert manifest.split == "time"
    assert [rows_of(tmp_path / "data", split) for split in SPLITS] == [list(range(36)), list(range(36, 48)), list(range(48, 60))]


@pytest.mark.parametrize(
    ("arrays", "values", "message"),
    [
        ({}, {"group": "place"}, r"own\.npz: has no array 'place', which `group: place` needs"),
        (
            {"site": GROUPS[:59]},
            {"group": "site"},
            r"site has the type int64 and the shape \[59\]\. Allowed: \[60\], whole numbers or text",
        ),
        ({"site": np.where(GROUPS == 2, np.nan, GROUPS)}, {"group": "site"}, "site has 5 missing groups, the first in row 10"),
        (
            {"site": GROUPS * 0},
            {"group": "site"},
            r"\.group: 'site' has 1 group\. Allowed: at least 3, one for each of train, validation, test\.",
        ),
        (
            {"site": GROUPS // 3},
            {"group": "site", "validation": FIVE},
            r"has 4 groups\. Allowed: at least 6, one for each of the 5 folds, test\.",
        ),
        ({"site": LABELS}, {"group": "site"}, r"group: with 'site', the training part has no row of the class '\d'\. Allowed: each class"),
        (
            {"y": np.where(np.arange(60) < 45, LABELS % 2, 2)},
            {"split": "time"},
            r"split: with time, the training part has no row of the class '2'\. .*another fraction",
        ),
        (
            {"y": np.where(np.arange(60) < 48, 5.0, NUMBERS)},
            {"split": "time"},
            r"split: with time, all targets of the training part are 5\. Allowed: at least two values\. Give another fraction\.",
        ),
        (
            {"y": np.where(np.arange(60) < 4, 0, 1 + LABELS)},
            {"validation": FIVE},
            r"source: each class needs at least 6 rows, one for each of the 5 folds, test\. Too few rows have: '0' \(4\)\.",
        ),
        (
            {"y": NUMBERS},
            {"validation": Validation(60)},
            r"source: has 60 rows\. Allowed: at least 61, one for each of the 60 folds, test\.",
        ),
        (
            {"x": ROWS[:2], "y": NUMBERS[:2]},
            {"test_fraction": 0.5, "validation_fraction": 0.5},
            r"source: has 2 rows\. Allowed: at least 3, one for each of train, validation, test\.",
        ),
    ],
)
def test_a_division_that_is_not_possible_is_one_line(tmp_path: Path, arrays: dict[str, Any], values: dict[str, Any], message: str) -> None:
    with pytest.raises(RaysweepError, match=message) as raised:
        stage_into(tmp_path, npz(tmp_path, **{"x": ROWS, "y": LABELS} | arrays), **values)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("values", "word"), [({"group": "site"}, "group: site"), ({"split": "time"}, "split: time")])
def test_images_have_neither_groups_nor_an_order_of_time(tmp_path: Path, archive: Path, values: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=f"^datasets.cifar10.{word} is for arrays, tables and functions"):
        stage_into(tmp_path, archive, **values)


def test_a_data_set_of_another_project_with_another_division_is_noticed(tmp_path: Path) -> None:
    source = str(npz(tmp_path, x=ROWS, y=LABELS, site=GROUPS))
    manifest = stage_into(tmp_path, source, group="site")
    spec = DatasetSpec("cifar10", source, "none", 0.1, 0, group="site")
    manifest.check_spec(tmp_path / "data", spec)
    for changes, message in (
        ({"group": None}, "group 'site', and datasets.cifar10.group is None"),
        ({"group": "site", "validation": FIVE}, "validation.folds None, and datasets.cifar10.validation.folds is 5"),
        ({"group": "site", "split": "time"}, "split 'random', and datasets.cifar10.split is 'time'"),
    ):
        with pytest.raises(WorldError, match=message):
            manifest.check_spec(tmp_path / "data", DatasetSpec("cifar10", source, "none", 0.1, 0, **changes))  # type: ignore[arg-type]
