"""This module contains the search algorithm for Tune, which gives Tune the unfinished trials of the record first, and then new trials.

Tune gets the algorithm through `TuneConfig(search_alg=…)`. The algorithm makes `Trial` objects with the ids of this package, and lets a trial continue from
the trial's checkpoint. Tune's own restore is not used because Tune's restore cannot add trials to a sweep, and because a damaged experiment state silently runs
one trial with an empty configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.tune import CheckpointConfig
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search.search_algorithm import SearchAlgorithm

from raysweep.cluster.job import ConfirmTask
from raysweep.common.seeds import trial_seed
from raysweep.record.file import Record
from raysweep.record.trials import Trial
from raysweep.tune.gpu_share import GpuShare
from raysweep.tune.private import restore_from
from raysweep.tune.retries import RetryPolicy
from raysweep.tune.samplers import Sampler
from raysweep.tune.snapshots import NotPickled
from raysweep.tune.trial import RESERVED_KEY, TrialFacts

ALIVE = (TuneTrial.PENDING, TuneTrial.RUNNING, TuneTrial.PAUSED)


def trial_id_of(index: int, repeat: int, repeats: int) -> str:
    """Return the id of trial number `repeat` of configuration `index`. The ids have the same order as the configurations."""
    return f"{index:05d}" if repeats == 1 else f"{index:05d}-{repeat}"


class RecordedTrial(TuneTrial):
    """Changes Tune's trial so that RetryPolicy decides whether the trial is tried again, and GpuShare sets the trial's share of a GPU."""

    def __init__(self, retries: RetryPolicy, gpu_share: GpuShare, **options: Any) -> None:
        self._retries, self._gpu_share = retries, gpu_share
        super().__init__(**options)

    def __eq__(self, other: object) -> bool:
        return bool(self.trial_id == getattr(other, "trial_id", None))

    def __hash__(self) -> int:
        return hash(self.trial_id)

    def __getstate__(self) -> dict[str, Any]:
        """Return Tune's state of the trial without the two policies, because Tune pickles the state into snapshots that nothing reads."""
        return {key: value for key, value in super().__getstate__().items() if key not in ("_retries", "_gpu_share")}

    def create_placement_group_factory(self) -> None:
        super().create_placement_group_factory()
        self._gpu_share.apply(self)

    def handle_error(self, exc: BaseException | None = None) -> None:
        super().handle_error(exc)
        self._retries.judge(self, exc)

    def should_recover(self) -> bool:
        return self._retries.is_retried(self.trial_id)


@dataclass(frozen=True)
class TrialPlan:
    """Describes the trials of a sweep or of a confirmation."""

    total: int  # number of trials
    seed: int
    tasks: tuple[ConfirmTask, ...] = ()  # tasks of a confirmation, one task for each configuration of the sampler. Empty in a sweep


@dataclass(frozen=True)
class StartConditions:
    """Contains the conditions under which a trial may start."""

    max_concurrent: Callable[[], float]  # returns the maximum number of trials that run or wait at the same time
    may_start_new: Callable[[], bool]  # returns whether a trial may start that the record does not contain yet
    is_over: Callable[[], bool] = lambda: False  # returns whether the session is over, so that no trial may begin or continue
    # Whether a trial that runs can make `may_start_new` true again, because the trial may have a better value (`end_when`).
    may_improve: bool = False


