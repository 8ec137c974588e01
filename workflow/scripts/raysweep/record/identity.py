"""The identity of a sweep: all that a finished trial depends on. One table says what a change of each key of a sweep does.

docs/faults.md describes the identity for users.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any


class Effect(Enum):
    """What a change of a key does to a sweep that has a record."""

    STARTS_ANEW = auto()  # the key is part of the identity
    STARTS_ANEW_UNLESS_DEFAULT = auto()  # the same, but the default adds no part: records from before there was the key stay valid
    EXTENDS = auto()  # the rule runs again, and the sweep goes on from its record


# Snakemake keeps the values of these keys as a parameter of the rule run_sweep, in this order: another order would run every finished sweep again.
# A change of any other key does not run the rule again.
EFFECT_OF_KEY = {
    "dataset": Effect.EXTENDS,  # the checksum of the staged data is part of the identity, not the name
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
}
DEFAULTS: dict[str, tuple[Any, ...]] = {"repeats": (1,), "stop": (None, {})}


def rerun_triggers(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a sweep whose change runs the rule run_sweep again, with their values; None for a key that the sweep does not have."""
    return {key: sweep.get(key) for key in EFFECT_OF_KEY}


def sweep_identity(sweep: Mapping[str, Any], *, sources: str, data: str | None, lock: str | None) -> str:
    """Return the identity of a sweep, as a SHA-256 in hexadecimal.

    Args:
        sweep: the sweep's part of the validated config.
        sources: checksum of the code that the sweep trains.
        data: checksum of the staged data, None without a data set.
        lock: checksum of what is installed for the trials.
    """
    parts: dict[str, Any] = {"sources": sources, "data": data, "lock": lock}
    for key, effect in EFFECT_OF_KEY.items():
        if effect is Effect.STARTS_ANEW or (effect is Effect.STARTS_ANEW_UNLESS_DEFAULT and sweep[key] not in DEFAULTS[key]):
            parts[key] = sweep.get(key)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
