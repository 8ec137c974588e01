"""This module contains population based training (PBT), and the scheduler that repeats a PBT schedule in a confirmation.

A take-over means that a trial continues from a checkpoint of another trial, the donor, with another configuration. Tune calls this step "exploit".
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raysweep.common.errors import logger
from raysweep.common.files import flush_path
from raysweep.common.seeds import take_over_seed
from raysweep.config.distributions import Choice, Distribution, Normal, Numeric, quantized
from raysweep.config.model import SweepConfig
from raysweep.config.space import flattened, nested, sets_training, value_at
from raysweep.record.events import ScheduleStep
from raysweep.record.file import Record
from raysweep.record.trials import Trial
from raysweep.tune.private import PopulationScheduler, continue_from
from raysweep.tune.trial import RESERVED_KEY

# Prefix for the name of a folder with a copy of a donor's checkpoint. The folder lies beside the trial's own checkpoints.
COPY_PREFIX = "taken_over_"


@dataclass(frozen=True)
class HandOver:
    """Describes a take-over, in which a trial continues from the donor's checkpoint after `epoch` with the configuration `config`."""

    donor: str  # id of the trial that wrote the checkpoint
    epoch: int
    config: dict[str, Any]
    path: str  # path of the trial's copy of the checkpoint, relative to the state folder


# Trial id → take-over that a scheduler has announced and that the record does not contain yet. The scheduler decides about a take-over at a report. The
# callback writes this report into the record, and then the take-over.
HandOvers = dict[str, HandOver]


def hand_over(record: Record, tune_controller: Any, trial: TuneTrial, donor: Trial, epoch: int, config: dict[str, Any]) -> HandOver:
    """Pause a Tune trial and prepare the take-over, so that the trial continues with `config` from the donor's checkpoint after `epoch`."""
    state_dir = record.path.parent
    folder = _copy_checkpoint(state_dir / donor.checkpoints[epoch], Path(trial.path))
    tune_controller.pause_trial(trial, should_checkpoint=False)
    trial.set_config({**config, **{key: value for key, value in trial.config.items() if key == RESERVED_KEY}})
    result = next(result for result in donor.results if result.epoch == epoch)
    continue_from(trial, folder, {"training_iteration": epoch, "time_total_s": result.time_s, **result.metrics})
    return HandOver(donor.trial_id, epoch, config, str(folder.relative_to(state_dir)))


def _copy_checkpoint(checkpoint: Path, trial_dir: Path) -> Path:
    """Copy a donor's checkpoint into the folder of a trial, and return the path of the copy.

    A copy is needed because the donor's checkpoint is deleted when the donor has a later checkpoint. The latest of the earlier copies stays, because the
    record still names this copy until the record contains the new take-over.
    """
    earlier = sorted(trial_dir.glob(f"{COPY_PREFIX}*"))
    for old in earlier[:-1]:
        shutil.rmtree(old)
    number = int(earlier[-1].name.rpartition("_")[2]) + 1 if earlier else 0
    folder: Path = shutil.copytree(checkpoint, trial_dir / f"{COPY_PREFIX}{number:06d}")
    flush_path(folder)
    return folder


