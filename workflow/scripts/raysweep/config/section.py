"""This module gives a part of a config to the checks that a JSON Schema cannot make."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from raysweep.config.mistakes import KeyPath, Mistake
from raysweep.config.space import read_space


@dataclass(frozen=True)
class Section:
    """Contains the whole config or one sweep, with all defaults filled in."""

    path: KeyPath  # These keys lead from the top of the config to the section.
    values: dict[str, Any]  # This map is the content of the section.
    config: dict[str, Any]  # This map is the whole config.
    root: Path  # Relative paths in the config start from this folder.

    def mistake(self, message: str, *keys: str | int) -> Mistake:
        """Return a mistake at the key to which `keys` lead, from the section downwards."""
        return Mistake((*self.path, *keys), message)

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
