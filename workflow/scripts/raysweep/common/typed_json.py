"""This module converts frozen dataclasses to JSON and back, because processes exchange dataclasses as JSON.

A field with the metadata OMIT_IF_EMPTY is left out of the JSON where the field is empty. A class that inherits from Extensible ignores keys that a later
version of the class has added. A class with a special JSON form defines `to_json(self)` and `from_json(cls, value)`.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from raysweep.common.errors import RaysweepError
from raysweep.common.files import read_yaml

T = TypeVar("T")

OMIT_IF_EMPTY = {"omit_if_empty": True}  # An empty value is None, or a text, list, tuple or map without content. The number 0 is not empty.
EMPTY: tuple[Any, ...] = (None, "", (), [], {})


class Extensible:
    """Marks a dataclass that is read from files of other versions. Keys that are not fields of the class are ignored."""


def to_json(value: Any) -> Any:
    """Return `value` as lists, dicts, text, numbers and None. A dataclass becomes a dict with the fields as keys, in the order of the fields."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if dataclasses.is_dataclass(value):
        return fields_to_json(value)
    if isinstance(value, Mapping):
        return {key: to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def fields_to_json(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as {name: value as JSON}. A `to_json` of the class is not used."""
    fields = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return {field.name: to_json(inner) for field, inner in fields if not (field.metadata.get("omit_if_empty") and inner in EMPTY)}


def read_yaml_as(kind: type[T], path: Path) -> T:
    """Return the object of type `kind` that a YAML file contains. Raises RaysweepError, with the path, where the content does not fit `kind`."""
    try:
        return from_json(kind, read_yaml(path))
    except (TypeError, yaml.YAMLError) as error:
        raise RaysweepError(f"{path}: the file is damaged, or another version of the workflow has written it: {error}") from error


def from_json(kind: type[T], value: Any) -> T:
    """Return the object of type `kind` from which `to_json` made `value`.

    `kind` is a dataclass, a union of dataclasses, or the annotation of a field of a dataclass. For a union, the first member that fits `value` is used.
    The dataclasses of a union differ in a field of type Literal. A field that is missing in `value` gets the default of the field. Raises TypeError
    where `value` does not fit `kind`.
    """
    return typing.cast(T, _read(kind, value))


def _read(kind: Any, value: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _read_member(arguments, value)
    if origin is Literal:
        if value not in arguments:
            raise TypeError(f"{value!r} is none of {', '.join(map(repr, arguments))}")
        return value
    if hasattr(kind, "from_json"):
        return kind.from_json(value)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value)
    if kind is Path:
        return Path(_checked(value, str))
    if kind is float:
        return _checked(value, int | float)  # An integer stays an integer.
    if origin is dict:
        return {_read(arguments[0], key): _read(arguments[1], inner) for key, inner in _checked(value, dict).items()}
    if origin is tuple:
        values = _checked(value, list | tuple)
        kinds = [arguments[0]] * len(values) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(values):
            raise TypeError(f"{value!r} does not have {len(kinds)} values")
        return tuple(_read(inner_kind, inner) for inner_kind, inner in zip(kinds, values, strict=True))
    if origin is list:
        return [_read(arguments[0], inner) for inner in _checked(value, list)]
    return _checked(value, kind)


def _checked(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{value!r} is not of type {getattr(kind, '__name__', kind)}")
    return value


def _read_member(members: tuple[Any, ...], value: Any) -> Any:
    reasons = []
    for member in members:
        try:
            return _read(member, value)
        except TypeError as error:
            reasons.append(str(error))
    raise TypeError("; ".join(reasons))


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _read_dataclass(kind: Any, value: Any) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(_checked(value, dict).keys() - names)
    if unknown and not issubclass(kind, Extensible):
        raise TypeError(f"{kind.__name__} has no field {', '.join(map(str, unknown))}")
    return known_fields_from_json(kind, value)


def known_fields_from_json(kind: type[T], value: Mapping[str, Any]) -> T:
    """Return a dataclass of type `kind` with the fields that `value` contains. Keys of `value` that are not fields are ignored.

    A `from_json` of the class is not used. Raises TypeError where a field without a default is missing, or where a value does not fit the field.
    """
    cls: Any = kind
    hints, names = _hints(cls), [field.name for field in dataclasses.fields(cls)]
    return kind(**{name: _read(hints[name], value[name]) for name in names if name in value})
