"""The JSON Schema of the config (config/schema.yaml): the allowed values in words, the mistakes of a config against the schema, and the defaults."""

from __future__ import annotations

import copy
import difflib
import functools
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from raysweep.config.mistakes import KeyPath, Mistake

PATH_TO_SCHEMA = Path(__file__).resolve().parents[4] / "config" / "schema.yaml"
NAMED = ("search_algorithm", "scheduler")  # keys of a sweep whose value is a name, or a map with a name and the options of that name
# These keywords concern the parts of a value, and `schema_mistakes` reads them itself.
STRUCTURE = frozenset({"properties", "additionalProperties", "propertyNames", "items", "required", "required_when_merged", "$defs"})
WORD_OF_TYPE = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "object": "a map",
    "array": "a list",
    "null": "null",
}
WORD_OF_BOUND = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}

Schema = dict[str, Any]


@functools.cache
def load_schema() -> Schema:
    """Return the schema of the whole config. No caller may change the map.

    A process reads the file once, because reading takes longer than all checks of a config.
    """
    with PATH_TO_SCHEMA.open(encoding="utf-8") as stream:
        schema: Schema = yaml.safe_load(stream)
    return schema


def resolved(schema: Schema) -> Schema:
    """Return a schema with the definition that its `$ref` names put in."""
    if "$ref" not in schema:
        return schema
    definition: Schema = load_schema()["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    return definition | {key: value for key, value in schema.items() if key != "$ref"}


def required_keys(schema: Schema) -> list[str]:
    """Return the keys that a map must have once all files of the config are merged."""
    return [*schema.get("required", ()), *schema.get("required_when_merged", ())]


def options_by_name(key: str) -> dict[str, Schema]:
    """Return the schemas of the options of each search algorithm or scheduler, by name."""
    options: dict[str, Schema] = load_schema()["$defs"][key]
    return options


def allowed(schema: Schema) -> str:
    """Return in words what a schema allows."""
    if "allowed" in schema:
        return str(schema["allowed"])
    if "enum" in schema:
        return "one of " + ", ".join(str(value) for value in schema["enum"])
    types = schema.get("type", [])
    text = " or ".join(WORD_OF_TYPE[kind] for kind in ([types] if isinstance(types, str) else types))
    if limits := " and ".join(f"{word} {schema[key]}" for key, word in WORD_OF_BOUND.items() if key in schema):
        return f"{text}, {limits}"
    return text + (" that is not empty" if schema.get("minLength") or schema.get("minProperties") else "")


def schema_mistakes(value: Any, schema: Schema, path: KeyPath = (), *, options_of: str = "") -> Iterator[Mistake]:
    """Yield the mistakes of `value`, which lies at `path` in the config, against its schema.

    Nothing below a value of a wrong type is checked. `options_of` is the name of the search algorithm or scheduler whose options `value` holds.
    """
    schema = resolved(schema)
    is_map = isinstance(value, dict) and "additionalProperties" in schema
    if is_map:
        yield from _mistakes_of_keys(value, schema, path, options_of)
    if not _is_valid(value, schema):
        yield Mistake(path, f"{value!r} is not allowed: {allowed(schema)}")
        return
    if is_map:
        yield from _missing_keys(value, schema, path)
        for key, inner in value.items():
            below = schema.get("properties", {}).get(key, schema["additionalProperties"])
            if isinstance(below, dict):
                yield from schema_mistakes(inner, below, (*path, key))
                if _is_named(path, key) and isinstance(inner, dict):
                    yield from _mistakes_of_options(inner, (*path, key))
    if isinstance(value, list) and "items" in schema:
        for number, inner in enumerate(value):
            yield from schema_mistakes(inner, schema["items"], (*path, number))


def _is_valid(value: Any, schema: Schema) -> bool:
    """Return whether a schema allows a value, apart from the parts of the value."""
    if isinstance(value, float) and not math.isfinite(value):
        return False  # no bound of a JSON Schema excludes NaN
    if isinstance(value, str) and "pattern" in schema and value.endswith("\n"):
        return False  # `$` in a pattern matches before a line break at the end
    own = {key: rule for key, rule in schema.items() if key not in STRUCTURE}
    return bool(jsonschema.Draft202012Validator(own).is_valid(value))


def _mistakes_of_keys(value: dict[Any, Any], schema: Schema, path: KeyPath, options_of: str) -> Iterator[Mistake]:
    """Yield the keys that are unknown, and the names that are not allowed."""
    known = schema.get("properties", {})
    for key in value:
        if key in known:
            continue
        if schema["additionalProperties"] is False:
            hint = _hint(key, known)
            message = f"unknown option of {options_of}. {hint}" if options_of else f"unknown key. {hint}"
            yield Mistake((*path, key), message, unsound=_unsound_for_unknown(key, known, path))
            continue
        names = resolved(schema["propertyNames"])
        if not isinstance(key, str) or not re.fullmatch(names["pattern"], key):
            # A sweep may name the data set by the name that the user should have given.
            unsound = path if path == ("datasets",) else None
            yield Mistake((*path, key), f"the name {key!r} is not allowed: {names['allowed']}", unsound)


def _unsound_for_unknown(key: Any, known: Iterable[str], path: KeyPath) -> KeyPath:
    """Return the part of the config that an unknown key makes unsound.

    The key may be misspelt or stand at a wrong place of its sweep or section, so that another key there has its default instead of the user's value.
    """
    if path[:1] == ("sweeps",):
        return path[:2]
    return path or (_nearest(key, known) or key,)


def _missing_keys(value: dict[Any, Any], schema: Schema, path: KeyPath) -> Iterator[Mistake]:
    """Yield the required keys that a map lacks. A key that is probably misspelt is not reported a second time."""
    known = schema.get("properties", {})
    misspelt = {_nearest(key, known) for key in value if key not in known}
    for key in required_keys(schema):
        if key not in value and key not in misspelt:
            yield Mistake((*path, key), f"missing. Allowed: {allowed(resolved(known[key]))}")


def _nearest(key: Any, known: Iterable[str]) -> str | None:
    """Return the known key that the user probably means by an unknown key."""
    return next(iter(difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)), None)


