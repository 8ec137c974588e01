"""This module validates the config, fills in defaults and finds the file that contains each key.

The workflow validates the config once, when Snakemake loads the workflow. All mistakes are reported together, with one line for each mistake.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from raysweep.common.errors import ConfigError
from raysweep.common.numeric import is_number
from raysweep.common.patience import NO_BETTER_FOR
from raysweep.config.mistakes import KeyPath, Mistake, Mistakes, is_below
from raysweep.config.model import Config
from raysweep.config.rules import check_rules
from raysweep.config.schema import (
    NAMED,
    PATH_TO_SCHEMA,
    definition,
    load_schema,
    options_with_defaults,
    schema_at,
    schema_mistakes,
    with_defaults,
)
from raysweep.config.section import Section, folds_of, maps_below
from raysweep.config.tasks import default_loss, task_of
from raysweep.config.yaml_text import Loop, compose, node_at, text_mistakes, value_of
from raysweep.environment.requirements import EnvironmentSpec

_SCIENTIFIC = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
_MISSING = object()
ConfigArgs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Module:
    """Describes the Snakemake module as which another workflow includes this workflow.

    `name` is the name of the module. `keys` lead to the config of this workflow in the config of the other workflow. `keys` is None where the config of
    the other workflow does not contain the config of this workflow.
    """

    name: str
    keys: KeyPath | None


def keys_of(part: Any, whole: Any) -> KeyPath | None:
    """Return the keys that lead from `whole` to the identical object `part`, or None where `whole` does not contain `part`."""
    if part is whole:
        return ()
    below = whole.items() if isinstance(whole, dict) else ()
    return next(((key, *keys) for key, value in below if (keys := keys_of(part, value)) is not None), None)


@dataclass(frozen=True)
class Sources:
    """Contains the config that Snakemake merged from several files, and the paths of these files."""

    config: dict[str, Any]
    # Snakemake merged the files in this order. A value of a later file replaces the value of an earlier file.
    paths: list[Path]
    # Relative paths in the config start from this folder.
    root: Path
    module: Module | None
    # Values of the option `--config` as the user wrote them: pairs of a key and a YAML text.
    config_args: ConfigArgs = ()

    @property
    def keys(self) -> KeyPath:
        """Return the keys that lead to the config of this workflow in every config file."""
        return (self.module.keys if self.module else None) or ()

    @cached_property
    def contents(self) -> dict[Path, Any]:
        """Return the config of each file as {path: config}, in reverse order of merging."""
        return {path: _at(yaml.safe_load(path.read_text(encoding="utf-8")), self.keys) for path in reversed(self.paths)}

    def text_mistakes(self) -> Iterator[Mistake]:
        """Yield the mistakes in the text of the config files and of `--config`."""
        for path in self.paths:
            node = node_at(compose(path.read_text(encoding="utf-8")), self.keys)
            yield from text_mistakes(node, self.shown(path))
        for node, keys in self.nodes_of_config_args():
            yield from text_mistakes(node, "--config", keys)

    def nodes_of_config_args(self) -> Iterator[tuple[yaml.Node, KeyPath]]:
        """Yield the node of each value of `--config` that belongs to the config of this workflow, and the keys that lead to the node in this config."""
        for key, text in self.config_args:
            if self.keys[:1] in ((), (key,)) and (node := node_at(compose(text), self.keys[1:])) is not None:
                yield node, () if self.keys else (key,)

    def line(self, mistake: Mistake) -> str:
        """Return a line for the user with the file, the key and the message of a mistake."""
        keys = ".".join(map(str, (*self.keys, *mistake.path))) or "the config"
        return f"{mistake.file or self.file_of(mistake.path)}: {keys}: {mistake.message}"

    def shown(self, path: Path) -> str:
        """Return the path of a file as text. The path is relative to `root` where `root` contains the file, and unchanged elsewhere."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def file_of(self, path: KeyPath) -> str:
        """Return the last file that sets the key at `path` to the value that the key has in the merged config.

        Where no file sets the value, return the name of the module or `--config`. For a missing key, return the file of the map that lacks the key.
        """
        nearest = next(path[:n] for n in range(len(path), -1, -1) if _at(self.config, path[:n]) is not _MISSING)
        value = _at(self.config, nearest)
        for file, content in self.contents.items():
            value_in_file = _at(content, nearest)
            # Two maps count as equal, because a map may be merged from several files. Values are compared as text, because NaN != NaN.
            if repr(value_in_file) == repr(value) or (isinstance(value, dict) and isinstance(value_in_file, dict)):
                return self.shown(file)
        return f"module {self.module.name}" if self.module else "--config"

    def position(self, mistake: Mistake) -> tuple[int, ...]:
        """Return the position of a mistake in the config, as a key for sorting.

        The position of a missing key comes after all keys of the map that lacks the key.
        """
        position = []
        value: Any = self.config
        for key in mistake.path:
            keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
            position.append(keys.index(key) if key in keys else len(keys))
            value = _at(value, (key,))
        return tuple(position)


