"""The config: validated once, when the workflow loads, with every default filled in. A mistake is one line."""

from __future__ import annotations

import copy
import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from raysweep.common.bounds import BOUNDS
from raysweep.common.errors import ConfigError
from raysweep.common.numeric import is_number
from raysweep.config.space import (
    TRAINING_KEYS,
    Choice,
    Distribution,
    Normal,
    Numeric,
    grids_of,
    is_conditional,
    parse_space,
    point_of,
)
from raysweep.environment.requirements import EnvironmentSpec, env_key, extras_of, lists
from raysweep.usercode.target import SCRIPTS_DIR, find_target, local_sources

PATH_TO_SCHEMA = Path(__file__).resolve().parents[4] / "config" / "schema.yaml"
MODEL_METRICS = ("accuracy", "loss", "train_loss")
PACKAGES = {"hyperopt": "hyperopt", "ax": "ax-platform"}  # of search algorithms that need one of their own
_SCIENTIFIC = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")

KeyPath = tuple[str | int, ...]


def load_schema() -> dict[str, Any]:
    with PATH_TO_SCHEMA.open(encoding="utf-8") as stream:
        return yaml.safe_load(stream)


@dataclass(frozen=True)
class Module:
    """Whose config it is where the workflow is a module of another: its name, and the keys under which the other's config has it, if it does."""

    name: str
    keys: KeyPath | None


def keys_of(part: Any, whole: Any) -> KeyPath | None:
    """The keys under which `part` itself, not its like, lies in `whole`; None where it does not."""
    if part is whole:
        return ()
    below = whole.items() if isinstance(whole, dict) else ()
    return next(((key, *keys) for key, value in below if (keys := keys_of(part, value)) is not None), None)


def validated(config: dict[str, Any], paths: list[Path], root: Path, module: Module | None = None) -> dict[str, Any]:
    """The config with defaults filled in and numbers read as numbers.

    `paths` are the files it came from, the later the stronger; file names in it are relative to `root`. Raises ConfigError: one line with
    file, key, value and what is allowed.
    """
    return _Check(config, paths, root, module).validated()


def env_arguments(config: dict[str, Any], root: Path) -> EnvironmentSpec:
    """Return what a validated config asks of the environment."""
    env = config["env"]
    asks_for_gpus = any(sweep["allocation"]["gpus_per_node"] for sweep in config["sweeps"].values())
    return EnvironmentSpec(
        python=env["python"],
        modules=tuple(env["modules"]),
        requirements=root / env["requirements"],
        wheels=env["wheels"],
        torch_backend=env["torch_backend"],
        container=env["container"],
        # Only where it decides what is built, because a sweep that asks for a GPU must not give another environment to all other sweeps in vain.
        gpu=asks_for_gpus and env["wheels"] == "download" and env["torch_backend"] == "auto",
    )


