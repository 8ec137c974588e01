"""Defines the record of an environment, `env.yaml`. No other module defines the keys that are written to this file and read from it."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raysweep.common.errors import RaysweepError, WorldError
from raysweep.common.files import read_yaml
from raysweep.environment.commands import in_container, last_json, last_line, run_captured, with_modules

MANIFEST = "env.yaml"  # This file lies in the environment's folder and exists only when the environment works.
VENV_MANIFEST = "raysweep.yaml"  # This file lies in a complete virtualenv and contains the record and the time of the build.

DESCRIBE_PYTHON = "import json, platform, sys; print(json.dumps({'python': sys.executable, 'version': platform.python_version()}))"


def feature_version(version: str) -> str:
    """Return X.Y of the Python version X.Y.Z, for instance 3.11 for 3.11.7. Packages are compiled for X.Y."""
    return ".".join(version.split(".")[:2])


@dataclass(frozen=True)
class Environment:
    """Describes an environment that is ready for use, as its env.yaml does."""

    key: str  # name of the environment's folder, see requirements.env_key
    python: Path  # absolute path of the interpreter
    python_version: str  # for instance 3.11.7
    torch_backend: str | None  # cpu, cu130 … or pypi; None where torch is not installed
    wheels: str
    modules: tuple[str, ...]
    container: str | None  # path of the image in which the environment runs
    packages: dict[str, str]  # versions of all installed packages by normalised name
    # Digest of X.Y of the Python version, the torch backend and the packages. No other property of the environment can change a result.
    environment_sha256: str

    @classmethod
    def load(cls, env_dir: Path) -> Environment:
        """Return the environment in `env_dir`. Raises RaysweepError where `env_dir` has no complete environment."""
        path = env_dir / MANIFEST
        if not path.is_file():
            raise RaysweepError(f"{path} is missing: the environment was not built. Run the rule build_env first.")
        return cls.from_record(read_yaml(path), env_dir)

    @classmethod
    def from_record(cls, record: dict[str, Any], env_dir: Path) -> Environment:
        """Return the environment in `env_dir` that the record describes.

        The user may have moved the project and with it the virtualenv. So the path of the virtualenv follows from `env_dir` and not from the record.
        """
        as_it_is = record["wheels"] == "none"
        return cls(
            key=record["key"],
            python=Path(record["python"]) if as_it_is else env_dir.absolute() / "venv" / "bin" / "python",
            python_version=record["python_version"],
            torch_backend=record["torch_backend"],
            wheels=record["wheels"],
            modules=tuple(record["modules"]),
            container=record.get("container"),  # Old records of environments without an image lack this key.
            packages=record["packages"],
            environment_sha256=record["environment_sha256"],
        )

    def to_record(self) -> dict[str, Any]:
        """Return the content of env.yaml for this environment."""
        return asdict(self) | {"python": str(self.python), "modules": list(self.modules)}

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
