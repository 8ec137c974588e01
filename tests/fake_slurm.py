"""Programs of Slurm that answer what a test tells them to, and the calls that Snakemake's Slurm plugin makes of them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from snakemake_executor_plugin_slurm.submit_string import get_submit_command

BIN = Path(__file__).parents[1] / "cluster" / "bin"
FAKE = """#!/bin/sh
printf '%s\\n' "$*" >> '{folder}/{name}.calls'
env > '{folder}/{name}.env'
[ -p /dev/stdin ] && cat > '{folder}/{name}.stdin'
cat '{folder}/{name}.out'
cat '{folder}/{name}.err' >&2
exit "$(cat '{folder}/{name}.code')"
"""
COMMENT = "rule_run_sweep_wildcards_lenet"


class Fakes:
    """Programs of Slurm that answer what they are told to, and remember how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def answer(self, name: str, out: str = "", err: str = "", code: int = 0) -> None:
        for suffix, text in (("out", out), ("err", err), ("code", str(code))):
            (self.folder / f"{name}.{suffix}").write_text(text)
        program = self.folder / name
        program.write_text(FAKE.format(folder=self.folder, name=name))
        program.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def environment_of(self, name: str) -> dict[str, str]:
        lines = (self.folder / f"{name}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


def call(
    program: str, *arguments: str, run_dir: Path | None = None, script: str = "#!/bin/sh\nsh -c 'exit 3'"
) -> subprocess.CompletedProcess[str]:
    """Call one of cluster/bin as the plugin does: it is first on PATH."""
    env = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "RAYSWEEP_PYTHON": sys.executable}
    if run_dir:
        env |= {"RAYSWEEP_RUN_DIR": str(run_dir), "RAYSWEEP_STATE_DIR": str(run_dir.parents[2] / "state")}
    where = run_dir.parents[2] if run_dir else None
    return subprocess.run([program, *arguments], env=env, cwd=where, input=script, capture_output=True, text=True, check=False, timeout=60)


def submit_arguments(run_dir: Path, run_name: str = "a-run", **changes: Any) -> list[str]:
    """How the plugin calls sbatch."""
    resources = {"mem_mb": 100, "nodes": 1, "tasks": 1, "mpi": "", "runtime": 5, "slurm_extra": "--ntasks-per-node=1"} | changes
    job: Any = SimpleNamespace(resources=_Resources(resources), threads=2)
    params = {"run_uuid": run_name, "slurm_logfile": f"{run_dir}/%j.log", "comment_str": COMMENT, "account": " -A def-x", "partition": ""}
    line = get_submit_command(job, params | {"workdir": "/projects"}) + " /dev/stdin"
    return shlex.split(line)[1:]


class _Resources(dict[str, Any]):
    __getattr__ = dict.__getitem__
