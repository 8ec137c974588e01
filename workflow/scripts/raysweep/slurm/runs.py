"""Manages the run of Snakemake that a user starts: the folder of the run, locks that a killed Snakemake left, and the last lines about failed jobs."""

from __future__ import annotations

import atexit
import json
import math
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from raysweep.common.files import written_aside
from raysweep.common.processes import pid_namespace, started, this_process
from raysweep.slurm import notes
from raysweep.slurm.explanations import RuleJob, explanation
from raysweep.slurm.notes import JobNote, PlannedJob, RefusalNote

PROCESS_FILE = "controller.json"  # file in the folder of a run that identifies the Snakemake process of the run


class Run:
    """Manages one run of Snakemake in the folder `root`.

    The run stores its files in a folder below .snakemake. This folder is removed when the run ends.
    """

    def __init__(self, root: Path, *logs_dirs: Path) -> None:
        self.runs_dir, self.locks_dir, self.logs_dirs = root / ".snakemake" / "raysweep", root / ".snakemake" / "locks", list(logs_dirs)
        self.dir: Path | None = None  # folder of the run; None before the call of `begin`
        # Size in bytes of each log at the start of the run. Earlier runs wrote the text up to this size.
        self.log_sizes: dict[Path, int] = {}
        self.printed_lines: set[str] = set()
        self.configs: dict[str, str] = {}  # path of the config of each sweep of all inclusions → config as YAML

    def clear_up(self) -> None:
        """Remove the locks of a Snakemake that was killed on this machine.

        Print the process and the machine of a Snakemake that may still run, because Snakemake's own message about locks does not name the process.
        """
        locked_at = min((path.stat().st_mtime for path in self.locks_dir.glob("*.lock")), default=math.inf)
        previous_runs = [run for path in sorted(self.runs_dir.glob(f"*/{PROCESS_FILE}")) if (run := PreviousRun.read(path)) is not None]
        # A run creates its locks before the run writes its process file. Locks that are younger than the process file belong to another run.
        holders = [run for run in previous_runs if run.since >= locked_at]
        for run in holders:
            if message := run.message_if_at_work():
                print(message, file=sys.stderr)
        if holders and not any(run.message_if_at_work() for run in holders) and holders[0].remove_folder():
            shutil.rmtree(self.locks_dir, ignore_errors=True)  # another Snakemake that ends at this moment may also remove the folder
        for run in previous_runs:
            if not run.message_if_at_work():
                run.remove_folder()

    def begin(self) -> Path:
        """Record that this process holds the locks from now on, and return the folder of the run. A later call only returns the folder.

        The first call also stores the sizes of the logs, because earlier runs wrote the text that the logs contain at this moment.
        """
        if self.dir is not None:
            return self.dir
        self.runs_dir.mkdir(parents=True, exist_ok=True)
        self.dir = Path(tempfile.mkdtemp(dir=self.runs_dir))
        atexit.register(shutil.rmtree, self.dir, ignore_errors=True)
        with written_aside(self.dir / PROCESS_FILE) as stream:
            json.dump(this_process(), stream)
        os.environ[notes.RUN_DIR] = str(self.dir)  # a later Snakemake finds the processes of this run by this variable
        self.log_sizes = {path: path.stat().st_size for logs_dir in self.logs_dirs for path in logs_dir.rglob("*.log")}
        return self.dir

    def use_slurm(self, bin_dir: Path, state_dir: Path, jobs: Mapping[str, PlannedJob]) -> None:
        """Put the programs `squeue`, `sacct` and `sbatch` of cluster/bin between the Slurm plugin and Slurm. programs.py states the reasons.

        `jobs` maps the plugin's comment to each job of this workflow that is about to be submitted.
        """
        (self.begin() / notes.PLANNED).write_text(json.dumps({what: job._asdict() for what, job in jobs.items()}), encoding="utf-8")
        os.environ |= {
            notes.STATE_DIR: str(state_dir.resolve()),
            notes.PYTHON: sys.executable,
            "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}",
        }

    def explain(self, jobs: Iterable[RuleJob], snakemake_logs: Iterable[str]) -> None:
        """Print one line for each of the failed `jobs`, after all other output of Snakemake. The jobs ran in Slurm.

        A job that failed on this machine needs no such line, because the job has written its error to the terminal.
        """
        run_notes = notes.read_notes(self.begin())
        latest: dict[str, JobNote | RefusalNote] = {
            **run_notes.refusals,
            **{note.what: note for note in run_notes.jobs.values() if note.what},
        }
        snakemake_log = "".join(Path(path).read_text(errors="replace") for path in snakemake_logs)
        lines = {f"Error: {explanation(job, latest.get(job.comment), snakemake_log, self.last_error(job.log))}.\n" for job in jobs}
        atexit.register(sys.stderr.write, "".join(sorted(lines - self.printed_lines)))
        self.printed_lines |= lines

    def last_error(self, log: Path) -> str | None:
        """Return the last error in the log of a rule, or None where this run wrote no error into the log."""
        if not log.is_file():
            return None
        with log.open("rb") as stream:
            before = self.log_sizes.get(log, 0)
            stream.seek(before if before <= log.stat().st_size else 0)
            text = stream.read().decode(errors="replace")
        errors = re.findall(r"^\S+ \S+ (?:ERROR|CRITICAL) Error: (.*)$", text, re.MULTILINE)
        return errors[-1] if errors else None


