"""This module contains every use of a private name of Ray and Tune, with the reason. No other module uses a private name of Ray or Tune.

The names exist in Ray 2.53.0, 2.56.0, 2.56.1 and 2.60.0. Version 2.60.0 is pinned. tests/unit/tune/test_private.py fails when a name changes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.air._internal import usage
from ray.air.execution._internal import RayActorManager
from ray.air.execution.resources import ResourceManager
from ray.core.generated import autoscaler_pb2
from ray.train import constants as train_constants
from ray.train._internal.session import _TrainingResult, _TrainSession, get_session
from ray.train._internal.storage import StorageContext as StorageContext
from ray.train.v2._internal.execution.callback import RayTrainCallback, ReportCallback
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.worker_group import worker_group
from ray.train.v2.api import data_parallel_trainer
from ray.tune import Checkpoint
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.logger import LoggerCallback, TBXLoggerCallback
from ray.tune.schedulers import HyperBandScheduler, MedianStoppingRule, PopulationBasedTraining, TrialScheduler
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

# Tune's type for a checkpoint together with the metrics of the checkpoint. Engines return this type, and a take-over of a checkpoint uses this type.
TrainingResult = _TrainingResult

# ------------------------------------------------------------------------------------------------------------------------------------------------------- Ray


def connect(address: str, node_ip: str, **options: Any) -> None:
    """Connect this process to a Ray cluster.

    `_node_ip_address` is needed if a node has several addresses. Without this option Ray guesses an address, which may differ from the raylet's address.
    Ray's handler of SIGTERM is replaced, because the handler prints a stack of C++ before the process ends.
    """
    ray.init(address=address, _node_ip_address=node_ip, **options)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def drain_node(node_id: str) -> None:
    """Ask Ray to start no more actors on a node, which will be gone soon. Actors on the node go on.

    Ray offers this only to the hidden command `ray drain-node`.
    """
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    client.drain_node(node_id, reason, "the Slurm job of the node is nearly over", 0)  # 0: without a deadline


@contextlib.contextmanager
def unnamed_callbacks() -> Iterator[None]:
    """Keep Tune from naming the callbacks of a run in Ray's usage statistics, which are turned off anyway.

    In order to name them Tune imports MLflow and W&B where they are installed, which takes 6 s of a driver's start.
    """
    with mock.patch.object(usage, "tag_callbacks", return_value=False):
        yield


# ---------------------------------------------------------------------------------------------------------------------------------------------------- trials


def actor_of(trial: TuneTrial) -> Any:
    """Return the actor of a trial. Return None if the trial has no actor.

    The actor is needed because a trial that hangs must be killed, and Tune has no option for this.
    """
    return trial.temporary_state.ray_actor


def set_status(tune_controller: Any, trial: TuneTrial, status: str) -> None:
    """Set the status of a trial. Tune's own schedulers continue a paused trial in this way."""
    tune_controller._set_trial_status(trial, status)


def allow_reuse(tune_controller: Any, is_allowed: bool) -> None:
    """Let Tune keep the process of an ended or paused trial for the next trial, or end the kept processes and keep none.

    Tune's option `reuse_actors` cannot be changed during a run. Tune prefers a kept process to a new one on another node. `tune_controller` is the wrapper of
    Tune's controller that schedulers get.
    """
    controller = tune_controller._tune_controller
    controller._reuse_actors = is_allowed
    if not is_allowed:
        controller._cleanup_cached_actors(force_all=True)


def training_result(folder: Path, metrics: dict[str, Any]) -> Any:
    """Return the checkpoint in `folder` together with its metrics, as Tune's type for a checkpoint."""
    return TrainingResult(checkpoint=Checkpoint.from_directory(folder), metrics=metrics)


def restore_from(trial: TuneTrial, folder: Path, metrics: dict[str, Any]) -> None:
    """Let a trial that has not begun start from the checkpoint in `folder`.

    Tune's public option `restore_path` would count the epochs from 0 again, so that a scheduler with rungs would put the trial into a wrong rung.
    """
    trial._restore_checkpoint_result = training_result(folder, metrics)


def continue_from(trial: TuneTrial, folder: Path, metrics: dict[str, Any]) -> None:
    """Let a paused trial continue from the checkpoint in `folder`, which another trial may have written.

    Tune has no public function for this. Tune's own schedulers use the same private name.
    """
    trial.run_metadata.checkpoint_manager._latest_checkpoint_result = training_result(folder, metrics)


def ends_thread(frame: FrameType) -> bool:
    """Return whether `sys.exit` was called in `frame` by Ray, which ends the thread of a stopped trial in this way inside of `tune.report`."""
    return str(frame.f_globals.get("__name__")).startswith("ray.")


