"""Where the next configuration comes from. A sampler proposes configuration `index` and is told how each one did."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

from raysweep.common.seeds import sampler_seed
from raysweep.config.model import Mode, Named, SweepConfig
from raysweep.config.space import Choice, Distribution, Normal, configuration, fill, has, nested, point_of, quantized, value_at, values_in
from raysweep.record.trials import Candidate, Sweep

NORMAL_QUANTILES = (1e-6, 1 - 1e-6)  # between which a normal distribution is searched


class Sampler(Protocol):
    def propose(self, index: int) -> dict[str, Any] | None:
        """Configuration `index`, nested as the search space is; None where there is none until another trial has ended."""

    def adopt(self, index: int, config: dict[str, Any]) -> None:
        """Take a configuration that came from elsewhere for one of its own."""

    def tell(self, trial: Candidate) -> None:
        """Learn from a trial that has finished."""


def value_of(d: Distribution, parameter: Any) -> Any:
    """The value for which a learning algorithm's parameter stands: the position in a list, the quantile of a normal distribution, else a number."""
    if isinstance(d, Choice):
        return d.values[parameter]
    if isinstance(d, Normal):
        return d.quantile(parameter)
    return quantized(parameter, d.low, d.high, d.step) if d.step else parameter


def parameter_of(d: Distribution, value: Any) -> Any:
    """The other way round."""
    if isinstance(d, Choice):
        return d.values.index(value)
    if isinstance(d, Normal):
        return min(max(d.cumulative(value), NORMAL_QUANTILES[0]), NORMAL_QUANTILES[1])
    return value


class IndependentSampler:
    """Random and grid search: a configuration depends on its index and the sweep's seed alone."""

    def __init__(self, space: dict[str, Any], seed: int) -> None:
        self.space, self.seed = space, seed

    def propose(self, index: int) -> dict[str, Any]:
        return configuration(self.space, self.seed, index)

    def adopt(self, index: int, config: dict[str, Any]) -> None:
        """It depends on nothing else."""

    def tell(self, trial: Candidate) -> None:
        """There is nothing to learn."""


