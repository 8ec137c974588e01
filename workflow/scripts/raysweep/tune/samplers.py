"""This module contains the samplers. A sampler proposes the next configuration, and learns the result of each configuration."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from raysweep.common.numeric import is_same
from raysweep.common.seeds import sampler_seed
from raysweep.config.model import Named, SweepConfig
from raysweep.config.space import (
    Choice,
    Distribution,
    Normal,
    configuration,
    fill,
    has,
    nested,
    point_of,
    quantized,
    value_at,
    values_in,
)
from raysweep.record.trials import Candidate, Sweep

NORMAL_QUANTILES = (1e-6, 1 - 1e-6)  # lowest and highest quantile of a normal distribution that a learning algorithm proposes


class Sampler(Protocol):
    """Proposes configurations, and learns from the finished configurations."""

    def propose(self, index: int) -> dict[str, Any] | None:
        """Return configuration number `index`, nested like the search space. Return None if the sampler must wait for the end of a trial first."""

    def adopt(self, index: int, config: dict[str, Any]) -> None:
        """Treat a configuration from another source as if this sampler had proposed the configuration."""

    def tell(self, trial: Candidate) -> None:
        """Learn from the result of a finished configuration."""


def value_of(d: Distribution, parameter: Any) -> Any:
    """Return the value of the distribution for a parameter of a learning algorithm.

    The parameter is a position in a list, a quantile of a normal distribution, or the numerical value.
    """
    if isinstance(d, Choice):
        return d.values[parameter]
    if isinstance(d, Normal):
        return d.quantile(parameter)
    return quantized(parameter, d.low, d.high, d.step) if d.step else parameter


def parameter_of(d: Distribution, value: Any) -> Any:
    """Return the parameter of a learning algorithm for a value of the distribution. This is the inverse of `value_of`."""
    if isinstance(d, Choice):
        return d.position(value)
    if isinstance(d, Normal):
        return min(max(d.cumulative(value), NORMAL_QUANTILES[0]), NORMAL_QUANTILES[1])
    return value


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


class OptunaSampler:
    """Proposes configurations with Optuna's tree-structured Parzen estimator (TPE), through Optuna's ask-and-tell interface.

    At the start Optuna gets the trials that were known before the sweep (`known`), and then the recorded trials, with the unfinished trials as running
    trials. The seed of TPE depends on the number of recorded trials, so
    that a sweep that continues does not propose the same configurations again.
    """

    def __init__(self, sweep: SweepConfig, space: dict[str, Any], recorded: Sweep, known: Sequence[Candidate] = ()) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Optuna warns that `multivariate` is experimental. The warning goes to Python's logging, because the user does not need this warning.
        logging.captureWarnings(True)
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
        # Index of the configuration → Optuna's number for the trial. An entry stays until Optuna gets the result of the configuration.
        self.asked: dict[int, int] = {}
        tell_history(self, [*known, *recorded.candidates])

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
        """Add a configuration to Optuna's study as a running trial."""
        values = values_in(self.space, config)
        if values is None:
            return  # the configuration belongs to another search space, so Optuna cannot use the configuration
        parameters = {key: parameter_of(self.space[key], value) for key, value in values.items()}
        running = self.optuna.trial.create_trial(
            state=self.optuna.trial.TrialState.RUNNING, params=parameters, distributions=self.distributions
        )
        self.asked[index] = len(self.study.get_trials(deepcopy=False))  # Study.trials would copy all trials
        self.study.add_trial(running)

    def _distribution(self, d: Distribution) -> Any:
        distributions = self.optuna.distributions
        if isinstance(d, Choice):  # a category is a position in the list, because Optuna accepts only simple values
            return distributions.CategoricalDistribution(list(range(len(d.values))))
        if isinstance(d, Normal):  # the parameter is a quantile
            return distributions.FloatDistribution(*NORMAL_QUANTILES)
        if d.integer:
            return distributions.IntDistribution(int(d.low), int(d.high) - 1, log=d.log)
        return distributions.FloatDistribution(d.low, d.high, log=d.log)


def tell_history(sampler: Sampler, trials: Sequence[Candidate]) -> None:
    """Give a sampler the trials that were known before this session, in this order: their configurations, and the results of the finished trials."""
    for trial in trials:
        sampler.adopt(trial.index, trial.config)
        if trial.finished:
            sampler.tell(trial)


class PointsFirst:
    """Proposes the points of the config that no trial has used yet, then the configurations of a sampler.

    If a point has no value for a key of the search space, this class samples the value at random.
    """

    def __init__(self, sampler: Sampler, sweep: SweepConfig, space: dict[str, Any], recorded: Sweep) -> None:
        self.sampler, self.space, self.seed = sampler, space, sweep.seed
        self.left = []
        configs = [candidate.config for candidate in recorded.candidates]  # a recorded configuration may have come from a point
        for point in (point_of(space, point) for point in sweep.points_to_evaluate):
            if (config := next((config for config in configs if self._is_of(config, point)), None)) is not None:
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
    sampler: Sampler
    if sweep.search_algorithm.name == "optuna":
        sampler = OptunaSampler(sweep, space, recorded, known)
    elif is_adaptive(sweep.search_algorithm):
        from raysweep.tune.searchers import TuneSampler

        sampler = TuneSampler(sweep, space, recorded, state_dir, root, known)
    else:
        sampler = IndependentSampler(space, sweep.seed)
    return PointsFirst(sampler, sweep, space, recorded) if sweep.points_to_evaluate else sampler