class RecordedSearch(NotPickled, SearchAlgorithm):
    """Gives Tune the unfinished trials of the record first, and then new trials until the record contains all trials of the plan."""

    def __init__(
        self, record: Record, sampler: Sampler, plan: TrialPlan, conditions: StartConditions, retries: RetryPolicy, gpu_share: GpuShare
    ) -> None:
        self.record, self.sampler, self.plan, self.conditions = record, sampler, plan, conditions
        self.retries, self.gpu_share = retries, gpu_share
        # A confirmation is tried again after a failure, because the user may have removed the cause of the failure.
        tried_again = ("ERROR",) if plan.tasks else ()
        self.unfinished = [trial for trial in record.sweep.trials.values() if not trial.finished or trial.status in tried_again]
        self.handed_out: list[TuneTrial] = []
        self.spec: dict[str, Any] = {}

    @property
    def total_samples(self) -> int:
        return self.plan.total

    def add_configurations(self, experiments: Any) -> None:
        """Store Tune's description of the experiment. Tune runs exactly one experiment."""
        (experiment,) = experiments if isinstance(experiments, list) else [experiments]
        self.spec = experiment.spec

    def next_trial(self) -> TuneTrial | None:
        """Return the next trial. Return None if no trial may start now, or if no trial is left.

        Tune asks again after None, unless this method has marked the search as finished (`set_finished`).
        """
        self.handed_out = [trial for trial in self.handed_out if not trial.is_finished()]
        if sum(trial.status in ALIVE for trial in self.handed_out) >= self.conditions.max_concurrent():
            return None
        if self.conditions.is_over() or not (self.unfinished or self._has_new()):
            if self.conditions.is_over() or not (self.conditions.may_improve and self.handed_out):
                self.set_finished()
            return None
        trial = self.unfinished.pop(0) if self.unfinished else self._new()
        if trial is None:
            return None
        tune_trial = self._tune_trial(trial)
        self.handed_out.append(tune_trial)
        return tune_trial

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing, because record_callback.py records the end of a trial and tells the sampler about finished configurations."""

    def _has_new(self) -> bool:
        """Return whether a new trial may begin. A configuration that has begun gets all its trials, because it has no value without one of them."""
        num_trials = len(self.record.sweep.trials)
        return num_trials < self.plan.total and (num_trials % self.record.sweep.repeats != 0 or self.conditions.may_start_new())

    def _new(self) -> Trial | None:
        """Record a new trial and return the trial. Return None while the sampler has no configuration."""
        sweep, tasks = self.record.sweep, self.plan.tasks
        # The trials of one configuration have consecutive numbers, so the number of recorded trials gives the index and the repeat of the next trial.
        index, repeat = divmod(len(sweep.trials), sweep.repeats)
        config = sweep.groups[index].config if repeat else self.sampler.propose(index)
        if config is None:
            return None
        if tasks:
            trial_id, seed = tasks[index].trial, tasks[index].seed
        else:
            trial_id, seed = trial_id_of(index, repeat, sweep.repeats), trial_seed(self.plan.seed, index, repeat)
        self.record.write("trial", trial=trial_id, index=index, repeat=repeat, seed=seed, config=config)
        return sweep.trials[trial_id]

    def _tune_trial(self, trial: Trial) -> TuneTrial:
        task = self.plan.tasks[trial.index].task if self.plan.tasks else "search"
        state_dir = self.record.path.parent
        epoch = trial.latest_checkpoint(state_dir)
        config = trial.config_at(epoch)
        fold = trial.repeat if self.record.sweep.header.has_folds else 0
        tune_trial = RecordedTrial(
            self.retries,
            self.gpu_share,
            trainable_name=self.spec["run"],
            trial_id=trial.trial_id,
            config={**config, RESERVED_KEY: TrialFacts(trial.seed, task, self.gpu_share.is_measuring, fold)},
            evaluated_params=dict(config),
            experiment_tag=trial.trial_id,
            trial_dirname_creator=_dirname,
            storage=self.spec.get("storage"),
            checkpoint_config=self.spec.get("checkpoint_config", CheckpointConfig()),
            log_to_file=self.spec.get("log_to_file"),
        )
        if epoch:
            result = next(result for result in trial.results if result.epoch == epoch)
            metrics = {"training_iteration": epoch, "time_total_s": result.time_s, **result.metrics}
            restore_from(tune_trial, state_dir / trial.checkpoints[epoch], metrics)
        if trial.is_waiting:
            # The scheduler says when the trial goes on. Tune asks for the folder of a trial that the scheduler stops before the trial has gone on.
            tune_trial.set_status(TuneTrial.PAUSED)
            tune_trial.init_local_path()
        return tune_trial


def _dirname(trial: TuneTrial) -> str:
    return str(trial.trial_id)
