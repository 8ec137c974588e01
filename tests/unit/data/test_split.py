from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from raysweep.common.errors import ConfigError, WorldError
from raysweep.common.files import sha256_of_file
from raysweep.data.split import SPLITS, load_split, refuse_small_classes, set_rows_aside
from staging import stage_into


def rows_set_aside(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return a mask, bool [n], of the rows that `set_rows_aside` puts into the second split."""
    _, (rows, _) = set_rows_aside((np.arange(len(labels)), labels), fraction, seed, "key", ("first", "second"), num_kept=0)
    return np.isin(np.arange(len(labels)), rows)


class TestRowsSetAside:
    def test_takes_the_fraction_of_each_class(self) -> None:
        labels = np.repeat(np.arange(10), 100)
        chosen = rows_set_aside(labels, 0.1, seed=0)
        assert np.bincount(labels[chosen]).tolist() == [10] * 10

    @pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.29, 1 / 3, 0.5, 0.99])
    def test_the_total_is_right_and_no_class_is_off_by_more_than_one(self, fraction: float) -> None:
        labels = np.repeat(np.arange(7), [150, 151, 153, 250, 251, 252, 400])  # no class is too small for a fraction
        chosen = rows_set_aside(labels, fraction, seed=3)
        assert chosen.sum() == round(len(labels) * fraction)
        assert np.all(np.abs(np.bincount(labels[chosen], minlength=7) - np.bincount(labels) * fraction) < 1)

    def test_the_largest_remainders_are_rounded_up(self) -> None:
        labels = np.repeat(np.arange(3), [12, 18, 10])  # 1.2, 1.8 and 1.0 of 4
        assert np.bincount(labels[rows_set_aside(labels, 0.1, seed=0)]).tolist() == [1, 2, 1]

    def test_is_a_function_of_the_seed(self) -> None:
        labels = np.arange(1000) % 10
        first, again, other = (rows_set_aside(labels, 0.1, seed) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()

    def test_chooses_the_same_rows_with_every_version_of_numpy(self) -> None:
        chosen = np.flatnonzero(rows_set_aside(np.arange(40) % 2, 0.25, seed=0))
        assert chosen.tolist() == [2, 3, 11, 13, 15, 18, 20, 21, 32, 36]

    def test_does_not_follow_the_order_of_the_rows(self) -> None:
        chosen = np.flatnonzero(rows_set_aside(np.zeros(10_000, np.int64), 0.5, seed=0))
        assert 4_800 < chosen.mean() < 5_200


class TestSetRowsAside:
    def arrays(self, *counts: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(len(counts)), counts)
        return np.arange(len(labels)), labels

    @pytest.mark.parametrize(
        ("counts", "fraction", "num_kept", "taken"),
        [
            ((20, 40), 0.1, 1, [2, 4]),  # as the fraction says
            ((2, 40), 0.1, 1, [1, 4]),
            ((5,) * 6, 0.1, 1, [1] * 6),  # three rows in all, by the fraction
            ((3, 3), 0.8, 1, [2, 2]),  # five rows in all, by the fraction
            ((2, 40), 0.9, 1, [1, 36]),
            ((3, 40), 0.6, 2, [1, 24]),
        ],
    )
    def test_each_class_is_in_both_splits(self, counts: tuple[int, ...], fraction: float, num_kept: int, taken: list[int]) -> None:
        (kept, kept_labels), (aside, labels) = set_rows_aside(self.arrays(*counts), fraction, 0, "key", ("train", "test"), num_kept)
        assert np.bincount(labels).tolist() == taken
        assert np.bincount(kept_labels).tolist() == [count - n for count, n in zip(counts, taken, strict=True)]
        assert sorted([*kept, *aside]) == list(range(sum(counts)))

    def test_a_line_says_how_many_classes_are_too_small(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO", "raysweep"):
            set_rows_aside(self.arrays(20, 40), 0.1, 0, "key", ("train", "test"))
            assert not caplog.records
            set_rows_aside(self.arrays(2, 40, 3), 0.1, 0, "key", ("train", "test"))
        assert [record.getMessage() for record in caplog.records] == [
            "key: 2 of 3 classes are too small for the fraction 0.1: at least one row of each class is in test, and at least 1 in train"
        ]

    @pytest.mark.parametrize(("fraction", "split", "change"), [(0.01, "test", "larger"), (0.99, "train", "smaller")])
    def test_a_fraction_that_leaves_a_split_empty_is_refused(self, fraction: float, split: str, change: str) -> None:
        with pytest.raises(ConfigError, match=rf"^key: {fraction} of 10 rows leaves {split} without any\. Give a {change} fraction\."):
            set_rows_aside(self.arrays(5, 5), fraction, 0, "key", ("train", "test"))

    def test_classes_with_fewer_rows_than_splits_are_named(self) -> None:
        labels = self.arrays(9, 1, 2, 1, 3, 2)[1]
        refuse_small_classes(labels[labels == 0], "abcdef", SPLITS, "key")
        with pytest.raises(
            ConfigError,
            match=r"^key: each class needs at least 3 rows, one for each of train, validation, test\. "
            r"Too few rows have: 'b' \(1\), 'c' \(2\), 'd' \(1\) and 1 more\. Add rows",
        ):
            refuse_small_classes(labels, "abcdef", SPLITS, "key")
        with pytest.raises(ConfigError, match=r"at least 2 rows, .*: 'b' \(1\), 'd' \(1\)\."):
            refuse_small_classes(labels, "abcdef", ("train", "validation"), "key")


class TestLoadSplit:
    def test_maps_the_files_and_never_writes_to_them(self, tmp_path: Path, archive: Path) -> None:
        stage_into(tmp_path, archive)
        images, labels = load_split(tmp_path / "data", "train")
        assert isinstance(images, np.memmap)
        assert (images.dtype, images.shape, labels.dtype, labels.shape) == (np.uint8, (90, 3, 32, 32), np.int64, (90,))
        before = sha256_of_file(tmp_path / "data/train/images.npy")
        images += 1
        images.flush()
        assert sha256_of_file(tmp_path / "data/train/images.npy") == before

    def test_torch_takes_them_without_a_copy_or_a_warning(self, tmp_path: Path, archive: Path) -> None:
        torch = pytest.importorskip("torch")
        stage_into(tmp_path, archive)
        images, _ = load_split(tmp_path / "data", "test")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tensor = torch.from_numpy(images)
        assert tensor.data_ptr() == images.ctypes.data

    def test_an_incomplete_data_set_is_refused(self, tmp_path: Path, archive: Path) -> None:
        stage_into(tmp_path, archive)
        (tmp_path / "data/manifest.yaml").unlink()
        with pytest.raises(WorldError, match=r"data: holds no complete data set.*Run the rule stage_data"):
            load_split(tmp_path / "data", "train")

    def test_an_unknown_split_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no split is called 'val': there are train, validation, test"):
            load_split(tmp_path, "val")
