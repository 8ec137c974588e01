"""Decides which finished trials go on, because the reason for their end no longer holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raysweep.common.bounds import Bounds
from raysweep.common.patience import NO_BETTER_FOR, is_enough
from raysweep.common.text import plural
from raysweep.record.events import SessionHeader
from raysweep.record.sweep import Sweep
from raysweep.record.trials import Trial


@dataclass(frozen=True)
class Reopening:
    """Describes the finished trials that go on when `max_epochs` is larger, or when bounds of `stop` have changed or are gone."""

    trials: tuple[Trial, ...]
    max_epochs: int
    from_epochs: tuple[int, ...]  # epoch of the checkpoint from which each trial goes on; 0 where the checkpoint was deleted

    @property
    def epochs(self) -> int:
        """Return the number of epochs that the trials train."""
        return sum(self.max_epochs - epoch for epoch in self.from_epochs)

    def __str__(self) -> str:
        """Return sentences for the user, such as "3 finished trials go on to epoch 4, with at most 9 epochs of training. 1 of them begins …"."""
        verb = "goes" if len(self.trials) == 1 else "go"
        text = f"{plural(len(self.trials), 'finished trial')} {verb} on to epoch {self.max_epochs}, with at most {plural(self.epochs, 'epoch')} of training"
        anew = self.from_epochs.count(0)
        if anew == 1:
            text += ". 1 of them begins at the first epoch, because its checkpoint was deleted (keep_checkpoints) or never written"
        elif anew:
            text += f". {anew} of them begin at the first epoch, because their checkpoints were deleted (keep_checkpoints) or never written"
        return text


def reopening_of(sweep: Sweep, state_dir: Path, max_epochs: int, stop: Bounds) -> Reopening:
    """Return the finished trials that go on.

    If one trial of a configuration has failed or was stopped by the scheduler, no trial of this configuration goes on. A trial that `stop` ended stays as it
    is, and the other trials of the configuration go on.
    """
    trials: list[Trial] = []
    for candidate in sweep.candidates:
        if not any(member.reason in ("error", "scheduler") for member in candidate.members):
            trials += [member for member in candidate.members if _goes_on(member, max_epochs, stop, sweep.header)]
    return Reopening(tuple(trials), max_epochs, tuple(trial.latest_checkpoint(state_dir) for trial in trials))


def _goes_on(trial: Trial, max_epochs: int, stop: Bounds, header: SessionHeader) -> bool:
    """Return whether a trial was ended by `max_epochs` or `stop`, and would not be ended by the present values.

    A trial that `stop` ended does not go on where `stop` names a value that the record lacks, such as an infinite one, because the record cannot tell then.
    """
    if not trial.finished or trial.reason not in ("max_epochs", "stop") or trial.epochs >= max_epochs:
        return False
    reports = [result.for_stop for result in trial.results]
    if trial.reason == "stop" and reports and not stop.keys() - {NO_BETTER_FOR} <= reports[-1][1].keys():
        return False
    return not any(is_enough(reports[:number], stop, header.metric, header.mode) for number in range(1, len(reports) + 1) if stop)
