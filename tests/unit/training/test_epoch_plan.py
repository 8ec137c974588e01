"""The plan of an epoch depends on nothing but the seed, the epoch and the row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raysweep.config.recipe import Recipe
from raysweep.training.epoch_plan import NUM_DRAWS, EpochPlan, balanced_weights, plan_epoch
from raysweep.training.spec import TrainingSpec

LABELS = np.array([0, 0, 0, 2, 2, 7] * 50)


def plan(*augment: Any, epoch: int = 1, seed: int = 0, **recipe: Any) -> EpochPlan:
    return plan_epoch(TrainingSpec("cross_entropy", "sgd", seed, Recipe(augment=augment, **recipe)), epoch, LABELS, (3, 32, 24))


def test_without_a_recipe_rows_have_the_weight_one_and_no_draws() -> None:
    assert plan().weights.tolist() == [[1]] * 300
    assert plan().sources.tolist() == [[row] for row in range(300)]
    assert plan().draws.shape == (300, 0)
    assert sorted(plan().order) == list(range(300))


def test_mixup_gives_each_row_a_partner_and_a_part_that_depend_on_nothing_but_the_seed_the_epoch_and_the_row() -> None:
    mixed = plan({"mixup": {"alpha": 0.4}}, class_weights="balanced")
    assert mixed.sources[:, 0].tolist() == list(range(300))
    assert len(set(mixed.sources[:, 1])) > 150
    assert mixed.parts.sum(1) == pytest.approx(np.ones(300))
    assert mixed.parts[:, 0].var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.15), "the variance of Beta(0.4, 0.4)"
    assert np.array_equal(mixed.weights, mixed.parts * balanced_weights(LABELS)[mixed.sources])
    assert np.array_equal(mixed.sources, plan("flip", {"mixup": {"alpha": 0.4}}).sources)
    assert not np.array_equal(mixed.sources, plan("mixup", epoch=2).sources)
    assert not plan("mixup").draws.any(), "mixup alone moves no pixel"


def test_balanced_classes_have_the_same_weight_in_total() -> None:
    weights = plan(class_weights="balanced").weights
    assert {label: weights[label == LABELS].sum() for label in (0, 2, 7)} == pytest.approx({0: 100, 2: 100, 7: 100})
    assert balanced_weights(np.array([1, 1, 1, 0])).tolist() == pytest.approx([4 / 6, 4 / 6, 4 / 6, 2])


def test_draws_have_the_range_of_each_operation() -> None:
    flip, down, right, y, x = plan("flip", {"crop": {"padding": 2}}, "cutout").draws.T
    assert set(flip) == {0, 1}
    assert (set(down), set(right)) == ({-2, -1, 0, 1, 2}, {-2, -1, 0, 1, 2})
    assert (y.min(), y.max(), x.min(), x.max()) == (0, 31, 0, 23)
    down, right = plan({"translate": {"fraction": 0.25}}).draws.T[1:3]
    assert (down.min(), down.max(), right.min(), right.max()) == (-8, 8, -6, 6)


def test_the_draws_of_one_operation_do_not_depend_on_the_others() -> None:
    assert np.array_equal(plan("flip").draws[:, 0], plan("flip", "crop", "cutout").draws[:, 0])
    assert not plan("flip").draws[:, 1:].any()


def test_each_epoch_and_each_seed_has_other_draws() -> None:
    first = plan("crop")
    assert first.draws.shape == (300, NUM_DRAWS)
    assert np.array_equal(first.draws, plan("crop").draws)
    assert not np.array_equal(first.draws, plan("crop", epoch=2).draws)
    assert not np.array_equal(first.draws, plan("crop", seed=1).draws)