def validated(
    config: dict[str, Any],
    paths: list[Path],
    root: Path,
    module: Module | None = None,
    placed: Callable[[str], Path] = Path,
    config_args: ConfigArgs = (),
) -> dict[str, Any]:
    """Return the config with all defaults filled in, and with numbers such as `1e-4` in the place of text.

    `paths` are the files from which Snakemake merged the config. A value of a later file replaces the value of an earlier file. Paths in the config are
    relative to `root`. `placed` adds Snakemake's prefix for modules to the path of a folder. `config_args` are the maps and lists of the option
    `--config`, in which Snakemake reads all values as text. Raises ConfigError with one line for each mistake, in the order of the config. A line has
    the file, the key, the bad value and the allowed values.
    """
    is_elsewhere = module is not None and module.keys is None  # no file and no option contains the config of this workflow
    sources = Sources(config, [] if is_elsewhere else paths, root, module, () if is_elsewhere else config_args)
    mistakes = Mistakes()
    mistakes.add(sources.text_mistakes())
    if any(isinstance(mistake, Loop) for mistake in mistakes.collected):
        raise ConfigError(*map(sources.line, mistakes.collected))  # in the order of the text, because no other check can read the config
    for node, keys in sources.nodes_of_config_args():
        config = _replaced(config, keys, value_of(node))
    sources = replace(sources, config=config)
    given = _long_forms(with_numbers(config))
    refused = [mistake.path for mistake in mistakes.collected]
    mistakes.add([m for m in schema_mistakes(given, load_schema()) if not any(is_below(m.path, path) for path in refused)])
    filled = _filled_in(given, sources)
    check_rules(Section((), filled, filled, root, placed), mistakes)
    if mistakes.collected:
        raise ConfigError(*(sources.line(mistake) for mistake in sorted(mistakes.collected, key=sources.position)))
    return filled


def env_arguments(config: Config, root: Path) -> EnvironmentSpec:
    """Return the specification of the environment that the config asks for."""
    env = config.env
    asks_for_gpus = any(sweep.allocation.gpus_per_node for sweep in config.sweeps.values())
    return EnvironmentSpec(
        python=env.python,
        modules=env.modules,
        requirements=root / env.requirements,
        wheels=env.wheels,
        torch_backend=env.torch_backend,
        container=env.container,
        # `gpu` is True only where a GPU changes the environment. Else a new sweep with GPUs would needlessly build the environment again for all sweeps.
        gpu=asks_for_gpus and env.wheels == "download" and env.torch_backend == "auto",
    )


