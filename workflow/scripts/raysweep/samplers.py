"""Where the next configuration comes from. A sampler proposes configuration `index` and is told how each one did."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from .record import Mode, Sweep, Trial
from .seeds import sampler_seed
from .space import Choice, Distribution, Normal, configuration, fill, quantized, value_at


class Sampler(Protocol):
    def propose(self, index: int) -> dict[str, Any]:
        """Configuration `index`, nested as the search space is."""

    def tell(self, trial: Trial) -> None:
        """Learn from a trial that has finished."""


class IndependentSampler:
    """Random and grid search: a configuration depends on its index and the sweep's seed alone."""

    def __init__(self, space: dict[str, Any], seed: int) -> None:
        self.space, self.seed = space, seed

    def propose(self, index: int) -> dict[str, Any]:
        return configuration(self.space, self.seed, index)

    def tell(self, trial: Trial) -> None:
        """There is nothing to learn."""


class OptunaSampler:
    """Optuna's tree-structured Parzen estimator, asked and told directly (Optuna's ask-and-tell interface).

    All that is recorded is told at the start, and the sampler is seeded with the number of results it was told, so that a sweep that
    goes on does not ask for what it has asked before.
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
        finished = [trial for trial in recorded.trials.values() if trial.finished]
        self.study = optuna.create_study(
            direction="maximize" if mode == "max" else "minimize",
            sampler=optuna.samplers.TPESampler(
                seed=sampler_seed(seed, len(finished)), n_startup_trials=n_startup_trials, multivariate=multivariate, constant_liar=True
            ),
        )
        self.asked: dict[int, Any] = {}
        for trial in finished:
            self.tell(trial)

    def propose(self, index: int) -> dict[str, Any]:
        asked = self.asked[index] = self.study.ask(self.distributions)
        return fill(self.space, lambda key, d: self._value(d, asked.params[key]))

    def tell(self, trial: Trial) -> None:
        best = None if trial.status == "ERROR" else trial.best(self.metric, self.mode)
        state = self.optuna.trial.TrialState.FAIL if best is None else self.optuna.trial.TrialState.COMPLETE
        value = None if best is None else best.metrics[self.metric]
        if trial.index in self.asked:
            self.study.tell(self.asked.pop(trial.index), value, state=state)
            return
        values = {key: value_at(trial.config, key) for key in self.distributions}
        if not all(self._contains(self.space[key], value) for key, value in values.items()):
            return  # from an earlier, different search space: Optuna could not place it
        parameters = {key: self._parameter(self.space[key], value) for key, value in values.items()}
        self.study.add_trial(self.optuna.trial.create_trial(state=state, value=value, params=parameters, distributions=self.distributions))

    def _distribution(self, d: Distribution) -> Any:
        distributions = self.optuna.distributions
        if isinstance(d, Choice):  # by position, since Optuna takes only simple values as categories
            return distributions.CategoricalDistribution(list(range(len(d.values))))
        if isinstance(d, Normal):  # by quantile
            return distributions.FloatDistribution(1e-6, 1 - 1e-6)
        if d.integer:
            return distributions.IntDistribution(int(d.low), int(d.high) - 1, log=d.log)
        return distributions.FloatDistribution(d.low, d.high, log=d.log)

    def _value(self, d: Distribution, parameter: Any) -> Any:
        if isinstance(d, Choice):
            return d.values[parameter]
        if isinstance(d, Normal):
            return d.quantile(parameter)
        return quantized(parameter, d.low, d.high, d.step) if d.step else parameter

    def _parameter(self, d: Distribution, value: Any) -> Any:
        if isinstance(d, Choice):
            return d.values.index(value)
        if isinstance(d, Normal):
            return d.cumulative(value)
        return value

    def _contains(self, d: Distribution, value: Any) -> bool:
        if isinstance(d, Choice):
            return value in d.values
        if isinstance(d, Normal):
            return isinstance(value, int | float) and 1e-6 <= d.cumulative(value) <= 1 - 1e-6
        return isinstance(value, int | float) and d.low <= value <= (d.high - 1 if d.integer else d.high)


class ListSampler:
    """The configurations of a list, in its order."""

    def __init__(self, configurations: list[dict[str, Any]]) -> None:
        self.configurations = configurations

    def propose(self, index: int) -> dict[str, Any]:
        return self.configurations[index]

    def tell(self, trial: Trial) -> None:
        """There is nothing to learn."""


def make_sampler(sweep: dict[str, Any], space: dict[str, Any], recorded: Sweep) -> Sampler:
    """The sampler of a sweep of a validated config, told of what is recorded."""
    options = dict(sweep["search_algorithm"])
    if options.pop("name") == "optuna":
        return OptunaSampler(space, sweep["seed"], sweep["metric"], sweep["mode"], recorded, **options)
    return IndependentSampler(space, sweep["seed"])