def wrap_report(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Let every report of this process's trial go through `wrap(report)`, where `report` is Tune's own method.

    The method of the session is replaced because Tune has no hook between a report and the checkpoint of this report. The reports of `tune.report`, of a
    function that returns a map, and of Ray Train's TuneReportCallback all reach this method.
    """
    session = _session()
    # The class has Tune's own method, which no earlier trial has wrapped.
    session.report = wrap(functools.partial(_TrainSession.report, session))


# ------------------------------------------------------------------------------------------------------------------------------------------------- Ray Train

# Ray Train reads these variables in the trial's process, and gives them to the processes that Ray Train starts.
TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_CALLBACKS": "raysweep.tune.private.TrainRunOfTrial",
    # With its own log, Ray Train writes two lines for each report of each worker.
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # by default, Ray Train takes one report of the workers every 2 s, so an epoch would take 2 s or longer
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process for each trial that asks Ray which nodes a cloud will take back
}
WARN_AFTER_S = 20  # time in seconds after which a warning says that the workers of Ray Train wait for free resources
# Keys of values that belong to one trial, in Tune's session of the trial.
COPIES, HAS_TRAIN_RUN = "raysweep_copies", "raysweep_has_train_run"


def join_train_runs(folder: Path) -> None:
    """Let each run of Ray Train that this process starts belong to the trial of this process (TrainRunOfTrial). `folder` belongs to the trial.

    A run without a `storage_path` then stores its files in Tune's folder of the trial, which all nodes can read, and not in the user's home folder.
    """
    os.environ.update(TRAIN_ENVIRONMENT)
    train_constants.DEFAULT_STORAGE_PATH = f"{_session().storage.trial_fs_path}/ray_train"
    _session().set_state(COPIES, folder / ".ray_train")


def copied_checkpoint(path: str) -> Path | None:
    """Return the path of the copy that TrainRunOfTrial has made of Ray Train's checkpoint at `path`. Return None if there is no such copy."""
    folder, name = _session().get_state(COPIES), Path(path).name
    return folder / name if folder and name and (folder / name).is_dir() else None


class TrainRunOfTrial(ReportCallback):
    """Connects a run of Ray Train with the trial that starts the run, because Ray Train and Tune know nothing of each other's resources and checkpoints.

    Ray Train makes an object of this class in the trial's process, and sends the object to the process of Ray Train's controller, on the same node. There
    the object changes three things. All names of Ray Train exist in 2.53 and 2.60.

    - The workers use the bundles that the trial has reserved for them. Ray Train would reserve the same CPUs and GPUs a second time, and would wait for ever
      where trials hold all of them.
    - The workers go on from the checkpoint from which the trial goes on. Ray Train would go on from its own latest checkpoint, which Tune may not have seen,
      which a scheduler may have replaced by that of another trial, or which belongs to an older sweep.
    - Each checkpoint is copied before Ray Train may delete it, for the report of the trial.
    """

    copies: Path | None = None  # folder for the copies of checkpoints. None: no report of the run reaches the trial

    def __init__(self) -> None:
        session = _session()
        if session is None:
            return  # a program that a trial has started inherits the variables of the trial. Ray Train is not changed there
        self.bundles = ray.util.get_current_placement_group()
        if self.has_workers:
            # A process for each trial that removes Ray Train's placement group where the controller dies. Tune removes the bundles of a trial.
            data_parallel_trainer.PlacementGroupCleanerCallback = RayTrainCallback
        # Only the first run of a trial goes on from the checkpoint. A function may train several models one after the other.
        self.checkpoint = None if session.get_state(HAS_TRAIN_RUN) else session.loaded_checkpoint
        session.set_state(HAS_TRAIN_RUN, True)
        has_callback = session._inter_actor_queue is not None  # TuneReportCallback has made the queue for its reports
        self.copies = session.get_state(COPIES) if has_callback else None

    @property
    def has_workers(self) -> bool:
        """Return whether the trial has reserved bundles for workers."""
        return len(self.bundles.bundle_specs) > 1

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Change Ray Train in the process of the controller. The controller begins after Ray has unpickled this object."""
        self.__dict__.update(state)

        def begin(manager: Any) -> None:
            if self.checkpoint:
                manager._latest_checkpoint_result = TrainingResult(checkpoint=self.checkpoint, metrics={})

        CheckpointManager._maybe_load_state_from_storage = begin
        worker_group.placement_group = self.placement_group if self.has_workers else self.unreserved_placement_group
        if self.has_workers:
            worker_group.PlacementGroupSchedulingStrategy = self.scheduling_strategy

    def unreserved_placement_group(self, bundles: list[dict[str, float]], **options: Any) -> Any:
        """Return Ray Train's own placement group. If its resources are not free, a warning says so, because Ray Train waits for them without a word."""
        group = ray.util.placement_group(bundles, **options)
        if not group.wait(timeout_seconds=WARN_AFTER_S):
            logging.getLogger("ray.train").warning(
                "This trial starts %d workers of %s and waits for free resources. If all trials wait, none of them ends: reserve the workers with"
                " trial_resources.workers.",
                len(bundles),
                bundles[0],
            )
        return group

    def placement_group(self, bundles: list[dict[str, float]], **_: Any) -> Any:
        """Return the placement group that Ray Train may remove, which reserves one byte. Raises ValueError if the trial has reserved too little."""
        reserved = self.bundles.bundle_specs[1:]
        if len(bundles) > len(reserved) or any(amount > reserved[0].get(name, 0) for name, amount in bundles[0].items()):
            raise ValueError(
                f"ScalingConfig asks for {len(bundles)} workers of {bundles[0]}, but trial_resources.workers reserves {len(reserved)} of {reserved[0]}."
                " Let both be the same"
            )
        return ray.util.placement_group([{"memory": 1}])

    def scheduling_strategy(self, placement_group: Any, placement_group_bundle_index: int) -> PlacementGroupSchedulingStrategy:
        """Return the place of a worker. The first bundle of the trial is that of the trial's own process."""
        return PlacementGroupSchedulingStrategy(self.bundles, placement_group_bundle_index + 1)

    def after_report(self, training_report: Any, metrics: list[dict[str, Any]]) -> None:
        """Copy the checkpoint of a report that reaches the trial."""
        if training_report.checkpoint and self.copies:
            training_report.checkpoint.to_directory(self.copies / Path(training_report.checkpoint.path).name)


def _session() -> Any:
    """Return Tune's session of the trial that this process runs. Return None in the process of a program that a trial has started."""
    return get_session()


# ------------------------------------------------------------------------------------------------------------------------------------------------ schedulers


class HyperBand(HyperBandScheduler):
    """Changes Tune's HyperBand so that a trial keeps its place in a bracket over failures and sessions.

    A bracket which was halved once is also processed again when a trial of the bracket fails. Tune does not reset `is_being_processed`. After the last running
    trial of the bracket has ended, the other trials of the bracket would wait for ever.
    """

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Add a new trial to a bracket. Of a trial that has a place in a bracket, only the object is replaced by `trial`."""
        if not self.has_place(trial):
            super().on_trial_add(tune_controller, trial)
            return
        bracket, _ = self._trial_info[trial]
        bracket._live_trials = {trial if live == trial else live: result for live, result in bracket._live_trials.items()}

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        if not self.has_place(trial):  # version 0.2 and earlier versions formed new brackets in each session
            super().on_trial_add(tune_controller, trial)
        return str(super().on_trial_result(tune_controller, trial, result))

    def has_place(self, trial: TuneTrial) -> bool:
        """Return whether the trial is in a bracket, and was neither finished nor stopped."""
        return trial in self._trial_info and trial in self._trial_info[trial][0]._live_trials

    def forget_report(self, trial: TuneTrial) -> None:
        """Forget the last report of a trial that has failed and is tried again.

        The trial reaches the epoch of the halving once more. Without this method the bracket would be halved while the trial runs, which Tune does not expect.
        """
        if self.has_place(trial):
            self._trial_info[trial][0]._live_trials[trial] = None

    def _process_bracket(self, tune_controller: Any, bracket: Any) -> str:
        try:
            return str(super()._process_bracket(tune_controller, bracket))
        finally:
            bracket.is_being_processed = False


class PopulationScheduler(PopulationBasedTraining):
    """Changes Tune's population based training so that Tune calls the hook `exploit` for a trial that is among the worst trials.

    Without this change Tune would save the better trial and let the other trial take over this checkpoint, which would not be kept.
    """

    _trial_state: dict[Any, Any]

    def __init__(self, **options: Any) -> None:
        # Tune requires a function that changes the configuration. `dict` only copies the configuration, because the hook changes the values.
        super().__init__(time_attr="training_iteration", custom_explore_fn=dict, log_config=False, **options)

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Add a new trial to the population. Of a trial that is in the population, only the object is replaced by `trial`."""
        if trial in self._trial_state:
            self._trial_state = {trial if known == trial else known: state for known, state in self._trial_state.items()}
        else:
            super().on_trial_add(tune_controller, trial)

    def add_recorded(self, trial: Any, result: dict[str, Any]) -> None:
        """Add a recorded report to the state of a trial as `on_trial_result` does, but let no trial take over a checkpoint."""
        state, epoch = self._trial_state[trial], result["training_iteration"]
        if epoch - state.last_perturbation_time >= self._perturbation_interval:
            self._save_trial_state(state, epoch, result, trial)
            state.last_perturbation_time = epoch

    def _checkpoint_or_exploit(self, trial: Any, tune_controller: Any, upper_quantile: list[Any], lower_quantile: list[Any]) -> None:
        if trial in lower_quantile:
            self.exploit(tune_controller, trial, upper_quantile, self._trial_state[trial].last_train_time)

    def exploit(self, tune_controller: Any, trial: TuneTrial, better_trials: list[TuneTrial], epoch: int) -> None:
        """Let the trial, which has reported after `epoch`, continue from a checkpoint of a better trial."""
        raise NotImplementedError

    def note_exploit(self, trial: Any, donor: Any, epoch: int) -> None:
        """Record in Tune's state that the trial continues from the state that the donor had after `epoch`."""
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


def add_median_result(scheduler: MedianStoppingRule, trial: Any, result: dict[str, Any], verdict: str) -> None:
    """Add a report to the reports that the median rule compares, but let the rule make no decision. `verdict` is the recorded decision of the rule.

    `on_trial_result` would ask for the trials that wait, which a replay does not know, and would refuse later reports of a trial that the rule stops. But such
    a trial may have continued, because version 0.1 lost the decision at the end of a job, or because the trial failed and was tried again.
    """
    scheduler._results[trial].append(result)
    if verdict == TrialScheduler.PAUSE:
        scheduler._last_pause[trial] = result["training_iteration"]


# -------------------------------------------------------------------------------------------------------------------------------------------------- trackers


class TensorBoard(TBXLoggerCallback):
    """Changes Tune's callback for TensorBoard so that each trial has its own subfolder of `folder`.

    A trial that continues writes a second file into its subfolder. TensorBoard shows all files of a subfolder as one curve.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def log_trial_start(self, trial: TuneTrial) -> None:
        """Open a file for the curves of a trial. Tune's own method would write into the trial's Tune folder, which is deleted later."""
        if trial in self._trial_writer:
            self._trial_writer[trial].close()
        self._trial_writer[trial] = self._summary_writer_cls(str(self.folder / trial.trial_id), flush_secs=30)
        self._trial_result[trial] = {}


def mlflow_callback(tracking_uri: str, experiment: str, parameters_of: Callable[[Any], dict[str, Any]]) -> LoggerCallback:
    """Return Tune's callback for MLflow. The id of a trial names the trial's run, and `parameters_of(trial)` returns the parameters of the run.

    Raises ImportError if MLflow is not installed.
    """
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    class MLflow(MLflowLoggerCallback):
        """Replaces a method of Tune's callback that would split a list or a map into many parameters, and name a run after the trial's name."""

        def log_trial_start(self, trial: Any) -> None:
            if trial not in self._trial_runs:
                tags = {**self.tags, "trial_id": trial.trial_id}
                run_id = self.mlflow_util.start_run(tags=tags, run_name=trial.trial_id).info.run_id
                self._trial_runs[trial] = run_id
                self.mlflow_util.log_params(run_id=run_id, params_to_log=parameters_of(trial))

    return MLflow(tracking_uri, experiment_name=experiment)


def wandb_callback(project: str, group: str, folder: Path, run_id_of: Callable[[Any], str]) -> LoggerCallback:
    """Return Tune's callback for Weights & Biases in offline mode. `run_id_of(trial)` returns the id of the trial's run.

    Raises ImportError if the package wandb is not installed.
    """
    from ray.air.integrations import wandb as integration

    if integration.wandb is None:
        raise ModuleNotFoundError("No module named 'wandb'")

    class WandB(integration.WandbLoggerCallback):
        """Replaces the id of a run. Tune's own method would use the trial's id, but the id of a run must be unique in the whole W&B project."""

        def _start_logging_actor(self, trial: Any, exclude_results: list[str], **options: Any) -> None:
            super()._start_logging_actor(trial, exclude_results, **{**options, "id": run_id_of(trial)})

    return WandB(project=project, group=group, dir=str(folder), mode="offline")


# ----------------------------------------------------------------------------------------------------------------------------------------------------- slots


class _SlotActorManager(RayActorManager):
    """Changes Tune's actor manager so that Tune kills no process, because Tune's actors are slots here, and a slot has no own process."""

    def _try_kill_actor(self) -> bool:
        if not self._live_actors_to_kill:
            return False
        tracked = self._live_actors_to_kill.pop()
        self._cleanup_actor_futures(tracked)
        self._actor_stop_resolved(tracked)
        return True

    def cleanup(self) -> None:
        """Do nothing, because SlotManager.clear ends all slots together (slots/manager.py)."""


@contextlib.contextmanager
def resources_managed_by(manager: ResourceManager) -> Iterator[None]:
    """Let the Tune controllers that start within this context use `manager` as their resource manager.

    `tune.Tuner` has no option for a resource manager, so this context replaces the class of the controller.
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
