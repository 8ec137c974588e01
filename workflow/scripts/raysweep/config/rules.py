"""This module runs the checks that a JSON Schema cannot make. Three tables list each check with the keys that the check reads.

A check runs only where these keys have no mistakes, so that one mistake is reported only once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from raysweep.config import config_checks, recipe_checks, sweep_checks
from raysweep.config.mistakes import Mistake, Mistakes
from raysweep.config.pairs import PAIRS_OF_DATASET, PAIRS_OF_SWEEP
from raysweep.config.section import Section


@dataclass(frozen=True)
class Rule:
    """Describes a check and the keys that the check reads."""

    check: Callable[[Section], Iterator[Mistake]]
    # The check reads these keys of the section. Spaces separate the keys, and a dot leads to an inner key.
    keys: str
    # A check of a data set or sweep also reads these keys of the whole config.
    whole_config_keys: str = ""
    # The check is only for sweeps that train a model.
    only_for_models: bool = False


def run_rules(rules: tuple[Rule, ...], section: Section, mistakes: Mistakes) -> None:
    """Run the checks of a section, and add the mistakes that the checks yield to `mistakes`."""
    for rule in rules:
        keys = [(*section.path, *key.split(".")) for key in rule.keys.split()]
        whole_config_keys = [tuple(key.split(".")) for key in rule.whole_config_keys.split()]
        is_sound = all(map(mistakes.is_sound_throughout, keys)) and all(map(mistakes.is_sound, whole_config_keys))
        if is_sound and (section.is_of_model or not rule.only_for_models):
            mistakes.add(list(rule.check(section)))


RULES_OF_CONFIG = (
    Rule(config_checks.check_folders, "results_dir state_dir resources_dir"),
    Rule(config_checks.check_container, "env.container env.wheels results_dir state_dir resources_dir"),
    Rule(config_checks.check_requirements, "env.requirements"),
    Rule(config_checks.check_dashboard, "env.requirements ray.dashboard"),
    Rule(config_checks.check_tls, "ray.tls sweeps"),
    Rule(config_checks.check_cache, "env.cache_dir env.wheels"),
)
RULES_OF_DATASET = (
    Rule(config_checks.check_source, "source", "resources_dir"),
    Rule(config_checks.check_target_column, "source target task"),
    Rule(config_checks.check_group, "target group"),
    *(Rule(pair.check, pair.keys) for pair in PAIRS_OF_DATASET),
)
RULES_OF_SWEEP = (
    Rule(sweep_checks.check_target, "model trainable"),
    Rule(sweep_checks.check_dataset, "dataset model", "datasets"),
    *(Rule(partial(sweep_checks.check_class_of_algorithm, key=key), "search_algorithm") for key in ("name", "sampler")),
    Rule(sweep_checks.check_packages_of_sampler, "search_algorithm", "env.requirements"),
    Rule(sweep_checks.check_space, "search_space"),
    Rule(sweep_checks.check_space_fits_algorithm, "search_space search_algorithm"),
    Rule(partial(sweep_checks.check_tracker, tracker="mlflow"), "mlflow", "env.requirements"),
    Rule(partial(sweep_checks.check_tracker, tracker="wandb"), "wandb", "env.requirements"),
    Rule(sweep_checks.check_loss, "loss model dataset", only_for_models=True),
    Rule(sweep_checks.check_metrics, "metrics loss model dataset", only_for_models=True),
    Rule(partial(sweep_checks.check_bounds, key="stop"), "stop model metrics"),
    Rule(partial(sweep_checks.check_bounds, key="constraint"), "constraint model metrics"),
    Rule(sweep_checks.check_metric, "metric mode objectives model metrics"),
    Rule(sweep_checks.check_objectives, "metric mode objectives choose"),
    Rule(sweep_checks.check_learning_rate, "search_space.lr model", only_for_models=True),
    Rule(sweep_checks.check_batch_size, "search_space.batch_size model", only_for_models=True),
    Rule(recipe_checks.check_optimizer, "search_space model optimizer", only_for_models=True),
    Rule(recipe_checks.check_searched_recipe, "search_space model training", only_for_models=True),
    Rule(recipe_checks.check_augmentation, "training.augment model", only_for_models=True),
    Rule(sweep_checks.check_points, "points_to_evaluate search_space num_samples"),
    Rule(sweep_checks.check_grace_period, "scheduler max_epochs"),
    Rule(sweep_checks.check_patience_of_trials, "stop max_epochs"),
    Rule(sweep_checks.check_patience_of_sweep, "end_when num_samples search_space"),
    Rule(sweep_checks.check_pbt, "scheduler search_space model"),
    Rule(
        sweep_checks.check_allocation,
        "allocation.max_wait allocation.resubmit allocation.min_nodes allocation.nodes allocation.runtime_min allocation.runtime",
    ),
    Rule(partial(sweep_checks.check_fits_node, key="cpu"), "trial_resources.cpu allocation.cpus_per_node"),
    Rule(sweep_checks.check_max_gpu_hours, "max_gpu_hours allocation.gpus_per_node"),
    Rule(sweep_checks.check_gpus_of_trial, "trial_resources.gpu allocation.gpus_per_node"),
    *(Rule(pair.check, pair.keys, "datasets") for pair in PAIRS_OF_SWEEP),
    # These two checks compare the values of settings that may exclude each other, so the pairs come first.
    Rule(recipe_checks.check_warmup, "search_space model training max_epochs", only_for_models=True),
    Rule(sweep_checks.check_workers, "trial_resources allocation model"),
)


def check_rules(config: Section, mistakes: Mistakes) -> None:
    """Add to `mistakes` the mistakes that a JSON Schema cannot find.

    `config` is the whole config. `mistakes` already contains the mistakes that the JSON Schema finds.
    """
    run_rules(RULES_OF_CONFIG, config, mistakes)
    for key, rules in (("datasets", RULES_OF_DATASET), ("sweeps", RULES_OF_SWEEP)):
        names = [name for name in config.values[key] if mistakes.is_sound((key, name))] if mistakes.is_sound((key,)) else []
        if key == "sweeps":
            mistakes.add(config_checks.check_names_of_sweeps(names))
        for name in names:
            run_rules(rules, config.below(key, name), mistakes)