def _hint(key: Any, known: Iterable[str]) -> str:
    """Return the key that the user probably means, if there is one, and all known keys."""
    nearest = _nearest(key, known)
    return (f"Did you mean {nearest}? " if nearest else "") + f"Allowed: {', '.join(known) or 'no option'}"


def _is_named(path: KeyPath, key: Any) -> bool:
    """Return whether `key` of the map at `path` is a search algorithm or a scheduler."""
    return len(path) == 2 and path[0] == "sweeps" and key in NAMED


def _options_schema(options: dict[str, Schema]) -> Schema:
    """Return the schema of a map with some options."""
    return {"type": "object", "additionalProperties": False, "properties": options}


def _mistakes_of_options(value: dict[str, Any], path: KeyPath) -> Iterator[Mistake]:
    """Yield the mistakes of a search algorithm or scheduler: its name, and the options of that name."""
    key = str(path[-1])
    known = options_by_name(key)
    if "name" not in value:
        yield Mistake((*path, "name"), f"missing. Allowed: one of {', '.join(known)}")
        return
    name = value["name"]
    if is_class(key, name):
        return  # the options go to the constructor of the class
    if not isinstance(name, str) or name not in known:
        or_class = ", or module:Class of a searcher of Ray Tune's" if key == "search_algorithm" else ""
        yield Mistake((*path, "name"), f"{name!r} is not allowed: one of {', '.join(known)}{or_class}")
        return
    options = {option: inner for option, inner in value.items() if option != "name"}
    yield from schema_mistakes(options, _options_schema(known[name]), path, options_of=name)


def is_class(key: str, name: Any) -> bool:
    """Return whether the name of a search algorithm is that of a class of the user's or of a library."""
    return key == "search_algorithm" and isinstance(name, str) and ":" in name


def with_defaults(value: Any, schema: Schema) -> Any:
    """Return a copy of `value` with the schema's defaults where keys are missing, in the order of the schema, and without unknown keys.

    A value of a wrong type is returned as it is.
    """
    if isinstance(value, float) and "integer" in schema.get("type", ()) and value.is_integer():
        return int(value)  # JSON Schema takes 20.0 and 1e2 for whole numbers
    if not isinstance(value, dict) or "additionalProperties" not in schema:
        return value
    if isinstance(schema["additionalProperties"], dict):
        return {key: with_defaults(inner, schema["additionalProperties"]) for key, inner in value.items()}
    filled = {}
    for key, below in schema.get("properties", {}).items():
        if key in value or "default" in below:
            filled[key] = with_defaults(value.get(key, copy.deepcopy(below.get("default"))), below)
    return filled


def options_with_defaults(key: str, value: Any) -> Any:
    """Return a copy of a search algorithm or scheduler with the defaults of its options. A wrong value is returned as it is."""
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in options_by_name(key):
        return copy.copy(value)
    return {"name": name, **with_defaults(value, _options_schema(options_by_name(key)[name]))}
