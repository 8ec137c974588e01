"""Reading the config: defaults, the order of the checks, and the files in which the keys stand.

The workflow reads the config once, when Snakemake loads the workflow. All mistakes are reported together, with a line for each.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from raysweep.common.errors import ConfigError
from raysweep.config.mistakes import KeyPath, Mistake, Mistakes, is_below
from raysweep.config.model import Config
from raysweep.config.rules import check_rules
from raysweep.config.schema import NAMED, PATH_TO_SCHEMA, load_schema, options_with_defaults, schema_mistakes, with_defaults
from raysweep.environment.requirements import EnvironmentSpec

_SCIENTIFIC = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
_MISSING = object()
_MERGE_KEY = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Module:
    """The module as which another workflow includes this one: the name, and the keys under which the config of the other workflow holds ours.

    `keys` is None where the other workflow makes our config itself.
    """

    name: str
    keys: KeyPath | None


def keys_of(part: Any, whole: Any) -> KeyPath | None:
    """Return the keys under which `whole` holds the very object `part`, or None where `whole` does not hold it."""
    if part is whole:
        return ()
    below = whole.items() if isinstance(whole, dict) else ()
    return next(((key, *keys) for key, value in below if (keys := keys_of(part, value)) is not None), None)


@dataclass(frozen=True)
class Sources:
    """The config as Snakemake merged it, and the files that it comes from."""

    config: dict[str, Any]
    paths: list[Path]  # a later file is stronger
    root: Path  # the folder to which the paths of the config are relative
    module: Module | None

    @property
    def keys(self) -> KeyPath:
        """Return the keys under which the files hold the config."""
        return (self.module.keys if self.module else None) or ()

    @cached_property
    def contents(self) -> dict[Path, Any]:
        """Return what each file holds of the config, the strongest file first."""
        return {path: _at(yaml.safe_load(path.read_text(encoding="utf-8")), self.keys) for path in reversed(self.paths)}

    def line(self, mistake: Mistake) -> str:
        """Return the line for the user: file, key and message."""
        place = mistake.place or f"{self.file_of(mistake.path)}: {'.'.join(map(str, (*self.keys, *mistake.path))) or 'the config'}"
        return f"{place}: {mistake.message}"

    def shown(self, path: Path) -> str:
        """Return the name of a file, relative to the root where the file lies below."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def file_of(self, path: KeyPath) -> str:
        """Return the last file that sets a key to the value that the key has, else `--config` or the name of the module.

        A missing key has the file of the map around it.
        """
        nearest = next(path[:n] for n in range(len(path), -1, -1) if _at(self.config, path[:n]) is not _MISSING)
        value = _at(self.config, nearest)
        for file, content in self.contents.items():
            value_in_file = _at(content, nearest)
            # A map may be merged from several files. NaN equals NaN as text only.
            if repr(value_in_file) == repr(value) or (isinstance(value, dict) and isinstance(value_in_file, dict)):
                return self.shown(file)
        return f"module {self.module.name}" if self.module else "--config"

    def position(self, mistake: Mistake) -> tuple[int, ...]:
        """Return the position of a mistake in the order of the config. A missing key comes behind the keys of its map."""
        position = []
        value: Any = self.config
        for key in mistake.path:
            keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
            position.append(keys.index(key) if key in keys else len(keys))
            value = _at(value, (key,))
        return tuple(position)


def validated(config: dict[str, Any], paths: list[Path], root: Path, module: Module | None = None) -> dict[str, Any]:
    """Return the config with defaults filled in and numbers read as numbers.

    `paths` are the files that the config comes from; a later file is stronger. File names in the config are relative to `root`. Raises ConfigError with
    a line for each mistake, in the order of the config: file, key, value and what is allowed.
    """
    sources = Sources(config, [] if module and module.keys is None else paths, root, module)
    mistakes = Mistakes()
    mistakes.add(_repeated_keys(sources))
    given = _long_forms(with_numbers(config))
    repeated = [mistake.path for mistake in mistakes.collected]
    mistakes.add([m for m in schema_mistakes(given, load_schema()) if not any(is_below(m.path, path) for path in repeated)])
    filled = _filled_in(given, sources)
    check_rules(filled, root, mistakes)
    if mistakes.collected:
        raise ConfigError(*(sources.line(mistake) for mistake in sorted(mistakes.collected, key=sources.position)))
    return filled


