"""This module computes all seeds of a sweep from the key `seed` of the sweep, so that a second run of the sweep gives the same result."""

from __future__ import annotations

import numpy as np

# Each purpose of a seed has a different number, so that two purposes never share a stream of random numbers.
_TRIAL, _CONFIRM, _ORDER, _SAMPLER, _AUGMENTATION, _MIXUP, _TAKE_OVER, _DROPOUT = 1, 2, 3, 4, 5, 6, 7, 8


def _seed(*words: int) -> int:
    """Return a seed below 2³¹ that NumPy hashes from `words`. Every library accepts a seed below 2³¹."""
    return int(np.random.SeedSequence(words).generate_state(1)[0] >> 1)


def trial_seed(seed: int, index: int, repeat: int) -> int:
    """Return the seed of a trial. The seed determines the first weights of the model and all other random numbers of the trial."""
    return _seed(_TRIAL, seed, index, repeat)


def confirm_seeds(seed: int, count: int, used: set[int]) -> list[int]:
    """Return `count` different seeds for the confirmation. None of the seeds is in `used`, the seeds of the trials."""
    seeds: list[int] = []
    number = 0
    while len(seeds) < count:
        candidate = _seed(_CONFIRM, seed, number)
        number += 1
        if candidate not in used and candidate not in seeds:
            seeds.append(candidate)
    return seeds


def sampler_seed(seed: int, num_recorded: int) -> int:
    """Return the seed of a sampler that starts when the record contains `num_recorded` trials.

    `num_recorded` is always 0 for a sampler of Optuna with a state, which makes the recorded proposals again and so needs the same seed in each session.
    """
    return _seed(_SAMPLER, seed, num_recorded)


def take_over_seed(seed: int, index: int, epoch: int) -> int:
    """Return the seed for the random numbers with which trial `index` takes over another trial's checkpoint after `epoch` (population based training).

    The random numbers depend neither on the order in which trials report, nor on the number of sessions.
    """
    return _seed(_TAKE_OVER, seed, index, epoch)


def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Return the order of the training data in an epoch as row numbers, int64 [length].

    All trials of a sweep see the training data in the same order, so that the order causes no difference between the trials.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([_ORDER, seed, epoch]))).permutation(length)


def augmentation_draws(seed: int, epoch: int, length: int, number: int) -> np.ndarray:
    """Return the random numbers of the augmentation in an epoch, uniform in [0, 1), float64 [length, number].

    All trials of a sweep use the same numbers for a row of the training data, whatever their batch sizes are.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([_AUGMENTATION, seed, epoch]))).random((length, number))


def mixup_draws(seed: int, epoch: int, length: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the partner of each row of the training data in an epoch, int64 [length], and the part of the row itself in the mixture, float64 [length].

    The parts are Beta(`alpha`, `alpha`) distributed. All trials of a sweep use the same mixtures, whatever their batch sizes are.
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([_MIXUP, seed, epoch])))
    return generator.integers(length, size=length), generator.beta(alpha, alpha, length)


def dropout_keys(trial_seed: int, epoch: int, num_batches: int) -> np.ndarray:
    """Return the key of each batch of an epoch, int64 [num_batches], from which the masks of dropout are computed.

    The keys of more batches begin with the keys of fewer batches.
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([_DROPOUT, trial_seed, epoch])))
    return generator.integers(2**63, size=num_batches)
