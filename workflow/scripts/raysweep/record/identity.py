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
    # The key is part of the identity only where the scheduler is hyperband or pbt, before or after the change. Otherwise the sweep goes on from the record.
    # `max_epochs` is also part where the code of the sweep reads EPOCHS_ENV.
    EXTENDS_UNLESS_PAUSING = auto()
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
    "max_epochs": Effect.EXTENDS_UNLESS_PAUSING,
    "stop": Effect.EXTENDS_UNLESS_PAUSING,
    "constraint": Effect.EXTENDS,
    "scheduler": Effect.EXTENDS_UNLESS_PAUSING,
    "seed": Effect.STARTS_ANEW,
    "time_budget": Effect.EXTENDS,
    "keep_checkpoints": Effect.EXTENDS,
    "training": Effect.STARTS_ANEW_UNLESS_DEFAULT,
    "objectives": Effect.EXTENDS,
    "choose": Effect.EXTENDS,
    "end_when": Effect.EXTENDS,
    "warm_start": Effect.EXTENDS,
    "max_gpu_hours": Effect.EXTENDS,
}
PAUSING = ("hyperband", "pbt")  # schedulers that compare the trials of one plan of epochs, so that a longer sweep has another plan
EPOCHS_ENV = "RAYSWEEP_MAX_EPOCHS"  # environment variable that contains `max_epochs` in a trial
LABELS = {"sources": "the code", "data": "the data", "lock": "the installed packages"}  # names of those parts that are not config keys
DEFAULTS: dict[str, Any] = {
    "repeats": 1,
    "stop": {},
    "training": with_defaults({}, schema_at(("sweeps", "", "training"))),
    "objectives": [],
    "choose": None,
    "end_when": {},
    "warm_start": None,
    "max_gpu_hours": None,
}
# Version 0.1 did not have these keys. With their defaults they are no trigger, so that no finished sweep runs again.
ADDED = ("training", "objectives", "choose", "end_when", "warm_start", "max_gpu_hours")


def _changed_from_default(key: str, value: Any) -> Any:
    """Return the value of a key, or for a map the entries that differ from the default. Return None where nothing differs from the default."""
    if value is None or value == DEFAULTS[key]:
        return None
    return {inner: v for inner, v in value.items() if v != DEFAULTS[key].get(inner)} if isinstance(value, dict) else value


def rerun_triggers(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys whose change runs the rule run_sweep again, with the values in `sweep`. A key that `sweep` lacks has the value None."""
    sweep = _with_horizon(sweep, sweep.get("max_epochs"))  # as in the versions in which the default was `max_epochs` of the present config
    return {key: sweep.get(key) for key in EFFECT_OF_KEY if key not in ADDED or _changed_from_default(key, sweep.get(key)) is not None}


def _with_horizon(sweep: Mapping[str, Any], max_epochs: Any) -> Mapping[str, Any]:
    """Return a sweep of the config in which `training.schedule.epochs` has a value. `max_epochs` replaces a missing value."""
    training = sweep.get("training")
    if not training or training["schedule"].get("epochs", 0) is not None:
        return sweep
    return {**sweep, "training": {**training, "schedule": {**training["schedule"], "epochs": max_epochs}}}


def confirmation_triggers(sweep: Mapping[str, Any]) -> Any:
    """Return the values whose change runs the rule confirm again. Without `metrics` and `top`, the result is the number of seeds, as in version 0.1."""
    seeds, metrics, top = sweep["confirm"]["seeds"], sweep["metrics"], sweep["confirm"]["top"]
    if top != 1:
        return [seeds, metrics, top]
    return [seeds, metrics] if metrics else seeds


@dataclass(frozen=True)
class Identity:
    """Contains everything on which the result of a trial depends, as named parts. A key that has its default value is not a part.

    The session header contains all parts. A part that does not count (`_counts`) does not set a record aside.
    """

    parts: dict[str, Any]
    reads_max_epochs: bool = False  # whether the code of the sweep reads `max_epochs` from its environment

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the parts that count, in hexadecimal."""
        return _sha256({name: part for name, part in self.parts.items() if self._counts(name, self.parts)})

    @property
    def sha256_of_all(self) -> str:
        """Return the SHA-256 of all parts, which is the identity in version 0.2 and earlier versions."""
        return _sha256(self.parts)

    def is_identity(self, sha256: str) -> bool:
        """Return whether `sha256` is this identity, as this version or as an earlier version computes it."""
        return sha256 in (self.sha256, self.sha256_of_all)

    def change_since(self, header: SessionHeader) -> str | None:
        """Return what has changed since the session of `header`, or None if nothing has changed. Version 0.1 recorded only the SHA-256 of the parts."""
        if not header.depends_on:
            return None if self.is_identity(header.identity) else "what its trials depend on has changed"
        before = header.depends_on
        names = [
            name
            for name in before | self.parts
            if (self._counts(name, before) or self._counts(name, self.parts)) and _text(before.get(name)) != _text(self.parts.get(name))
        ]
        return f"{' and '.join(LABELS.get(name, name) for name in names)} changed" if names else None

    def _counts(self, name: str, parts: Mapping[str, Any]) -> bool:
        """Return whether a record is set aside when the part `name` of `parts` changes."""
        if EFFECT_OF_KEY.get(name) is not Effect.EXTENDS_UNLESS_PAUSING or (name == "max_epochs" and self.reads_max_epochs):
            return True
        return (parts.get("scheduler") or {}).get("name") in PAUSING


def _sha256(parts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _text(part: Any) -> str:
    return json.dumps(part, sort_keys=True)


def sweep_identity(
    sweep: Mapping[str, Any], *, sources: str, data: str | None, lock: str | None, reads_max_epochs: bool = False
) -> Identity:
    """Return the identity of a sweep.

    Args:
        sweep: the section of the sweep in the validated config, in which `training.schedule.epochs` has a value.
        sources: the checksum of the code that the sweep trains.
        data: the checksum of the staged data, or None where the sweep has no data set.
        lock: the checksum of the lock file or of the environment, which says which packages are installed for the trials.
        reads_max_epochs: whether the code contains EPOCHS_ENV.
    """
    parts: dict[str, Any] = {"sources": sources, "data": data, "lock": lock}
    for key, effect in EFFECT_OF_KEY.items():
        if effect is Effect.EXTENDS:
            continue
        if key not in DEFAULTS:
            parts[key] = sweep.get(key)
        elif (part := _changed_from_default(key, sweep.get(key))) is not None:
            parts[key] = part
    return Identity(parts, reads_max_epochs)
