"""The keys of a sweep's configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.config.space import Numeric
from raysweep.report.keys import Key, position_in_range
from reporting import made_up


@pytest.mark.parametrize(
    ("value", "log", "position"), [(1e-4, True, 0), (1e-1, True, 1), (10**-2.5, True, 0.5), (1e-4, False, 0), (0.05005, False, 0.5)]
)
def test_positions_are_on_the_scale_that_is_searched(value: float, log: bool, position: float) -> None:
    assert position_in_range(Numeric("", 1e-4, 1e-1, log), value) == pytest.approx(position)


def test_keys_nested_constant_and_gone_from_the_space(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, search_space={"net": {"width": {"choice": [8, 16]}, "act": {"choice": ["relu", "tanh"]}}, "momentum": 0.9})
    inputs.winner.config["old"] = [1, 2]
    keys = {key.name: key for key in inputs.keys}
    assert list(keys) == ["net/width", "net/act", "momentum", "old"]
    assert [key.varies for key in keys.values()] == [True, True, False, False]
    assert keys["net/width"].categories == [8, 16]
    assert Key("x", None, (3, "b", 1)).categories == [3, "b", 1]
