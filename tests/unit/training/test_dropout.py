"""The masks of dropout that are computed from counters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.nn import functional as F

from raysweep.training.dropout import DropoutMasks

KEY = 123456789


def masks(*calls: tuple[int, float], key: Any = KEY) -> list[torch.Tensor]:
    """Return for each call (number of elements, p) of dropout in one context which elements are kept."""
    with DropoutMasks(key):
        return [F.dropout(torch.ones(count), p) > 0 for count, p in calls]


@pytest.mark.parametrize("p", [0.01, 0.25, 0.5, 0.9])
def test_each_element_is_dropped_with_the_probability(p: float) -> None:
    [mask] = masks((200_000, p))
    assert mask.double().mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / 200_000) ** 0.5)


def test_elements_calls_and_keys_are_independent() -> None:
    """The correlation of 200,000 pairs of independent numbers is below 0.012 but for one case in ten million."""
    first, second = masks((200_000, 0.5), (200_000, 0.5))
    [other] = masks((200_000, 0.5), key=KEY + 1)
    for shift in (1, 2, 64, 1000):
        assert abs(torch.corrcoef(torch.stack([first[shift:], first[:-shift]]).double())[0, 1]) < 0.012
        assert abs(torch.corrcoef(torch.stack([first[shift:], second[:-shift]]).double())[0, 1]) < 0.012
    for mask in (second, other):
        assert abs(torch.corrcoef(torch.stack([first, mask]).double())[0, 1]) < 0.012


def test_the_kept_elements_are_scaled_and_a_key_gives_the_same_mask_again() -> None:
    x = torch.randn(4, 5, requires_grad=True)
    for p in (0.3, 1.0):
        with DropoutMasks(KEY):
            out = nn.Dropout(p)(x)
        [mask] = masks((20, p))
        torch.testing.assert_close(out, x * mask.view(4, 5) * (1 / (1 - p) if p < 1 else 0))
    with DropoutMasks(KEY), torch.no_grad():
        changed = x.clone()
        assert nn.Dropout(0.3, inplace=True)(changed) is changed
    with DropoutMasks(KEY):
        assert torch.equal(changed, F.dropout(x, 0.3))


def test_a_micro_batch_has_the_masks_of_its_rows() -> None:
    x = torch.ones(6, 3, 4, 4)
    with DropoutMasks(KEY):
        whole = [F.dropout(x), F.dropout2d(x), F.dropout(x.flatten(0, 1))]
    with DropoutMasks(KEY, first_row=4, num_rows=2):
        parts = [F.dropout(x[4:]), F.dropout2d(x[4:]), F.dropout(x[4:].flatten(0, 1))]
    for all_rows, rows in zip(whole, parts, strict=True):
        assert torch.equal(all_rows[-len(rows) :], rows)


def test_a_member_of_a_stack_has_the_masks_that_it_has_alone() -> None:
    x, keys, rows = torch.randn(3, 4, 5), torch.tensor([5, 6, 2**62]), torch.tensor([0, 4, 8])

    def drop(x: torch.Tensor, key: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        with DropoutMasks(key, row, 4):
            return F.dropout(F.dropout(x, 0.2), 0.4)

    together = vmap(drop)(x, keys, rows)
    for number in range(3):
        with DropoutMasks(int(keys[number]), int(rows[number]), 4):
            assert torch.equal(together[number], F.dropout(F.dropout(x[number], 0.2), 0.4))


@pytest.mark.parametrize(("drop", "shape"), [(F.dropout1d, (50, 4, 6)), (F.dropout2d, (50, 4, 2, 3)), (F.dropout3d, (50, 4, 1, 2, 3))])
def test_channels_are_dropped_as_a_whole(drop: Any, shape: tuple[int, ...]) -> None:
    with DropoutMasks(KEY):
        out = drop(torch.ones(shape), 0.25).flatten(2)
    assert torch.equal(out, out[..., :1].expand_as(out))
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])


def test_without_training_nothing_is_dropped_and_no_call_is_counted() -> None:
    x = torch.randn(5)
    with DropoutMasks(KEY) as context:
        assert torch.equal(F.dropout(x, 0.5, training=False), x)
        assert torch.equal(F.dropout(x, 0.0), x)
        assert context.calls == 0
        with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
            F.dropout(x, 1.5)


@pytest.mark.parametrize(
    "draw",
    [lambda x: F.dropout2d(x[0, 0]), lambda x: F.alpha_dropout(x, training=True), lambda x: torch.rand_like(x)],
    ids=["no channels", "alpha dropout", "rand"],
)
def test_other_random_numbers_come_from_pytorchs_generator(draw: Any) -> None:
    before = torch.get_rng_state()
    with DropoutMasks(KEY):
        draw(torch.ones(2, 3, 4, 4))
    assert not torch.equal(torch.get_rng_state(), before)
