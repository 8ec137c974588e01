"""This module runs the checks that a JSON Schema cannot make. Two tables list each check with the keys that the check reads.

A check runs only where these keys have no mistakes, so that one mistake is reported only once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysweep.common.errors import ConfigError
from raysweep.config import config_checks, sweep_checks
from raysweep.config.mistakes import KeyPath, Mistake, Mistakes
from raysweep.config.section import Section


@dataclass(frozen=True)
class Rule:
    """Describes a check and the keys that the check reads."""

    check: Callable[[Section], Iterator[Mistake]]
    # The check reads these keys of the section. Spaces separate the keys, and a dot leads to an inner key.
    keys: str
    # A check of a sweep also reads these keys of the whole config.
    whole_config_keys: str = ""


def run_rules(rules: tuple[Rule, ...], section: Section, mistakes: Mistakes) -> None:
    """Run the checks of a section, and add the mistakes that the checks yield to `mistakes`."""
    for rule in rules:
        keys = [(*section.path, *key.split(".")) for key in rule.keys.split()]
        whole_config_keys = [tuple(key.split(".")) for key in rule.whole_config_keys.split()]
        if not all(map(mistakes.is_sound_throughout, keys)) or not all(map(mistakes.is_sound, whole_config_keys)):
            continue
        try:
            mistakes.add(list(rule.check(section)))
        except ConfigError as error:  # A line of the requirements file is not a valid requirement.
            mistakes.add([Mistake(("env", "requirements"), str(error))])


RULES_OF_CONFIG = (
    Rule(config_checks.check_folders, "results_dir state_dir resources_dir"),
    Rule(config_checks.check_container, "env.container env.wheels results_dir state_dir resources_dir"),
    Rule(config_checks.check_requirements, "env.requirements"),
    Rule(config_checks.check_dashboard, "env.requirements ray.dashboard"),
    Rule(config_checks.check_cache, "env.cache_dir env.wheels"),
    Rule(config_checks.check_sources, "datasets resources_dir"),
)
RULES_OF_SWEEP = (
    Rule(sweep_checks.check_target, "model trainable"),
    Rule(sweep_checks.check_dataset, "dataset model", "datasets"),
    Rule(sweep_checks.check_class_of_algorithm, "search_algorithm"),
    Rule(sweep_checks.check_space, "search_space"),
    Rule(sweep_checks.check_space_fits_algorithm, "search_space search_algorithm"),
    Rule(sweep_checks.check_package_of_mlflow, "mlflow", "env.requirements"),
    Rule(sweep_checks.check_package_of_wandb, "wandb", "env.requirements"),
    Rule(sweep_checks.check_stop, "stop model"),
    Rule(sweep_checks.check_constraint, "constraint model"),
    Rule(sweep_checks.check_metric, "metric mode model"),
    Rule(sweep_checks.check_learning_rate, "search_space.lr model"),
    Rule(sweep_checks.check_batch_size, "search_space.batch_size model"),
    Rule(sweep_checks.check_optimizer, "search_space model optimizer"),
    Rule(sweep_checks.check_points, "points_to_evaluate search_space num_samples"),
    Rule(sweep_checks.check_keys_of_model, "model loss optimizer"),
    Rule(sweep_checks.check_grace_period, "scheduler max_epochs"),
    Rule(sweep_checks.check_scheduler_that_takes_all, "scheduler repeats search_algorithm max_concurrent trial_resources.gpu"),
    Rule(sweep_checks.check_pbt, "scheduler search_space model"),
    Rule(sweep_checks.check_fuse, "fuse model"),
    Rule(sweep_checks.check_allocation, "allocation.max_wait allocation.resubmit allocation.min_nodes allocation.nodes"),
    Rule(sweep_checks.check_cpus_of_trial, "trial_resources.cpu allocation.cpus_per_node"),
    Rule(sweep_checks.check_gpus_of_trial, "trial_resources.gpu allocation.gpus_per_node"),
)


def check_rules(config: dict[str, Any], root: Path, mistakes: Mistakes) -> None:
    """Add to `mistakes` the mistakes that a JSON Schema cannot find.

    `config` has all defaults filled in. `mistakes` already contains the mistakes that the JSON Schema finds.
    """
    sweeps = config["sweeps"].items() if mistakes.is_sound(("sweeps",)) else ()
    names = [name for name, _ in sweeps if mistakes.is_sound(("sweeps", name))]
    for path, text in _free_texts(config):
        if mistakes.is_sound(path):
            mistakes.add(config_checks.check_text(path, text))
    run_rules(RULES_OF_CONFIG, Section((), config, config, root), mistakes)
    mistakes.add(config_checks.check_names_of_sweeps(names))
    for name in names:
        run_rules(RULES_OF_SWEEP, Section(("sweeps", name), config["sweeps"][name], config, root), mistakes)


def _free_texts(config: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Yield the path and the text of each value for which the schema has neither a pattern nor a list of allowed words."""
    yield from _texts_at((), config, "results_dir", "state_dir", "resources_dir")
    yield from _texts_at(("env",), config["env"], "python", "requirements", "wheels", "container", "cache_dir")
    for section, keys in (("datasets", ("source",)), ("sweeps", ("mlflow", "wandb", "model", "trainable"))):
        below = config.get(section)
        for name, values in below.items() if isinstance(below, dict) else ():
            yield from _texts_at((section, name), values, *keys)


def _texts_at(path: KeyPath, values: Any, *keys: str) -> Iterator[tuple[KeyPath, str]]:
    """Yield the path and the text of each of `keys` whose value is text. `values` is the map at `path`."""
    for key in keys:
        text = values.get(key) if isinstance(values, dict) else None
        if isinstance(text, str):
            yield (*path, key), text
