"""Uses uv to build the environment for trials from a requirements file and a lock, checks the environment, and writes the environment's record.

    resources/env/<key>/env.yaml        the record of the environment; exists only when the whole environment works
    resources/env/<key>/venv/           the virtualenv, unless `wheels: none`
    resources/env/<key>/env.tar         the virtualenv for the nodes of a cluster, see archive.py

Each building process makes the virtualenv under a temporary name and renames the virtualenv when it is complete. uv's relocatable virtualenvs may
be renamed. So two building processes may do the same work twice, but they do not disturb each other. A virtualenv that a killed process left
incomplete is never used as an environment.
"""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from packaging.version import Version

from raysweep.common.errors import ConfigError, WorldError
from raysweep.common.files import read_yaml, write_yaml
from raysweep.common.typed_json import to_json
from raysweep.environment.aside import made_aside
from raysweep.environment.interpreter import Interpreter, check_imports, describe_environment, find_python
from raysweep.environment.manifest import LEAST_RAY, MANIFEST, OLD_RAY, VENV_MANIFEST, Environment
from raysweep.environment.requirements import EnvironmentSpec, env_key, lock_command, missing_requirements, modules_to_try, untried_versions
from raysweep.environment.wheels import install, make_venv
from raysweep.usercode.target import SCRIPTS_DIR, find_target

logger = logging.getLogger(__name__)


def build_environment(spec: EnvironmentSpec, output_dir: Path) -> Environment:
    """Make sure that the environment in `output_dir` is complete and importable, and return the environment.

    Nothing is built where `output_dir` already contains that environment. Raises RaysweepError, with one line, for every mistake in the config and
    every fault of the machine, such as a full disk.
    """
    if spec.wheels != "download" and spec.torch_backend != "auto":
        raise ConfigError(
            f"env.torch_backend: {spec.torch_backend!r} is not allowed with wheels: {spec.wheels}, where the wheels decide. "
            "Leave it at auto, or set wheels: download"
        )
    env_key(spec)  # This call reports a missing file before any other Python is started.
    base = find_python(spec)
    output_dir.mkdir(parents=True, exist_ok=True)
    manifest = output_dir / MANIFEST
    recorded = read_yaml(manifest) if manifest.is_file() else {}
    if spec.takes_python_as_it_is:
        environment = describe_environment(spec, Path(base.path), base)
        _check_requirements(environment, spec)
        _check_versions(environment, spec)
        if to_json(environment) != recorded:
            next_step = "mend it, or let the workflow make an environment (wheels: download)"
            check_imports(environment, modules_to_try(spec.requirements), next_step)
    else:
        finished = _finished(output_dir, env_key(spec), base)
        if finished is None:
            manifest.unlink(missing_ok=True)
            recorded = {}
            finished = _build_venv(output_dir, spec, base)
        environment = finished
    if to_json(environment) != recorded:
        write_yaml(manifest, to_json(environment))
    logger.debug("environment %s: Python %s, torch: %s", environment.key, environment.python_version, environment.torch_backend)
    return environment


def check_import(env_dir: Path, names: Sequence[str], requirements: Path) -> None:
    """Import modules and targets (`path/to/file.py:name` or `package.module:name`) in the environment of the trials.

    Raises RaysweepError, with one line, for the first import that fails.
    """
    for name in names:
        if ":" in name:
            find_target(name, Path.cwd())
    logger.info("Importing what the sweep trains in the environment of the trials")
    check_imports(Environment.load(env_dir), names, f"mend the file, or add what it needs {_where_to_add(requirements)}")


def _where_to_add(requirements: Path) -> str:
    """Return where a user adds a library to the environment, and the command that locks the list of libraries."""
    if requirements.resolve().is_relative_to(SCRIPTS_DIR.parent):  # an update of the workflow replaces the lists of the workflow
        own = Path("sweeps/mine/requirements.in")
        how = "docs/own-models.md, Libraries of your own"
        return f"to a list of your own, such as {own} ({how}), name the list in env.requirements, and lock it: `{lock_command(own)}`"
    return f"to {requirements}, and lock the list: `{lock_command(requirements)}`"


