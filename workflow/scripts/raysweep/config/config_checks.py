"""This module checks the config outside of the sweeps for mistakes that a JSON Schema cannot find. Each check yields mistakes."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator

from raysweep.common.errors import ConfigError
from raysweep.config.mistakes import Mistake
from raysweep.config.section import Section, maps_below
from raysweep.data.manifest import MANIFEST, is_function, is_missing, is_table, missing_source_message
from raysweep.environment.requirements import check_requirements_files, extras_of, parse_requirements
from raysweep.usercode.target import SCRIPTS_DIR, find_target, local_sources

COMPARISON = "comparison.html"  # This file of the results compares the sweeps of a config.
FOLDERS = ("results_dir", "state_dir", "resources_dir")


def check_folders(config: Section) -> Iterator[Mistake]:
    """Yield a mistake where one of the three folders lies in another, because Snakemake deletes the outputs of a failed job."""
    folders = {key: config.folder(key).resolve() for key in FOLDERS}
    for key, folder in folders.items():
        for outer, outer_folder in folders.items():
            if key != outer and folder.is_relative_to(outer_folder):
                place = f"it lies in {outer} ({config.values[outer]})"
                yield config.mistake(f"{config.values[key]!r} is not allowed: {place}. Allowed: three folders, none in another", key)
                return  # Without this return, two equal folders would be reported twice.


def check_container(config: Section) -> Iterator[Mistake]:
    """Yield the mistakes of `env.container`, the image in which trials run."""
    env = config.values["env"]
    if env["container"] is None:
        return
    if env["wheels"] != "none":
        message = f"{env['wheels']!r} is not allowed with container, whose environment is taken as it is: leave it out"
        yield config.mistake(message, "env", "wheels")
    if not (config.root / env["container"]).exists():
        message = f"{env['container']!r} is not allowed: there is no such image. Make one from workflow/envs/image.def"
        yield config.mistake(message, "env", "container")
        return
    for folder in (SCRIPTS_DIR, *(config.folder(key) for key in ("resources_dir", "state_dir", "results_dir"))):
        # A comma or colon would split the path, because Apptainer's list of bound folders has no quotes.
        if {",", ":"} & set(str(folder)):
            message = f"an image is not allowed here: Apptainer takes a comma or colon for the end of a path, as in {folder}"
            yield config.mistake(message, "env", "container")
            return


def check_requirements(config: Section) -> Iterator[Mistake]:
    """Yield a mistake where a requirements file of the environment or its lock is missing, or where a line is not a requirement."""
    try:
        check_requirements_files(config.requirements)
        parse_requirements(config.requirements)
    except ConfigError as error:
        yield config.mistake(str(error), "env", "requirements")


def check_dashboard(config: Section) -> Iterator[Mistake]:
    """Yield a mistake where the config asks for Ray's dashboard, and the environment lacks ray[default], which the dashboard needs."""
    if config.values["ray"]["dashboard"] and "default" not in extras_of(config.requirements, "ray"):
        message = f"True is not allowed: env.requirements, {config.values['env']['requirements']}, does not list ray[default]"
        yield config.mistake(f"{message}. Name workflow/envs/dashboard.in there, or add it and lock again", "ray", "dashboard")


def check_tls(config: Section) -> Iterator[Mistake]:
    """Yield a mistake where Ray would use TLS, or jobs would exchange secrets, and this Python lacks the package for this.

    The package is newer than some set-ups.
    """
    if importlib.util.find_spec("cryptography") is not None:
        return
    tls, sweeps = config.values["ray"]["tls"], maps_below(config.values, "sweeps")
    lacking = f"is not allowed here: {sys.executable} lacks the package cryptography. Run `make setup`, or use"
    if tls == "on" or (tls == "auto" and any(sweep["allocation"]["nodes"] > 1 for sweep in sweeps.values())):
        yield config.mistake(f"{tls!r} {lacking} off", "ray", "tls")
    for name, sweep in sweeps.items():
        if sweep["allocation"]["jobs"] > 1:
            yield config.mistake(f"{sweep['allocation']['jobs']} {lacking} 1", "sweeps", name, "allocation", "jobs")


def check_cache(config: Section) -> Iterator[Mistake]:
    """Yield a mistake where the config has a `cache_dir` and `wheels: none`. With `wheels: none`, no environment is unpacked on the nodes."""
    env = config.values["env"]
    if env["cache_dir"] is not None and env["wheels"] == "none":
        message = "is not allowed with wheels: none, where there is nothing to keep: leave it out"
        yield config.mistake(f"{env['cache_dir']!r} {message}", "env", "cache_dir")


def check_source(dataset: Section) -> Iterator[Mistake]:
    """Yield a mistake where a sweep uses the data set and the source of the data set is a path that does not exist.

    A staged data set does not need the source, so that an interrupted sweep can continue after the user has deleted the archive of the data set.
    """
    name, source = str(dataset.path[-1]), dataset.values["source"]
    is_used = any(sweep.get("dataset") == name for sweep in maps_below(dataset.config, "sweeps").values())
    if is_used and is_function(source):
        try:
            local_sources(find_target(source, dataset.root))
        except ConfigError as error:
            yield dataset.mistake(str(error), "source")
    elif (
        is_used
        and not is_function(source)
        and is_missing(source, dataset.root)
        and not (dataset.folder("resources_dir") / "data" / name / MANIFEST).is_file()
    ):
        yield dataset.mistake(missing_source_message(source), "source")


def check_target_column(dataset: Section) -> Iterator[Mistake]:
    """Yield a mistake where a table has no target, or where a data set that is no table has a target. CIFAR-10 has classes, so no regression."""
    source, target = dataset.values["source"], dataset.values["target"]
    if source in ("download", "synthetic") and dataset.values["task"] == "regression":
        yield dataset.mistake(f"'regression' is not allowed with source {source}, whose targets are classes: classification", "task")
    if is_table(source) and target is None:
        yield dataset.mistake("missing: a table needs the name of the column that the model predicts", "target")
    elif target is not None and not is_table(source):
        yield dataset.mistake(
            f"{target!r} is not allowed: it is for a table (.csv or .parquet), which {source!r} is not. Leave it out", "target"
        )


def check_group(dataset: Section) -> Iterator[Mistake]:
    """Yield a mistake where the column of the groups is the target."""
    group = dataset.values["group"]
    if group is not None and group == dataset.values["target"]:
        yield dataset.mistake(f"{group!r} is not allowed: it is the target. Name another column, or leave group out", "group")


def check_names_of_sweeps(names: list[str]) -> Iterator[Mistake]:
    """Yield a mistake for each sweep that would write to the folder of another sweep, or whose folder would have the path of the comparison.

    The check ignores upper and lower case, because some file systems ignore upper and lower case.
    """
    first_spelling: dict[str, str] = {}
    for name in names:
        if name.casefold() == COMPARISON:
            message = f"the name {name!r} is not allowed: the results have a file of this name, in which sweeps are compared"
            yield Mistake(("sweeps", name), message)
        if (first := first_spelling.setdefault(name.casefold(), name)) != name:
            message = f"the name {name!r} is not allowed: where capitals do not count it would write to the folder of {first!r}"
            yield Mistake(("sweeps", name), message)
