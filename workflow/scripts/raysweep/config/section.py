"""This module gives a part of a config to the checks that a JSON Schema cannot make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from raysweep.config.mistakes import KeyPath, Mistake
from raysweep.config.space import read_space


def maps_below(config: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """Return the data sets or the sweeps of a config that may have mistakes. `key` is `datasets` or `sweeps`. Values that are no maps are left out."""
    below = config.get(key)
    return {name: values for name, values in below.items() if isinstance(values, dict)} if isinstance(below, dict) else {}


def dataset_of(sweep: Mapping[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return the data set of a sweep, or an empty map where the sweep has none. Both the sweep and the config may have mistakes."""
    name = sweep.get("dataset")
    return maps_below(config, "datasets").get(name, {}) if isinstance(name, str) else {}


def folds_of(sweep: Mapping[str, Any], config: dict[str, Any]) -> int | None:
    """Return the number of folds of the data set of a sweep, or None where there are no folds or where their number has a mistake."""
    validation = dataset_of(sweep, config).get("validation")
    folds = validation.get("folds") if isinstance(validation, dict) else None
    return folds if isinstance(folds, int) and folds > 1 else None


@dataclass(frozen=True)
class Section:
    """Contains the whole config, one data set or one sweep, with all defaults filled in."""

    path: KeyPath  # These keys lead from the top of the config to the section.
    values: dict[str, Any]  # This map is the content of the section.
    config: dict[str, Any]  # This map is the whole config.
    root: Path  # Relative paths in the config start from this folder.
    placed: Callable[[str], Path]  # This function adds Snakemake's prefix for modules to the path of a folder.

    def below(self, key: str, name: str) -> Section:
        """Return the section of the data set or sweep `name` of the config. `key` is `datasets` or `sweeps`."""
        return replace(self, path=(key, name), values=self.config[key][name])

    def mistake(self, message: str, *keys: str | int) -> Mistake:
        """Return a mistake at the key to which `keys` lead, from the section downwards."""
        return Mistake((*self.path, *keys), message)

    def folder(self, key: str) -> Path:
        """Return the path of the folder that the config names at `key`, such as `results_dir`."""
        return self.root / self.placed(self.config[key])

    @property
    def requirements(self) -> Path:
        """Return the path of the environment's requirements file."""
        return self.root / str(self.config["env"]["requirements"])

    @property
    def is_of_model(self) -> bool:
        """Return whether the sweep trains a `model` and not a `trainable`."""
        return "model" in self.values

    @cached_property
    def space(self) -> dict[str, Any]:
        """Return the search space of the sweep as a flat map. Keys with mistakes are left out."""
        return read_space(self.values["search_space"])[0]

    @property
    def algorithm(self) -> str:
        """Return the name of the search algorithm of the sweep."""
        return str(self.values["search_algorithm"]["name"])

    @property
    def scheduler(self) -> str:
        """Return the name of the scheduler of the sweep."""
        return str(self.values["scheduler"]["name"])
