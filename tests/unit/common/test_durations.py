from __future__ import annotations

import pytest

from raysweep.common.durations import minutes, seconds


@pytest.mark.parametrize(
    ("duration", "expected"),
    [(None, None), (1, 60), (0.5, 30), ("90s", 90), ("3h", 10800), ("1d12h", 129600), ("1h 30m", 5400), ("1.5m", 90)],
)
def test_a_number_counts_minutes_and_text_has_units(duration: float | str | None, expected: float | None) -> None:
    assert seconds(duration) == expected


@pytest.mark.parametrize(("duration", "expected"), [(1, 1), (0.5, 1), ("90s", 2), ("2m", 2), ("121s", 3), ("1d", 1440)])
def test_whole_minutes_are_rounded_up(duration: float | str, expected: int) -> None:
    assert minutes(duration) == expected
