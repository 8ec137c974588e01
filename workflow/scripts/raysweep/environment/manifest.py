"""The record of an environment, `env.yaml`: the one definition of what is written there and read from there."""

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

MANIFEST = "env.yaml"  # in the environment's folder; exists only when the environment works
VENV_MANIFEST = "raysweep.yaml"  # in a virtualenv that is complete: the same, and when it was built

DESCRIBE_PYTHON = "import json, platform, sys; print(json.dumps({'python': sys.executable, 'version': platform.python_version()}))"


def feature_version(version: str) -> str:
    """Return X.Y of a Python's version, for which packages are compiled: 3.11.7 → 3.11."""
    return ".".join(version.split(".")[:2])


@dataclass(frozen=True)
class Environment:
    """An environment that is ready, as its env.yaml describes it."""

    key: str
    python: Path  # absolute
    python_version: str  # as in 3.11.7
    torch_backend: str | None  # cpu | cu130 … | pypi; None without torch
    wheels: str
    modules: tuple[str, ...]
    container: str | None  # the image in which it runs
    packages: dict[str, str]  # all that is installed: normalised name → version
    environment_sha256: str  # over X.Y of Python, the backend and the packages, which are all that a result can depend on

    @classmethod
    def load(cls, env_dir: Path) -> Environment:
        """Return the environment in `env_dir`. Raises RaysweepError where none was finished."""
        path = env_dir / MANIFEST
        if not path.is_file():
            raise RaysweepError(f"{path} is missing: the environment was not built. Run the rule build_env first.")
        return cls.from_record(read_yaml(path), env_dir)

    @classmethod
    def from_record(cls, record: dict[str, Any], env_dir: Path) -> Environment:
        """Return the environment in `env_dir` that a yaml file describes.

        The virtualenv may have moved along with the project, so its place follows from `env_dir` and not from the record.
        """
        as_it_is = record["wheels"] == "none"
        return cls(
            key=record["key"],
            python=Path(record["python"]) if as_it_is else env_dir.absolute() / "venv" / "bin" / "python",
            python_version=record["python_version"],
            torch_backend=record["torch_backend"],
            wheels=record["wheels"],
            modules=tuple(record["modules"]),
            container=record.get("container"),  # records of environments without an image once lacked the key
            packages=record["packages"],
            environment_sha256=record["environment_sha256"],
        )

    def to_record(self) -> dict[str, Any]:
        """Return what env.yaml holds."""
        return asdict(self) | {"python": str(self.python), "modules": list(self.modules)}

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command that runs `python *argv` in this environment. It needs the variables of `process_environment()`."""
        return with_modules(self.modules, in_container(self.container, [str(self.python), *argv]))

    def check_python(self) -> None:
        """Raise WorldError, with one line, where the environment's Python does not run on this machine as it did where it was built."""
        node, remedy = socket.gethostname(), "env.python and env.modules have to lead to the same Python on all nodes"
        if self.container is not None and not os.path.exists(self.container):
            raise WorldError(f"{node} does not see the image {self.container}: the image has to lie where all nodes see it.")
        if self.container is None and not os.path.exists(self.python):  # the Python of a virtualenv is a link
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
