"""How a program is started in the environment of the trials: after the site's modules, in the container, with the right variables."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from raysweep.usercode.target import SCRIPTS_DIR

# Variables of the controller that would lead processes of the trials' environment into the controller's. PYTHONDONTWRITEBYTECODE is among
# them because it would make every worker compile torch and Ray again.
NOT_INHERITED = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "__PYVENV_LAUNCHER__", "UV_TORCH_BACKEND")

# `bash -l`, because only login shells define the shell function `module`. The words arrive as arguments, so nothing has to be quoted.
_LOAD_AND_EXEC = 'n=$1; shift; module load "${@:1:n}" && shift "$n" && exec "$@"'


def process_environment() -> dict[str, str]:
    """Return the environment variables for processes of the trials' environment: the user's variables but for NOT_INHERITED."""
    return {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}


def with_modules(modules: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Return the command that loads the site's `modules`, in that order, and then runs `argv`."""
    return ["bash", "-lc", _LOAD_AND_EXEC, "bash", str(len(modules)), *modules, *argv] if modules else list(argv)


def in_container(container: str | None, argv: Sequence[str]) -> list[str]:
    """Return the command that runs `argv` in an Apptainer image, with NVIDIA's driver where the node has one; without an image `argv`.

    A relative path of the image starts at the working directory of Snakemake. The user's home is mounted, but packages that he has installed
    there are not imported. The folders that a program needs besides are named in APPTAINER_BIND: see `seen_in_container`.
    """
    if container is None:
        return list(argv)
    nvidia = ["--nv"] if shutil.which("nvidia-smi") else []
    return ["apptainer", "exec", *nvidia, "--env", "PYTHONNOUSERSITE=1", "--bind", str(SCRIPTS_DIR), container, *argv]


def seen_in_container(env: dict[str, str], folders: Iterable[Path | str | None]) -> dict[str, str]:
    """Return the variables `env` with folders added that a container has to show, behind the folders that the user has named."""
    named = [env["APPTAINER_BIND"]] if env.get("APPTAINER_BIND") else []
    return env | {"APPTAINER_BIND": ",".join(dict.fromkeys([*named, *(str(folder) for folder in folders if folder)]))}


def run_captured(argv: Sequence[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the trials' environment to its end and return what it printed; `variables` are added to its environment."""
    return subprocess.run(argv, capture_output=True, text=True, errors="replace", env=process_environment() | variables, check=False)


def last_line(text: str) -> str:
    """Return the last line of a program's output, where most programs put the cause of a failure."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it printed nothing"


def last_json(text: str) -> Any:
    """Return the JSON value on the last line, because a login shell may print a greeting before it."""
    return json.loads(last_line(text))
