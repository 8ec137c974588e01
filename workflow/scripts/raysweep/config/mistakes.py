"""This module collects the mistakes of a config, and finds the parts of the config that later checks must not read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Mistake:
    """Describes a mistake at the key of the config to which `path` leads."""

    path: KeyPath
    message: str
    # Later checks must not read the part of the config at this path. None stands for `path`.
    unsound: KeyPath | None = None
    # The file that contains the mistake. None stands for the last file that sets the key.
    file: str | None = None

    @property
    def unsound_path(self) -> KeyPath:
        """Return the path of the part of the config that later checks must not read."""
        return self.path if self.unsound is None else self.unsound


@dataclass
class Mistakes:
    """Collects the mistakes that the checks find."""

    collected: list[Mistake] = field(default_factory=list)

    def add(self, mistakes: Iterable[Mistake]) -> None:
        """Add `mistakes` to the collected mistakes."""
        self.collected += mistakes

    def is_sound(self, path: KeyPath) -> bool:
        """Return whether no collected mistake lies at `path` or at a map or list that contains `path`."""
        return not any(is_below(path, mistake.unsound_path) for mistake in self.collected)

    def is_sound_throughout(self, path: KeyPath) -> bool:
        """Return whether no collected mistake lies at `path`, at a map or list that contains `path`, or below `path`."""
        return self.is_sound(path) and not any(is_below(mistake.unsound_path, path) for mistake in self.collected)


def is_below(path: KeyPath, outer: KeyPath) -> bool:
    """Return whether `path` equals `outer` or begins with `outer`."""
    return path[: len(outer)] == outer
