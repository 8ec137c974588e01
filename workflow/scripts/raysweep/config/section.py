"""A part of a config as the checks across keys read it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from raysweep.config.mistakes import KeyPath, Mistake
from raysweep.config.space import read_space


@dataclass(frozen=True)
class Section:
    """The whole config or one sweep, with all defaults filled in."""

    path: KeyPath
    values: dict[str, Any]
    config: dict[str, Any]  # the whole config
    root: Path  # the folder to which the paths of the config are relative

    def mistake(self, message: str, *keys: str | int) -> Mistake:
        """Return a mistake at the key of the section that `keys` lead to."""
        return Mistake((*self.path, *keys), message)

    @property
    def requirements(self) -> Path:
        """Return the requirements file of the environment."""
        return self.root / str(self.config["env"]["requirements"])

    @property
    def is_of_model(self) -> bool:
        """Return whether the sweep trains a model, and not a trainable."""
        return "model" in self.values

    @cached_property
    def space(self) -> dict[str, Any]:
        """Return the flat search space of the sweep, without the parts that have mistakes."""
        return read_space(self.values["search_space"])[0]

    @property
    def algorithm(self) -> str:
        """Return the name of the search algorithm of the sweep."""
        return str(self.values["search_algorithm"]["name"])

    @property
    def scheduler(self) -> str:
        """Return the name of the scheduler of the sweep."""
        return str(self.values["scheduler"]["name"])
