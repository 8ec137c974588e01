"""This module proposes configurations with a sampler of Optuna, through Optuna's ask-and-tell interface."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from raysweep.common.bounds import violations
from raysweep.common.errors import RaysweepError, logger
from raysweep.common.numeric import is_same
from raysweep.common.seeds import sampler_seed
from raysweep.config.distributions import Choice, Distribution, Normal
from raysweep.config.model import Objective, SweepConfig
from raysweep.config.space import fill, values_in
from raysweep.record.study import distribution_of
from raysweep.record.sweep import Sweep
from raysweep.record.trials import Candidate
from raysweep.tune.classes import load_class
from raysweep.tune.parameters import NORMAL_QUANTILES, parameter_of, value_of

CLASSES = {"tpe": "TPESampler", "gp": "GPSampler", "cmaes": "CmaEsSampler", "qmc": "QMCSampler", "nsga2": "NSGAIISampler"}
# Samplers that learn only from the results of the trials, so that the order of proposals and results does not matter.
STATELESS = ("tpe", "gp")
IGNORE_CONSTRAINTS = ("cmaes", "qmc")


class OptunaSampler:
    """Proposes configurations with one of Optuna's samplers.

    TPE and the Gaussian process learn only from the results of the trials. At the start, such a sampler gets the recorded trials, and a seed that depends on
    the number of the recorded trials, so that a sweep that continues does not propose the same configurations again.

    The other samplers have a state of their own, such as a position in a sequence or a generation. Such a sampler goes through all recorded proposals and
    results again, in the order of the record. With the same seed, the sampler makes the same proposals as before, and then has the state that it had before the
    interruption.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        space: dict[str, Any],
        recorded: Sweep,
        root: Path,
        points: Collection[int] = (),
        known: Sequence[Candidate] = (),
    ) -> None:
        """Make the sampler.

        Args:
            points: the indices of the recorded configurations that come from `points_to_evaluate`.
            known: finished trials of the time before the sweep (`warm_start`), which the sampler gets before the recorded trials.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Optuna warns that some samplers and options are experimental. The warning goes to Python's logging, because the user has chosen the sampler.
        logging.captureWarnings(True)
        self.space, self.metric, self.mode = space, sweep.metric, sweep.mode
        self.objectives = sweep.objectives or (Objective(sweep.metric, sweep.mode),)
        options = dict(sweep.search_algorithm.options)
        self.name = options.pop("sampler", "tpe")
        path = f"optuna.samplers:{CLASSES[self.name]}" if self.name in CLASSES else self.name
        sampler = load_class(path, optuna.samplers.BaseSampler, root, "search_algorithm sampler")
        is_stateless = self.name in STATELESS
        self.distributions = {key: _distribution(d) for key, d in space.items() if isinstance(d, Distribution)}
        self.study = optuna.create_study(
            directions=["maximize" if objective.mode == "max" else "minimize" for objective in self.objectives],
            sampler=self._make(sampler, options, sampler_seed(sweep.seed, len(recorded.trials) * is_stateless)),
        )
        # Index of the configuration → Optuna's trial. An entry stays until Optuna gets the result of the configuration.
        self.asked: dict[int, optuna.Trial] = {}
        if is_stateless:
            self._add([*known, *recorded.candidates])
        else:
            self._replay([*((trial, is_result) for trial in known for is_result in (False, True)), *recorded.search_history], points)

    def _make(self, sampler: type[optuna.samplers.BaseSampler], options: dict[str, Any], seed: int) -> optuna.samplers.BaseSampler:
        takes_seed = "seed" in inspect.signature(sampler.__init__).parameters and "seed" not in options
        try:
            return sampler(**({"seed": seed} if takes_seed else {}), **options)
        except Exception as error:  # the user's options are wrong, or a library is missing
            raise RaysweepError(f"search_algorithm sampler {self.name}: {type(error).__name__}: {error}") from None

    def _add(self, candidates: Sequence[Candidate]) -> None:
        """Add configurations to Optuna's study, with their results where the configurations have finished."""
        for candidate in candidates:
            if not candidate.finished:
                self.adopt(candidate.index, candidate.config)
            elif (parameters := self._parameters(candidate.config)) is not None:
                self.study.add_trial(self._frozen(parameters, candidate))

    def _frozen(self, parameters: dict[str, Any], candidate: Candidate) -> optuna.trial.FrozenTrial:
        """Return a finished configuration as a trial of Optuna."""
        values, constraints = self._outcome(candidate)
        return optuna.create_trial(
            state=TrialState.FAIL if values is None else TrialState.COMPLETE,
            values=values,
            params=parameters,
            distributions={key: self.distributions[key] for key in parameters},
            constraints=constraints,
        )

    def _replay(self, history: Sequence[tuple[Candidate, bool]], points: Collection[int]) -> None:
        """Make the recorded proposals again, and tell the recorded results, in the order of the record.

        The index of a trial that was known before the sweep is negative. Such a trial is adopted like a point of the config.
        """
        num_others = 0
        for candidate, is_result in history:
            is_foreign = candidate.index in points or candidate.index < 0
            if is_result:
                self.tell(candidate)
            elif is_foreign or not self._proposes_again(candidate):
                self.adopt(candidate.index, candidate.config)
                num_others += not is_foreign
        if num_others:
            logger.debug(
                "%s did not propose %d of the recorded configurations itself: the options or the version have changed",
                self.name,
                num_others,
            )

    def _proposes_again(self, candidate: Candidate) -> bool:
        """Propose a configuration, and return whether the proposal is the recorded configuration. Optuna forgets another proposal."""
        proposal = self.propose(candidate.index)
        if is_same(proposal, candidate.config):
            return True
        self.study.tell(self.asked.pop(candidate.index), state=TrialState.FAIL)
        return False

    def propose(self, index: int) -> dict[str, Any]:
        self.asked[index] = trial = self.study.ask(self.distributions)
        parameters = trial.params
        return fill(self.space, lambda key, d: value_of(d, parameters[key]))

    def adopt(self, index: int, config: dict[str, Any]) -> None:
        """Let Optuna propose the configuration `config`. A configuration outside of the search space is left out, because Optuna cannot use it."""
        if (parameters := self._parameters(config)) is not None:
            self.study.enqueue_trial(parameters)
            self.asked[index] = self.study.ask(self.distributions)

    def tell(self, trial: Candidate) -> None:
        if trial.index in self.asked:
            asked = self.asked.pop(trial.index)
            values, constraints = self._outcome(trial)
            for name, violation in constraints.items():
                asked.set_constraint(name, violation)
            self.study.tell(asked, values, state=TrialState.FAIL if values is None else TrialState.COMPLETE)

    def _parameters(self, config: dict[str, Any]) -> dict[str, Any] | None:
        values = values_in(self.space, config)
        return None if values is None else {key: parameter_of(self.space[key], value) for key, value in values.items()}

    def _outcome(self, candidate: Candidate) -> tuple[list[float] | None, dict[str, float]]:
        """Return the values of the objectives that a finished configuration reached, or None, and by how much the values violate each bound.

        Where no report fulfils the constraint, the best report counts with its violations, so that the sampler learns where the bounds hold. In this case, a
        sampler in IGNORE_CONSTRAINTS gets no value.
        """
        best = candidate.counted(self.metric, self.mode)
        amounts: dict[str, float] | None = {}
        if self.name not in IGNORE_CONSTRAINTS:
            best = best or candidate.counted(self.metric, self.mode, {})
            amounts = violations(best.metrics, candidate.constraint) if best else None
        return (None, {}) if best is None or amounts is None else ([best.metrics[o.metric] for o in self.objectives], amounts)


def _distribution(d: Distribution) -> optuna.distributions.BaseDistribution:
    """Return Optuna's distribution of the parameter that stands for a value of the distribution `d` (parameters.py)."""
    distributions = optuna.distributions
    if isinstance(d, Choice):  # a category is a position in the list, because Optuna accepts only simple values
        return distributions.CategoricalDistribution(list(range(len(d.values))))
    if isinstance(d, Normal):  # the parameter is a quantile
        return distributions.FloatDistribution(*NORMAL_QUANTILES)
    return distribution_of(d)
