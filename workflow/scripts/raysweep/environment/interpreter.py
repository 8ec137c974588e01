"""Runs a Python interpreter to learn its version, its packages, and whether it can import given modules."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from raysweep.common.errors import ConfigError, RaysweepError
from raysweep.environment.commands import in_container, last_json, last_line, run_captured, with_modules
from raysweep.environment.manifest import DESCRIBE_PYTHON, Environment, feature_version
from raysweep.environment.requirements import EnvironmentSpec, env_key
from raysweep.usercode.target import SCRIPTS_DIR

logger = logging.getLogger(__name__)

MINIMUM_PYTHON = (3, 11)

_LIST_PACKAGES = "import json; from importlib.metadata import distributions as d; print(json.dumps([[x.name, x.version] for x in d()]))"

# The program that imports modules and targets prints lines that begin with this mark and continue with JSON. Before an import the line contains the
# name of the module or target. After a failed import the line contains the name and the error.
_MARK = "raysweep-import "
_IMPORT_ALL = f"""
import importlib, json, os, sys, traceback
from pathlib import Path
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    print({_MARK!r} + json.dumps({{"name": name}}), flush=True)
    try:
        if ":" in name:
            from raysweep.usercode.freeze import load_target
            from raysweep.usercode.target import find_target
            load_target(find_target(name, Path.cwd()))
        else:
            importlib.import_module(name)
    except BaseException as error:
        traceback.print_exc()
        reason = " ".join(traceback.format_exception_only(error)[-1].split())
        print({_MARK!r} + json.dumps({{"name": name, "error": reason}}), flush=True)
        sys.stderr.flush()
        os._exit(1)
"""


@dataclass(frozen=True)
class Interpreter:
    """Describes a Python interpreter that this module has run."""

    path: str  # absolute path of the program `python`
    version: str


def find_python(spec: EnvironmentSpec) -> Interpreter:
    """Return the Python interpreter that `env.python` names after the modules are loaded.

    Raises ConfigError where this interpreter does not run or is too old.
    """
    minimum = ".".join(map(str, MINIMUM_PYTHON))
    try:
        run = run_captured(with_modules(spec.modules, in_container(spec.container, [spec.python, "-c", DESCRIBE_PYTHON])))
    except OSError as error:
        if spec.container is not None:
            raise ConfigError(
                f"env.container: apptainer cannot be run ({error.strerror}): load its module (env.modules), or leave env.container out"
            ) from None
        raise ConfigError(f"env.python: {spec.python!r} cannot be run ({error.strerror}): name a Python {minimum} or newer") from None
    if run.returncode != 0:
        key, value = ("env.modules", list(spec.modules)) if spec.modules else ("env.python", spec.python)
        if spec.container is not None:
            key, value = "env.container", spec.container
        raise ConfigError(f"{key}: {value!r} does not lead to a Python that runs: {last_line(run.stderr)}")
    described = last_json(run.stdout)
    if tuple(map(int, described["version"].split(".")[:2])) < MINIMUM_PYTHON:
        raise ConfigError(f"env.python: {spec.python!r} is Python {described['version']}: name a Python {minimum} or newer")
    return Interpreter(described["python"], described["version"])


def installed_packages(command: list[str]) -> dict[str, str]:
    """Return the versions of all distributions that an interpreter sees, by normalised name.

    These distributions include those that the loaded modules bring. `command` starts the interpreter.
    """
    run = run_captured([*command, "-c", _LIST_PACKAGES])
    if run.returncode != 0:
        raise RaysweepError(f"{command[-1]} does not run: {last_line(run.stderr)}")
    packages: dict[str, str] = {}
    for name, version in last_json(run.stdout):
        if name:  # A broken installation leaves distributions without a name.
            packages.setdefault(canonicalize_name(name), version)  # Python imports the first distribution of this name on sys.path.
    return dict(sorted(packages.items()))


def describe_environment(spec: EnvironmentSpec, python: Path, base: Interpreter) -> Environment:
    """Return the description of the environment whose interpreter is `python`.

    `python` is the interpreter of a virtualenv that is based on `base`, or `python` is `base`.
    """
    packages = installed_packages(with_modules(spec.modules, in_container(spec.container, [str(python)])))
    backend = (packages["torch"].partition("+")[2] or "pypi") if "torch" in packages else None
    contents = json.dumps([feature_version(base.version), backend, packages], sort_keys=True)
    return Environment(
        key=env_key(spec),
        python=python.absolute(),
        python_version=base.version,
        torch_backend=backend,
        wheels=spec.wheels,
        modules=spec.modules,
        container=spec.container,
        packages=packages,
        environment_sha256=hashlib.sha256(contents.encode()).hexdigest(),
    )


def check_imports(environment: Environment, names: Sequence[str], next_step: str) -> None:
    """Import the modules and targets `names` in the environment.

    Raises RaysweepError, which contains the first name whose import fails, the reason, and the next step for the user.
    """
    if not names:
        return
    logger.debug("importing %s", ", ".join(names))
    run = run_captured(environment.command(["-c", _IMPORT_ALL, str(SCRIPTS_DIR), *names]))
    logger.debug("the imports printed: %s %s", run.stdout.strip(), run.stderr.strip())
    if run.returncode == 0:
        return
    events = [json.loads(line.removeprefix(_MARK)) for line in run.stdout.splitlines() if line.startswith(_MARK)]
    last_event = events[-1] if events else {}
    reason = last_event.get("error")
    if reason is None:
        reason = f"killed by signal {-run.returncode}" if run.returncode < 0 else f"exit code {run.returncode}, {last_line(run.stderr)}"
    raise RaysweepError(
        f"{last_event.get('name', 'Python')} cannot be imported in the environment of the trials: {reason.rstrip('.')}. Next: {next_step}."
    )
