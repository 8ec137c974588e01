"""What counts as a number."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest

from raysweep.common.numeric import is_finite_number, is_number, is_same


@pytest.mark.parametrize("value", [0, -1, 0.5, 10**30, np.float32(0.5), np.int64(3)])
def test_numbers_are_finite_numbers(value: Any) -> None:
    assert is_number(value)
    assert is_finite_number(value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, np.float32("nan")])
def test_infinity_and_nan_are_numbers_but_not_finite(value: Any) -> None:
    assert is_number(value)
    assert not is_finite_number(value)


@pytest.mark.parametrize("value", [True, False, np.bool_(True), None, "1", [1], 1j])
def test_booleans_and_text_are_no_numbers(value: Any) -> None:
    assert not is_number(value)
    assert not is_finite_number(value)


VALUES = [True, 1, 1.0, "1", "true", None, [1], [True], [1.0], [], {"a": 1}, {"a": True}, {"a": 1, "b": 2}, {}, 0, False, 0.0, ""]


def test_values_that_python_calls_equal_are_not_the_same() -> None:
    for number, value in enumerate(VALUES):
        assert [other for other, candidate in enumerate(VALUES) if is_same(value, copy.deepcopy(candidate))] == [number]
    assert is_same({"a": 1, "b": [2]}, {"b": [2], "a": 1})
