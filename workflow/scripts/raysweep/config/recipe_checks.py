"""This module checks the optimiser and the recipe of a sweep that trains a `model`, for mistakes that a JSON Schema cannot find.

Each check yields mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raysweep.config.mistakes import Mistake
from raysweep.config.recipe import AUGMENTATIONS, OPTIMIZER_SETTINGS
from raysweep.config.schema import allowed, did_you_mean, is_valid, schema_at, types_of
from raysweep.config.section import Section
from raysweep.config.space import OPTIMIZER_KEYS, SEPARATOR
from raysweep.config.sweep_checks import extremes

PIXELS = {"type": "integer", "minimum": 1, "maximum": 1000, "allowed": "a whole number of at least 1 (pixels)"}
# Maps each option of an operation of the augmentation to the schema of its values.
SCHEMA_OF_OPTION = {
    "padding": PIXELS,
    "size": PIXELS,
    "fraction": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "alpha": {"type": "number", "exclusiveMinimum": 0, "maximum": 1000},
}


def check_optimizer(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake for each setting of an optimiser in the search space that the optimiser of the sweep lacks."""
    optimizer = sweep.values["optimizer"]
    for key in sorted(OPTIMIZER_KEYS - {"lr", *OPTIMIZER_SETTINGS[optimizer][1]}):
        if key in sweep.space:
            yield sweep.mistake(f"is not allowed with optimizer {optimizer}: it has no such setting", "search_space", key)


def check_searched_recipe(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake for each key below `search_space.training` that is no number of the recipe, and for each value that the recipe does not allow."""
    for key, distribution in sweep.space.items():
        keys = key.split(SEPARATOR)
        if keys[0] != "training":
            continue
        schema = schema_at((*sweep.path, *keys))
        if "number" not in types_of(schema) or (keys[1] == "schedule" and keys[2] not in sweep.values["training"]["schedule"]):
            numbers = ", ".join(".".join(names) for names in _numbers_of_recipe(sweep))
            yield sweep.mistake(f"is no number of the recipe. Allowed: {numbers}", "search_space", *keys)
        elif wrong := [
            value
            for value in extremes(distribution)
            if not is_valid(value, schema) or (keys[1:] == ["schedule", "epochs"] and value is None)
        ]:
            yield sweep.mistake(f"{wrong[0]!r} is not allowed: {allowed(schema)}", "search_space", *keys)


def _numbers_of_recipe(sweep: Section) -> Iterator[tuple[str, ...]]:
    """Yield the keys below `training` of each number of the recipe, with the options of the schedule of the sweep."""
    for key, value in sweep.values["training"].items():
        for names in ((key, option) for option in value) if key == "schedule" else ((key,),):
            if "number" in types_of(schema_at((*sweep.path, "training", *names))):
                yield names


def recipe_values(sweep: Section, *keys: str) -> list[Any]:
    """Return the smallest and the largest value of a number of the recipe, or all values, from the search space or from `training`."""
    value = sweep.values["training"]
    for key in keys:
        value = value.get(key)
    if value is None and keys == ("schedule", "epochs"):
        value = sweep.values["max_epochs"]
    return extremes(sweep.space.get(SEPARATOR.join(("training", *keys)), value))


def check_warmup(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake where the warm-up is as long as the schedule, or longer."""
    warmup = recipe_values(sweep, "warmup_epochs")
    if "epochs" in sweep.values["training"]["schedule"] and max(warmup) >= (shortest := min(recipe_values(sweep, "schedule", "epochs"))):
        message = f"{max(warmup)} is not allowed: below the {shortest} epochs of the schedule"
        yield sweep.mistake(message, "training", "warmup_epochs")


def check_augmentation(sweep: Section) -> Iterator[Mistake]:
    """Yield a mistake for each operation of the augmentation that does not exist, occurs twice, or has an option that is not allowed."""
    names: list[str] = []
    for number, operation in enumerate(sweep.values["training"]["augment"]):
        named = operation if isinstance(operation, dict) else {operation: {}}
        name, options = next(iter(named.items()), ("", {}))
        path = ("training", "augment", number)
        if len(named) != 1 or name not in AUGMENTATIONS:
            yield sweep.mistake(
                f"{operation!r} is not allowed: one of {', '.join(AUGMENTATIONS)}, or a map such as crop: {{padding: 4}}{did_you_mean(name, AUGMENTATIONS)}",
                *path,
            )
        elif name in names:
            yield sweep.mistake(f"{name} is not allowed twice", *path)
        elif not isinstance(options, dict) or not options.keys() <= AUGMENTATIONS[name].keys():
            yield sweep.mistake(f"{options!r} is not allowed: {_options_of(name)}", *path, name)
        else:
            for key, value in options.items():
                if not is_valid(value, SCHEMA_OF_OPTION[key]):
                    yield sweep.mistake(f"{value!r} is not allowed: {allowed(SCHEMA_OF_OPTION[key])}", *path, name, key)
        names.append(name)


def _options_of(name: str) -> str:
    options = ", ".join(f"{key}: {value}" for key, value in AUGMENTATIONS[name].items())
    return f"a map such as {{{options}}}" if options else f"{name} has no options"
