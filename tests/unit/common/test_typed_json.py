from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from raysweep.common.errors import RaysweepError
from raysweep.common.typed_json import OMIT_IF_EMPTY, Extensible, from_json, read_yaml_as, to_json


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


@dataclass(frozen=True)
class Later(Extensible):
    count: int = field(default=0, metadata=OMIT_IF_EMPTY)
    text: str | None = field(default=None, metadata=OMIT_IF_EMPTY)
    names: tuple[str, ...] = field(default=(), metadata=OMIT_IF_EMPTY)
    inner: Inner | None = None


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


def test_an_empty_field_is_left_out_and_a_zero_is_not() -> None:
    assert to_json(Later()) == {"count": 0, "inner": None}
    assert to_json(Later(1, "a", ("b",))) == {"count": 1, "text": "a", "names": ["b"], "inner": None}


def test_keys_of_a_later_version_are_ignored_only_where_the_class_says_so() -> None:
    assert from_json(Later, {"count": 1, "more": 2}) == Later(1)
    with pytest.raises(TypeError, match="Inner has no field more"):
        from_json(Later, {"inner": {"numbers": [], "more": 1}})


@pytest.mark.parametrize(
    ("text", "reason"), [("count: many", "'many' is not of type int"), ("", "None is not of type dict"), ("{", "expected")]
)
def test_a_file_that_does_not_fit_is_named_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "later.yaml"
    path.write_text(text)
    with pytest.raises(RaysweepError, match=reason) as raised:
        read_yaml_as(Later, path)
    assert str(raised.value).startswith(f"{path}: ")
    assert len(str(raised.value).splitlines()) == 1
    path.write_text("count: 3\n")
    assert read_yaml_as(Later, path) == Later(3)
