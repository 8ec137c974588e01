"""This module decides which checkpoints are kept or deleted, and where a checkpoint lies that is kept after the end of a session."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from raysweep.config.model import Mode
from raysweep.record.file import Record
from raysweep.record.trials import Candidate, Trial

SCRATCH_PREFIX = "tune-"  # prefix for the name of a session's folder of checkpoints, which lies beside the record


def kept_path(trial_id: str, epoch: int) -> str:
    """Return the path of a checkpoint that is kept after the end of the session. The path is relative to the state folder."""
    return f"checkpoints/{trial_id}-epoch{epoch}"


def find_checkpoints(record: Record) -> None:
    """Correct the paths of the recorded checkpoints, and forget the checkpoints that no longer exist.

    If the driver was killed while the driver moved a checkpoint (keep_checkpoints), the checkpoint may lie at the new path while the record has the old path.
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
    """Move the kept checkpoints to the folder `checkpoints`, and delete all other files that earlier sessions of Tune left."""
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
    """Deletes the checkpoints that are no longer needed.

    Among the finished configurations, only the best `keep_checkpoints` configurations, and the whole front of several objectives, keep checkpoints.
    If `keep_checkpoints` is "all", each trial that has not failed keeps its best and its last checkpoint, so that the trial can go on later.
    `scratch` is the folder in which Tune has one subfolder for each trial.
    """

    def __init__(self, record: Record, scratch: Path, *, metric: str, mode: Mode, keep_checkpoints: int | Literal["all"]) -> None:
        self.record, self.scratch, self.metric, self.mode = record, scratch, metric, mode
        self.keeps_all = keep_checkpoints == "all"
        self.max_kept = None if keep_checkpoints == "all" else keep_checkpoints
        self.kept = [candidate for candidate in record.sweep.candidates if candidate.finished and _has_checkpoints(candidate)]

    def delete(self, paths: list[str]) -> None:
        """Delete the checkpoints at `paths`, which are relative to the state folder."""
        for path in paths:
            shutil.rmtree(self.record.path.parent / path, ignore_errors=True)

    def note_checkpoint(self, trial: Trial) -> None:
        """Delete the older checkpoints of a trial that are not needed after a new checkpoint."""
        self._prune(trial)

    def note_finish(self, trial: Trial) -> None:
        """Delete the needless checkpoints of a finished trial, and all checkpoints of configurations that are no longer among the best."""
        candidate = self.record.sweep.candidate_of(trial)
        for member in candidate.members:
            self._prune(member)
        if self.max_kept is None:
            return
        if candidate.finished and _has_checkpoints(candidate):
            self.kept.append(candidate)
        # Configurations that do not fulfil the constraint are compared without the constraint, because the user may change the constraint later.
        # With several objectives, the whole front keeps checkpoints, because each later point can change which configuration of the front is the best.
        front = [candidate for candidate, _ in self.record.sweep.front(self.kept)] if self.max_kept else []
        self.kept.sort(key=lambda kept: (kept not in front, kept.rank(self.metric, self.mode)[0], kept.rank(self.metric, self.mode, {})))
        max_kept = max(self.max_kept, len(front))
        for surpassed in self.kept[max_kept:]:
            for member in surpassed.members:
                self._prune(member, keep_best=False)
        del self.kept[max_kept:]

    def _prune(self, trial: Trial, keep_best: bool = True) -> None:
        """Delete the checkpoints of a trial, except the checkpoint of the best epoch that has one, and the latest checkpoint of a trial that may go on.

        An unfinished trial would continue from the latest checkpoint. If several trials share a configuration, the best epoch is the epoch with the best mean
        of these trials. A later epoch may become the best epoch when all trials have reached that epoch, so the later checkpoints are kept until then.
        """
        candidate = self.record.sweep.candidate_of(trial)
        kept: set[int | None] = set()
        if keep_best and candidate.status != "ERROR":
            kept.add(candidate.best_epoch(self.metric, self.mode, trial.checkpoints))
        if not candidate.finished or (self.keeps_all and candidate.status != "ERROR"):
            kept.add(max(trial.checkpoints, default=None))
        if candidate is not trial and not candidate.finished:
            kept |= {epoch for epoch in trial.checkpoints if epoch > candidate.epochs}
        self.delete([trial.checkpoints.pop(epoch) for epoch in list(trial.checkpoints) if epoch not in kept])
        if candidate.finished and not trial.checkpoints:
            shutil.rmtree(self.scratch / trial.trial_id, ignore_errors=True)


def _has_checkpoints(candidate: Candidate) -> bool:
    return any(trial.checkpoints for trial in candidate.members)
