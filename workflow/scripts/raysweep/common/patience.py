"""This module decides how long a value has not become better: the metric of a trial (`stop`), and the best value of a sweep (`end_when`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from raysweep.common.bounds import Bounds, any_holds

NO_BETTER_FOR = "no_better_for"  # key in `stop` and `end_when` of the config; a metric cannot have this name


class BestSoFar:
    """Compares each value of a series with the best value before."""

    def __init__(self, min_delta: float, mode: Literal["max", "min"]) -> None:
        self.min_delta, self.sign = min_delta, 1 if mode == "max" else -1
        self.best: float | None = None

    def improves(self, value: float) -> bool:
        """Return whether `value` is the first value, or is better than the best value by more than `min_delta`. The value then becomes the best value."""
        is_better = self.best is None or self.sign * (value - self.best) > self.min_delta
        if is_better:
            self.best = value
        return is_better


def epochs_without_better(reports: Iterable[tuple[int, float]], min_delta: float, mode: Literal["max", "min"]) -> int:
    """Return the number of epochs since the value last became better. `reports` are pairs (epoch, value) in the order of the epochs."""
    best, epoch_of_best, last_epoch = BestSoFar(min_delta, mode), 0, 0
    for epoch, value in reports:
        last_epoch = epoch
        if best.improves(value):
            epoch_of_best = epoch
    return last_epoch - epoch_of_best


def is_enough(reports: Sequence[tuple[int, dict[str, Any]]], stop: Bounds, metric: str, mode: Literal["max", "min"]) -> bool:
    """Return whether a trial is complete by `stop` after the last one of its reports, which are pairs (epoch, metrics).

    A trial is complete when its last report fulfils a bound, or when the metric has not become better for `no_better_for` epochs. All reports count, also
    reports outside the constraint. Otherwise a new constraint, with which a sweep goes on, would change how long trials have to train.
    """
    bounds = {key: bound for key, bound in stop.items() if key != NO_BETTER_FOR}
    if not reports or any_holds(reports[-1][1], bounds):
        return bool(reports)
    if (patience := stop.get(NO_BETTER_FOR)) is None:
        return False
    values = [(epoch, metrics[metric]) for epoch, metrics in reports if metric in metrics]
    return epochs_without_better(values, patience["min_delta"], mode) >= patience["epochs"]
