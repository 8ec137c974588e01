"""This module reads the JSON Schema of the config (config/schema.yaml).

With the schema, the module describes allowed values in words, finds mistakes of a config and fills in defaults.
"""

from __future__ import annotations

import copy
import difflib
import functools
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from raysweep.config.mistakes import KeyPath, Mistake

PATH_TO_SCHEMA = Path(__file__).resolve().parents[4] / "config" / "schema.yaml"
# The value at these places of a sweep is a name, or a map with a name and options. The definition with the last key of a place describes the options.
NAMED = (("search_algorithm",), ("scheduler",), ("training", "schedule"))
# These keywords of JSON Schema describe values inside a map or list. The function `schema_mistakes` checks these keywords without jsonschema.
STRUCTURE = frozenset(
    {"properties", "additionalProperties", "propertyNames", "items", "required", "required_when_merged", "required_unless", "$defs"}
)
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
    """Return the schema of the whole config. A caller must not change the schema, because all callers get the same object.

    A process reads the file only once, because reading the file takes longer than all checks of a config.
    """
    with PATH_TO_SCHEMA.open(encoding="utf-8") as stream:
        # The loader in C needs an eighth of the time of the loader in Python (8 ms instead of 64 ms). Some builds of PyYAML lack the loader in C.
        schema: Schema = yaml.load(stream, yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)
    return schema


def definition(name: str) -> Schema:
    """Return a definition of the schema, to which other parts of the schema refer by `name`."""
    schema: Schema = load_schema()["$defs"][name]
    return schema


def resolved(schema: Schema) -> Schema:
    """Return a schema in which the definition replaces `$ref`. The other keywords of the schema override keywords of the definition."""
    if "$ref" not in schema:
        return schema
    return definition(schema["$ref"].removeprefix("#/$defs/")) | {key: value for key, value in schema.items() if key != "$ref"}


def schema_at(path: KeyPath) -> Schema:
    """Return the schema of the value to which `path` leads in the config, or {} where the schema does not describe the value."""
    schema = load_schema()
    for number, key in enumerate(path):
        if is_named(path[:number]):  # the key is an option
            schema = next((options[key] for options in options_by_name(str(path[number - 1])).values() if key in options), {})
        else:
            below = schema.get("properties", {}).get(key, schema.get("additionalProperties", schema.get("items")))
            schema = resolved(below) if isinstance(below, dict) else {}
    return schema


def types_of(schema: Schema) -> list[str]:
    """Return the names of the types that a schema allows. A list of allowed values that contains booleans allows the type boolean."""
    types = schema.get("type", [])
    return ([types] if isinstance(types, str) else list(types)) + (["boolean"] if True in schema.get("enum", ()) else [])


def required_keys(schema: Schema) -> list[str]:
    """Return the keys that a map must have after all files of the config are merged. Another key may replace a key of `required_unless`."""
    return [*schema.get("required", ()), *schema.get("required_when_merged", ()), *schema.get("required_unless", ())]


def options_by_name(key: str) -> dict[str, Schema]:
    """Return {name: {option: schema}} for all values that are allowed at a place in NAMED. `key` is the last key of the place."""
    options: dict[str, Schema] = load_schema()["$defs"][key]
    return options


def allowed(schema: Schema) -> str:
    """Return a description in words of the values that a schema allows."""
    if "allowed" in schema:
        return str(schema["allowed"])
    if "enum" in schema:
        return "one of " + ", ".join(str(value) for value in schema["enum"])
    text = " or ".join(WORD_OF_TYPE[kind] for kind in types_of(schema))
    if limits := " and ".join(f"{word} {schema[key]}" for key, word in WORD_OF_BOUND.items() if key in schema):
        return f"{text}, {limits}"
    return text + (" that is not empty" if schema.get("minLength") or schema.get("minProperties") else "")


