"""This module uses a Ray Tune searcher as a sampler. The config names the searcher as `module:Class` or `file.py:Class`.

A searcher proposes parameters of two kinds, which all searchers support: numbers between bounds, and positions in a list. The distributions of this package
convert the parameters into values (parameters.py), so that the values of a configuration do not depend on the searcher.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from raysweep.common.errors import RaysweepError, logger
from raysweep.common.files import flush_path, written_aside
from raysweep.common.seeds import sampler_seed
from raysweep.config.distributions import Choice, Distribution, Normal
from raysweep.config.model import SweepConfig
from raysweep.config.space import fill, flattened, nested, values_in
from raysweep.record.sweep import Sweep
from raysweep.record.trials import Candidate
from raysweep.tune.classes import load_class
from raysweep.tune.parameters import NORMAL_QUANTILES, parameter_of, value_of

SEED_OPTIONS = ("seed", "random_state_seed", "random_state")  # names of the seed in the constructors of searchers


class TuneSampler:
    """Uses a Tune `Searcher` as a sampler.

    This class saves the searcher's state after each proposal and each result, and restores the state when the sweep continues. Then the searcher gets the
    recorded results that the state does not contain. A searcher that cannot save a state gets the recorded trials as already evaluated points, if the searcher
    accepts such points.
    """

    def __init__(
        self, sweep: SweepConfig, space: dict[str, Any], recorded: Sweep, state_dir: Path, root: Path, known: Sequence[Candidate] = ()
    ) -> None:
        name, options = sweep.search_algorithm.name, sweep.search_algorithm.options
        self.name, self.space, self.metric, self.mode = name, space, sweep.metric, sweep.mode
        self.distributions = {key: d for key, d in space.items() if isinstance(d, Distribution)}
        make = partial(
            self._make, load_class(name, Searcher, root, "search_algorithm"), options, sampler_seed(sweep.seed, len(recorded.trials))
        )
        self.searcher = make()
        described = json.dumps(
            [name, options, {key: repr(d) for key, d in space.items()}, sweep.metric, sweep.mode, sweep.seed], sort_keys=True
        )
        self.state = state_dir / f"searcher-{hashlib.sha256(described.encode()).hexdigest()[:12]}"
        self.asked: set[str] = set()
        self.reported: set[str] = set()
        self.elsewhere: set[str] = set()  # ids of the configurations that the searcher did not propose
        self.saved: tuple[int, int] | None = None  # number of proposals and number of results in the last saved state
        try:
            self._restore()
        except Exception as error:  # a power loss has damaged the file, or the class has changed
            logger.warning("%s cannot read the state that it saved (%s: %s): it learns anew.", name, type(error).__name__, error)
            self.searcher, self.asked, self.reported = make(), set(), set()
        forgotten, known_ids = 0, {trial.trial_id for trial in known}
        for trial in [*known, *recorded.candidates]:
            if trial.trial_id not in self.asked:
                self.elsewhere.add(trial.trial_id)
            if trial.finished and trial.trial_id not in self.reported:
                is_accepted = self._tell(trial)
                if not is_accepted and trial.trial_id in known_ids:
                    message = "it accepts no trials that it did not propose itself. Leave warm_start out, or take search_algorithm optuna"
                    raise RaysweepError(f"warm_start is not allowed with search_algorithm {name}: {message}")
                forgotten += not is_accepted
        if forgotten:
            logger.warning("%s cannot be told of %d trials that it did not propose itself: it begins to learn anew.", name, forgotten)
        self._save()

    def _make(self, searcher: type[Searcher], options: dict[str, Any], seed: int) -> Searcher:
        known = inspect.signature(searcher.__init__).parameters
        seeds = {key: seed for key in SEED_OPTIONS if key in known and key not in options}
        domains = nested({key: _domain(d) for key, d in self.distributions.items()})
        try:
            made = searcher(**seeds, **options)
            takes_ours = made.set_search_properties(self.metric, self.mode, domains)
        except Exception as error:  # the user's options are wrong, or a library is missing or has another version
            raise RaysweepError(f"search_algorithm {self.name}: {type(error).__name__}: {error}") from None
        if not takes_ours:
            raise RaysweepError(
                f"search_algorithm {self.name}: it takes no search space and metric from outside, as it has its own. Leave them to the config"
            )
        return made

    def propose(self, index: int) -> dict[str, Any] | None:
        trial_id = f"{index:05d}"
        suggested = self.searcher.suggest(trial_id)
        if suggested is None:
            return None
        if suggested == Searcher.FINISHED:
            raise RaysweepError(f"search_algorithm {self.name} has no more than {index} configurations. Set num_samples to {index}")
        self.asked.add(trial_id)
        self._save()
        parameters = flattened(suggested)  # some searchers return nested parameters for keys that contain a slash
        return fill(self.space, lambda key, d: value_of(d, _plain(parameters[key])))

    def adopt(self, index: int, config: dict[str, Any]) -> None:
        self.elsewhere.add(f"{index:05d}")

    def tell(self, trial: Candidate) -> None:
        # A searcher takes one result of a trial, also of a trial that goes on after it was finished.
        if trial.trial_id not in self.reported:
            self._tell(trial)
            self._save()

    def _tell(self, trial: Candidate) -> bool:
        """Give the result of a configuration to the searcher. Return False if the searcher accepts only the searcher's own proposals."""
        best = trial.counted(self.metric, self.mode)
        self.reported.add(trial.trial_id)
        if trial.trial_id not in self.elsewhere:
            result = None if best is None else {self.metric: best.metrics[self.metric], "training_iteration": best.epoch}
            self.searcher.on_trial_complete(trial.trial_id, result, error=best is None)
            return True
        values = values_in(self.space, trial.config)
        if best is None or values is None:
            return True  # the trial has no result, or the configuration lies outside the search space
        try:
            parameters = {key: parameter_of(self.distributions[key], value) for key, value in values.items()}
            self.searcher.add_evaluated_point(parameters, best.metrics[self.metric])
        except NotImplementedError:
            return False
        return True

    def _save(self) -> None:
        """Save the searcher's state under a new name, then replace the index file, which contains the name of the state's file.

        If the driver is killed or the power fails during this method, the index file therefore names either the complete old state or the complete new state.
        """
        if self.saved == (len(self.asked), len(self.reported)):
            return
        aside = self.state.with_suffix(f".{len(self.asked)}-{len(self.reported)}-{uuid.uuid4().hex[:8]}")
        try:
            self.searcher.save(str(aside))
        except NotImplementedError:
            return
        known = {"file": aside.name, "asked": sorted(self.asked), "told": sorted(self.reported)}
        flush_path(aside)
        with written_aside(self.state.with_suffix(".json")) as stream:
            json.dump(known, stream)
        self.saved = len(self.asked), len(self.reported)
        for old in self.state.parent.glob(f"{self.state.name}.*-*"):
            if old != aside:
                old.unlink()

    def _restore(self) -> None:
        index = self.state.with_suffix(".json")
        if index.exists():
            known = json.loads(index.read_text())
            self.searcher.restore(str(self.state.with_name(known["file"])))
            self.asked, self.reported = set(known["asked"]), set(known["told"])
            self.saved = len(self.asked), len(self.reported)


def _domain(d: Distribution) -> Any:
    """Return Tune's domain for a distribution. The searcher proposes parameters from this domain, and `value_of` converts these parameters into values."""
    if isinstance(d, Choice):
        return tune.choice(list(range(len(d.values))))
    if isinstance(d, Normal):
        return tune.uniform(*NORMAL_QUANTILES)
    if d.integer:
        return (tune.lograndint if d.log else tune.randint)(int(d.low), int(d.high))
    return (tune.loguniform if d.log else tune.uniform)(d.low, d.high)


def _plain(value: Any) -> Any:
    """Return a Python number for a numpy number. Return any other value unchanged."""
    return value.item() if hasattr(value, "item") else value
