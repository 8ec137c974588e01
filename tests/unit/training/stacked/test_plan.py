from __future__ import annotations

import numpy as np
import pytest
import torch

from raysweep.common.seeds import dropout_keys
from raysweep.config.recipe import Recipe, Schedule
from raysweep.training.epoch_plan import EpochPlan
from raysweep.training.stacked.plan import MemberEpoch, plan_steps, plan_whole_batches


def member(order: np.ndarray, batch_size: int, epoch: int = 1, recipe: Recipe = Recipe()) -> MemberEpoch:  # noqa: B008
    ones = np.ones((len(order), 1))
    plan = EpochPlan(order, np.arange(len(order))[:, None], ones, ones, np.arange(len(order), dtype=np.int16)[:, None])
    return MemberEpoch(plan, batch_size, epoch, recipe, seed=7)


@pytest.mark.parametrize(
    ("rows", "batch_sizes", "size"), [(11, (2, 4, 8), 2), (11, (3, 5), 3), (8, (8, 2), 2), (5, (16, 2), 2), (1, (2, 4), 2)]
)
def test_a_plan_gives_each_member_its_batches_in_order(rows: int, batch_sizes: tuple[int, ...], size: int) -> None:
    orders = [np.random.default_rng(number).permutation(rows) for number in range(len(batch_sizes))]
    plan = plan_steps([*map(member, orders, batch_sizes)], size, shared=False)
    for number, (order, batch_size) in enumerate(zip(orders, batch_sizes, strict=True)):
        batches: list[list[int]] = [[]]
        for step_rows, weights, gate in zip(plan.rows[:, number], plan.weights[:, number], plan.gates[:, number], strict=True):
            batches[-1] += step_rows[weights > 0].tolist()
            if gate:
                assert weights.max().item() == pytest.approx(1 / len(batches[-1]))
                batches.append([])
        assert batches[:-1] == [order[start : start + batch_size].tolist() for start in range(0, rows, batch_size)]
        assert batches[-1] == []


def test_members_of_one_order_share_their_rows() -> None:
    order = np.random.default_rng(0).permutation(11)
    apart, shared = (plan_steps([member(order, 2), member(order, 4)], 2, shared=shared) for shared in (False, True))
    assert torch.equal(apart.rows[:, 0] * (apart.weights[:, 0] > 0), shared.rows * (shared.weights[:, 0] > 0))
    assert shared.rows.shape == (6, 2, 1)
    assert torch.equal(apart.gates, shared.gates)
    assert torch.equal(apart.draws[..., 0].long(), apart.rows), "each row has its draws"
    assert torch.equal(shared.draws[..., 0].long(), shared.rows)


def test_each_step_has_the_rate_at_the_start_of_its_batch() -> None:
    recipe = Recipe(Schedule("exponential", epochs=9, gamma=0.5))
    plan = plan_steps([member(np.arange(8), 4, epoch=2, recipe=recipe), member(np.arange(8), 2, epoch=3)], 2, shared=False)
    assert plan.rates[:, 0].tolist() == [0.5, 0.5, 0.5**1.5, 0.5**1.5]
    assert plan.rates[:, 1].tolist() == [1, 1, 1, 1]


def test_the_weights_of_a_batch_are_parts_of_the_weights_of_its_rows() -> None:
    weights = np.array([1.0, 3, 1, 1, 2])[:, None]
    plan = EpochPlan(np.array([1, 0, 2, 3, 4]), np.arange(5)[:, None], np.ones((5, 1)), weights, np.zeros((5, 0), np.int16))
    steps = plan_steps([MemberEpoch(plan, 4, 1, Recipe(), seed=7)], 2, shared=False)
    assert steps.weights[:, 0, :, 0].tolist() == [[3 / 6, 1 / 6], [1 / 6, 1 / 6], [1, 0]]


def test_a_mixed_row_has_the_rows_and_the_parts_of_its_mixture() -> None:
    sources, parts = np.array([[0, 2], [1, 1], [2, 0]]), np.array([[0.75, 0.25], [0.5, 0.5], [1, 0]])
    plan = EpochPlan(np.array([2, 0, 1]), sources, parts, parts * np.array([1.0, 1, 3])[sources], np.arange(3, dtype=np.int16)[:, None])
    steps = plan_steps([MemberEpoch(plan, 2, 1, Recipe(), seed=7)], 2, shared=False)
    assert steps.rows[:, 0].tolist() == [[[2, 0], [0, 2]], [[1, 1], [2, 0]]]
    assert torch.equal(steps.draws[..., 0].long(), steps.rows), "each row of a mixture has its own draws"
    assert steps.parts[:, 0].tolist() == [[[1, 0], [0.75, 0.25]], [[0.5, 0.5], [0, 0]]], "a filler row has no part"
    assert steps.weights[0, 0].tolist() == [[3 / 4.5, 0], [0.75 / 4.5, 0.75 / 4.5]], "each target has the weight of its class"
    assert steps.weights[1, 0].tolist() == [[0.5, 0.5], [0, 0]]


@pytest.mark.parametrize(
    ("rows", "size", "joins", "sizes"),
    [(11, 4, False, [4, 4, 3]), (9, 4, True, [4, 5]), (9, 4, False, [4, 4, 1]), (8, 4, True, [4, 4]), (5, 4, True, [5]), (3, 4, True, [3])],
)
@pytest.mark.parametrize("shared", [False, True])
def test_whole_batches_are_those_of_plain_training(rows: int, size: int, joins: bool, sizes: list[int], shared: bool) -> None:
    recipe, order = Recipe(Schedule("exponential", epochs=9, gamma=0.5)), np.random.default_rng(0).permutation(rows)
    members = [member(order, size, 2, recipe)._replace(seed=seed) for seed in (7, 8)]
    plans = plan_whole_batches(members, joins, shared)
    assert [plan.weights.shape[2] for plan in plans for _ in plan.rows] == sizes
    used = [plan.rows if shared else plan.rows[:, 1] for plan in plans]
    assert torch.cat([each.flatten() for each in used]).tolist() == order.tolist()
    assert all(bool(plan.gates.all()) and not plan.positions.any() for plan in plans)
    starts = np.cumsum([0, *sizes[:-1]])
    assert torch.cat([plan.rates[:, 1] for plan in plans]).tolist() == recipe.rates(1 + starts / rows).tolist()
    for number, seed in enumerate((7, 8)):
        keys = torch.cat([plan.keys[:, number] for plan in plans])
        assert keys.tolist() == dropout_keys(seed, 2, len(sizes)).tolist(), "the keys of plain training"


def test_the_micro_batches_of_a_batch_have_its_key_and_their_positions() -> None:
    plan = plan_steps([member(np.arange(7), 4), member(np.arange(7), 2)], 2, shared=False)
    keys = dropout_keys(7, 1, 4).tolist()
    assert plan.keys[:, 0].tolist() == [keys[0], keys[0], keys[1], keys[1]]
    assert plan.keys[:, 1].tolist() == keys
    assert plan.positions.T.tolist() == [[0, 2, 0, 2], [0, 0, 0, 0]]
