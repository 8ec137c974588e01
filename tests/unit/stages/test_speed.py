from __future__ import annotations

import pytest

from raysweep.stages.speed import configs_to_measure, predicted_row_s, spread_of


def test_between_measured_batch_sizes_a_step_has_a_cost_of_its_own_and_one_for_each_row() -> None:
    times = [(size, 0.001 + 0.02 / size) for size in (2, 16, 16)]
    for size in (2, 3, 8, 16):
        assert predicted_row_s(times, size) == pytest.approx(0.001 + 0.02 / size)
    assert predicted_row_s(times, 1) == pytest.approx(2 * 0.011)
    assert predicted_row_s(times, 64) == pytest.approx(0.001 + 0.02 / 16)


def test_the_spread_is_that_of_models_which_take_different_times() -> None:
    same = [(size, 0.001 + 0.02 / size) for size in (2, 4, 4, 8, 16)]
    assert spread_of(same) == pytest.approx(0)
    slow = [*same, (8, 3 * same[3][1])]
    assert spread_of(slow) > 0.3
    assert spread_of(same[:1]) == 0


def test_the_configurations_that_are_measured_differ_as_all_do() -> None:
    assert [
        config["batch_size"]
        for config in configs_to_measure([{"batch_size": size} for size in (64, 2, 4, 8, 16, 32, 128, 256, 512, 1024, 2048)])
    ] == [
        2,
        8,
        32,
        128,
        512,
        2048,
    ]
    assert configs_to_measure([{"batch_size": 4}]) == ({"batch_size": 4},)