def _check_requirements(environment: Environment, spec: EnvironmentSpec) -> None:
    """Raise ConfigError where an environment to which the workflow installs nothing lacks a requirement."""
    missing = missing_requirements(spec.requirements, environment.packages)
    if not missing:
        return
    subject, remedy = (
        f"env.wheels: none takes the environment of {spec.python!r}",
        "let the workflow make an environment (wheels: download)",
    )
    if spec.container is not None:
        subject, remedy = f"env.container takes the image {spec.container!r}", "make one from workflow/envs/image.def"
    raise ConfigError(
        f"{subject} as it is, but that environment lacks {', '.join(missing)} of {spec.requirements}. Install them there, or {remedy}"
    )


def _check_versions(environment: Environment, spec: EnvironmentSpec) -> None:
    """Raise ConfigError where the environment has a Ray that lets programs without a token in. Warn of versions that were never tried."""
    version = environment.packages.get("ray")
    source = f"env.wheels: {spec.wheels}" if spec.container is None else f"env.container: the image {spec.container!r}"
    if version is not None and Version(version).release[:2] < LEAST_RAY:
        raise ConfigError(
            f"{source} gives Ray {version}, which {OLD_RAY}. Ask for ray>={'.'.join(map(str, LEAST_RAY))} in {spec.requirements} and in its lock,"
            " and for a newer Ray where the packages come from"
        )
    if untried := untried_versions(environment.packages):
        logger.warning("%s gives versions that are newer than any that was tried: %s", source, ", ".join(untried))


def _build_venv(env_dir: Path, spec: EnvironmentSpec, base: Interpreter) -> Environment:
    """Build the virtualenv under a temporary name, check the virtualenv, and rename it to its final name."""
    started = time.monotonic()
    logger.info("Building the environment from %s", spec.requirements)
    with made_aside(env_dir / "venv") as aside:
        make_venv(aside, base.path, spec.modules)
        python = aside / "bin" / "python"
        install(python, env_dir, spec, base.path)
        built = describe_environment(spec, python, base)
        _check_versions(built, spec)
        logger.info("Importing the packages of the environment")
        next_step = "if it stays so, the wheels do not fit this machine: try another env.python or env.torch_backend"
        check_imports(built, modules_to_try(spec.requirements), next_step)
        # This record lies inside the virtualenv and is renamed with the virtualenv, so the record always describes this virtualenv. The record contains
        # the path and the time of the build, so no two builds have equal records.
        write_yaml(aside / VENV_MANIFEST, to_json(built) | {"built_ns": time.time_ns()})
        environment = _publish(aside, built, env_dir, base)
    logger.info("Environment: Python %s, %d packages, built in %.0f s", base.version, len(built.packages), time.monotonic() - started)
    return environment


def _publish(aside: Path, built: Environment, env_dir: Path, base: Interpreter) -> Environment:
    """Rename the virtualenv `aside` to its final name and return the environment with that name.

    Where another building process has already made an equal virtualenv with that name, that virtualenv is returned.
    """
    while (finished := _finished(env_dir, built.key, base)) is None:
        try:
            aside.rename(env_dir / "venv")
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            with suppress(FileNotFoundError):  # Another building process has already removed the outdated virtualenv.
                shutil.rmtree((env_dir / "venv").rename(aside.with_name(f"{aside.name}.old")))
        else:
            return built.moved_to(env_dir)
    return finished


def _finished(env_dir: Path, key: str, base: Interpreter) -> Environment | None:
    """Return the environment whose complete virtualenv lies in `env_dir`.

    Returns None where `env_dir` has no complete virtualenv, or where a build would make a different virtualenv now.
    """
    path = env_dir / "venv" / VENV_MANIFEST
    if not path.is_file():
        return None
    environment = Environment.read(path, env_dir)
    if environment.key != key or environment.python_version != base.version:
        return None
    try:
        environment.check_python()
    except WorldError:  # The Python on which the virtualenv is based was removed or replaced by another version.
        return None
    return environment
