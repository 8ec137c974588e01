from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysweep.common.seeds import confirm_seeds, epoch_order, sampler_seed, take_over_seed, trial_seed

numbers = st.integers(0, 10**9)


def test_seeds_are_what_they_were() -> None:
    """They stand in records: with another version of this code a sweep that goes on must still use the same."""
    assert trial_seed(0, 0, 0) == 917752063
    assert confirm_seeds(0, 3, set()) == [1417063493, 1860276006, 692729320]
    assert sampler_seed(0, 0) == 745480547
    assert epoch_order(0, 0, 5).tolist() == [4, 2, 1, 3, 0]


@given(numbers, numbers, st.integers(0, 100))
def test_a_seed_is_one_that_every_library_takes(seed: int, index: int, repeat: int) -> None:
    assert 0 <= trial_seed(seed, index, repeat) < 2**31
    assert 0 <= sampler_seed(seed, index) < 2**31


def test_trials_differ_in_each_of_their_numbers() -> None:
    found = {trial_seed(seed, index, repeat) for seed in range(5) for index in range(20) for repeat in range(5)}
    assert len(found) == 500


@given(numbers, st.integers(1, 20))
def test_more_confirmations_begin_with_the_same_seeds(seed: int, count: int) -> None:
    longer = confirm_seeds(seed, count + 1, set())
    assert confirm_seeds(seed, count, set()) == longer[:-1]
    assert len(set(longer)) == count + 1


def test_a_confirmation_takes_no_seed_of_a_trial() -> None:
    first = confirm_seeds(0, 3, set())
    assert confirm_seeds(0, 3, set(first[:2])) == confirm_seeds(0, 5, set())[2:]


def test_no_confirmation_has_no_seed() -> None:
    assert confirm_seeds(0, 0, set()) == []


@pytest.mark.parametrize("length", [0, 1, 10_000])
def test_an_epoch_sees_every_image_once(length: int) -> None:
    order = epoch_order(3, 1, length)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(length))


def test_epochs_and_sweeps_have_orders_of_their_own_and_each_is_repeatable() -> None:
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert tuple(epoch_order(0, 0, 50)) == orders[0]


def test_the_random_numbers_of_a_take_over_follow_from_the_seed_the_trial_and_the_epoch() -> None:
    seeds = {take_over_seed(*words) for words in ((1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3))}
    assert len(seeds) == 4
    assert take_over_seed(1, 2, 3) == take_over_seed(1, 2, 3)
