"""Search algorithms of Ray Tune's, by name or as `module:Class`, asked and told directly.

They are given parameters that each of them knows: numbers between bounds, and positions in a list. Our own distributions make values of those (samplers.py), so
that what a configuration may hold does not depend on who searches.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import logging
import os
import uuid
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from raysweep.common.errors import ConfigError, RaysweepError
from raysweep.common.seeds import sampler_seed
from raysweep.config.model import Mode
from raysweep.config.space import Choice, Distribution, Normal, fill, flattened, nested, values_in
from raysweep.record.trials import Candidate, Sweep
from raysweep.tune.samplers import NORMAL_QUANTILES, parameter_of, value_of
from raysweep.usercode.freeze import load_target
from raysweep.usercode.target import find_target

logger = logging.getLogger("raysweep")

BY_NAME = {"hyperopt": "ray.tune.search.hyperopt:HyperOptSearch", "ax": "ray.tune.search.ax:AxSearch"}
SEED_OPTIONS = ("seed", "random_state_seed", "random_state")  # what constructors call it


def load_searcher(name: str, root: Path) -> type[Searcher]:
    """The class `file.py:Class` or `module:Class`. Raises RaysweepError where there is none."""
    module, _, class_name = BY_NAME.get(name, name).rpartition(":")
    try:
        found, _ = load_target(find_target(name, root))
    except ConfigError:  # it is not the user's own, so a library's
        try:
            found = getattr(importlib.import_module(module), class_name, None)
        except ImportError as error:
            raise RaysweepError(f"search_algorithm {name}: {error}. Add what it needs to env.requirements") from None
    if not (inspect.isclass(found) and issubclass(found, Searcher)):
        raise RaysweepError(f"search_algorithm {name}: it is no ray.tune.search.Searcher")
    return found


class TuneSampler:
    """A `Searcher` of Tune's.

    Its state is saved whenever it was asked or told, as Tune would do, and restored when the sweep goes on. What it then was not told yet it is told. Where
    there is no state, or it has none to save, it is given the recorded trials as points that were evaluated elsewhere, if it takes such.
    """

    def __init__(
        self,
        name: str,
        options: dict[str, Any],
        space: dict[str, Any],
        seed: int,
        metric: str,
        mode: Mode,
        recorded: Sweep,
        state_dir: Path,
        root: Path,
    ) -> None:
        self.name, self.space, self.metric, self.mode = name, space, metric, mode
        self.distributions = {key: d for key, d in space.items() if isinstance(d, Distribution)}
        make = partial(self._made, load_searcher(name, root), options, sampler_seed(seed, len(recorded.trials)))
        self.searcher = make()
        described = json.dumps([name, options, {key: repr(d) for key, d in space.items()}, metric, mode, seed], sort_keys=True)
        self.state = state_dir / f"searcher-{hashlib.sha256(described.encode()).hexdigest()[:12]}"
        self.asked: set[str] = set()
        self.told: set[str] = set()
        self.elsewhere: set[str] = set()  # trials that it did not propose
        self.saved: tuple[int, int] | None = None  # how many it had been asked for and told of
        try:
            self._restore()
        except Exception as error:  # of a file that a power loss tore, or of a class that has become another one
            logger.warning("%s cannot read the state that it saved (%s: %s): it learns anew.", name, type(error).__name__, error)
            self.searcher, self.asked, self.told = make(), set(), set()
        forgotten = 0
        for trial in recorded.candidates:
            if trial.trial_id not in self.asked:
                self.elsewhere.add(trial.trial_id)
            if trial.finished and trial.trial_id not in self.told:
                forgotten += not self._tell(trial)
        if forgotten:
            logger.warning("%s cannot be told of %d trials that it did not propose itself: it begins to learn anew.", name, forgotten)
        self._save()

    def _made(self, searcher: type[Searcher], options: dict[str, Any], seed: int) -> Searcher:
        known = inspect.signature(searcher.__init__).parameters
        seeds = {key: seed for key in SEED_OPTIONS if key in known and key not in options}
        if self.name == "ax":
            # Else it waits for the results of a few trials before it proposes others, those of failed ones included, which it never gets.
            seeds = {"random_seed": seed} | {"enforce_sequential_optimization": False}
            seeds = {key: value for key, value in seeds.items() if key not in options}
        domains = nested({key: _domain(d) for key, d in self.distributions.items()})
        try:
            made = searcher(**seeds, **options)
            takes_ours = made.set_search_properties(self.metric, self.mode, domains)
        except Exception as error:  # of the user's options, or of a library that is not there or of another version
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
        parameters = flattened(suggested)  # some make nested ones of keys with a slash
        return fill(self.space, lambda key, d: value_of(d, _plain(parameters[key])))

    def adopt(self, index: int, config: dict[str, Any]) -> None:
        self.elsewhere.add(f"{index:05d}")

    def tell(self, trial: Candidate) -> None:
        self._tell(trial)
        self._save()

    def _tell(self, trial: Candidate) -> bool:
        """Whether it could be told."""
        best = trial.counted(self.metric, self.mode)
        self.told.add(trial.trial_id)
        if trial.trial_id not in self.elsewhere:
            result = None if best is None else {self.metric: best.metrics[self.metric], "training_iteration": best.epoch}
            self.searcher.on_trial_complete(trial.trial_id, result, error=best is None)
            return True
        values = values_in(self.space, trial.config)
        if best is None or values is None:
            return True  # there is nothing to tell, or not of this space
        try:
            parameters = {key: parameter_of(self.distributions[key], value) for key, value in values.items()}
            self.searcher.add_evaluated_point(parameters, best.metrics[self.metric])
        except NotImplementedError:
            return False
        return True

    def _save(self) -> None:
        """Both files under one name that is new, and then the one that tells of it, so that a kill leaves either the old state or the new one."""
        if self.saved == (len(self.asked), len(self.told)):
            return
        aside = self.state.with_suffix(f".{len(self.asked)}-{len(self.told)}-{uuid.uuid4().hex[:8]}")
        try:
            self.searcher.save(str(aside))
        except NotImplementedError:
            return
        known = {"file": aside.name, "asked": sorted(self.asked), "told": sorted(self.told)}
        new = self.state.with_suffix(".new")
        new.write_text(json.dumps(known))
        os.replace(new, self.state.with_suffix(".json"))
        self.saved = len(self.asked), len(self.told)
        for old in self.state.parent.glob(f"{self.state.name}.*-*"):
            if old != aside:
                old.unlink()

    def _restore(self) -> None:
        index = self.state.with_suffix(".json")
        if index.exists():
            known = json.loads(index.read_text())
            self.searcher.restore(str(self.state.with_name(known["file"])))
            self.asked, self.told = set(known["asked"]), set(known["told"])
            self.saved = len(self.asked), len(self.told)


def _domain(d: Distribution) -> Any:
    """What a searcher is to choose from, as `value_of` reads it."""
    if isinstance(d, Choice):
        return tune.choice(list(range(len(d.values))))
    if isinstance(d, Normal):
        return tune.uniform(*NORMAL_QUANTILES)
    if d.integer:
        return (tune.lograndint if d.log else tune.randint)(int(d.low), int(d.high))
    return (tune.loguniform if d.log else tune.uniform)(d.low, d.high)


def _plain(value: Any) -> Any:
    """A number of Python's own, where numpy's came."""
    return value.item() if hasattr(value, "item") else value
