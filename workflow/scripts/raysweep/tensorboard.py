"""Event files for TensorBoard, which lie where they stay: what Tune writes goes with its folder for the moment."""

from __future__ import annotations

from pathlib import Path

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.logger import TBXLoggerCallback


class TensorBoard(TBXLoggerCallback):
    """Tune's own, with a folder for each trial. One that goes on has another file in it, which TensorBoard shows as the same curve."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def log_trial_start(self, trial: TuneTrial) -> None:
        if trial in self._trial_writer:
            self._trial_writer[trial].close()
        self._trial_writer[trial] = self._summary_writer_cls(str(self.folder / trial.trial_id), flush_secs=30)
        self._trial_result[trial] = {}
