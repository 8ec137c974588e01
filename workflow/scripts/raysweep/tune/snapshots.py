"""This module keeps the objects of a session out of the files that Tune writes about an experiment."""

from __future__ import annotations

from typing import Any


class NotPickled:
    """Is pickled without its attributes.

    Tune pickles the search algorithm, the scheduler, the stopper and the callbacks into the file tuner.pkl before the first trial starts. Tune reads the file
    only to restore an experiment, and this package restores none. Some attributes cannot be pickled, such as slots, or the lock of a user's searcher.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {}
