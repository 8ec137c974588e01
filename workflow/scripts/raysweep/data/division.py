"""Divides the rows of a data set into a test part and one or more pairs of a training part and a validation part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raysweep.common.errors import ConfigError
from raysweep.common.text import plural
from raysweep.data.manifest import DatasetSpec
from raysweep.data.split import Arrays, Rows, fold_numbers, refuse_small_classes, rows_of, set_rows_aside

TEST_FRACTION = 0.2  # default fraction of the test split, for data without a test part
# This number is added to the seed of the config to sample the test split, so that the test split and the validation split use different seeds.
TEST_SEED_OFFSET = 2**64


@dataclass(frozen=True)
class Division:
    """Contains the divided rows of a data set. A data set without folds has one pair of a training part and a validation part, as fold 0."""

    rest: Arrays  # all rows except the test part
    test: Arrays
    validation: tuple[np.ndarray, ...]  # for each fold a mask, bool [n], of those rows of `rest` that are the validation part

    def splits(self, fold: int) -> dict[str, Arrays]:
        """Return the arrays of fold number `fold` by split. In each split the rows keep the order of the source."""
        mask = self.validation[fold]
        return {"train": rows_of(self.rest, ~mask), "validation": rows_of(self.rest, mask), "test": self.test}


def test_fraction_of(spec: DatasetSpec) -> float:
    """Return the fraction of the rows that become the test part where the source contains no test part."""
    return spec.test_fraction or TEST_FRACTION


def divide(spec: DatasetSpec, parts: Mapping[str, Arrays], classes: Sequence[str], groups: np.ndarray | None) -> Division:
    """Return the rows of `parts` ("train", and "test" where the source contains a test part) divided as `spec` says.

    `groups` has the number of the group of each row of "train", int64 [n], or is None. Raises ConfigError, whose message begins with a key of the data
    set, where there are too few rows or groups, or where a training part would lack a class.
    """
    key = f"datasets.{spec.name}"
    rest, test = parts["train"], parts.get("test")
    rows = Rows.of(rest[1], groups, spec.split == "time")
    _refuse_few_rows(spec, rows, classes, samples_test=test is None)
    if test is None:
        # At least two rows of each class stay in the training set, or one row for each fold, because the validation split is sampled next.
        is_test = set_rows_aside(
            rows, test_fraction_of(spec), TEST_SEED_OFFSET + spec.seed, f"{key}.test_fraction", ("train", "test"), num_kept=spec.folds or 2
        )
        rest, test, rows = rows_of(rest, ~is_test), rows_of(rest, is_test), rows[~is_test]
    if spec.folds:
        numbers = fold_numbers(rows, spec.folds, spec.seed)
        masks = [numbers == fold for fold in range(spec.folds)]
    else:
        names = ("train", "validation")
        masks = [set_rows_aside(rows, spec.validation_fraction, spec.seed, f"{key}.validation_fraction", names)]
    for fold, mask in enumerate(masks):
        _refuse_training_part(spec, rest[1][~mask], classes, f" of fold {fold}" if spec.folds else "")
    return Division(rest, test, tuple(masks))


def _refuse_few_rows(spec: DatasetSpec, rows: Rows, classes: Sequence[str], samples_test: bool) -> None:
    """Raise ConfigError where there are too few rows of a class, too few groups or too few rows to give each part one."""
    num_parts = (spec.folds or 2) + samples_test
    names = ", ".join([f"the {spec.folds} folds" if spec.folds else "train, validation", *(["test"] if samples_test else [])])
    if rows.groups is not None:
        if (num_groups := len(np.unique(rows.groups))) < num_parts:
            raise ConfigError(
                f"datasets.{spec.name}.group: {spec.group!r} has {plural(num_groups, 'group')}. Allowed: at least {num_parts}, one for each of {names}."
            )
    elif classes and not rows.is_in_order_of_time:
        refuse_small_classes(rows.labels, classes, num_parts, names, f"datasets.{spec.name}.source")
    elif len(rows) < num_parts:
        raise ConfigError(
            f"datasets.{spec.name}.source: has {plural(len(rows), 'row')}. Allowed: at least {num_parts}, one for each of {names}."
        )


def _refuse_training_part(spec: DatasetSpec, targets: np.ndarray, classes: Sequence[str], of_fold: str) -> None:
    """Raise ConfigError where the training part lacks a class, or where all its targets are one number."""
    key, value = ("group", repr(spec.group)) if spec.group else ("split", spec.split)
    another = f"Give another {'fraction' if spec.split == 'time' else 'seed'}"
    if classes and len(lost := np.setdiff1d(np.arange(len(classes)), targets)):
        raise ConfigError(
            f"datasets.{spec.name}.{key}: with {value}, the training part{of_fold} has no row of the class {classes[lost[0]]!r}. Allowed: each class "
            f"in the training part. {another}, or take the class away."
        )
    if not classes and (targets == targets[0]).all():
        raise ConfigError(
            f"datasets.{spec.name}.{key}: with {value}, all targets of the training part{of_fold} are {targets[0]:g}. Allowed: at least two values. {another}."
        )
