"""This module sends the reports of trials to tracking tools: to Optuna's journal, and to TensorBoard, MLflow and Weights & Biases through Tune's callbacks.

The failure of a tool does not end a sweep. The log shows the error in one line, and the sweep continues without the tool.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.logger import LoggerCallback

from raysweep.common.errors import RaysweepError, logger
from raysweep.config.model import SweepConfig
from raysweep.config.space import flattened
from raysweep.record.file import Record
from raysweep.tune.private import TensorBoard, mlflow_callback, wandb_callback
from raysweep.tune.reports import numbers_of
from raysweep.tune.snapshots import NotPickled
from raysweep.tune.trial import RESERVED_KEY

if TYPE_CHECKING:
    from raysweep.record.study import StudyJournal


def trackers(sweep: SweepConfig, name: str, record: Record, identity: str) -> list[Callback]:
    """Return the callback that writes Optuna's journal, and the callbacks of the tracking tools that the config of a sweep asks for.

    The config must be validated. The tools write into the folder of the record. Raises RaysweepError if a tool is not installed.
    """
    state_dir = record.path.parent
    callbacks: list[Callback] = []
    if importlib.util.find_spec("optuna"):  # an environment of the user's own (`wheels: none`) may lack Optuna
        callbacks.append(Lenient("optuna.journal", LiveStudy(record)))
    if sweep.tensorboard:
        callbacks.append(Lenient("TensorBoard", TensorBoard(state_dir / "tensorboard")))
    try:
        if sweep.mlflow is not None:
            callbacks.append(Lenient("MLflow", mlflow(sweep.mlflow, name, state_dir)))
        if sweep.wandb is not None:
            callbacks.append(Lenient("Weights & Biases", wandb(sweep.wandb, name, state_dir, identity)))
    except ImportError as error:
        raise RaysweepError(f"{name}: {error}. Add it to env.requirements") from None
    return callbacks


class LiveStudy(NotPickled, LoggerCallback):
    """Writes the recorded trials to `optuna.journal` in the state folder while the sweep runs, so that optuna-dashboard shows the sweep."""

    INTERVAL_S = 2.0  # shortest time between two writes to the file

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record
        self.next_write_at_s = 0.0

    @functools.cached_property
    def journal(self) -> StudyJournal:
        """Return the journal, with all recorded trials when it is first needed. The import of Optuna takes a second, in which the first trials start."""
        from raysweep.record.study import StudyJournal

        return StudyJournal(self.record.path.with_name("optuna.journal"), self.record.sweep)

    def log_trial_start(self, trial: TuneTrial) -> None:
        self.journal.update(self.record.sweep.trials[trial.trial_id])

    def log_trial_result(self, iteration: int, trial: TuneTrial, result: dict[str, Any]) -> None:
        self.log_trial_start(trial)

    def log_trial_end(self, trial: TuneTrial, failed: bool = False) -> None:
        self.log_trial_start(trial)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        if time.monotonic() >= self.next_write_at_s:
            self.journal.backend.flush()
            self.next_write_at_s = time.monotonic() + self.INTERVAL_S

    def on_experiment_end(self, trials: list[TuneTrial], **info: Any) -> None:
        self.journal.backend.flush()


class Lenient(NotPickled, LoggerCallback):
    """Passes every event to the callback `inner`. After the first exception of `inner`, logs the exception and passes no more events."""

    def __init__(self, name: str, inner: LoggerCallback) -> None:
        super().__init__()
        self.name, self.inner = name, inner
        self.has_failed = False

    def _pass_on(self, method: str, *arguments: Any, **options: Any) -> None:
        if not self.has_failed:
            try:
                getattr(self.inner, method)(*arguments, **options)
            except Exception as error:
                self.has_failed = True
                logger.warning(
                    "%s is told no more of this sweep, which goes on: %s: %s",
                    self.name,
                    type(error).__name__,
                    " ".join(str(error).split())[:300],
                )
                logger.debug("The error was raised at:", exc_info=True)

    def setup(self, *arguments: Any, **options: Any) -> None:
        self._pass_on("setup", *arguments, **options)

    def log_trial_start(self, trial: TuneTrial) -> None:
        self._pass_on("log_trial_start", ShownTrial(trial))

    def log_trial_result(self, iteration: int, trial: TuneTrial, result: dict[str, Any]) -> None:
        progress = {key: result[key] for key in ("training_iteration", "time_total_s") if key in result}
        self._pass_on("log_trial_result", iteration, ShownTrial(trial), progress | numbers_of(result))

    def log_trial_end(self, trial: TuneTrial, failed: bool = False) -> None:
        self._pass_on("log_trial_end", ShownTrial(trial), failed)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        self._pass_on("on_step_end", iteration, trials, **info)

    def on_experiment_end(self, trials: list[TuneTrial], **info: Any) -> None:
        self._pass_on("on_experiment_end", trials, **info)


class ShownTrial:
    """Behaves like a Tune trial, but does not show RESERVED_KEY in the configuration."""

    def __init__(self, trial: TuneTrial) -> None:
        self._trial = trial
        self.trial_id: str = trial.trial_id
        self.config = {key: value for key, value in trial.config.items() if key != RESERVED_KEY}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def __eq__(self, other: object) -> bool:
        return bool(self.trial_id == getattr(other, "trial_id", None))

    def __hash__(self) -> int:
        return hash(self.trial_id)

    def __str__(self) -> str:
        return self.trial_id


def mlflow(tracking_uri: str, name: str, state_dir: Path) -> LoggerCallback:
    """Return the MLflow callback, which makes a run for each trial in the experiment `name`.

    `tracking_uri` names a server or an SQLite file. If `tracking_uri` is `local`, the runs are stored in the sweep's state folder. A list or a map in a
    configuration is one parameter of the run.
    """
    # The driver waits while a server does not answer. By default MLflow would wait for many minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    uri = f"sqlite:///{state_dir.absolute() / 'mlflow.db'}" if tracking_uri == "local" else tracking_uri
    return mlflow_callback(uri, name, lambda trial: flattened(trial.config))


def wandb(project: str, name: str, state_dir: Path, identity: str) -> LoggerCallback:
    """Return the Weights & Biases callback, which makes a run for each trial in the group `name` and stores the runs in the sweep's state folder.

    The user can send the runs to a server with `wandb sync`, on a machine that has a network.
    """
    os.environ["WANDB_MODE"] = "offline"
    folder = state_dir.absolute() / "wandb"
    callback = wandb_callback(project, name, folder, lambda trial: f"{name}-{identity[:8]}-{trial.trial_id}")
    folder.mkdir(exist_ok=True)
    return callback
