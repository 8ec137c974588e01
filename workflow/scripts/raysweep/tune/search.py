"""The search algorithm that Tune is given: it hands out the trials that the record says are unfinished or still to come.

Tune takes it through `TuneConfig(search_alg=…)`. It makes `Trial` objects under our own ids with Tune's internal
`_create_trial_from_spec`, and lets one go on from its checkpoint with `_restore_checkpoint_result`: with Tune's own restore a sweep
cannot be given more trials, and a damaged experiment state silently runs one trial with an empty configuration. Both names are private:
Ray is pinned, and tests/unit/tune/test_search.py fails when they change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.experiment.config_parser import _create_trial_from_spec, _make_parser
from ray.tune.search.search_algorithm import SearchAlgorithm

from raysweep.cluster.job import ConfirmTask
from raysweep.common.seeds import trial_seed
from raysweep.record.file import Record
from raysweep.record.trials import Trial
from raysweep.tune.samplers import Sampler
from raysweep.tune.trial import OWN

ALIVE = (TuneTrial.PENDING, TuneTrial.RUNNING, TuneTrial.PAUSED)


def trial_id_of(index: int, repeat: int, repeats: int) -> str:
    """The id of a trial of configuration `index`; ids sort as their numbers do."""
    return f"{index:05d}" if repeats == 1 else f"{index:05d}-{repeat}"


class JudgedTrial(TuneTrial):
    """Tune's trial, but we decide whether one that failed is tried again: Tune counts lost nodes against it, and forgets what was before it went on."""

    judge: ClassVar[Callable[[TuneTrial, BaseException | None], bool]]
    adapt: ClassVar[Callable[[TuneTrial], None]]  # to what trials take now
    is_tried_again = False

    def __eq__(self, other: object) -> bool:
        return self.trial_id == getattr(other, "trial_id", None)

    def __hash__(self) -> int:
        return hash(self.trial_id)

    def create_placement_group_factory(self) -> None:
        super().create_placement_group_factory()
        type(self).adapt(self)

    def handle_error(self, exc: BaseException | None = None) -> None:
        super().handle_error(exc)
        self.is_tried_again = type(self).judge(self, exc)

    def should_recover(self) -> bool:
        return self.is_tried_again


class RecordedSearch(SearchAlgorithm):
    """Hands out trials, first those the record began and did not finish, then new ones, until there are `total`."""

    def __init__(
        self,
        record: Record,
        sampler: Sampler,
        *,
        total: int,
        seed: int,
        max_concurrent: Callable[[], float],
        may_start: Callable[[], bool],
        is_over: Callable[[], bool] = lambda: False,
        tasks: Sequence[ConfirmTask] | None = None,
        measures_gpu: Callable[[], bool] = lambda: False,
    ) -> None:
        self.record, self.sampler = record, sampler
        self.total, self.seed, self.max_concurrent = total, seed, max_concurrent
        self.may_start = may_start  # a new trial
        self.measures_gpu = measures_gpu  # whether a trial is to say what it takes of its GPU
        self.is_over = is_over  # no trial may begin or go on
        self.tasks = tasks  # of a confirmation: {trial, seed, task}, one for each configuration of its sampler
        # A confirmation that failed is tried again: what it lacked may have been mended.
        again = ("ERROR",) if tasks else ()
        self.unfinished = [trial for trial in record.sweep.trials.values() if not trial.finished or trial.status in again]
        self.handed_out: list[TuneTrial] = []
        self.spec: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles it with its own state, which nobody reads."""
        return {}

    @property
    def total_samples(self) -> int:
        return self.total

    def add_configurations(self, experiments: Any) -> None:
        """Take over Tune's description of the experiment; it has exactly one."""
        (experiment,) = experiments if isinstance(experiments, list) else [experiments]
        self.spec = experiment.spec

    def next_trial(self) -> TuneTrial | None:
        """The next trial, or None: at capacity (Tune asks again), or when there is none left (then `is_finished`)."""
        self.handed_out = [t for t in self.handed_out if not t.is_finished()]
        if sum(t.status in ALIVE for t in self.handed_out) >= self.max_concurrent():
            return None
        if self.is_over():
            self.set_finished()
            return None
        trial: Trial | None
        if self.unfinished:
            trial = self.unfinished.pop(0)
        elif len(self.record.sweep.trials) < self.total and self.may_start():
            trial = self._new()
        else:
            self.set_finished()
            return None
        if trial is None:
            return None
        tune_trial = self._tune_trial(trial)
        self.handed_out.append(tune_trial)
        return tune_trial

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The record has it already: see bookkeeping.py, which tells the sampler when a trial is finished."""

    def _new(self) -> Trial | None:
        sweep = self.record.sweep
        # Trials of one configuration come one after the other, so their number alone says which is the next.
        index, repeat = divmod(len(sweep.trials), sweep.repeats)
        config = sweep.groups[index].config if repeat else self.sampler.propose(index)
        if config is None:
            return None
        trial_id, seed = trial_id_of(index, repeat, sweep.repeats), trial_seed(self.seed, index, repeat)
        if self.tasks:
            trial_id, seed = self.tasks[index].trial, self.tasks[index].seed
        self.record.write("trial", trial=trial_id, index=index, repeat=repeat, seed=seed, config=config)
        return sweep.trials[trial_id]

    def _tune_trial(self, trial: Trial) -> TuneTrial:
        task = self.tasks[trial.index].task if self.tasks else "search"
        epoch = trial.latest_checkpoint(self.record.path.parent)
        config = trial.config_at(epoch)
        spec = {
            **self.spec,
            "config": {**config, OWN: {"seed": trial.seed, "task": task, "measures_gpu": self.measures_gpu()}},
            "trial_dirname_creator": _dirname,
        }
        tune_trial = _create_trial_from_spec(
            spec, _make_parser(), trial_id=trial.trial_id, evaluated_params=dict(config), experiment_tag=trial.trial_id
        )
        tune_trial.__class__ = JudgedTrial  # Tune's function makes no other
        if epoch:
            result = next(r for r in trial.results if r.epoch == epoch)
            tune_trial._restore_checkpoint_result = _TrainingResult(
                checkpoint=Checkpoint.from_directory(self.record.path.parent / trial.checkpoints[epoch]),
                metrics={"training_iteration": epoch, "time_total_s": result.time_s, **result.metrics},
            )
        return tune_trial


def _dirname(trial: TuneTrial) -> str:
    return trial.trial_id
