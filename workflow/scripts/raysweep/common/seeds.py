"""Where every random number of a sweep comes from: functions of the sweep's seed, so that a sweep can be run again to the same result."""

from __future__ import annotations

import numpy as np

# Names the purpose, so that two purposes never share a stream.
_TRIAL, _CONFIRM, _ORDER, _SAMPLER = 1, 2, 3, 4


def _seed(*words: int) -> int:
    """A number below 2³¹ (what every library takes), well mixed from `words`."""
    return int(np.random.SeedSequence(words).generate_state(1)[0] >> 1)


def trial_seed(seed: int, index: int, repeat: int) -> int:
    """The seed of a trial: its model's first weights and whatever else it draws."""
    return _seed(_TRIAL, seed, index, repeat)


def confirm_seeds(seed: int, count: int, used: set[int]) -> list[int]:
    """`count` different seeds for confirmation, none of which a trial used."""
    found: list[int] = []
    number = 0
    while len(found) < count:
        candidate = _seed(_CONFIRM, seed, number)
        number += 1
        if candidate not in used and candidate not in found:
            found.append(candidate)
    return found


def sampler_seed(seed: int, told: int) -> int:
    """The seed of an adaptive sampler that knows `told` results."""
    return _seed(_SAMPLER, seed, told)


def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The order of the training data in an epoch, int64 [length]: the same for all trials of a sweep, so that they are compared on the same draws."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([_ORDER, seed, epoch]))).permutation(length)
