"""This module decides whether a sweep ends because the best value of the sweep has not become better (`end_when` in the config)."""

from __future__ import annotations

from raysweep.common.patience import BestSoFar
from raysweep.config.model import NoBetterFor
from raysweep.record.sweep import Sweep
from raysweep.record.trials import Candidate, Trial


class Stagnation:
    """Counts the configurations that finished since the best value of a sweep last became better, in the order of the record.

    A configuration finishes when the last of its trials ends for the first time. A configuration that failed, or that has no report within the constraint, is
    not better. Nothing counts before the first configuration with a value, because such a sweep has no best value yet. After finished trials have gone on,
    all configurations are counted again, with their present values.
    """

    def __init__(self, sweep: Sweep, no_better_for: NoBetterFor) -> None:
        self.sweep, self.no_better_for = sweep, no_better_for
        self.num_read = 0  # number of entries of the sweep's history that are counted
        self.ended: dict[str, set[str]] = {}  # id of the candidate → ids of the candidate's trials that have ended
        self.finished: list[Candidate] = []
        self._begin()

    def _begin(self) -> None:
        self.best = BestSoFar(self.no_better_for.min_delta, self.sweep.header.mode)
        self.num_without_better = 0

    def is_reached(self) -> bool:
        """Return whether as many configurations as `no_better_for` says have finished without a better value. Each entry of the history is read once."""
        history = self.sweep.history
        entries, self.num_read = history[self.num_read :], len(history)
        num_counted = len(self.finished)
        for entry in entries:
            if entry.event == "finish":
                self._note_end(entry.trial)
        if any(entry.event == "reopen" or (entry.event == "finish" and entry.trial.reopened_at) for entry in entries):
            num_counted = 0
            self._begin()
        for candidate in self.finished[num_counted:]:
            self._count(candidate)
        return self.num_without_better >= self.no_better_for.configurations

    def _note_end(self, trial: Trial) -> None:
        """Add the configuration of a trial that has ended to the finished configurations, if all trials of the configuration have ended now."""
        candidate = self.sweep.candidate_of(trial)
        ended = self.ended.setdefault(candidate.trial_id, set())
        is_first_end = trial.trial_id not in ended
        ended.add(trial.trial_id)
        if is_first_end and len(ended) == self.sweep.repeats:
            self.finished.append(candidate)

    def _count(self, candidate: Candidate) -> None:
        header = self.sweep.header
        result = candidate.counted(header.metric, header.mode)
        if result is not None and self.best.improves(result.metrics[header.metric]):
            self.num_without_better = 0
        elif self.best.best is not None:
            self.num_without_better += 1


def has_stagnated(sweep: Sweep, no_better_for: NoBetterFor | None) -> bool:
    """Return whether no new trial of the sweep may begin because of `no_better_for`. Return False where `no_better_for` is None."""
    return no_better_for is not None and Stagnation(sweep, no_better_for).is_reached()
