"""Computes the mean and the standard deviation of inputs and targets, in blocks, and finds values that are not finite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysweep.common.errors import ConfigError, logger
from raysweep.data.manifest import Figures
from raysweep.data.mapped import Inputs, blocks_of


def refuse_non_finite(inputs: Inputs, place: str) -> None:
    """Raise ConfigError where some values are NaN or infinite. The message has their number, and the row and column of the first, counted from 0."""
    count, first, row = 0, "", 0
    for block in blocks_of(inputs) if inputs.dtype.kind == "f" else ():
        is_bad = ~np.isfinite(block)
        if is_bad.any():
            count += int(is_bad.sum())
            in_block, *column = np.argwhere(is_bad)[0].tolist()
            first = first or f"row {row + in_block}, column {', '.join(map(str, column))}"
        row += len(block)
    if count:
        raise ConfigError(
            f"{place} has {count:,} values that are NaN or infinite, the first in {first}. Allowed: numbers. Fill them or remove these rows."
        )


def figures_of(inputs: Inputs, place: str, names: Sequence[str] = ()) -> Figures:
    """Return the mean and the standard deviation (of the population) of each column of `inputs`. Axis 1 has the columns or channels.

    Columns with equal values in all rows get the deviation 1, and one line says their numbers or, where there are `names`, their names. The parts are
    joined as Chan, Golub and LeVeque describe in "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """
    axes = (0, *range(2, len(inputs.shape)))
    count, mean, squares, low, high = 0, *(np.full(inputs.shape[1], value) for value in (0.0, 0.0, np.inf, -np.inf))
    for block in blocks_of(inputs):
        values = block.astype(np.float64)
        size = values.size // inputs.shape[1]
        block_mean = values.mean(axes)
        shift = block_mean - mean
        squares += values.var(axes) * size + shift**2 * (count * size / (count + size))
        mean += shift * (size / (count + size))
        count += size
        low, high = np.minimum(low, values.min(axes)), np.maximum(high, values.max(axes))
    is_constant = low == high  # the deviation of equal values may differ from 0 by rounding errors
    if is_constant.any():
        columns = [names[number] if names else str(number) for number in np.flatnonzero(is_constant).tolist()]
        more = f" and {len(columns) - 5} more" if len(columns) > 5 else ""
        logger.warning("%s: %d columns have one value in all training rows: %s%s", place, len(columns), ", ".join(columns[:5]), more)
    return Figures(tuple(mean.tolist()), tuple(np.where(is_constant, 1.0, np.sqrt(squares / count)).tolist()))