def with_numbers(value: Any) -> Any:
    """Return a copy of `value` in which text such as `1e-4` has become a number, because YAML 1.1 reads `1e-4` as text."""
    if isinstance(value, dict):
        return {key: with_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [with_numbers(inner) for inner in value]
    if isinstance(value, str) and _SCIENTIFIC.fullmatch(value):
        return float(value)
    return copy.deepcopy(value)


def _replaced(value: Any, keys: KeyPath, replacement: Any) -> Any:
    """Return a copy of `value` in which `replacement` replaces the part to which `keys` lead. The keys of two maps are replaced one by one."""
    if keys:
        return {**value, keys[0]: _replaced(value.get(keys[0], {}), keys[1:], replacement)}
    if not isinstance(value, dict) or not isinstance(replacement, dict):
        return replacement
    return value | {key: _replaced(value.get(key), (), inner) for key, inner in replacement.items()}


def _at(value: Any, path: KeyPath) -> Any:
    """Return the part of a config to which `path` leads, or _MISSING where the config has no such part."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return _MISSING
    return value


def _long_forms(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config in which long forms replace short forms.

    A bare name such as `random` becomes `{name: random}`. A bare number of `no_better_for` becomes `{epochs: 5}` in `stop`, and `{configurations: 5}` in
    `end_when`.
    """
    for values, key in _named_values(config):
        if isinstance(values[key], str):
            values[key] = {"name": values[key]}
    for values, step in _short_patience(config):
        values[NO_BETTER_FOR] = {step: values[NO_BETTER_FOR]}
    return config


def _named_values(config: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the place of each value that has a name and options, as the map that contains the value and the value's key in this map."""
    for sweep in maps_below(config, "sweeps").values():
        for *outer, key in NAMED:
            values = _at(sweep, tuple(outer))
            if isinstance(values, dict) and key in values:
                yield values, key


def _fill_in_objective(sweep: dict[str, Any], given: dict[str, Any]) -> None:
    """Fill in `metric` and `mode` of a sweep with several objectives from the first objective, unless the user has given the key."""
    objectives = sweep["objectives"]
    if isinstance(objectives, list) and objectives and isinstance(objectives[0], dict) and "metric" in objectives[0]:
        for key, value in ({"mode": "max"} | objectives[0]).items():
            if key not in given:
                sweep[key] = value


def _short_patience(config: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each `stop` and `end_when` in which NO_BETTER_FOR is only a number, and the name of the steps that this number counts."""
    for sweep in maps_below(config, "sweeps").values():
        for key, step in (("stop", "epochs"), ("end_when", "configurations")):
            values = sweep.get(key)
            if isinstance(values, dict) and is_number(values.get(NO_BETTER_FOR)):
                yield values, step


def _without_boolean(value: Any) -> Any:
    """Return "on" or "off" for a boolean, because YAML 1.1 reads `on` and `off` as booleans. Other values stay unchanged."""
    return ("on" if value else "off") if isinstance(value, bool) else value


def _filled_in(config: dict[str, Any], sources: Sources) -> dict[str, Any]:
    """Return the config with all defaults. Some defaults depend on other keys. Values with mistakes stay unchanged."""
    filled: dict[str, Any] = with_defaults(config, load_schema())
    env = filled["env"]
    if isinstance(env, dict):
        if "requirements" not in config.get("env", {}):  # the default is a file of this workflow, and Snakemake may run in another folder
            env["requirements"] = sources.shown(PATH_TO_SCHEMA.parents[1] / env["requirements"])
        if env["container"] is not None and env["wheels"] == "download":
            env["wheels"] = "none"
    if isinstance(filled["ray"], dict):
        filled["ray"]["tls"] = _without_boolean(filled["ray"]["tls"])
    for name, sweep in maps_below(filled, "sweeps").items():
        _fill_in_objective(sweep, maps_below(config, "sweeps")[name])
        sweep["fuse"] = _without_boolean(sweep["fuse"])
        if "repeats" not in maps_below(config, "sweeps")[name] and (folds := folds_of(sweep, filled)):
            sweep["repeats"] = folds
        stop = sweep["stop"]
        if isinstance(stop, dict) and isinstance(rule := stop.get(NO_BETTER_FOR), dict):
            # The schema of `stop` describes no keys, because the other keys are names of metrics. So unknown keys of the rule must stay for a later check.
            stop[NO_BETTER_FOR] = rule | with_defaults(rule, definition("no_better_for_of_stop"))
        if "model" in sweep:
            sweep.setdefault("loss", default_loss(task_of(sweep, filled), sweep.get("metric")))
            sweep.setdefault("optimizer", "sgd")
            sweep["training"] = with_defaults(sweep.get("training", {}), schema_at(("sweeps", name, "training")))
    for values, key in _named_values(filled):
        values[key] = options_with_defaults(key, values[key])
    return filled
