"""Every private name of Ray and Tune that the package uses, with the reason. No other module touches a private name of theirs.

Seen in Ray 2.53.0, 2.56.0, 2.56.1 and 2.60.0, which is pinned. tests/unit/tune/test_private.py fails when a name changes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.air.execution._internal import RayActorManager
from ray.air.execution.resources import ResourceManager
from ray.train._internal.session import _TrainingResult
from ray.train._internal.storage import StorageContext as StorageContext
from ray.tune import Checkpoint
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.logger import LoggerCallback, TBXLoggerCallback
from ray.tune.schedulers import HyperBandScheduler, MedianStoppingRule, PopulationBasedTraining

# The form in which Tune keeps a checkpoint with its metrics. Engines return it for a trial, and checkpoints are handed over in it.
TrainingResult = _TrainingResult

# ------------------------------------------------------------------------------------------------------------------------------------------------------- Ray


def connect(address: str, node_ip: str, **options: Any) -> None:
    """Connect this process to a Ray cluster.

    `_node_ip_address` is needed where a node has several addresses: Ray guesses one of them, which may not be the raylet's.
    """
    ray.init(address=address, _node_ip_address=node_ip, **options)


# ---------------------------------------------------------------------------------------------------------------------------------------------------- trials


def actor_of(trial: TuneTrial) -> Any:
    """Return the actor of a trial, None where it has none: a trial that hangs must be killed, for which Tune has no option."""
    return trial.temporary_state.ray_actor


def training_result(folder: Path, metrics: dict[str, Any]) -> Any:
    """Return a checkpoint with its metrics, in the form in which Tune keeps it."""
    return TrainingResult(checkpoint=Checkpoint.from_directory(folder), metrics=metrics)


def restore_from(trial: TuneTrial, folder: Path, metrics: dict[str, Any]) -> None:
    """Have a trial that has not begun start from a checkpoint.

    The public `restore_path` starts the count of epochs at 0, which misleads rungs.
    """
    trial._restore_checkpoint_result = training_result(folder, metrics)


def continue_from(trial: TuneTrial, folder: Path, metrics: dict[str, Any]) -> None:
    """Have a trial that is paused continue from a checkpoint that is not its own. Tune has no public way, since its own schedulers do the same."""
    trial.run_metadata.checkpoint_manager._latest_checkpoint_result = training_result(folder, metrics)


_REPORT = tune.report  # of Tune: a worker runs many trials, each of which wraps it anew


def wrap_report(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Have `tune.report` in this process be `wrap(report)`, where `report` is Tune's own function.

    `tune.report` is public. It is exchanged because Tune has no hook between a report and the checkpoint that comes with it.
    """
    tune.report = functools.wraps(_REPORT)(wrap(_REPORT))


# ------------------------------------------------------------------------------------------------------------------------------------------------ schedulers


class HyperBand(HyperBandScheduler):
    """Tune's HyperBand, but a bracket that was halved once is processed again when a trial of it fails.

    Tune leaves `is_being_processed` set, so that the end of the last running trial would leave the other trials of the bracket waiting.
    """

    def _process_bracket(self, tune_controller: Any, bracket: Any) -> str:
        try:
            return str(super()._process_bracket(tune_controller, bracket))
        finally:
            bracket.is_being_processed = False


class PopulationScheduler(PopulationBasedTraining):
    """Tune's population based training, with a hook in the place of what Tune does to a trial that is among the worst.

    Tune would have the better trial save itself, and hand over a checkpoint that nothing keeps.
    """

    def __init__(self, **options: Any) -> None:
        # Tune wants something to mutate. `dict` copies the configuration; the hook explores.
        super().__init__(time_attr="training_iteration", custom_explore_fn=dict, log_config=False, **options)

    def _checkpoint_or_exploit(self, trial: Any, tune_controller: Any, upper_quantile: list[Any], lower_quantile: list[Any]) -> None:
        if trial in lower_quantile:
            self.exploit(tune_controller, trial, upper_quantile)

    def exploit(self, tune_controller: Any, trial: TuneTrial, better_trials: list[TuneTrial]) -> None:
        """Have the trial continue as one of the better trials."""
        raise NotImplementedError

    def note_exploit(self, trial: TuneTrial, donor: TuneTrial, epoch: int) -> None:
        """Note that the trial continues as the donor was after `epoch`."""
        state, donor_state = self._trial_state[trial], self._trial_state[donor]
        state.last_perturbation_time, state.last_train_time = donor_state.last_perturbation_time, epoch
        self._num_perturbations += 1

    @property
    def resample_probability(self) -> float:
        return float(self._resample_probability)

    @property
    def perturbation_factors(self) -> tuple[float, float]:
        down, up = self._perturbation_factors
        return down, up


