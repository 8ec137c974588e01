from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raysweep.common.bounds import all_hold, any_holds


@pytest.mark.parametrize("value", [None, "large", [3], True, False, np.bool_(True), float("nan")])
def test_a_value_that_is_no_number_holds_no_bound(value: Any) -> None:
    for bound in ({"at_least": -9}, {"at_most": 9}):
        assert not any_holds({"score": value}, {"score": bound})
        assert not all_hold({"score": value}, {"score": bound})


@pytest.mark.parametrize(("value", "is_least", "is_most"), [(1, True, False), (2.0, True, True), (np.float32(3), False, True)])
def test_a_bound_includes_its_value(value: Any, is_least: bool, is_most: bool) -> None:
    assert any_holds({"score": 2}, {"score": {"at_least": value}}) is is_least
    assert any_holds({"score": 2}, {"score": {"at_most": value}}) is is_most


def test_a_metric_that_was_not_reported_holds_no_bound() -> None:
    assert not any_holds({}, {"score": {"at_least": 0}})
    assert not all_hold({}, {"score": {"at_least": 0}})


def test_any_and_all() -> None:
    bounds = {"score": {"at_least": 1.0}, "size": {"at_most": 5.0}}
    reports = [{"score": 1, "size": 5}, {"score": 1, "size": 6}, {"score": 0, "size": 6}]
    assert [any_holds(report, bounds) for report in reports] == [True, True, False]
    assert [all_hold(report, bounds) for report in reports] == [True, False, False]
    assert (any_holds({}, {}), all_hold({}, {})) == (False, True)
