"""Computes the identity of a sweep, which contains everything on which the result of a trial depends.

The table EFFECT_OF_KEY says, for each key of a sweep, what a change of the key does. docs/faults.md describes the identity for users.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from raysweep.config.schema import schema_at, with_defaults
from raysweep.record.events import SessionHeader


class Effect(Enum):
    """Names the effects that a change of a config key can have on a sweep that has a record."""

    STARTS_ANEW = auto()  # the key is part of the identity, so the sweep starts anew
    # The key is part of the identity unless the key has the default value. Records from a time before the key existed therefore stay valid.
    STARTS_ANEW_UNLESS_DEFAULT = auto()
    EXTENDS = auto()  # the rule run_sweep runs again, and the sweep goes on from the record


# Snakemake stores the values of these keys as a parameter of the rule run_sweep, in this order. Do not change the order, because Snakemake would then
# run every finished sweep again. A change of any other key does not run the rule again.
EFFECT_OF_KEY = {
    "dataset": Effect.EXTENDS,  # the checksum of the staged data is part of the identity; the data set's name is not part of the identity
    "model": Effect.STARTS_ANEW,
    "trainable": Effect.STARTS_ANEW,
    "loss": Effect.STARTS_ANEW,
    "optimizer": Effect.STARTS_ANEW,
    "search_space": Effect.EXTENDS,
    "search_algorithm": Effect.EXTENDS,
    "num_samples": Effect.EXTENDS,
    "repeats": Effect.STARTS_ANEW_UNLESS_DEFAULT,
    "metric": Effect.STARTS_ANEW,
    "mode": Effect.STARTS_ANEW,
    "max_epochs": Effect.STARTS_ANEW,
    "stop": Effect.STARTS_ANEW_UNLESS_DEFAULT,
    "constraint": Effect.EXTENDS,
    "scheduler": Effect.STARTS_ANEW,
    "seed": Effect.STARTS_ANEW,
    "time_budget": Effect.EXTENDS,
    "keep_checkpoints": Effect.EXTENDS,
    "training": Effect.STARTS_ANEW_UNLESS_DEFAULT,
    "objectives": Effect.EXTENDS,
    "choose": Effect.EXTENDS,
    "end_when": Effect.EXTENDS,
    "warm_start": Effect.EXTENDS,
}
LABELS = {"sources": "the code", "data": "the data", "lock": "the installed packages"}  # names of those parts that are not config keys
DEFAULTS: dict[str, Any] = {
    "repeats": 1,
    "stop": {},
    "training": with_defaults({}, schema_at(("sweeps", "", "training"))),
    "objectives": [],
    "choose": None,
    "end_when": {},
    "warm_start": None,
}
# Version 0.1 did not have these keys. With their defaults they are no trigger, so that no finished sweep runs again.
ADDED = ("training", "objectives", "choose", "end_when", "warm_start")


def _changed_from_default(key: str, value: Any) -> Any:
    """Return the value of a key, or for a map the entries that differ from the default. Return None where nothing differs from the default."""
    if value is None or value == DEFAULTS[key]:
        return None
    return {inner: v for inner, v in value.items() if v != DEFAULTS[key].get(inner)} if isinstance(value, dict) else value


def rerun_triggers(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys whose change runs the rule run_sweep again, with the values in `sweep`. A key that `sweep` lacks has the value None."""
    return {key: sweep.get(key) for key in EFFECT_OF_KEY if key not in ADDED or _changed_from_default(key, sweep.get(key)) is not None}


def confirmation_triggers(sweep: Mapping[str, Any]) -> Any:
    """Return the values whose change runs the rule confirm again. Without `metrics` and `top`, the result is the number of seeds, as in version 0.1."""
    seeds, metrics, top = sweep["confirm"]["seeds"], sweep["metrics"], sweep["confirm"]["top"]
    if top != 1:
        return [seeds, metrics, top]
    return [seeds, metrics] if metrics else seeds


@dataclass(frozen=True)
class Identity:
    """Contains everything on which the result of a trial depends, as named parts. A key that has its default value is not a part."""

    parts: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the parts, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()

    def change_since(self, header: SessionHeader) -> str | None:
        """Return what has changed since the session of `header`, or None if nothing has changed. Version 0.1 recorded only the SHA-256 of the parts."""
        if not header.depends_on:
            return None if header.identity == self.sha256 else "what its trials depend on has changed"
        names = [name for name in header.depends_on | self.parts if _text(header.depends_on.get(name)) != _text(self.parts.get(name))]
        return f"{' and '.join(LABELS.get(name, name) for name in names)} changed" if names else None


def _text(part: Any) -> str:
    return json.dumps(part, sort_keys=True)


def sweep_identity(sweep: Mapping[str, Any], *, sources: str, data: str | None, lock: str | None) -> Identity:
    """Return the identity of a sweep.

    Args:
        sweep: the section of the sweep in the validated config.
        sources: the checksum of the code that the sweep trains.
        data: the checksum of the staged data, or None where the sweep has no data set.
        lock: the checksum of the lock file or of the environment, which says which packages are installed for the trials.
    """
    parts: dict[str, Any] = {"sources": sources, "data": data, "lock": lock}
    for key, effect in EFFECT_OF_KEY.items():
        if effect is Effect.STARTS_ANEW:
            parts[key] = sweep.get(key)
        elif effect is Effect.STARTS_ANEW_UNLESS_DEFAULT and (part := _changed_from_default(key, sweep.get(key))) is not None:
            parts[key] = part
    return Identity(parts)
