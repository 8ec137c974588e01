"""The keys of a sweep's configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.config.distributions import Choice
from raysweep.report.keys import Key, position_in_range
from reporting import made_up


@pytest.mark.parametrize(
    ("value", "log", "position"), [(1e-4, True, 0), (1e-1, True, 1), (10**-2.5, True, 0.5), (1e-4, False, 0), (0.05005, False, 0.5)]
)
def test_positions_are_on_the_scale_that_is_searched(value: float, log: bool, position: float) -> None:
    assert position_in_range(1e-4, 1e-1, value, log) == pytest.approx(position)


def test_keys_nested_constant_and_gone_from_the_space(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, search_space={"net": {"width": {"choice": [8, 16]}, "act": {"choice": ["relu", "tanh"]}}, "momentum": 0.9})
    inputs.winner.config["old"] = [1, 2]
    keys = {key.name: key for key in inputs.keys}
    assert list(keys) == ["net/width", "net/act", "momentum", "old"]
    assert [key.varies for key in keys.values()] == [True, True, False, False]
    assert keys["net/width"].categories == [8, 16]
    assert Key("x", None, (3, "b", 1)).categories == [3, "b", 1]


def test_true_1_and_1_0_are_three_categories() -> None:
    key = Key("x", Choice("choice", (True, 1, 1.0)), (1, True, 1.0))
    assert [key.index(value) for value in (True, 1, 1.0)] == [0, 1, 2]
    assert [key.position(value) for value in (True, 1, 1.0)] == pytest.approx([1 / 6, 0.5, 5 / 6])
    assert [key.label(value) for value in (True, 1, 1.0)] == ["true", "1", "1.0"]
    assert len(Key("x", None, (True, 1, 1.0)).categories) == 3


def test_text_and_values_that_look_alike_have_different_labels() -> None:
    key = Key("x", Choice("choice", ("1", 1, 1.0, "1.0", "true", True)), ())
    assert [key.label(value) for value in key.categories] == ['"1"', "1", "1.0", '"1.0"', '"true"', "true"]
    assert Key("x", Choice("choice", ("relu", 1.0)), ()).label(1.0) == "1"
