"""Population based training, and the repetition of its schedule in a confirmation."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raysweep.common.files import flush_folder
from raysweep.config.model import SweepConfig
from raysweep.config.space import TRAINING_KEYS, Choice, Distribution, Normal, Numeric, flattened, nested, quantized, value_at
from raysweep.record.events import ScheduleStep
from raysweep.record.file import Record
from raysweep.record.trials import Trial
from raysweep.tune.private import PopulationScheduler, continue_from
from raysweep.tune.trial import RESERVED_KEY

logger = logging.getLogger("raysweep")

COPY_PREFIX = "taken_over_"  # begins the names of folders with a donor's checkpoint, beside the trial's own checkpoints


@dataclass(frozen=True)
class HandOver:
    """A trial continues from the checkpoint that a donor recorded after `epoch`, with another configuration."""

    donor: str  # id
    epoch: int
    config: dict[str, Any]
    path: str  # of the trial's copy of the checkpoint, below the state folder

    def as_event(self) -> dict[str, Any]:
        """Return the values of the record's event `take_over`."""
        return {"donor": self.donor, "epoch": self.epoch, "config": self.config, "path": self.path}


class HandOvers:
    """The hand-overs that a scheduler has announced and the record does not hold yet: the record takes each after the report at which it was decided."""

    def __init__(self) -> None:
        self._by_trial: dict[str, HandOver] = {}

    def announce(self, trial_id: str, hand_over: HandOver) -> None:
        """Add the hand-over to a trial."""
        self._by_trial[trial_id] = hand_over

    def take(self, trial_id: str) -> HandOver | None:
        """Remove and return the hand-over to a trial; None where there is none."""
        return self._by_trial.pop(trial_id, None)


def hand_over(record: Record, tune_controller: Any, trial: TuneTrial, donor: Trial, epoch: int, config: dict[str, Any]) -> HandOver:
    """Pause a trial of Tune's, so that it continues with another configuration from the checkpoint that `donor` recorded after `epoch`."""
    state_dir = record.path.parent
    folder = _copy_checkpoint(state_dir / donor.checkpoints[epoch], Path(trial.path))
    tune_controller.pause_trial(trial, should_checkpoint=False)
    trial.set_config({**config, **{key: value for key, value in trial.config.items() if key == RESERVED_KEY}})
    result = next(result for result in donor.results if result.epoch == epoch)
    continue_from(trial, folder, {"training_iteration": epoch, "time_total_s": result.time_s, **result.metrics})
    return HandOver(donor.trial_id, epoch, config, str(folder.relative_to(state_dir)))


def _copy_checkpoint(checkpoint: Path, trial_dir: Path) -> Path:
    """Return a copy of a donor's checkpoint in the folder of a trial. The donor's own is deleted when the donor has a later one.

    Of earlier copies the latest stays, because the record names it until the record holds the new hand-over.
    """
    earlier = sorted(trial_dir.glob(f"{COPY_PREFIX}*"))
    for old in earlier[:-1]:
        shutil.rmtree(old)
    number = int(earlier[-1].name.rpartition("_")[2]) + 1 if earlier else 0
    folder: Path = shutil.copytree(checkpoint, trial_dir / f"{COPY_PREFIX}{number:06d}")
    flush_folder(folder)
    return folder


class PBT(PopulationScheduler):
    """Tune's population based training, but a trial takes a better trial's checkpoint and configuration from our record.

    The trial gets a copy of the latest checkpoint that is recorded of the better trial.
    (M. Jaderberg et al., https://arxiv.org/abs/1711.09846)
    """

    def __init__(
        self, record: Record, hand_overs: HandOvers, space: dict[str, Any], keys: Sequence[str], seed: int, **options: Any
    ) -> None:
        super().__init__(**options)
        self.record, self.hand_overs, self.space, self.keys = record, hand_overs, space, keys
        self.random = random.Random(seed)

    def exploit(self, tune_controller: Any, trial: TuneTrial, better_trials: list[TuneTrial]) -> None:
        """Have a trial continue as one of the better trials, with a configuration near that trial's."""
        better = self.random.choice(better_trials)
        donor = self.record.sweep.trials[better.trial_id]
        epoch = donor.latest_checkpoint(self.record.path.parent)
        if not epoch:
            logger.debug("trial %s has no checkpoint that trial %s could take over", donor.trial_id, trial.trial_id)
            return
        config = self.explore(donor.config)
        self.hand_overs.announce(trial.trial_id, hand_over(self.record, tune_controller, trial, donor, epoch, config))
        self.note_exploit(trial, better, epoch)
        logger.debug("trial %s goes on as trial %s at epoch %d, with %s", trial.trial_id, donor.trial_id, epoch, config)

    def explore(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return a configuration near another: each key is drawn anew, or multiplied, or, where its values are a list, moved by one place."""
        explored = flattened(config)
        for key in self.keys:
            distribution, value = self.space[key], value_at(config, key)
            if self.random.random() < self.resample_probability or value is None:
                explored[key] = distribution.quantile(self.random.random())
            elif isinstance(distribution, Choice):
                position = distribution.values.index(value) if value in distribution.values else 0
                explored[key] = distribution.values[min(max(position + self.random.choice((-1, 1)), 0), len(distribution.values) - 1)]
            else:
                explored[key] = nearest(distribution, value * self.random.choice(self.perturbation_factors))
        return nested(explored)


def nearest(distribution: Numeric | Normal, value: float) -> float:
    """Return the value of a distribution that is nearest to `value`."""
    if isinstance(distribution, Normal):
        return value
    low, high, step = distribution.low, distribution.high, distribution.step
    value = min(max(value, low), high - 1 if distribution.integer else high)
    return round(value) if distribution.integer else quantized(value, low, high, step) if step else value


def mutable_keys(sweep: SweepConfig, space: dict[str, Any]) -> list[str]:
    """Return the keys that may change in the middle of a training.

    Of a model only the keys of the training may change, because the model's form is that of its weights; of a function all may.
    """
    return [key for key, d in space.items() if isinstance(d, Distribution) and (sweep.trainable is not None or key in TRAINING_KEYS)]


class Replay(FIFOScheduler):
    """Changes the configuration of each trial at the epochs at which a population's weights changed theirs (record.Trial.schedule).

    The scheduler learns of an epoch's checkpoint with the next report. The trial then goes back to that checkpoint, and takes the epoch again with the
    new configuration.
    """

    def __init__(self, record: Record, hand_overs: HandOvers, schedule: Sequence[ScheduleStep]) -> None:
        super().__init__()
        self.record, self.hand_overs, self.schedule = record, hand_overs, schedule

    def is_due(self, trial_id: str) -> bool:
        """Return whether a change of the trial's configuration is due."""
        return self._due(trial_id) is not None

    def _due(self, trial_id: str) -> tuple[int, dict[str, Any]] | None:
        """Return the epoch to go back to and the configuration to continue with; None where no change is due."""
        trial = self.record.sweep.trials[trial_id]
        epoch = trial.latest_checkpoint(self.record.path.parent)
        configs = [step.config for step in self.schedule if 0 < step.from_epoch <= epoch]
        return (epoch, configs[-1]) if configs and configs[-1] != trial.config else None

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Hand a trial over to itself where a change of its configuration is due."""
        if (due := self._due(trial.trial_id)) is None:
            return str(TrialScheduler.CONTINUE)
        recorded = self.record.sweep.trials[trial.trial_id]
        self.hand_overs.announce(trial.trial_id, hand_over(self.record, tune_controller, trial, recorded, *due))
        return str(TrialScheduler.NOOP)
