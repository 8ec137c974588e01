from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from raysweep.common.typed_json import from_json, to_json


@dataclass(frozen=True)
class Inner:
    numbers: tuple[int, ...]
    folder: Path | None = None


@dataclass(frozen=True)
class Outer:
    inner: Inner
    by_name: dict[str, Inner]
    anything: Any
    share: float | Literal["auto"] = "auto"
    pair: tuple[int, str] = (1, "a")
    purpose: Literal["outer"] = "outer"


@dataclass(frozen=True)
class Other:
    purpose: Literal["other"] = "other"


def test_a_dataclass_is_read_back_as_it_was_written() -> None:
    outer = Outer(Inner((1, 2), Path("/a b")), {"x": Inner(())}, {"free": [1, None]}, 0.5)
    assert from_json(Outer, json.loads(json.dumps(to_json(outer)))) == outer


def test_a_union_is_told_apart_by_its_literal() -> None:
    assert from_json(Outer | Other, to_json(Other())) == Other()  # type: ignore[arg-type]


def test_a_field_that_is_missing_takes_its_default() -> None:
    assert from_json(Inner, {"numbers": []}) == Inner(())


def test_a_whole_number_stays_whole_where_a_float_may_stand() -> None:
    assert str(from_json(Outer, {"inner": {"numbers": []}, "by_name": {}, "anything": 0, "share": 1}).share) == "1"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"numbers": [1], "more": 1}, "Inner has no field more"),
        ({"numbers": ["1"]}, "'1' is not of type int"),
        ({"numbers": [True]}, "True is not of type int"),
        ({"numbers": 1}, "1 is not of type"),
        ({"numbers": [], "folder": 3}, "3 is not of type"),
        ([], "is not of type dict"),
        ({}, "numbers"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        from_json(Inner, value)