class OptunaSampler:
    """Optuna's tree-structured Parzen estimator, asked and told directly (Optuna's ask-and-tell interface).

    All that is recorded is told at the start, unfinished trials as running ones, and the sampler is seeded with the number of recorded
    trials, so that a sweep that goes on does not ask for what it has asked before.
    """

    def __init__(
        self, space: dict[str, Any], seed: int, metric: str, mode: Mode, recorded: Sweep, n_startup_trials: int, multivariate: bool
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.captureWarnings(True)  # that `multivariate` is experimental is no news to the user
        self.optuna = optuna
        self.space, self.metric, self.mode = space, metric, mode
        self.distributions = {key: self._distribution(d) for key, d in space.items() if isinstance(d, Distribution)}
        self.study = optuna.create_study(
            direction="maximize" if mode == "max" else "minimize",
            sampler=optuna.samplers.TPESampler(
                seed=sampler_seed(seed, len(recorded.trials)),
                n_startup_trials=n_startup_trials,
                multivariate=multivariate,
                constant_liar=True,
            ),
        )
        self.asked: dict[int, int] = {}  # index of the configuration → Optuna's number of the trial, until it is told
        for trial in recorded.candidates:
            self.adopt(trial.index, trial.config)
            if trial.finished:
                self.tell(trial)

    def propose(self, index: int) -> dict[str, Any]:
        asked = self.study.ask(self.distributions)
        self.asked[index] = asked.number
        return fill(self.space, lambda key, d: value_of(d, asked.params[key]))

    def tell(self, trial: Candidate) -> None:
        if trial.index in self.asked:
            value = self._value_of(trial)
            state = self.optuna.trial.TrialState.FAIL if value is None else self.optuna.trial.TrialState.COMPLETE
            self.study.tell(self.asked.pop(trial.index), value, state=state)

    def _value_of(self, trial: Candidate) -> float | None:
        best = trial.counted(self.metric, self.mode)
        return None if best is None else best.metrics[self.metric]

    def adopt(self, index: int, config: dict[str, Any]) -> None:
        """Add a configuration as a running trial."""
        values = values_in(self.space, config)
        if values is None:
            return  # from an earlier, different search space: Optuna could not place it
        parameters = {key: parameter_of(self.space[key], value) for key, value in values.items()}
        running = self.optuna.trial.create_trial(
            state=self.optuna.trial.TrialState.RUNNING, params=parameters, distributions=self.distributions
        )
        self.asked[index] = len(self.study.trials)
        self.study.add_trial(running)

    def _distribution(self, d: Distribution) -> Any:
        distributions = self.optuna.distributions
        if isinstance(d, Choice):  # by position, since Optuna takes only simple values as categories
            return distributions.CategoricalDistribution(list(range(len(d.values))))
        if isinstance(d, Normal):  # by quantile
            return distributions.FloatDistribution(*NORMAL_QUANTILES)
        if d.integer:
            return distributions.IntDistribution(int(d.low), int(d.high) - 1, log=d.log)
        return distributions.FloatDistribution(d.low, d.high, log=d.log)


class PointsFirst:
    """The points of the config that no trial has had yet, then what a sampler proposes. What a point leaves out is drawn at random."""

    def __init__(self, sampler: Sampler, points: list[dict[str, Any]], space: dict[str, Any], seed: int, recorded: Sweep) -> None:
        self.sampler, self.space, self.seed = sampler, space, seed
        self.left = []
        had = [trial.config for trial in recorded.candidates]  # each of which may have been one point
        for point in (point_of(space, point) for point in points):
            if its := next((config for config in had if _is_of(config, point)), None):
                had.remove(its)
            else:
                self.left.append(point)

    def propose(self, index: int) -> dict[str, Any] | None:
        if not self.left:
            return self.sampler.propose(index)
        point = self.left.pop(0)
        drawn = configuration(self.space, self.seed, index)
        config = nested({key: point.get(key, value_at(drawn, key)) for key in self.space})
        self.adopt(index, config)
        return config

    def adopt(self, index: int, config: dict[str, Any]) -> None:
        self.sampler.adopt(index, config)

    def tell(self, trial: Candidate) -> None:
        self.sampler.tell(trial)


def _is_of(config: dict[str, Any], point: dict[str, Any]) -> bool:
    """Whether a configuration is what a point says, as far as that says anything."""
    return all(has(config, key) and value_at(config, key) == value for key, value in point.items())


class ListSampler:
    """The configurations of a list, in its order."""

    def __init__(self, configurations: list[dict[str, Any]]) -> None:
        self.configurations = configurations

    def propose(self, index: int) -> dict[str, Any]:
        return self.configurations[index]

    def adopt(self, index: int, config: dict[str, Any]) -> None:
        """They are all its own."""

    def tell(self, trial: Candidate) -> None:
        """There is nothing to learn."""


def is_adaptive(search_algorithm: Named) -> bool:
    """Whether it learns from trials that have ended: with all at a time it would learn nothing."""
    return search_algorithm.name not in ("random", "grid")


def make_sampler(sweep: SweepConfig, space: dict[str, Any], recorded: Sweep, state_dir: Path, root: Path) -> Sampler:
    """The sampler of a sweep of a validated config, told of what is recorded. One of Tune's keeps its state in `state_dir`; paths start at `root`."""
    name, options = sweep.search_algorithm.name, sweep.search_algorithm.options
    seed, metric, mode = sweep.seed, sweep.metric, sweep.mode
    sampler: Sampler
    if name == "optuna":
        sampler = OptunaSampler(space, seed, metric, mode, recorded, **options)
    elif is_adaptive(sweep.search_algorithm):
        from raysweep.tune.searchers import TuneSampler

        sampler = TuneSampler(sweep, space, recorded, state_dir, root)
    else:
        sampler = IndependentSampler(space, seed)
    points = list(sweep.points_to_evaluate)
    return PointsFirst(sampler, points, space, seed, recorded) if points else sampler
