from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from raysweep.common.errors import ConfigError, WorldError
from raysweep.common.files import sha256_of_file
from raysweep.data.split import Rows, fold_numbers, load_split, refuse_small_classes, set_rows_aside
from staging import stage_into


def rows_set_aside(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return a mask, bool [n], of the rows that `set_rows_aside` puts into the second part."""
    return set_rows_aside(Rows(labels), fraction, seed, "key", ("first", "second"), num_kept=0)


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
    def rows(self, *counts: int) -> Rows:
        return Rows(np.repeat(np.arange(len(counts)), counts))

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
        rows = self.rows(*counts)
        aside = set_rows_aside(rows, fraction, 0, "key", ("train", "test"), num_kept)
        assert np.bincount(rows.labels[aside]).tolist() == taken
        assert np.bincount(rows.labels[~aside]).tolist() == [count - n for count, n in zip(counts, taken, strict=True)]

    def test_a_line_says_how_many_classes_are_too_small(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO", "raysweep"):
            set_rows_aside(self.rows(20, 40), 0.1, 0, "key", ("train", "test"))
            assert not caplog.records
            set_rows_aside(self.rows(2, 40, 3), 0.1, 0, "key", ("train", "test"))
        assert [record.getMessage() for record in caplog.records] == [
            "key: 2 of 3 classes are too small for the fraction 0.1: at least one row of each class is in test, and at least 1 in train"
        ]

    @pytest.mark.parametrize(("fraction", "split", "change"), [(0.01, "test", "larger"), (0.99, "train", "smaller")])
    def test_a_fraction_that_leaves_a_split_empty_is_refused(self, fraction: float, split: str, change: str) -> None:
        with pytest.raises(ConfigError, match=rf"^key: {fraction} of 10 rows leaves {split} without any\. Give a {change} fraction\."):
            set_rows_aside(self.rows(5, 5), fraction, 0, "key", ("train", "test"))

    def test_classes_with_fewer_rows_than_splits_are_named(self) -> None:
        labels = self.rows(9, 1, 2, 1, 3, 2).labels
        refuse_small_classes(labels[labels == 0], "abcdef", 3, "train, validation, test", "key")
        with pytest.raises(
            ConfigError,
            match=r"^key: each class needs at least 3 rows, one for each of train, validation, test\. "
            r"Too few rows have: 'b' \(1\), 'c' \(2\), 'd' \(1\) and 1 more\. Add rows",
        ):
            refuse_small_classes(labels, "abcdef", 3, "train, validation, test", "key")
        with pytest.raises(ConfigError, match=r"at least 2 rows, .*: 'b' \(1\), 'd' \(1\)\."):
            refuse_small_classes(labels, "abcdef", 2, "train, validation", "key")


class TestRowsInTheOrderOfTime:
    @pytest.mark.parametrize(("fraction", "count"), [(0.1, 1), (0.25, 2), (0.5, 5), (0.9, 9)])
    def test_the_last_rows_are_set_aside_whatever_their_labels(self, fraction: float, count: int) -> None:
        rows = Rows.of(np.repeat([0, 1], 5), None, is_in_order_of_time=True)
        assert np.flatnonzero(set_rows_aside(rows, fraction, 0, "key", ("train", "test"))).tolist() == list(range(10 - count, 10))


class TestGroups:
    @pytest.mark.parametrize(("fraction", "count"), [(0.1, 1), (0.25, 2), (0.5, 5)])
    def test_whole_groups_are_set_aside_until_the_fraction_is_reached(self, fraction: float, count: int) -> None:
        groups = np.arange(40) % 10
        asides = [set_rows_aside(Rows(np.zeros(40, int), groups), fraction, seed, "key", ("train", "test")) for seed in (0, 0, 1)]
        np.testing.assert_array_equal(asides[0], asides[1])
        assert (asides[0] != asides[2]).any()
        for aside in asides:
            assert len(np.unique(groups[aside])) == count
            assert not np.intersect1d(groups[aside], groups[~aside]).size

    @pytest.mark.parametrize("seed", range(5))
    def test_a_group_that_is_much_larger_than_the_fraction_stays(self, seed: int) -> None:
        groups = np.repeat([7, 3, 5, 4], [90, 5, 4, 1])
        aside = set_rows_aside(Rows(np.zeros(100, int), groups), 0.05, seed, "key", ("train", "test"))
        assert 7 not in groups[aside]
        assert 4 <= aside.sum() <= 7

    def test_the_smallest_group_is_set_aside_where_all_are_too_large_and_enough_groups_stay(self) -> None:
        groups = np.repeat([0, 1, 2], [40, 20, 40])
        assert np.unique(groups[set_rows_aside(Rows(groups, groups), 0.01, 0, "key", ("train", "test"))]).tolist() == [1]
        kept = ~set_rows_aside(Rows(groups, groups), 0.99, 0, "key", ("train", "test"), num_kept=2)
        assert len(np.unique(groups[kept])) == 2


class TestFoldNumbers:
    def test_folds_have_equal_shares_of_each_class(self) -> None:
        labels = np.repeat(np.arange(3), [11, 7, 5])
        numbers = fold_numbers(Rows(labels), 4, seed=0)
        counts = np.array([np.bincount(numbers[labels == label], minlength=4) for label in range(3)])
        assert (counts.max(axis=1) - counts.min(axis=1) <= 1).all()
        assert sorted(counts.sum(axis=0)) == [5, 6, 6, 6]
        np.testing.assert_array_equal(numbers, fold_numbers(Rows(labels), 4, seed=0))
        assert (numbers != fold_numbers(Rows(labels), 4, seed=1)).any()

    def test_folds_of_a_regression_do_not_follow_the_order_of_the_rows(self) -> None:
        rows = Rows.of(np.linspace(0, 1, 1000), None, is_in_order_of_time=False)
        numbers = fold_numbers(rows, 5, seed=0)
        assert np.bincount(numbers).tolist() == [200] * 5
        assert all(400 < np.flatnonzero(numbers == fold).mean() < 600 for fold in range(5))

    def test_a_group_lies_in_one_fold_and_the_folds_have_about_equal_sizes(self) -> None:
        groups = np.repeat([4, 9, 2, 7, 5, 1], [30, 20, 20, 10, 10, 10])
        numbers = fold_numbers(Rows(np.zeros(100, int), groups), 3, seed=0)
        assert all(len(np.unique(numbers[groups == group])) == 1 for group in np.unique(groups))
        assert sorted(np.bincount(numbers)) == [30, 30, 40]


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
