"""Trials as other tools show them: TensorBoard, MLflow, Weights & Biases. Through Tune's own callbacks, each told only what is of use to its readers.

What such a tool cannot take is no reason to end a sweep: one line says so, and the sweep goes on without it.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.logger import LoggerCallback, TBXLoggerCallback

from raysweep.common.errors import RaysweepError
from raysweep.config.model import SweepConfig
from raysweep.config.space import flattened
from raysweep.tune.record_callback import numbers_of
from raysweep.tune.trial import OWN

logger = logging.getLogger("raysweep")


def trackers(sweep: SweepConfig, name: str, state_dir: Path, identity: str) -> list[Callback]:
    """Those that a sweep of a validated config asks for. What they write here lies in `state_dir`. Raises RaysweepError where one is not installed."""
    found: list[Callback] = []
    if sweep.tensorboard:
        found.append(Lenient("TensorBoard", TensorBoard(state_dir / "tensorboard")))
    try:
        if sweep.mlflow is not None:
            found.append(Lenient("MLflow", mlflow(sweep.mlflow, name, state_dir)))
        if sweep.wandb is not None:
            found.append(Lenient("Weights & Biases", wandb(sweep.wandb, name, state_dir, identity)))
    except ImportError as error:
        raise RaysweepError(f"{name}: {error}. Add it to env.requirements") from None
    return found


class Lenient(LoggerCallback):
    """Passes everything to another callback until that raises; then says so once, and no more."""

    def __init__(self, name: str, inner: LoggerCallback) -> None:
        super().__init__()
        self.name, self.inner = name, inner
        self.is_well = True

    def _pass_on(self, method: str, *arguments: Any, **options: Any) -> None:
        if self.is_well:
            try:
                getattr(self.inner, method)(*arguments, **options)
            except Exception as error:
                self.is_well = False
                logger.warning(
                    "%s is told no more of this sweep, which goes on: %s: %s",
                    self.name,
                    type(error).__name__,
                    " ".join(str(error).split())[:300],
                )
                logger.debug("from here:", exc_info=True)

    def setup(self, *arguments: Any, **options: Any) -> None:
        self._pass_on("setup", *arguments, **options)

    def log_trial_start(self, trial: TuneTrial) -> None:
        self._pass_on("log_trial_start", Shown(trial))

    def log_trial_result(self, iteration: int, trial: TuneTrial, result: dict[str, Any]) -> None:
        told = {key: result[key] for key in ("training_iteration", "time_total_s") if key in result}
        self._pass_on("log_trial_result", iteration, Shown(trial), told | numbers_of(result))

    def log_trial_end(self, trial: TuneTrial, failed: bool = False) -> None:
        self._pass_on("log_trial_end", Shown(trial), failed)

    def on_experiment_end(self, trials: list[TuneTrial], **info: Any) -> None:
        self._pass_on("on_experiment_end", trials, **info)


class Shown:
    """A trial without what its configuration holds of our own."""

    def __init__(self, trial: TuneTrial) -> None:
        self._trial = trial
        self.trial_id = trial.trial_id
        self.config = {key: value for key, value in trial.config.items() if key != OWN}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def __eq__(self, other: object) -> bool:
        return self.trial_id == getattr(other, "trial_id", None)

    def __hash__(self) -> int:
        return hash(self.trial_id)

    def __str__(self) -> str:
        return self.trial_id


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


def mlflow(tracking_uri: str, name: str, state_dir: Path) -> LoggerCallback:
    """A run for each trial, in the experiment `name`: on a server, in a file of sqlite, or, for `local`, in the sweep's state folder."""
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    # The driver waits for a server meanwhile; MLflow itself would for many minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

    class MLflow(MLflowLoggerCallback):
        """Tune's own. A list or a map in a configuration is one parameter, not many."""

        def log_trial_start(self, trial: Any) -> None:
            if trial not in self._trial_runs:
                self._trial_runs[trial] = self.mlflow_util.start_run(
                    tags={**self.tags, "trial_id": trial.trial_id}, run_name=trial.trial_id
                ).info.run_id
                self.mlflow_util.log_params(run_id=self._trial_runs[trial], params_to_log=flattened(trial.config))

    return MLflow(f"sqlite:///{state_dir.absolute() / 'mlflow.db'}" if tracking_uri == "local" else tracking_uri, experiment_name=name)


def wandb(project: str, name: str, state_dir: Path, identity: str) -> LoggerCallback:
    """A run for each trial, in the group `name`, written to the sweep's state folder; `wandb sync` takes it to a server, from where there is a network."""
    os.environ["WANDB_MODE"] = "offline"
    from ray.air.integrations import wandb as integration

    if integration.wandb is None:
        raise ModuleNotFoundError("No module named 'wandb'")
    folder = state_dir.absolute() / "wandb"
    folder.mkdir(exist_ok=True)

    class WandB(integration.WandbLoggerCallback):
        """Tune's own. An id is a run's alone in its whole project, so it says of which sweep it is."""

        def _start_logging_actor(self, trial: Any, exclude_results: list[str], **options: Any) -> None:
            super()._start_logging_actor(trial, exclude_results, **{**options, "id": f"{name}-{identity[:8]}-{trial.trial_id}"})

    return WandB(project=project, group=name, dir=str(folder), mode="offline")
