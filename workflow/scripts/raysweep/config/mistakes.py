"""Mistakes of a config, and the parts of the config that no further check may rely on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Mistake:
    """A mistake, at the key that `path` leads to."""

    path: KeyPath
    message: str
    unsound: KeyPath | None = None  # the part that no further check may rely on, where that is not `path`
    place: str | None = None  # shown before the message, where that is not the file and the key

    @property
    def unsound_path(self) -> KeyPath:
        """Return the path of the part that no further check may rely on."""
        return self.path if self.unsound is None else self.unsound


@dataclass
class Mistakes:
    """The mistakes that the checks have collected so far."""

    collected: list[Mistake] = field(default_factory=list)

    def add(self, mistakes: Iterable[Mistake]) -> None:
        """Collect some mistakes."""
        self.collected += mistakes

    def is_sound(self, path: KeyPath) -> bool:
        """Return whether no mistake lies at `path` or above."""
        return not any(is_below(path, mistake.unsound_path) for mistake in self.collected)

    def is_sound_throughout(self, path: KeyPath) -> bool:
        """Return whether no mistake lies at `path`, above or below."""
        return self.is_sound(path) and not any(is_below(mistake.unsound_path, path) for mistake in self.collected)


def is_below(path: KeyPath, outer: KeyPath) -> bool:
    """Return whether `path` is `outer` or leads through `outer`."""
    return path[: len(outer)] == outer
