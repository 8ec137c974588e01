"""Does the work of the programs `squeue`, `sacct` and `sbatch` in `cluster/bin`, which stand between Snakemake's Slurm plugin and Slurm.

`cluster/bin` is first on the PATH of a Snakemake that submits to Slurm, and is not on the PATH of the submitted jobs. The programs answer the plugin's
status queries and submit the plugin's jobs. All other calls of these programs go on to Slurm unchanged. `python -I -S` runs this module, and the module
and all modules that it imports import only Python's standard library, because a status query must be fast.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from raysweep.slurm.notes import RUN_DIR
from raysweep.slurm.status import status


def is_status_query(program: str, arguments: list[str]) -> bool:
    """Return whether the call of `program` with `arguments` is a query of the plugin for the states of a run's jobs."""
    formats = {"squeue": "--format=%i|%T", "sacct": "--format=JobIdRaw,State"}
    return "--name" in arguments and formats.get(program) in arguments


def is_submission(program: str, arguments: list[str]) -> bool:
    """Return whether the call of `program` with `arguments` is a submission of a job by the plugin."""
    return program == "sbatch" and {"--parsable", "--job-name", "--comment", "--output"} <= set(arguments)


def main(called: str, *given: str) -> int:
    """Do the work of the program `called`, which is the path of a file in cluster/bin, and return the exit code."""
    folder, program, arguments = os.path.realpath(os.path.dirname(called)), os.path.basename(called), list(given)
    path = [entry for entry in os.environ.get("PATH", os.defpath).split(os.pathsep) if os.path.realpath(entry) != folder]
    os.environ["PATH"] = os.pathsep.join(path)  # without cluster/bin, so that this program and the jobs find the programs of Slurm
    run_dir = os.environ.get(RUN_DIR)
    if run_dir and is_status_query(program, arguments):
        for job, state in status(Path(run_dir)).items():
            print(f"{job}|{state}")
        return 0
    real = shutil.which(program)
    if real is None:
        print(f"{program}: command not found: run this where Slurm's commands are, on a login node", file=sys.stderr)
        return 127
    if run_dir is None or not is_submission(program, arguments):
        os.execv(real, [program, *arguments])
    from raysweep.slurm.submission import submit  # a status query, which does not submit, starts faster without this module

    return submit(real, arguments, Path(run_dir))
