"""This module checks the config outside of the sweeps for mistakes that a JSON Schema cannot find. Each check yields mistakes."""

from __future__ import annotations

from collections.abc import Iterator

from raysweep.common.errors import ConfigError
from raysweep.config.mistakes import KeyPath, Mistake
from raysweep.config.section import Section
from raysweep.data.manifest import MANIFEST, is_missing, missing_source_message
from raysweep.environment.requirements import check_requirements_files, extras_of
from raysweep.usercode.target import SCRIPTS_DIR

FOLDERS = ("results_dir", "state_dir", "resources_dir")


def check_text(path: KeyPath, value: str) -> Iterator[Mistake]:
    """Yield a mistake for a text that a script would read as a command-line option, or that Snakemake cannot use as a path."""
    if value.startswith("-"):
        yield Mistake(path, f"{value!r} is not allowed: a text that does not begin with a hyphen; ./{value}, if it is a path")
    elif set("{}") & set(value) or not value.isprintable():
        yield Mistake(path, f"{value!r} is not allowed: a text of one line, without curly brackets")


def check_folders(config: Section) -> Iterator[Mistake]:
    """Yield a mistake where one of the three folders lies in another, because Snakemake deletes the outputs of a failed job."""
    folders = {key: (config.root / config.values[key]).resolve() for key in FOLDERS}
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
    for folder in (SCRIPTS_DIR, *(config.root / config.values[key] for key in ("resources_dir", "state_dir", "results_dir"))):
        # A comma or colon would split the path, because Apptainer's list of bound folders has no quotes.
        if {",", ":"} & set(str(folder)):
            message = f"an image is not allowed here: Apptainer takes a comma or colon for the end of a path, as in {folder}"
            yield config.mistake(message, "env", "container")
            return


def check_requirements(config: Section) -> Iterator[Mistake]:
    """Yield a mistake where the requirements file of the environment or the lock file is missing."""
    try:
        check_requirements_files(config.requirements)
    except ConfigError as error:
        yield config.mistake(str(error), "env", "requirements")


def check_dashboard(config: Section) -> Iterator[Mistake]:
    """Yield a mistake where the config asks for Ray's dashboard, and the environment lacks ray[default], which the dashboard needs."""
    if config.values["ray"]["dashboard"] and "default" not in extras_of(config.requirements, "ray"):
        message = f"True is not allowed: env.requirements, {config.values['env']['requirements']}, does not list ray[default]"
        yield config.mistake(f"{message}. Name workflow/envs/dashboard.in there, or add it and lock again", "ray", "dashboard")


def check_cache(config: Section) -> Iterator[Mistake]:
    """Yield a mistake where the config has a `cache_dir` and `wheels: none`. With `wheels: none`, no environment is unpacked on the nodes."""
    env = config.values["env"]
    if env["cache_dir"] is not None and env["wheels"] == "none":
        message = "is not allowed with wheels: none, where there is nothing to keep: leave it out"
        yield config.mistake(f"{env['cache_dir']!r} {message}", "env", "cache_dir")


def check_sources(config: Section) -> Iterator[Mistake]:
    """Yield a mistake where a sweep uses a data set whose source is a path that does not exist.

    A staged data set does not need the source, so that an interrupted sweep can continue after the user has deleted the archive of the data set.
    """
    sweeps = config.values.get("sweeps")  # The sweeps may be missing or may have mistakes.
    names_in_use = [sweep.get("dataset") for sweep in (sweeps.values() if isinstance(sweeps, dict) else ()) if isinstance(sweep, dict)]
    for name, dataset in config.values["datasets"].items():
        source, data_dir = dataset["source"], config.root / config.values["resources_dir"] / "data" / name
        if name in names_in_use and is_missing(source, config.root) and not (data_dir / MANIFEST).is_file():
            yield config.mistake(missing_source_message(source), "datasets", name, "source")


def check_names_of_sweeps(names: list[str]) -> Iterator[Mistake]:
    """Yield a mistake for each sweep that would write to the folder of another sweep on a file system that ignores upper and lower case."""
    first_spelling: dict[str, str] = {}
    for name in names:
        if (first := first_spelling.setdefault(name.casefold(), name)) != name:
            message = f"the name {name!r} is not allowed: where capitals do not count it would write to the folder of {first!r}"
            yield Mistake(("sweeps", name), message)
