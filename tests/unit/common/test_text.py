"""Numbers, counts, durations and values as text."""

from __future__ import annotations

import math
from typing import Any

import pytest

from raysweep.common.text import duration, number, plural, value_text


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (3.0, "3"), (0.00314159, "0.003142"), (1e-07, "1e-07"), (12345678, "12345678"), (0.5, "0.5")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 nodes"), (1, "1 node"), (2, "2 nodes"), (1000, "1,000 nodes")])
def test_counts(count: int, text: str) -> None:
    assert plural(count, "node") == text


def test_a_plural_that_does_not_end_in_s() -> None:
    assert plural(1, "index", "indices") == "1 index"
    assert plural(2, "index", "indices") == "2 indices"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (3599.5, "1h00m"),
        (7620, "2h07m"),
        (86399, "23h59m"),
        (86400, "1d00h"),
        (356400, "4d03h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("adam", "adam"),
        ("0.10", "0.10"),
        (0.00314159, "0.003142"),
        (8, "8"),
        (True, "true"),
        (None, "null"),
        ([1, 2], "[1, 2]"),
        (math.inf, "Infinity"),
    ],
)
def test_values_of_a_configuration(value: Any, text: str) -> None:
    assert value_text(value) == text
