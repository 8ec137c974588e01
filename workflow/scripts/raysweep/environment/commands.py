"""Makes and runs the commands that start a program in the environment of the trials, with the site's modules, the container and the right variables."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raysweep.common.errors import WorldError
from raysweep.common.gpus import apptainer_options, with_replaced_variables
from raysweep.usercode.target import SCRIPTS_DIR

# Processes of the trials' environment do not inherit these variables of the controller. Most of these variables would make such a process use the
# controller's environment. PYTHONDONTWRITEBYTECODE would make every worker compile torch and Ray again.
NOT_INHERITED = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "__PYVENV_LAUNCHER__", "UV_TORCH_BACKEND")

# Time limits in seconds. Programs on a slow shared disk take minutes, and the download of an environment over a slow network takes hours.
PROGRAM_DEADLINE_S = 1800
INSTALL_DEADLINE_S = 4 * 3600

# This script runs with `bash -l`, because only login shells define the shell function `module`. The script receives the names of the modules and the
# command as arguments, so nothing has to be quoted.
_LOAD_AND_EXEC = 'n=$1; shift; module load "${@:1:n}" && shift "$n" && exec "$@"'


def process_environment() -> dict[str, str]:
    """Return the environment variables for processes of the trials' environment, which are the user's variables without those in NOT_INHERITED.

    Variables that name GPUs and that Ray refuses are replaced.
    """
    return with_replaced_variables({name: value for name, value in os.environ.items() if name not in NOT_INHERITED})


def with_modules(modules: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Return the command that loads the site's `modules`, in that order, and then runs `argv`."""
    return ["bash", "-lc", _LOAD_AND_EXEC, "bash", str(len(modules)), *modules, *argv] if modules else list(argv)


def in_container(container: str | None, argv: Sequence[str]) -> list[str]:
    """Return the command that runs `argv` in the Apptainer image `container`, or `argv` where `container` is None.

    The container sees the drivers of NVIDIA and AMD where the node has them. A relative path of the image starts at the working directory of Snakemake.
    Apptainer mounts the user's home, but Python does not import packages that the user has installed there. APPTAINER_BIND names all other folders
    that the program needs, see `seen_in_container`.
    """
    if container is None:
        return list(argv)
    return ["apptainer", "exec", *apptainer_options(), "--env", "PYTHONNOUSERSITE=1", "--bind", str(SCRIPTS_DIR), container, *argv]


def seen_in_container(env: dict[str, str], folders: Iterable[Path | str | None]) -> dict[str, str]:
    """Return the variables `env`, with `folders` added to APPTAINER_BIND, so that a program in a container sees these folders.

    The folders that the user has named in APPTAINER_BIND stay first.
    """
    named = [env["APPTAINER_BIND"]] if env.get("APPTAINER_BIND") else []
    return env | {"APPTAINER_BIND": ",".join(dict.fromkeys([*named, *(str(folder) for folder in folders if folder)]))}


def run_captured(
    argv: Sequence[str], deadline_s: float = PROGRAM_DEADLINE_S, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program of the trials' environment until it ends, and return its exit code and its output.

    `env` contains the environment variables of the program, by default those of `process_environment`. Raises WorldError where the program does not end
    within `deadline_s` seconds.
    """
    env = process_environment() if env is None else env
    try:
        return subprocess.run(argv, capture_output=True, text=True, errors="replace", env=env, check=False, timeout=deadline_s)
    except subprocess.TimeoutExpired:
        command = textwrap.shorten(shlex.join(argv), 200, placeholder=" …")
        raise WorldError(f"`{command}` did not end within {deadline_s:.0f} s, so it was killed. Run the same command again.") from None


def last_line(text: str) -> str:
    """Return the last line of a program's output. Most programs print the cause of a failure on this line."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it printed nothing"


def last_json(text: str) -> Any:
    """Return the JSON value on the last line of `text`. A login shell may print a greeting before that line."""
    return json.loads(last_line(text))