@cache
def the_run(root: Path) -> Run:
    """Return the run of this process. All inclusions of this workflow in one Snakemake process share one run."""
    return Run(root)


@dataclass(frozen=True)
class PreviousRun:
    """Describes an earlier run of Snakemake in this folder, by the process file that the earlier run wrote."""

    folder: Path
    since: float  # time at which the process file was written, in seconds since the epoch
    uid: int  # id of the user who ran Snakemake
    host: str
    pids: str  # namespace of process ids in which `pid` is valid
    pid: int
    started: str | None  # time at which the process started, in clock ticks since the boot of the machine

    @classmethod
    def read(cls, path: Path) -> PreviousRun | None:
        """Return the run that wrote the process file `path`, or None where the file is missing because the run has just ended."""
        try:
            file = path.stat()
            process = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        return cls(path.parent, file.st_mtime, file.st_uid, **process)

    @property
    def is_visible(self) -> bool:
        """Return whether this process sees the processes of the run and may end them."""
        return (self.host, self.pids, self.uid) == (socket.gethostname(), pid_namespace(), os.getuid())

    @property
    def is_alive(self) -> bool:
        """Return whether the Snakemake process of a visible run still exists."""
        return started(self.pid) == self.started

    def message_if_at_work(self) -> str | None:
        """Return a message for the user where the run may still be active, or None where the run and all processes of the run have ended.

        A run on another machine, in another namespace of process ids or of another user always counts as active, because this process cannot see that run.
        """
        if not self.is_visible or self.is_alive:
            return (
                f"A Snakemake is at work in this folder: process {self.pid} on {self.host}. If it is not there any more:"
                " `snakemake --unlock`, then the same command again."
            )
        # The jobs of a killed Snakemake on this machine can go on, and two drivers must not write to one record at the same time.
        if pids := [path.parent.name for path in Path("/proc").glob("[0-9]*/environ") if self.is_environment(path)]:
            return (
                f"A Snakemake that was killed has left processes at work in this folder: {' '.join(pids)}. Wait for their end, or end them"
                f" with `kill {' '.join(pids)}`, then the same command again."
            )
        return None

    def is_environment(self, path: Path) -> bool:
        """Return whether the file `path` in /proc is the environment of a process that the run started."""
        try:
            return f"{notes.RUN_DIR}={self.folder}".encode() in path.read_bytes().split(b"\0")
        except OSError:  # the process has just ended, or the process belongs to another user
            return False

    def remove_folder(self) -> bool:
        """Remove the folder of the run. Where several Snakemakes call this method at the same time, only one of these calls returns True."""
        aside = self.folder.with_name(f"{self.folder.name}.over")
        try:
            self.folder.rename(aside)
        except FileNotFoundError:
            return False
        shutil.rmtree(aside)
        return True
