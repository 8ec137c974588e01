"""The search algorithm that Tune is given: it hands out the trials that are unfinished in the record, then the trials that are still to come.

Tune takes it through `TuneConfig(search_alg=…)`. It makes `Trial` objects under our own ids, and lets a trial continue from its checkpoint:
with Tune's own restore a sweep cannot be given more trials, and a damaged experiment state silently runs one trial with an empty configuration.
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
from raysweep.tune.trial import RESERVED_KEY, TrialFacts

ALIVE = (TuneTrial.PENDING, TuneTrial.RUNNING, TuneTrial.PAUSED)


def trial_id_of(index: int, repeat: int, repeats: int) -> str:
    """Return the id of a trial of configuration `index`. Ids sort as their numbers do."""
    return f"{index:05d}" if repeats == 1 else f"{index:05d}-{repeat}"


class RecordedTrial(TuneTrial):
    """Tune's trial, but our policy decides whether it is tried again, and it takes the present share of a GPU."""

    def __init__(self, retries: RetryPolicy, gpu_share: GpuShare, **options: Any) -> None:
        self._retries, self._gpu_share = retries, gpu_share
        super().__init__(**options)

    def __eq__(self, other: object) -> bool:
        return bool(self.trial_id == getattr(other, "trial_id", None))

    def __hash__(self) -> int:
        return hash(self.trial_id)

    def __getstate__(self) -> dict[str, Any]:
        """Return Tune's state without the policies: Tune pickles it into snapshots that nothing reads."""
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
    """The trials of a sweep or of a confirmation."""

    total: int
    seed: int
    tasks: tuple[ConfirmTask, ...] = ()  # of a confirmation: one for each configuration of its sampler


@dataclass(frozen=True)
class StartConditions:
    """When a trial may start."""

    max_concurrent: Callable[[], float]  # trials at a time
    may_start_new: Callable[[], bool]  # whether a trial may start that the record does not hold
    is_over: Callable[[], bool] = lambda: False  # whether no trial may begin or continue


class RecordedSearch(SearchAlgorithm):
    """Hands out trials, first those that the record began and did not finish, then new ones, until the plan is fulfilled."""

    def __init__(
        self, record: Record, sampler: Sampler, plan: TrialPlan, conditions: StartConditions, retries: RetryPolicy, gpu_share: GpuShare
    ) -> None:
        self.record, self.sampler, self.plan, self.conditions = record, sampler, plan, conditions
        self.retries, self.gpu_share = retries, gpu_share
        # A confirmation that failed is tried again, because its cause may have been mended.
        tried_again = ("ERROR",) if plan.tasks else ()
        self.unfinished = [trial for trial in record.sweep.trials.values() if not trial.finished or trial.status in tried_again]
        self.handed_out: list[TuneTrial] = []
        self.spec: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its search algorithm with its own state, which nothing reads."""
        return {}

    @property
    def total_samples(self) -> int:
        return self.plan.total

    def add_configurations(self, experiments: Any) -> None:
        """Take over Tune's description of the experiment, of which there is exactly one."""
        (experiment,) = experiments if isinstance(experiments, list) else [experiments]
        self.spec = experiment.spec

    def next_trial(self) -> TuneTrial | None:
        """Return the next trial; None at capacity, where Tune asks again, and None when no trial is left, where `is_finished` is set."""
        self.handed_out = [trial for trial in self.handed_out if not trial.is_finished()]
        if sum(trial.status in ALIVE for trial in self.handed_out) >= self.conditions.max_concurrent():
            return None
        if self.conditions.is_over() or not (self.unfinished or self._has_new()):
            self.set_finished()
            return None
        trial = self.unfinished.pop(0) if self.unfinished else self._new()
        if trial is None:
            return None
        tune_trial = self._tune_trial(trial)
        self.handed_out.append(tune_trial)
        return tune_trial

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: the record holds the end already, and record_callback.py tells the sampler when a trial has finished."""

    def _has_new(self) -> bool:
        return len(self.record.sweep.trials) < self.plan.total and self.conditions.may_start_new()

    def _new(self) -> Trial | None:
        """Record and return a new trial; None while the sampler has no configuration."""
        sweep, tasks = self.record.sweep, self.plan.tasks
        # Trials of one configuration come one after the other, so the number of trials says which is the next.
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
        tune_trial = RecordedTrial(
            self.retries,
            self.gpu_share,
            trainable_name=self.spec["run"],
            trial_id=trial.trial_id,
            config={**config, RESERVED_KEY: TrialFacts(trial.seed, task, self.gpu_share.is_measuring)},
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
        return tune_trial


def _dirname(trial: TuneTrial) -> str:
    return str(trial.trial_id)