def add_median_result(scheduler: MedianStoppingRule, trial: Any, result: dict[str, Any]) -> None:
    """Add a report to those that the median rule compares, without a decision.

    `on_trial_result` would note which trial it stops, and take no further report of that trial, which may have continued all the same: it
    failed and was tried again, or time was up before the rule was asked.
    """
    scheduler._results[trial].append(result)


# -------------------------------------------------------------------------------------------------------------------------------------------------- trackers


class TensorBoard(TBXLoggerCallback):
    """Tune's callback, with a folder for each trial under `folder`. A trial that continues has another file in its folder, which TensorBoard shows as
    the same curve."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def log_trial_start(self, trial: TuneTrial) -> None:
        """Open the file of a trial. Tune's own method writes to the trial's folder, which is deleted."""
        if trial in self._trial_writer:
            self._trial_writer[trial].close()
        self._trial_writer[trial] = self._summary_writer_cls(str(self.folder / trial.trial_id), flush_secs=30)
        self._trial_result[trial] = {}


def mlflow_callback(tracking_uri: str, experiment: str, parameters_of: Callable[[Any], dict[str, Any]]) -> LoggerCallback:
    """Return Tune's callback for MLflow, where `parameters_of(trial)` are a run's parameters and the trial's id is its name. Raises ImportError."""
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    class MLflow(MLflowLoggerCallback):
        """Tune's own method would make many parameters of a list or a map, and name a run by the trial's name."""

        def log_trial_start(self, trial: Any) -> None:
            if trial not in self._trial_runs:
                tags = {**self.tags, "trial_id": trial.trial_id}
                run_id = self.mlflow_util.start_run(tags=tags, run_name=trial.trial_id).info.run_id
                self._trial_runs[trial] = run_id
                self.mlflow_util.log_params(run_id=run_id, params_to_log=parameters_of(trial))

    return MLflow(tracking_uri, experiment_name=experiment)


def wandb_callback(project: str, group: str, folder: Path, run_id_of: Callable[[Any], str]) -> LoggerCallback:
    """Return Tune's callback for Weights & Biases, offline, where `run_id_of(trial)` is the id of a run. Raises ImportError."""
    from ray.air.integrations import wandb as integration

    if integration.wandb is None:
        raise ModuleNotFoundError("No module named 'wandb'")

    class WandB(integration.WandbLoggerCallback):
        """Tune's own method takes the trial's id, but an id is unique in the whole project."""

        def _start_logging_actor(self, trial: Any, exclude_results: list[str], **options: Any) -> None:
            super()._start_logging_actor(trial, exclude_results, **{**options, "id": run_id_of(trial)})

    return WandB(project=project, group=group, dir=str(folder), mode="offline")


# ----------------------------------------------------------------------------------------------------------------------------------------------------- slots


class _SlotActorManager(RayActorManager):
    """Tune's actor manager, but the actors that it would kill are slots, which have no processes of their own."""

    def _try_kill_actor(self) -> bool:
        if not self._live_actors_to_kill:
            return False
        tracked = self._live_actors_to_kill.pop()
        self._cleanup_actor_futures(tracked)
        self._actor_stop_resolved(tracked)
        return True

    def cleanup(self) -> None:
        """Do nothing: the slots are cleared at once (slots/manager.py)."""


@contextlib.contextmanager
def resources_managed_by(manager: ResourceManager) -> Iterator[None]:
    """Have the Tune controllers that start within this context take their actors from `manager`.

    `tune.Tuner` has no option for a resource manager, so the class of the controller is exchanged.
    """

    class Controller(TuneController):
        def __init__(self, **options: Any) -> None:
            super().__init__(resource_manager_factory=lambda: manager, **options)
            self._actor_manager.__class__ = _SlotActorManager

    tune_module: Any = importlib.import_module("ray.tune.tune")
    tune_module.TuneController = Controller
    try:
        yield
    finally:
        tune_module.TuneController = TuneController
