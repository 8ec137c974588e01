"""The seeds of a sweep: each is a function of the sweep's own seed, so that a sweep can be run again with the same result."""

from __future__ import annotations

import numpy as np

# One number for each purpose, so that two purposes never share a stream of random numbers.
_TRIAL, _CONFIRM, _ORDER, _SAMPLER = 1, 2, 3, 4


def _seed(*words: int) -> int:
    """Return a number below 2³¹, which every library accepts as a seed, well mixed from `words`."""
    return int(np.random.SeedSequence(words).generate_state(1)[0] >> 1)


def trial_seed(seed: int, index: int, repeat: int) -> int:
    """Return the seed of a trial, from which come its model's first weights and all else that the trial draws."""
    return _seed(_TRIAL, seed, index, repeat)


def confirm_seeds(seed: int, count: int, used: set[int]) -> list[int]:
    """Return `count` different seeds for the confirmation; no trial used any of them."""
    seeds: list[int] = []
    number = 0
    while len(seeds) < count:
        candidate = _seed(_CONFIRM, seed, number)
        number += 1
        if candidate not in used and candidate not in seeds:
            seeds.append(candidate)
    return seeds


def sampler_seed(seed: int, num_results: int) -> int:
    """Return the seed of an adaptive sampler that knows `num_results` results."""
    return _seed(_SAMPLER, seed, num_results)


def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Return the order of the training data in an epoch, int64 [length].

    The order is the same for all trials of a sweep, so that the trials are compared on the same draws.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([_ORDER, seed, epoch]))).permutation(length)
