from __future__ import annotations

import numpy as np
import pytest
import torch

from raysweep.config.recipe import Recipe
from raysweep.training.stacked.plan import MemberEpoch, plan_steps


def member(order: np.ndarray, batch_size: int, epoch: int = 1, recipe: Recipe = Recipe()) -> MemberEpoch:  # noqa: B008
    return MemberEpoch(order, batch_size, epoch, recipe)


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
    assert shared.rows.shape == (6, 2)
    assert torch.equal(apart.gates, shared.gates)