def schema_mistakes(value: Any, schema: Schema, path: KeyPath = (), *, options_of: str = "") -> Iterator[Mistake]:
    """Yield the mistakes that `value` makes against `schema`. `path` leads to `value` in the config.

    Where `value` has a wrong type, the values inside `value` are not checked. Where `value` contains the options of a search algorithm or
    scheduler, `options_of` is the name of that algorithm or scheduler.
    """
    schema = resolved(schema)
    is_map = isinstance(value, dict) and "additionalProperties" in schema
    if is_map:
        yield from _mistakes_of_keys(value, schema, path, options_of)
    if not is_valid(value, schema):
        yield Mistake(path, f"{value!r} is not allowed: {allowed(schema)}{did_you_mean(value, schema.get('enum', ()))}")
        return
    if "free_text" in schema and isinstance(value, str):
        yield from _mistakes_of_text(value, path)
    if is_map:
        yield from _missing_keys(value, schema, path)
        for key, inner in value.items():
            below = schema.get("properties", {}).get(key, schema["additionalProperties"])
            if isinstance(below, dict):
                yield from schema_mistakes(inner, below, (*path, key))
                if is_named((*path, key)) and isinstance(inner, dict):
                    yield from _mistakes_of_options(inner, (*path, key))
    if isinstance(value, list) and "items" in schema:
        for number, inner in enumerate(value):
            yield from schema_mistakes(inner, schema["items"], (*path, number))


def is_valid(value: Any, schema: Schema) -> bool:
    """Return whether a schema allows a value. The values inside a map or list are not checked."""
    if isinstance(value, float) and not math.isfinite(value):
        return False  # No bound in a JSON Schema excludes NaN.
    if isinstance(value, str) and "pattern" in schema and value.endswith("\n"):
        return False  # The sign `$` in a pattern also matches before a final line break.
    own = {key: rule for key, rule in schema.items() if key not in STRUCTURE}
    return bool(jsonschema.Draft202012Validator(own).is_valid(value))


def _mistakes_of_text(value: str, path: KeyPath) -> Iterator[Mistake]:
    """Yield a mistake for a text that a script would read as a command-line option, or that Snakemake cannot use as a path."""
    if value.startswith("-"):
        yield Mistake(path, f"{value!r} is not allowed: a text that does not begin with a hyphen; ./{value}, if it is a path")
    elif set("{}") & set(value) or not value.isprintable():
        yield Mistake(path, f"{value!r} is not allowed: a text of one line, without curly brackets")


def _mistakes_of_keys(value: dict[Any, Any], schema: Schema, path: KeyPath, options_of: str) -> Iterator[Mistake]:
    """Yield a mistake for each unknown key of a map, and for each name of a data set or sweep that is not allowed."""
    known = schema.get("properties", {})
    for key in value:
        if key in known:
            continue
        if schema["additionalProperties"] is False:
            text = hint(key, known)
            message = f"unknown option of {options_of}. {text}" if options_of else f"unknown key. {text}"
            yield Mistake((*path, key), message, unsound=_unsound_for_unknown(key, known, path))
            continue
        names = resolved(schema["propertyNames"])
        if not isinstance(key, str) or not re.fullmatch(names["pattern"], key):
            # Later checks must not read the data sets, because a sweep may use the corrected name of the data set, and this use is no second mistake.
            unsound = path if path == ("datasets",) else None
            quotes = "" if isinstance(key, str) else f". Write '{json.dumps(key, default=str)}' with the quotes, because a name is text"
            yield Mistake((*path, key), f"the name {key!r} is not allowed: {names['allowed']}{quotes}", unsound)


def _unsound_for_unknown(key: Any, known: Iterable[str], path: KeyPath) -> KeyPath:
    """Return the path of the part of the config that later checks must not read because of the unknown key.

    The unknown key may be misspelt or stand at a wrong place in the sweep or section. Then another key of that sweep or section has the default
    instead of the user's value.
    """
    if path[:1] == ("sweeps",):
        return path[:2]
    return path or (_nearest(key, known) or key,)


def _missing_keys(value: dict[Any, Any], schema: Schema, path: KeyPath) -> Iterator[Mistake]:
    """Yield a mistake for each required key that a map lacks. A key that is probably misspelt is already reported as an unknown key."""
    known = schema.get("properties", {})
    misspelt = {_nearest(key, known) for key in value if key not in known}
    replaced = {key for key, other in schema.get("required_unless", {}).items() if value.get(other)}
    for key in required_keys(schema):
        if key not in value and key not in misspelt | replaced:
            yield Mistake((*path, key), f"missing. Allowed: {allowed(resolved(known[key]))}")


