"""Groups the failed trials of a sweep by the cause of the failure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from raysweep.record.trials import Trial


@dataclass(frozen=True)
class Failure:
    """Contains a cause of failure and the trials that failed for this cause."""

    cause: str  # error message of the first trial that failed for this cause
    trials: list[Trial] = field(default_factory=list)


def failures(trials: list[Trial]) -> list[Failure]:
    """Return the failed trials by cause, the most frequent cause first. Errors that differ only in numbers count as one cause."""
    by_cause: dict[str, Failure] = {}
    for trial in trials:
        if trial.status == "ERROR":
            cause = trial.error or "no reason recorded"
            by_cause.setdefault(re.sub(r"0x[0-9a-f]+|\d+", "#", cause), Failure(cause)).trials.append(trial)
    return sorted(by_cause.values(), key=lambda failure: -len(failure.trials))
