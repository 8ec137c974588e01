"""Defines the record of an environment, `env.yaml`. No other module defines the keys that are written to this file and read from it."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raysweep.common.errors import RaysweepError, WorldError
from raysweep.common.typed_json import Extensible, read_yaml_as
from raysweep.environment.commands import in_container, last_json, last_line, run_captured, with_modules

MANIFEST = "env.yaml"  # This file lies in the environment's folder and exists only when the environment works.
VENV_MANIFEST = "raysweep.yaml"  # This file lies in a complete virtualenv and contains the record and the time of the build.

# Earlier versions of Ray let clients without a token in, and do not say so. In this version, the tests of the token pass.
LEAST_RAY = (2, 53)
OLD_RAY = f"does not check which programs connect. The least version is {'.'.join(map(str, LEAST_RAY))}"

DESCRIBE_PYTHON = "import json, platform, sys; print(json.dumps({'python': sys.executable, 'version': platform.python_version()}))"


def feature_version(version: str) -> str:
    """Return X.Y of the Python version X.Y.Z, for instance 3.11 for 3.11.7. Packages are compiled for X.Y."""
    return ".".join(version.split(".")[:2])


@dataclass(frozen=True, kw_only=True)
class Environment(Extensible):
    """Describes an environment that is ready for use, as its env.yaml does."""

    key: str  # name of the environment's folder, see requirements.env_key
    python: Path  # absolute path of the interpreter
    python_version: str  # for instance 3.11.7
    torch_backend: str | None  # cpu, cu130 … or pypi; None where torch is not installed
    wheels: str
    modules: tuple[str, ...]
    container: str | None = None  # path of the image in which the environment runs; old records without an image lack this key
    packages: dict[str, str]  # versions of all installed packages by normalised name
    # Digest of X.Y of the Python version, the torch backend and the packages. No other property of the environment can change a result.
    environment_sha256: str

    @classmethod
    def load(cls, env_dir: Path) -> Environment:
        """Return the environment in `env_dir`. Raises RaysweepError where `env_dir` has no complete environment."""
        path = env_dir / MANIFEST
        if not path.is_file():
            raise RaysweepError(f"{path} is missing: the environment was not built. Run the rule build_env first.")
        return cls.read(path, env_dir)

    @classmethod
    def read(cls, path: Path, env_dir: Path) -> Environment:
        """Return the environment in `env_dir` that the file `path` describes."""
        return read_yaml_as(cls, path).moved_to(env_dir)

    def moved_to(self, env_dir: Path) -> Environment:
        """Return this environment with the path that the virtualenv has in `env_dir`, because the user may have moved the project."""
        return self if self.wheels == "none" else replace(self, python=env_dir.absolute() / "venv" / "bin" / "python")

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command that runs `python *argv` in this environment. The command has to run with the variables of `process_environment()`."""
        return with_modules(self.modules, in_container(self.container, [str(self.python), *argv]))

    def check_python(self) -> None:
        """Raise WorldError, with one line, where the environment's Python does not run on this machine.

        WorldError is raised too where X.Y of this Python's version differs from the version with which the environment was built.
        """
        node, remedy = socket.gethostname(), "env.python and env.modules have to lead to the same Python on all nodes"
        if self.container is not None and not os.path.exists(self.container):
            raise WorldError(f"{node} does not see the image {self.container}: the image has to lie where all nodes see it.")
        if self.container is None and not os.path.exists(self.python):  # The Python of a virtualenv is a link, whose target may be missing.
            raise WorldError(f"{node} has no {os.path.realpath(self.python)}, the Python under the environment: {remedy}.")
        try:
            run = run_captured(self.command(["-c", DESCRIBE_PYTHON]))
        except OSError as error:
            raise WorldError(f"{node}: the environment's Python does not run ({error.strerror}): {remedy}.") from None
        if run.returncode != 0:
            raise WorldError(f"{node}: the environment's Python does not run: {last_line(run.stderr)}. Next: {remedy}.")
        version = last_json(run.stdout)["version"]
        if feature_version(version) != feature_version(self.python_version):
            raise WorldError(
                f"{node}: the environment is for Python {self.python_version}, but its Python on this node is {version}: {remedy}."
            )