def with_numbers(value: Any) -> Any:
    """A copy in which text such as `1e-4`, a number by any other reading than YAML 1.1's, is a number."""
    if isinstance(value, dict):
        return {k: with_numbers(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [with_numbers(v) for v in value]
    if isinstance(value, str) and _SCIENTIFIC.fullmatch(value):
        return float(value)
    return copy.deepcopy(value)


def allowed(schema: dict[str, Any]) -> str:
    """What a schema allows, in words."""
    if "allowed" in schema:
        return schema["allowed"]
    if "enum" in schema:
        return "one of " + ", ".join(str(v) for v in schema["enum"])
    types = schema.get("type", [])
    words = {
        "integer": "a whole number",
        "number": "a number",
        "string": "text",
        "boolean": "true or false",
        "object": "a map",
        "array": "a list",
        "null": "null",
    }
    text = " or ".join(words[t] for t in ([types] if isinstance(types, str) else types))
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = " and ".join(f"{word} {schema[key]}" for key, word in bounds.items() if key in schema)
    return (
        f"{text}, {limits}" if limits else text + (" that is not empty" if schema.get("minLength") or schema.get("minProperties") else "")
    )


def _resolved(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return root["$defs"][schema["$ref"].removeprefix("#/$defs/")] | {k: v for k, v in schema.items() if k != "$ref"}
    return schema


def _dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path) or "the config"


_MISSING = object()


def _at(value: Any, path: KeyPath) -> Any:
    """What lies at `path` in a config, or _MISSING."""
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return _MISSING
    return value


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one map, where YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(
                    f"{node.start_mark.name}: {key}: stands twice in one map (line {node.start_mark.line + 1} and after), and the second would"
                    " silently replace the first. Allowed: each name once, so that no two sweeps write to one folder"
                )
        return super().construct_mapping(node, deep)


def _refuse_repeated_keys(paths: list[Path], keys: KeyPath) -> None:
    """Refuse them in what lies under `keys`."""
    for path in paths:
        with path.open(encoding="utf-8") as stream:
            loader = _StrictLoader(stream)
            node = loader.get_single_node()
            for key in keys:
                pairs = node.value if isinstance(node, yaml.MappingNode) else ()
                node = next((inner for name, inner in pairs if name.value == str(key)), None)
            if node is not None:
                loader.construct_document(node)


def _nearest(key: str, known: dict[str, Any]) -> str:
    """Which key may have been meant, and which there are."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]}? " if close else ""
    return f"{hint}Allowed: {', '.join(known) or 'no option'}"


def with_defaults(value: Any, schema: dict[str, Any]) -> Any:
    """A copy of `value` with the schema's defaults where keys are missing, in the order of the schema."""
    if isinstance(value, float) and "integer" in schema.get("type", ()):
        return int(value)  # JSON Schema takes 20.0 and 1e2 for whole numbers
    if not isinstance(value, dict) or "additionalProperties" not in schema:
        return value
    known = schema.get("properties", {})
    if isinstance(schema["additionalProperties"], dict):
        return {key: with_defaults(inner, schema["additionalProperties"]) for key, inner in value.items()}
    filled = {}
    for key, below in known.items():
        if key in value or "default" in below:
            filled[key] = with_defaults(value.get(key, copy.deepcopy(below.get("default"))), below)
    return filled


class _Check:
    """One pass over a config, from the outside in; the first mistake ends it."""

    def __init__(self, config: dict[str, Any], paths: list[Path], root: Path, module: Module | None) -> None:
        self.given = config
        self.config = with_numbers(config)
        self.root = root
        self.module = module
        self.keys = (module.keys if module else None) or ()
        self.paths = [] if module and module.keys is None else paths
        self.schema = load_schema()

    def validated(self) -> dict[str, Any]:
        _refuse_repeated_keys(self.paths, self.keys)
        sweeps = self.config.get("sweeps")
        for sweep in sweeps.values() if isinstance(sweeps, dict) else ():
            for key in ("search_algorithm", "scheduler"):
                if isinstance(sweep, dict) and isinstance(sweep.get(key), str):
                    sweep[key] = {"name": sweep[key]}  # the short form
        self.against_schema(self.config, self.schema, ())
        self.config = with_defaults(self.config, self.schema)
        if self.module and "requirements" not in self.given.get("env", {}):
            own = PATH_TO_SCHEMA.parents[1] / self.config["env"]["requirements"]
            self.config["env"]["requirements"] = str(own.relative_to(self.root) if own.is_relative_to(self.root) else own)
        self.texts()
        self.folders()
        self.environment()
        for name, sweep in self.config["sweeps"].items():
            sweep["fuse"] = {True: "on", False: "off"}.get(sweep["fuse"], sweep["fuse"])  # as YAML 1.1 reads on and off
            self.sweep(("sweeps", name), sweep)
        return self.config

    def refuse(self, path: KeyPath, message: str) -> ConfigError:
        return ConfigError(f"{self.file_of(path)}: {self.dotted(path)}: {message}")

    def dotted(self, path: KeyPath) -> str:
        return _dotted((*self.keys, *path))

    def file_of(self, path: KeyPath) -> str:
        """The last file that sets the key to what it is, else --config or the module; for a missing key the same of what is around it."""
        contents = [(file, _at(yaml.safe_load(file.read_text(encoding="utf-8")), self.keys)) for file in reversed(self.paths)]
        nearest = next(path[:n] for n in range(len(path), -1, -1) if _at(self.given, path[:n]) is not _MISSING)
        value = _at(self.given, nearest)
        for file, content in contents:
            its_value = _at(content, nearest)
            # Maps may be merged from several files; NaN is equal to itself as text only.
            if repr(its_value) == repr(value) or (isinstance(value, dict) and isinstance(its_value, dict)):
                return str(file.relative_to(self.root) if file.is_relative_to(self.root) else file)
        return f"module {self.module.name}" if self.module else "--config"

    def against_schema(self, value: Any, schema: dict[str, Any], path: KeyPath) -> None:
        """Refuse the first thing in `value` that its schema does not allow, outermost first."""
        schema = _resolved(schema, self.schema)
        if isinstance(value, dict) and "additionalProperties" in schema:
            for key in value:
                self.key(key, schema, path)
        own = {
            k: v
            for k, v in schema.items()
            if k not in ("properties", "additionalProperties", "propertyNames", "items", "required", "$defs")
        }
        is_finite = not isinstance(value, float) or math.isfinite(value)  # no bound of a schema refuses NaN
        # In a pattern `$` would let a line's end pass.
        has_end = isinstance(value, str) and "pattern" in own and value.endswith("\n")
        if not is_finite or has_end or not jsonschema.Draft202012Validator(own).is_valid(value):
            raise self.refuse(path, f"{value!r} is not allowed: {allowed(schema)}")
        for key in schema.get("required", ()):
            if key not in value:
                raise self.refuse((*path, key), f"missing. Allowed: {allowed(_resolved(schema['properties'][key], self.schema))}")
        if isinstance(value, dict):
            for key, inner in value.items():
                below = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
                if isinstance(below, dict):
                    self.against_schema(inner, below, (*path, key))
        if isinstance(value, list) and "items" in schema:
            for number, inner in enumerate(value):
                self.against_schema(inner, schema["items"], (*path, number))

    def key(self, key: Any, schema: dict[str, Any], path: KeyPath) -> None:
        if key in schema.get("properties", {}):
            return
        if schema["additionalProperties"] is False:
            raise self.refuse((*path, key), f"unknown key. {_nearest(str(key), schema['properties'])}")
        names = _resolved(schema["propertyNames"], self.schema)
        if not isinstance(key, str) or not re.fullmatch(names["pattern"], key):
            raise self.refuse((*path, key), f"the name {key!r} is not allowed: {names['allowed']}")

    def texts(self) -> None:
        """Refuse, where any other text is allowed, what a script takes for one of its options, and what Snakemake does not take for a path."""
        paths: list[KeyPath] = [("results_dir",), ("state_dir",), ("resources_dir",)]
        paths += [("env", key) for key in ("python", "requirements", "wheels", "container", "cache_dir")]
        paths += [("sweeps", name, key) for name in self.config["sweeps"] for key in ("mlflow", "wandb")]
        paths += [("datasets", name, "source") for name in self.config["datasets"]]
        paths += [
            ("sweeps", name, kind) for name, sweep in self.config["sweeps"].items() for kind in ("model", "trainable") if kind in sweep
        ]
        for path in paths:
            value = _at(self.config, path) or ""
            if value.startswith("-"):
                raise self.refuse(path, f"{value!r} is not allowed: a text that does not begin with a hyphen; ./{value}, if it is a path")
            if set("{}") & set(value) or not value.isprintable():
                raise self.refuse(path, f"{value!r} is not allowed: a text of one line, without curly brackets")

    def folders(self) -> None:
        """Results, state and resources must not lie in each other: Snakemake deletes the outputs of a failed job."""
        folders = {key: (self.root / self.config[key]).resolve() for key in ("results_dir", "state_dir", "resources_dir")}
        for key, folder in folders.items():
            for other, its_folder in folders.items():
                if key != other and folder.is_relative_to(its_folder):
                    raise self.refuse(
                        (key,),
                        f"{self.config[key]!r} is not allowed: it lies in {other} ({self.config[other]}). Allowed: three folders, none in another",
                    )
        seen: dict[str, str] = {}
        for name in self.config["sweeps"]:
            if (other := seen.setdefault(name.casefold(), name)) != name:
                raise self.refuse(
                    ("sweeps", name),
                    f"the name {name!r} is not allowed: where capitals do not count it would write to the folder of {other!r}",
                )

    def environment(self) -> None:
        """Check what no schema can say of the environment."""
        env = self.config["env"]
        if env["container"] is not None:
            if env["wheels"] not in ("download", "none"):
                message = f"{env['wheels']!r} is not allowed with container, whose environment is taken as it is: leave it out"
                raise self.refuse(("env", "wheels"), message)
            env["wheels"] = "none"
            if not (self.root / env["container"]).exists():
                message = f"{env['container']!r} is not allowed: there is no such image. Make one from workflow/envs/image.def"
                raise self.refuse(("env", "container"), message)
            for folder in (SCRIPTS_DIR, *(self.root / self.config[key] for key in ("resources_dir", "state_dir", "results_dir"))):
                if {",", ":"} & set(str(folder)):  # the list of what an image sees has no quotes
                    message = f"an image is not allowed here: Apptainer takes a comma or colon for the end of a path, as in {folder}"
                    raise self.refuse(("env", "container"), message)
        try:
            env_key(env_arguments(self.config, self.root))
            has_dashboard = not self.config["ray"]["dashboard"] or "default" in extras_of(self.root / env["requirements"], "ray")
        except ConfigError as error:
            raise self.refuse(("env", "requirements"), str(error)) from None
        if not has_dashboard:
            message = f"True is not allowed: env.requirements, {env['requirements']}, does not list ray[default]"
            raise self.refuse(("ray", "dashboard"), f"{message}. Name workflow/envs/dashboard.in there, or add it and lock again")
        if env["cache_dir"] is not None and env["wheels"] == "none":
            message = "is not allowed with wheels: none, where there is nothing to keep: leave it out"
            raise self.refuse(("env", "cache_dir"), f"{env['cache_dir']!r} {message}")

    def sweep(self, path: KeyPath, sweep: dict[str, Any]) -> None:
        """Check what no schema can say of a sweep, and fill in what depends on other keys."""
        if ("model" in sweep) == ("trainable" in sweep):
            raise self.refuse(path, "needs either model or trainable, and not both")
        kind = "model" if "model" in sweep else "trainable"
        try:
            local_sources(find_target(sweep[kind], self.root))
        except ConfigError as error:
            raise self.refuse((*path, kind), str(error)) from None
        datasets = self.config["datasets"]
        if sweep["dataset"] is not None and sweep["dataset"] not in datasets:
            raise self.refuse(
                (*path, "dataset"),
                f"{sweep['dataset']!r} is not allowed: {'one of ' + ', '.join(datasets) if datasets else 'there are no datasets'}",
            )
        for key in ("search_algorithm", "scheduler"):
            sweep[key] = self.options((*path, key), sweep[key])
        try:
            space = parse_space(sweep["search_space"], self.dotted((*path, "search_space")))
        except ConfigError as error:
            raise ConfigError(f"{self.file_of((*path, 'search_space'))}: {error}") from None
        self.fits_algorithm(path, space, sweep["search_algorithm"]["name"])
        self.points(path, sweep, space)
        for key in ("mlflow", "wandb"):
            requirements = self.config["env"]["requirements"]
            if sweep[key] is not None and not any(lists(self.root / requirements, package) for package in (key, f"{key}-skinny")):
                message = f"{sweep[key]!r} is not allowed: env.requirements, {requirements}, does not list {key}"
                raise self.refuse((*path, key), f"{message}. Name workflow/envs/trackers.in there, or add it and lock again")
        for key in ("stop", "constraint"):
            self.bounds((*path, key), sweep[key], "model" in sweep)
        if kind == "model":
            self.model(path, sweep, space)
        else:
            for key in ("loss", "optimizer"):
                if key in sweep:
                    raise self.refuse((*path, key), f"{sweep[key]!r} is not allowed beside trainable: it belongs to model")
        if (grace := sweep["scheduler"].get("grace_period", 1)) > sweep["max_epochs"]:
            raise self.refuse((*path, "scheduler", "grace_period"), f"{grace} is not allowed: at most max_epochs, {sweep['max_epochs']}")
        if (scheduler := sweep["scheduler"]["name"]) in ("hyperband", "pbt"):
            self.takes_all(path, sweep, scheduler)
        if scheduler == "pbt" and is_conditional(space):
            raise self.refuse((*path, "scheduler", "name"), "'pbt' is not allowed where search_space has one_of: asha, or choice")
        if scheduler == "pbt" and not any(
            isinstance(d, Distribution) and (kind == "trainable" or key in TRAINING_KEYS) for key, d in space.items()
        ):
            message = "'pbt' is not allowed: it changes settings in the middle of a training, and nothing that is searched can change then"
            raise self.refuse((*path, "scheduler", "name"), f"{message}. Allowed: a distribution for lr, batch_size or the like")
        self.resources(path, sweep)

    def takes_all(self, path: KeyPath, sweep: dict[str, Any], scheduler: str) -> None:
        """Refuse what does not go with a scheduler that is handed all trials, and pauses them."""
        if sweep["repeats"] > 1:
            message = f"{sweep['repeats']} is not allowed with scheduler {scheduler}, which pauses trials one by one: 1, or scheduler asha"
            raise self.refuse((*path, "repeats"), message)
        if (name := sweep["search_algorithm"]["name"]) not in ("random", "grid"):
            message = (
                f"{name!r} is not allowed with scheduler {scheduler}, which takes all configurations before there is a result to learn from"
            )
            raise self.refuse((*path, "search_algorithm"), f"{message}: random or grid, or scheduler asha")
        if sweep["max_concurrent"] is not None:
            message = f"{sweep['max_concurrent']} is not allowed with scheduler {scheduler}, which takes all trials"
            raise self.refuse((*path, "max_concurrent"), f"{message}: leave it out, or take scheduler asha")
        if sweep["trial_resources"]["gpu"] == "auto":
            message = f"auto is not allowed with scheduler {scheduler}, which starts all trials before one could be measured"
            raise self.refuse((*path, "trial_resources", "gpu"), f"{message}: a number, or scheduler asha")

    def options(self, path: KeyPath, given: dict[str, Any]) -> dict[str, Any]:
        """A search algorithm or scheduler with the defaults of its options."""
        known = self.schema["$defs"][path[-1]]
        if "name" not in given:
            raise self.refuse((*path, "name"), f"missing. Allowed: one of {', '.join(known)}")
        name = given["name"]
        if path[-1] == "search_algorithm" and isinstance(name, str) and ":" in name:
            self.searcher((*path, "name"), name)
            return dict(given)  # its options go to its constructor
        if not isinstance(name, str) or name not in known:
            or_own = ", or module:Class of a searcher of Ray Tune's" if path[-1] == "search_algorithm" else ""
            raise self.refuse((*path, "name"), f"{name!r} is not allowed: one of {', '.join(known)}{or_own}")
        if (package := PACKAGES.get(name)) and not lists(self.root / self.config["env"]["requirements"], package):
            message = f"{name!r} is not allowed: env.requirements, {self.config['env']['requirements']}, does not list {package}"
            raise self.refuse((*path, "name"), f"{message}. Name workflow/envs/searchers.in there, or add it and lock again")
        schema: dict[str, Any] = {
            "type": "object",
            "additionalProperties": False,
            "properties": {"name": {"type": "string"}, **known[name]},
        }
        for key in given:
            if key not in schema["properties"]:
                raise self.refuse((*path, key), f"unknown option of {name}. {_nearest(str(key), known[name])}")
        self.against_schema(given, schema, path)
        return with_defaults(given, schema)

    def searcher(self, path: KeyPath, name: str) -> None:
        """Refuse what cannot be a class; one of a library's is looked for where it is installed, by build_env."""
        module, _, class_name = name.rpartition(":")
        if module.endswith(".py"):
            try:
                find_target(name, self.root)
            except ConfigError as error:
                raise self.refuse(path, str(error)) from None
        elif not all(part.isidentifier() for part in [*module.split("."), class_name]):
            raise self.refuse(path, f"{name!r} is not allowed: write path/to/file.py:Class or package.module:Class")

    def fits_algorithm(self, path: KeyPath, space: dict[str, Any], algorithm: str) -> None:
        for key, distribution in space.items():
            if not isinstance(distribution, Distribution):
                continue
            is_grid = isinstance(distribution, Choice) and distribution.name == "grid"
            here = (*path, "search_space", *key.split("/"))
            if algorithm == "grid" and not is_grid:
                raise self.refuse(
                    here, f"{distribution.name} is not allowed with search_algorithm grid: grid, a nested space or a constant"
                )
            if algorithm not in ("random", "grid") and is_grid:
                raise self.refuse(
                    here, f"grid is not allowed with search_algorithm {algorithm}: choice, or search_algorithm random or grid"
                )

    def points(self, path: KeyPath, sweep: dict[str, Any], space: dict[str, Any]) -> None:
        if sweep["points_to_evaluate"] and is_conditional(space):
            message = "is not allowed where search_space has one_of: no points, or choice"
            raise self.refuse((*path, "points_to_evaluate"), message)
        if sweep["points_to_evaluate"] and grids_of(space):
            message = "is not allowed where search_space has grid values, which are all gone through: choice, or no points"
            raise self.refuse((*path, "points_to_evaluate"), message)
        if (count := len(sweep["points_to_evaluate"])) > sweep["num_samples"]:
            raise self.refuse((*path, "points_to_evaluate"), f"{count} points are not allowed: at most num_samples, {sweep['num_samples']}")
        for number, point in enumerate(sweep["points_to_evaluate"]):
            try:
                point_of(space, point)
            except ConfigError as error:
                raise self.refuse((*path, "points_to_evaluate", number), str(error)) from None

    def bounds(self, path: KeyPath, bounds: dict[Any, Any], is_model: bool) -> None:
        for metric, bound in bounds.items():
            if not isinstance(metric, str) or (is_model and metric not in MODEL_METRICS):
                which = f"one of {', '.join(MODEL_METRICS)}, which model reports" if is_model else "the name of a metric"
                raise self.refuse((*path, metric), f"{metric!r} is not allowed: {which}")
            if not (isinstance(bound, dict) and len(bound) == 1 and bound.keys() <= BOUNDS.keys() and all(map(is_number, bound.values()))):
                raise self.refuse((*path, metric), f"{bound!r} is not allowed: {{at_least: number}} or {{at_most: number}}")

    def model(self, path: KeyPath, sweep: dict[str, Any], space: dict[str, Any]) -> None:
        sweep.setdefault("loss", "cross_entropy")
        sweep.setdefault("optimizer", "sgd")
        if sweep["dataset"] is None:
            raise self.refuse((*path, "dataset"), "missing: a model is trained on a data set, so name one of datasets")
        if sweep["metric"] not in MODEL_METRICS:
            raise self.refuse((*path, "metric"), f"{sweep['metric']!r} is not allowed with model: one of {', '.join(MODEL_METRICS)}")
        if sweep["metric"] != "accuracy" and sweep["mode"] == "max":
            raise self.refuse(
                (*path, "mode"), f"'max' is not allowed with metric {sweep['metric']}, of which less is better: write mode: min"
            )
        for key in ("lr", "batch_size"):
            if key not in space:
                raise self.refuse(
                    (*path, "search_space", key), "missing: the training of a model needs it, as a distribution or a constant"
                )
        foreign = {"nesterov", "momentum"} if sweep["optimizer"] != "sgd" else {"betas"}
        for key in foreign & space.keys():
            raise self.refuse((*path, "search_space", key), f"is not allowed with optimizer {sweep['optimizer']}: it has no such setting")
        batch_size = space["batch_size"]
        if isinstance(batch_size, Normal) or (isinstance(batch_size, Numeric) and not batch_size.whole):
            message = "whole numbers of at least 1, from randint, lograndint, choice, grid, or quniform or qloguniform with a whole step"
            raise self.refuse((*path, "search_space", "batch_size"), f"{batch_size.name} is not allowed here: {message}")
        for key, allowed_text, is_allowed in (
            ("lr", "numbers above 0", lambda v: is_number(v) and v > 0),
            ("batch_size", "whole numbers of at least 1", lambda v: is_number(v) and float(v).is_integer() and v >= 1),
        ):
            for value in _extremes(space[key]):
                if not is_allowed(value):
                    raise self.refuse((*path, "search_space", key), f"{value!r} is not allowed: {allowed_text}")

    def resources(self, path: KeyPath, sweep: dict[str, Any]) -> None:
        trial, allocation = sweep["trial_resources"], sweep["allocation"]
        if "trainable" in sweep and sweep["fuse"] == "on":
            raise self.refuse(
                (*path, "fuse"), "'on' is not allowed: auto or off with a trainable, since only trials of a model can be trained together"
            )
        if allocation["max_wait"] is not None and allocation["resubmit"]:
            raise self.refuse(
                (*path, "allocation", "max_wait"),
                f"{allocation['max_wait']} is not allowed: null where resubmit is above 0, since Slurm counts it from the first start of a job",
            )
        if (allocation["min_nodes"] or 1) > allocation["nodes"]:
            raise self.refuse(
                (*path, "allocation", "min_nodes"),
                f"{allocation['min_nodes']} is not allowed: at most allocation.nodes, {allocation['nodes']}",
            )
        if isinstance(trial["gpu"], str) and trial["gpu"] != "auto":
            raise self.refuse((*path, "trial_resources", "gpu"), f"{trial['gpu']!r} is not allowed: a number of at least 0, or auto")
        least = {"cpu": trial["cpu"], "gpu": 1 if trial["gpu"] == "auto" else trial["gpu"]}
        for key, whole in (("cpu", "cpus_per_node"), ("gpu", "gpus_per_node")):
            if least[key] > allocation[whole]:
                raise self.refuse(
                    (*path, "trial_resources", key),
                    f"{trial[key]} is not allowed: a trial runs on one node, so at most allocation.{whole}, {allocation[whole]}",
                )
        if least["gpu"] > 1 and not float(least["gpu"]).is_integer():
            raise self.refuse((*path, "trial_resources", "gpu"), f"{trial['gpu']} is not allowed: a part of one GPU, or whole GPUs")


def _extremes(value: Any) -> list[Any]:
    """Values between which (or among which) all values of a distribution or constant lie."""
    if isinstance(value, Numeric | Normal):
        return [value.quantile(0), value.quantile(1)]
    return list(value.values) if isinstance(value, Choice) else [value]