def _nearest(key: Any, known: Iterable[str]) -> str | None:
    """Return the known key that is most similar to the unknown key `key`, or None where no known key is similar."""
    return next(iter(difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)), None)


def hint(key: Any, known: Iterable[str]) -> str:
    """Return a text for the user with the known name that is similar to the unknown name `key`, if there is one, and with all known names."""
    nearest = _nearest(key, known)
    return (f"Did you mean {nearest}? " if nearest else "") + f"Allowed: {', '.join(known) or 'no option'}"


def did_you_mean(value: Any, known: Iterable[Any]) -> str:
    """Return the last sentence of a message, which asks for the known name most similar to `value`, or "" where no known name is similar."""
    nearest = _nearest(value, [name for name in known if isinstance(name, str)])
    return f". Did you mean {nearest}?" if nearest else ""


def is_named(path: KeyPath) -> bool:
    """Return whether the value at `path` in the config has a name and options."""
    return path[:1] == ("sweeps",) and path[2:] in NAMED


def _options_schema(options: dict[str, Schema]) -> Schema:
    """Return the schema of a map that may have the given options and no other keys."""
    return {"type": "object", "additionalProperties": False, "properties": options}


def _mistakes_of_options(value: dict[str, Any], path: KeyPath) -> Iterator[Mistake]:
    """Yield the mistakes in the name and the options of a value at a place in NAMED. `path` leads to the value."""
    key = str(path[-1])
    known = options_by_name(key)
    if "name" not in value:
        yield Mistake((*path, "name"), f"missing. Allowed: one of {', '.join(known)}")
        return
    name = value["name"]
    if is_class(key, name):
        return  # The options are arguments of the class, which the schema does not describe.
    names = [name for name in known if " " not in name]
    if not isinstance(name, str) or name not in names:
        or_class = ", or module:Class of a searcher of Ray Tune's" if key == "search_algorithm" else ""
        yield Mistake((*path, "name"), f"{name!r} is not allowed: one of {', '.join(names)}{or_class}{did_you_mean(name, names)}")
        return
    options = {option: inner for option, inner in value.items() if option != "name"}
    variant = _variant_of(key, value)
    # Without a variant, the sampler is a class or has a mistake. The options of a class are arguments, which the schema does not describe.
    if variant is None:
        variant, options = name, {"sampler": options["sampler"]}
    yield from schema_mistakes(options, _options_schema(_options_of_variant(key, variant)), path, options_of=variant)


def _variant_of(key: str, value: dict[str, Any]) -> str | None:
    """Return the name in `$defs` of the list of options that a value may have, or None where the schema lists no options for the value.

    A sampler of Optuna has options of its own, which the schema lists as `optuna <sampler>`.
    """
    variant = value["name"] if value.get("sampler", "tpe") == "tpe" else f"{value['name']} {value['sampler']}"
    return variant if variant in options_by_name(key) else None


def _options_of_variant(key: str, variant: str) -> dict[str, Schema]:
    """Return {option: schema} of a variant. All samplers of Optuna have the option `sampler`."""
    options = options_by_name(key)
    sampler = options[variant.split()[0]].get("sampler")
    return ({"sampler": sampler} if sampler else {}) | options[variant]


def is_class(key: str, name: Any) -> bool:
    """Return whether `name` is a search algorithm that is a class, written as `module:Class` or `file.py:Class`."""
    return key == "search_algorithm" and isinstance(name, str) and ":" in name


def with_defaults(value: Any, schema: Schema) -> Any:
    """Return a copy of `value` with the defaults of the schema for missing keys.

    The copy has the order of the schema and no unknown keys. A value of a wrong type is returned unchanged.
    """
    if isinstance(value, float) and "integer" in schema.get("type", ()) and value.is_integer():
        return int(value)  # JSON Schema accepts 20.0 and 1e2 as integers.
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
    """Return a copy of a value at a place in NAMED with the defaults of the missing options. A value with an unknown name is returned unchanged.

    `key` is the last key of the place.
    """
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in options_by_name(key) or (variant := _variant_of(key, value)) is None:
        return copy.copy(value)
    return {"name": name, **with_defaults(value, _options_schema(_options_of_variant(key, variant)))}
