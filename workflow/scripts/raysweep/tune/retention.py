"""Checkpoints: which are kept, where those lie that outlive a session, and which are deleted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from raysweep.config.model import Mode
from raysweep.record.file import Record
from raysweep.record.trials import Candidate, Trial

SCRATCH_PREFIX = "tune-"  # begins the name of the folder of a session's checkpoints, beside the record


def kept_path(trial_id: str, epoch: int) -> str:
    """Return the path, below the state folder, of a checkpoint that outlives its session."""
    return f"checkpoints/{trial_id}-epoch{epoch}"


def find_checkpoints(record: Record) -> None:
    """Correct the paths of the recorded checkpoints, and forget the checkpoints that no longer exist.

    Where the driver was killed while it moved a checkpoint (keep_checkpoints), the checkpoint may lie at its new path and the record name the old one.
    """
    state_dir = record.path.parent
    for trial in record.sweep.trials.values():
        existing = {}
        for epoch, path in trial.checkpoints.items():
            places = (path, kept_path(trial.trial_id, epoch))
            if (place := next((place for place in places if (state_dir / place).is_dir()), None)) is not None:
                existing[epoch] = place
        trial.checkpoints = existing


def keep_checkpoints(record: Record) -> None:
    """Move the checkpoints that are kept to a folder of their own, and delete the other files that earlier sessions of Tune left."""
    state_dir = record.path.parent
    for trial in record.sweep.trials.values():
        for epoch, path in list(trial.checkpoints.items()):
            if not path.startswith(SCRATCH_PREFIX):
                continue
            kept = kept_path(trial.trial_id, epoch)
            (state_dir / "checkpoints").mkdir(exist_ok=True)
            shutil.rmtree(state_dir / kept, ignore_errors=True)
            os.replace(state_dir / path, state_dir / kept)
            record.write("checkpoint", trial=trial.trial_id, epoch=epoch, path=kept)
    for scratch in state_dir.glob(f"{SCRATCH_PREFIX}*"):
        shutil.rmtree(scratch, ignore_errors=True)


class Retention:
    """Deletes the checkpoints that nothing needs. Of the finished configurations only the best `keep_checkpoints` keep theirs.

    `scratch` is the folder in which Tune has one folder for each trial.
    """

    def __init__(self, record: Record, scratch: Path, *, metric: str, mode: Mode, keep_checkpoints: int) -> None:
        self.record, self.scratch, self.metric, self.mode = record, scratch, metric, mode
        self.max_kept = keep_checkpoints
        self.kept = [candidate for candidate in record.sweep.candidates if candidate.finished and _has_checkpoints(candidate)]

    def delete(self, paths: list[str]) -> None:
        """Delete checkpoints, given by their paths below the state folder."""
        for path in paths:
            shutil.rmtree(self.record.path.parent / path, ignore_errors=True)

    def note_checkpoint(self, trial: Trial) -> None:
        """Prune the checkpoints of a trial that has a new one."""
        self._prune(trial)

    def note_finish(self, trial: Trial) -> None:
        """Prune the checkpoints of a trial that has finished, and of the configurations that the trial's configuration has surpassed."""
        candidate = self.record.sweep.candidate_of(trial)
        for member in candidate.members:
            self._prune(member)
        if candidate.finished and _has_checkpoints(candidate):
            self.kept.append(candidate)
        # A rank without the constraint comes second: another constraint may be set afterwards.
        self.kept.sort(key=lambda kept: (kept.rank(self.metric, self.mode)[0], kept.rank(self.metric, self.mode, {})))
        for surpassed in self.kept[self.max_kept :]:
            for member in surpassed.members:
                self._prune(member, keep_best=False)
        del self.kept[self.max_kept :]

    def _prune(self, trial: Trial, keep_best: bool = True) -> None:
        """Delete the checkpoints of a trial, except that of its best epoch and, until it is finished, the latest, from which it would continue.

        Where several trials share a configuration, the best epoch is that of their mean. It may be an epoch that not all of them have reached.
        """
        candidate = self.record.sweep.candidate_of(trial)
        # Where no report fulfils the constraint, the best without it counts, because another constraint may be set afterwards.
        best = (candidate.counted(self.metric, self.mode) or candidate.counted(self.metric, self.mode, {})) if keep_best else None
        kept = {best.epoch} if best else set()
        if trial.checkpoints and (not candidate.finished or (best and best.epoch not in trial.checkpoints)):
            kept.add(max(trial.checkpoints))
        if candidate is not trial and not candidate.finished:
            kept |= {epoch for epoch in trial.checkpoints if epoch > candidate.epochs}
        self.delete([trial.checkpoints.pop(epoch) for epoch in list(trial.checkpoints) if epoch not in kept])
        if candidate.finished and not trial.checkpoints:
            shutil.rmtree(self.scratch / trial.trial_id, ignore_errors=True)


def _has_checkpoints(candidate: Candidate) -> bool:
    return any(trial.checkpoints for trial in candidate.members)
