"""This module contains the samplers. A sampler proposes the next configuration, and learns the result of each configuration."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

from raysweep.common.numeric import is_same
from raysweep.config.distributions import Choice
from raysweep.config.model import Named, SweepConfig
from raysweep.config.space import configuration, has, nested, point_of, value_at
from raysweep.record.sweep import Sweep
from raysweep.record.trials import Candidate


class Sampler(Protocol):
    """Proposes configurations, and learns from the finished configurations."""

    def propose(self, index: int) -> dict[str, Any] | None:
        """Return configuration number `index`, nested like the search space. Return None if the sampler must wait for the end of a trial first."""

    def adopt(self, index: int, config: dict[str, Any]) -> None:
        """Treat a configuration from another source as if this sampler had proposed the configuration."""

    def tell(self, trial: Candidate) -> None:
        """Learn from the result of a finished configuration."""


class IndependentSampler:
    """Proposes the configurations of random search and grid search. A configuration depends only on its index and on the sweep's seed."""

    def __init__(self, space: dict[str, Any], seed: int) -> None:
        self.space, self.seed = space, seed

    def propose(self, index: int) -> dict[str, Any]:
        return configuration(self.space, self.seed, index)

    def adopt(self, index: int, config: dict[str, Any]) -> None:
        """Do nothing, because a configuration does not depend on other configurations."""

    def tell(self, trial: Candidate) -> None:
        """Do nothing, because the sampler does not learn."""


class PointsFirst:
    """Proposes the points of the config that no trial has used yet, then the configurations of a sampler.

    If a point has no value for a key of the search space, this class samples the value at random.
    """

    def __init__(self, make_sampler: Callable[[set[int]], Sampler], sweep: SweepConfig, space: dict[str, Any], recorded: Sweep) -> None:
        """Make the sampler. `make_sampler` gets the indices of the recorded configurations that come from a point."""
        self.space, self.seed = space, sweep.seed
        self.left = []
        tried: set[int] = set()
        for point in (point_of(space, point) for point in sweep.points_to_evaluate):
            candidates = (c.index for c in recorded.candidates if c.index not in tried and self._is_of(c.config, point))
            if (index := next(candidates, None)) is not None:
                tried.add(index)
            else:
                self.left.append(point)
        self.sampler = make_sampler(tried)

    def propose(self, index: int) -> dict[str, Any] | None:
        if not self.left:
            return self.sampler.propose(index)
        point = self.left.pop(0)
        drawn = configuration(self.space, self.seed, index)
        config = nested({key: point.get(key, value_at(drawn, key)) for key in self.space})
        self.adopt(index, config)
        return config

    def _is_of(self, config: dict[str, Any], point: dict[str, Any]) -> bool:
        """Return whether a configuration has the same value as a point for each key of the point."""
        return all(has(config, key) and self._is_value(key, value_at(config, key), value) for key, value in point.items())

    def _is_value(self, key: str, recorded: Any, value: Any) -> bool:
        return is_same(recorded, value) if isinstance(self.space[key], Choice) else bool(recorded == value)

    def adopt(self, index: int, config: dict[str, Any]) -> None:
        self.sampler.adopt(index, config)

    def tell(self, trial: Candidate) -> None:
        self.sampler.tell(trial)


class ListSampler:
    """Proposes the configurations of a list, in the order of the list."""

    def __init__(self, configurations: list[dict[str, Any]]) -> None:
        self.configurations = configurations

    def propose(self, index: int) -> dict[str, Any]:
        return self.configurations[index]

    def adopt(self, index: int, config: dict[str, Any]) -> None:
        """Do nothing, because the list contains all configurations."""

    def tell(self, trial: Candidate) -> None:
        """Do nothing, because the sampler does not learn."""


def is_adaptive(search_algorithm: Named) -> bool:
    """Return whether the algorithm learns from ended trials. Such an algorithm learns nothing if all trials run at the same time."""
    return search_algorithm.name not in ("random", "grid")


def make_sampler(
    sweep: SweepConfig, space: dict[str, Any], recorded: Sweep, state_dir: Path, root: Path, known: Sequence[Candidate] = ()
) -> Sampler:
    """Return the sampler of a sweep, which already knows the recorded trials. The config of the sweep must be validated.

    `known` are trials of the time before the sweep (`warm_start`). A Tune searcher stores its state in `state_dir`. Relative paths start at `root`.
    """

    def make(points: Collection[int] = ()) -> Sampler:
        if sweep.search_algorithm.name == "optuna":
            from raysweep.tune.optuna_sampler import OptunaSampler

            return OptunaSampler(sweep, space, recorded, root, points, known)
        if is_adaptive(sweep.search_algorithm):
            from raysweep.tune.searchers import TuneSampler

            return TuneSampler(sweep, space, recorded, state_dir, root, known)
        return IndependentSampler(space, sweep.seed)

    return PointsFirst(make, sweep, space, recorded) if sweep.points_to_evaluate else make()
