"""This module makes the Tune scheduler that the config names, and protects the scheduler from results that the scheduler cannot read."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ray.tune import CheckpointConfig
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from raysweep.config.model import SweepConfig
from raysweep.record.file import Record
from raysweep.tune.population import PBT, HandOvers, mutable_keys
from raysweep.tune.private import HyperBand, allow_reuse, set_status
from raysweep.tune.snapshots import NotPickled
from raysweep.tune.stopping import EndOfTrial


def make_scheduler(sweep: SweepConfig, record: Record, space: dict[str, Any], hand_overs: HandOvers) -> TrialScheduler:
    """Return the scheduler of a sweep. The config must be validated. The caller must set the metric with `set_search_properties`."""
    name, options = sweep.scheduler.name, sweep.scheduler.options
    if name == "pbt":
        return PBT(record, hand_overs, space, mutable_keys(sweep, space), sweep.seed, **options)
    if name == "asha":
        return ASHAScheduler(time_attr="training_iteration", max_t=sweep.max_epochs, **options)
    if name == "hyperband":
        return HyperBand(time_attr="training_iteration", max_t=sweep.max_epochs, **options)
    if name == "median":
        return MedianStoppingRule(time_attr="training_iteration", **options)
    return FIFOScheduler()


class RecordedStub:
    """Replaces a Tune trial for a scheduler that learns recorded events.

    The stub is equal to the trial that continues under this id (search.RecordedTrial), because schedulers use trials as dictionary keys. When Tune adds this
    trial, HyperBand and population based training replace the stub by the trial.
    """

    # Tune's schedulers read these attributes of a trial.
    is_saving = False
    experiment_tag = ""
    run_metadata = SimpleNamespace(checkpoint_manager=SimpleNamespace(checkpoint_config=CheckpointConfig()))

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id
        self.config: dict[str, Any] = {}
        self.status: str = TuneTrial.RUNNING

    def is_finished(self) -> bool:
        return self.status in (TuneTrial.TERMINATED, TuneTrial.ERROR)

    def __eq__(self, other: object) -> bool:
        return self.trial_id == getattr(other, "trial_id", None)

    def __hash__(self) -> int:
        return hash(self.trial_id)


class PassingScheduler(NotPickled, TrialScheduler):
    """Passes every call to the scheduler `inner`."""

    def __init__(self, inner: TrialScheduler) -> None:
        super().__init__()
        self.inner = inner

    @property
    def metric(self) -> str | None:
        metric: str | None = self.inner.metric
        return metric

    @property
    def supports_buffered_results(self) -> bool:
        return False

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return bool(self.inner.set_search_properties(metric, mode, **spec))

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        self.inner.on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        self.inner.on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        return str(self.inner.on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        self.inner.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        self.inner.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        return self.inner.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        return str(self.inner.debug_string())


class _LiveController:
    """Behaves like Tune's controller, but does not show the trials that have ended.

    Each time a Tune scheduler chooses a trial, the scheduler goes through all trials of the controller. With 10,000 trials this would take 2 ms.
    """

    def __init__(self, tune_controller: Any) -> None:
        self.tune_controller = tune_controller

    def get_trials(self) -> list[TuneTrial]:
        return sorted(self.tune_controller.get_live_trials(), key=lambda trial: trial.trial_id)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tune_controller, name)


class ShieldedScheduler(PassingScheduler):
    """Passes every call to the scheduler `inner`, stores each answer to a report for the record, and decides the following cases.

    - A trial that `inner` has stopped once is not continued, even if the trial has failed and was tried again.
    - A failure of a trial that is tried again decides nothing. `is_retried(trial_id)` returns whether a failed trial is tried again.
    - If the time of the session's job, or of the job of the trial's node, is nearly over, a trial that may go on is paused at a report with a checkpoint.
      `inner` decides about this report first, because `inner` would not see the report again.
    - If a trial ends without a usable metric, `inner` gets an error instead of the end of the trial.
    - If the time of the session's job is nearly over, no trial begins or continues.
    - While the job of some node is nearly over, no process is kept for another trial, because the process may be on this node. `reuses_processes` is whether
      Tune keeps processes otherwise.
    """

    def __init__(
        self,
        inner: TrialScheduler,
        record: Record,
        end_of_trial: EndOfTrial,
        is_retried: Callable[[str], bool] = lambda trial_id: False,
        reuses_processes: bool = False,
    ) -> None:
        super().__init__(inner)
        self.record, self.end_of_trial, self.is_retried = record, end_of_trial, is_retried
        self.reuses_processes = self.keeps_processes = reuses_processes
        self.moved: dict[str, TuneTrial] = {}  # trials that this class has paused, and that have not begun again

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        if not self.is_retried(trial.trial_id):
            self.inner.on_trial_error(tune_controller, trial)
        elif isinstance(self.inner, HyperBand):
            self.inner.forget_report(trial)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        trial_id, end = trial.trial_id, self.end_of_trial
        is_stopped = self.record.sweep.trials[trial_id].is_stopped
        verdict = str(TrialScheduler.STOP) if is_stopped else super().on_trial_result(tune_controller, trial, result)
        end.verdicts[trial_id] = verdict
        self.moved.pop(trial_id, None)
        if verdict != TrialScheduler.CONTINUE or not end.is_time_to_pause(result):
            return verdict
        self.moved[trial_id] = trial
        self._keep_processes(tune_controller)
        return str(TrialScheduler.PAUSE)

    def _keep_processes(self, tune_controller: Any) -> None:
        """Let Tune keep processes for further trials, or not, as the nodes are now."""
        nodes = self.end_of_trial.nodes
        keeps = self.reuses_processes and not (nodes is not None and nodes.has_leaving())
        if keeps != self.keeps_processes:
            self.keeps_processes = keeps
            allow_reuse(tune_controller, keeps)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        if self.end_of_trial.is_unusable(trial.trial_id) or self.metric not in result:
            self.inner.on_trial_error(tune_controller, trial)
        else:
            self.inner.on_trial_complete(tune_controller, trial, result)

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        if self.end_of_trial.is_over():
            return None
        self._keep_processes(tune_controller)
        # A trial that this class has paused waits for nothing but room on a node that stays. The trial begins again after the record has noted the pause.
        for trial_id in [trial_id for trial_id in self.moved if trial_id not in self.end_of_trial.running.trials]:
            trial = self.moved.pop(trial_id)
            if trial.status == TuneTrial.PAUSED:
                set_status(tune_controller, trial, TuneTrial.PENDING)
        return self.inner.choose_trial_to_run(_LiveController(tune_controller))