def env_arguments(config: Config, root: Path) -> EnvironmentSpec:
    """Return the environment that the config asks for."""
    env = config.env
    asks_for_gpus = any(sweep.allocation.gpus_per_node for sweep in config.sweeps.values())
    return EnvironmentSpec(
        python=env.python,
        modules=env.modules,
        requirements=root / env.requirements,
        wheels=env.wheels,
        torch_backend=env.torch_backend,
        container=env.container,
        # Only where it decides what is built, because a sweep that asks for a GPU must not give another environment to all other sweeps in vain.
        gpu=asks_for_gpus and env.wheels == "download" and env.torch_backend == "auto",
    )


def with_numbers(value: Any) -> Any:
    """Return a copy in which text such as `1e-4`, which is a number for every reader but YAML 1.1, is a number."""
    if isinstance(value, dict):
        return {key: with_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [with_numbers(inner) for inner in value]
    if isinstance(value, str) and _SCIENTIFIC.fullmatch(value):
        return float(value)
    return copy.deepcopy(value)


def _at(value: Any, path: KeyPath) -> Any:
    """Return the part of a config to which `path` leads, or _MISSING."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return _MISSING
    return value


def _sweeps_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the sweeps of a config that may have mistakes."""
    sweeps = config.get("sweeps")
    return [sweep for sweep in sweeps.values() if isinstance(sweep, dict)] if isinstance(sweeps, dict) else []


def _long_forms(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with `{name: …}` in the place of a name alone."""
    for sweep in _sweeps_of(config):
        sweep.update({key: {"name": sweep[key]} for key in NAMED if isinstance(sweep.get(key), str)})
    return config


def _filled_in(config: dict[str, Any], sources: Sources) -> dict[str, Any]:
    """Return the config with all defaults, also those that depend on other keys. Values with mistakes stay as they are."""
    filled: dict[str, Any] = with_defaults(config, load_schema())
    env = filled["env"]
    if isinstance(env, dict):
        if sources.module and "requirements" not in config.get("env", {}):
            own = PATH_TO_SCHEMA.parents[1] / env["requirements"]
            env["requirements"] = sources.shown(own)
        if env["container"] is not None and env["wheels"] == "download":
            env["wheels"] = "none"
    for sweep in _sweeps_of(filled):
        sweep.update({key: options_with_defaults(key, sweep[key]) for key in NAMED})
        if isinstance(sweep["fuse"], bool):  # YAML 1.1 reads on and off as booleans
            sweep["fuse"] = "on" if sweep["fuse"] else "off"
        if "model" in sweep:
            sweep.setdefault("loss", "cross_entropy")
            sweep.setdefault("optimizer", "sgd")
    return filled


def _repeated_keys(sources: Sources) -> Iterator[Mistake]:
    """Yield the keys that stand twice in one map of a file, because YAML silently takes the last."""
    for path in sources.paths:
        with path.open(encoding="utf-8") as stream:
            loader = yaml.SafeLoader(stream)
            node = loader.get_single_node()
            for key in sources.keys:
                pairs = node.value if isinstance(node, yaml.MappingNode) else ()
                node = next((inner for name, inner in pairs if name.value == str(key)), None)
            for keys, line in _repeated_below(node, (), loader, set()):
                message = (
                    f"{keys[-1]}: stands twice in one map (line {line} and after), and the second would silently replace the first. Allowed: each"
                    " name once, so that no two sweeps write to one folder"
                )
                yield Mistake(keys, message, place=str(path))


def _repeated_below(node: yaml.Node | None, path: KeyPath, loader: yaml.SafeLoader, seen: set[int]) -> Iterator[tuple[KeyPath, int]]:
    """Yield the path of each key that stands twice in one map, and the line where the map begins. `seen` holds the nodes that were read before."""
    if id(node) in seen:
        return  # an alias of a node, which may lead to the node itself
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, inner in enumerate(node.value):
            yield from _repeated_below(inner, (*path, number), loader, seen)
    if isinstance(node, yaml.MappingNode):
        pairs = [(loader.construct_object(key, deep=True), inner) for key, inner in node.value if key.tag != _MERGE_KEY]
        keys = [key for key, _ in pairs]
        for number, (key, inner) in enumerate(pairs):
            if keys.count(key) > 1 and keys.index(key) == number:
                yield (*path, key), node.start_mark.line + 1
            yield from _repeated_below(inner, (*path, key), loader, seen)
