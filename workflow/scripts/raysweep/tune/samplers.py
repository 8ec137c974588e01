"""Samplers: a sampler proposes the next configuration, and is told how each configuration did."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

from raysweep.common.seeds import sampler_seed
from raysweep.config.model import Named, SweepConfig
from raysweep.config.space import Choice, Distribution, Normal, configuration, fill, has, nested, point_of, quantized, value_at, values_in
from raysweep.record.trials import Candidate, Sweep

NORMAL_QUANTILES = (1e-6, 1 - 1e-6)  # between which a normal distribution is searched


class Sampler(Protocol):
    """Proposes configurations, and learns from those that have finished."""

    def propose(self, index: int) -> dict[str, Any] | None:
        """Return configuration `index`, nested as the search space is; None where the sampler waits for the end of a trial."""

    def adopt(self, index: int, config: dict[str, Any]) -> None:
        """Take a configuration that came from elsewhere as if the sampler had proposed it."""

    def tell(self, trial: Candidate) -> None:
        """Learn from a configuration that has finished."""


def value_of(d: Distribution, parameter: Any) -> Any:
    """Return the value that a parameter of a learning algorithm stands for.

    The parameter is a position in a list, a quantile of a normal distribution, or the number itself.
    """
    if isinstance(d, Choice):
        return d.values[parameter]
    if isinstance(d, Normal):
        return d.quantile(parameter)
    return quantized(parameter, d.low, d.high, d.step) if d.step else parameter


def parameter_of(d: Distribution, value: Any) -> Any:
    """Return the parameter of a learning algorithm that stands for a value."""
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
        """Do nothing, because a configuration does not depend on others."""

    def tell(self, trial: Candidate) -> None:
        """Do nothing, because the sampler does not learn."""


class OptunaSampler:
    """Optuna's tree-structured Parzen estimator, asked and told directly (Optuna's ask-and-tell interface).

    Optuna is told the record at the start, with unfinished trials as running ones. Its seed depends on the number of recorded trials, so that a sweep that
    continues does not propose the same configurations again.
    """

    def __init__(self, sweep: SweepConfig, space: dict[str, Any], recorded: Sweep) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.captureWarnings(True)  # Optuna warns that `multivariate` is experimental, which the user need not know
        self.optuna = optuna
        self.space, self.metric, self.mode = space, sweep.metric, sweep.mode
        self.distributions = {key: self._distribution(d) for key, d in space.items() if isinstance(d, Distribution)}
        self.study = optuna.create_study(
            direction="maximize" if sweep.mode == "max" else "minimize",
            sampler=optuna.samplers.TPESampler(
                seed=sampler_seed(sweep.seed, len(recorded.trials)),
                constant_liar=True,
                **sweep.search_algorithm.options,
            ),
        )
        self.asked: dict[int, int] = {}  # index of the configuration → Optuna's number of the trial, until Optuna is told its result
        for trial in recorded.candidates:
            self.adopt(trial.index, trial.config)
            if trial.finished:
                self.tell(trial)

    def propose(self, index: int) -> dict[str, Any]:
        proposal = self.study.ask(self.distributions)
        self.asked[index] = proposal.number
        return fill(self.space, lambda key, d: value_of(d, proposal.params[key]))

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
            return  # the configuration is of another search space, in which Optuna has no place for it
        parameters = {key: parameter_of(self.space[key], value) for key, value in values.items()}
        running = self.optuna.trial.create_trial(
            state=self.optuna.trial.TrialState.RUNNING, params=parameters, distributions=self.distributions
        )
        self.asked[index] = len(self.study.trials)
        self.study.add_trial(running)

    def _distribution(self, d: Distribution) -> Any:
        distributions = self.optuna.distributions
        if isinstance(d, Choice):  # by position, because Optuna takes only simple values as categories
            return distributions.CategoricalDistribution(list(range(len(d.values))))
        if isinstance(d, Normal):  # by quantile
            return distributions.FloatDistribution(*NORMAL_QUANTILES)
        if d.integer:
            return distributions.IntDistribution(int(d.low), int(d.high) - 1, log=d.log)
        return distributions.FloatDistribution(d.low, d.high, log=d.log)


class PointsFirst:
    """Proposes the points of the config that no trial has had yet, then the proposals of a sampler. Keys that a point leaves out are drawn at random."""

    def __init__(self, sampler: Sampler, sweep: SweepConfig, space: dict[str, Any], recorded: Sweep) -> None:
        self.sampler, self.space, self.seed = sampler, space, sweep.seed
        self.left = []
        configs = [candidate.config for candidate in recorded.candidates]  # each may have been one of the points
        for point in (point_of(space, point) for point in sweep.points_to_evaluate):
            if (config := next((config for config in configs if _is_of(config, point)), None)) is not None:
                configs.remove(config)
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
    """Return whether a configuration has the values of a point, for each key of the point."""
    return all(has(config, key) and value_at(config, key) == value for key, value in point.items())


class ListSampler:
    """Proposes the configurations of a list, in the order of the list."""

    def __init__(self, configurations: list[dict[str, Any]]) -> None:
        self.configurations = configurations

    def propose(self, index: int) -> dict[str, Any]:
        return self.configurations[index]

    def adopt(self, index: int, config: dict[str, Any]) -> None:
        """Do nothing, because the list holds all configurations."""

    def tell(self, trial: Candidate) -> None:
        """Do nothing, because the sampler does not learn."""


def is_adaptive(search_algorithm: Named) -> bool:
    """Return whether the algorithm learns from trials that have ended, so that it learns nothing where all trials run at the same time."""
    return search_algorithm.name not in ("random", "grid")


def make_sampler(sweep: SweepConfig, space: dict[str, Any], recorded: Sweep, state_dir: Path, root: Path) -> Sampler:
    """Return the sampler of a sweep of a validated config, told what is recorded.

    A searcher of Tune's keeps its state in `state_dir`. Paths start at `root`.
    """
    sampler: Sampler
    if sweep.search_algorithm.name == "optuna":
        sampler = OptunaSampler(sweep, space, recorded)
    elif is_adaptive(sweep.search_algorithm):
        from raysweep.tune.searchers import TuneSampler

        sampler = TuneSampler(sweep, space, recorded, state_dir, root)
    else:
        sampler = IndependentSampler(space, sweep.seed)
    return PointsFirst(sampler, sweep, space, recorded) if sweep.points_to_evaluate else sampler