class PBT(PopulationScheduler):
    """Changes Tune's population based training so that a trial takes over a better trial's checkpoint and configuration from the record of this package.

    The trial gets a copy of the latest checkpoint that the record contains for the better trial. The random numbers follow from the seed, the trial and the
    epoch, so a sweep that was interrupted draws the same numbers.
    (M. Jaderberg et al., https://arxiv.org/abs/1711.09846)
    """

    def __init__(
        self, record: Record, hand_overs: HandOvers, space: dict[str, Any], keys: Sequence[str], seed: int, **options: Any
    ) -> None:
        super().__init__(**options)
        self.record, self.hand_overs, self.space, self.keys, self.seed = record, hand_overs, space, keys, seed

    def exploit(self, tune_controller: Any, trial: TuneTrial, better_trials: list[TuneTrial], epoch: int) -> None:
        """Let a trial continue from a checkpoint of a better trial, chosen at random, with a configuration near the better trial's configuration."""
        trials = self.record.sweep.trials
        draws = random.Random(take_over_seed(self.seed, trials[trial.trial_id].index, epoch))
        better = draws.choice(better_trials)
        donor = trials[better.trial_id]
        donor_epoch = donor.latest_checkpoint(self.record.path.parent)
        if not donor_epoch:
            logger.debug("trial %s has no checkpoint that trial %s could take over", donor.trial_id, trial.trial_id)
            return
        config = self.explore(donor.config, draws)
        self.hand_overs[trial.trial_id] = hand_over(self.record, tune_controller, trial, donor, donor_epoch, config)
        self.note_exploit(trial, better, donor_epoch)
        logger.debug("trial %s goes on as trial %s at epoch %d, with %s", trial.trial_id, donor.trial_id, donor_epoch, config)

    def explore(self, config: dict[str, Any], draws: random.Random) -> dict[str, Any]:
        """Return a configuration near `config`.

        The value of each mutable key is sampled again or multiplied by a factor. A value from a list is replaced by a neighbour in the list instead.
        """
        explored = flattened(config)
        for key in self.keys:
            distribution, value = self.space[key], value_at(config, key)
            if draws.random() < self.resample_probability or value is None:
                explored[key] = distribution.quantile(draws.random())
            elif isinstance(distribution, Choice):
                position = distribution.position(value) or 0
                explored[key] = distribution.values[min(max(position + draws.choice((-1, 1)), 0), len(distribution.values) - 1)]
            else:
                explored[key] = nearest(distribution, value * draws.choice(self.perturbation_factors))
        return nested(explored)


def nearest(distribution: Numeric | Normal, value: float) -> float:
    """Return the possible value of the distribution that is nearest to `value`."""
    if isinstance(distribution, Normal):
        return value
    low, high, step = distribution.low, distribution.high, distribution.step
    value = min(max(value, low), high - 1 if distribution.integer else high)
    return round(value) if distribution.integer else quantized(value, low, high, step) if step else value


def mutable_keys(sweep: SweepConfig, space: dict[str, Any]) -> list[str]:
    """Return the keys of the search space whose values may change during the training of a trial.

    For a model only the keys of the training may change, because the model must fit the weights in its checkpoint. For a function all keys may change.
    """
    return [key for key, d in space.items() if isinstance(d, Distribution) and (sweep.trainable is not None or sets_training(key))]


class Replay(FIFOScheduler):
    """Repeats a schedule of population based training by a change of each trial's configuration at the epochs of `schedule` (record.Trial.schedule).

    The checkpoint of an epoch is recorded after the report of that epoch, so this scheduler first sees the checkpoint at the report of the next epoch. The
    trial then goes back to the checkpoint and trains the next epoch again, with the new configuration.
    """

    def __init__(self, record: Record, hand_overs: HandOvers, schedule: Sequence[ScheduleStep]) -> None:
        super().__init__()
        self.record, self.hand_overs, self.schedule = record, hand_overs, schedule

    def is_due(self, trial_id: str) -> bool:
        """Return whether a change of the trial's configuration is due."""
        return self._due(trial_id) is not None

    def _due(self, trial_id: str) -> tuple[int, dict[str, Any]] | None:
        """Return the epoch of the checkpoint from which the trial must continue, and the new configuration. Return None if no change is due."""
        trial = self.record.sweep.trials[trial_id]
        epoch = trial.latest_checkpoint(self.record.path.parent)
        configs = [step.config for step in self.schedule if 0 < step.from_epoch <= epoch]
        return (epoch, configs[-1]) if configs and configs[-1] != trial.config else None

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Let a trial take over its own checkpoint with the new configuration if a change of the configuration is due."""
        if (due := self._due(trial.trial_id)) is None:
            return str(TrialScheduler.CONTINUE)
        recorded = self.record.sweep.trials[trial.trial_id]
        self.hand_overs[trial.trial_id] = hand_over(self.record, tune_controller, trial, recorded, *due)
        return str(TrialScheduler.NOOP)
