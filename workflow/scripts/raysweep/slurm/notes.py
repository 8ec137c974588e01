"""Stores the notes of the programs in `cluster/bin`: which jobs a run has submitted, in which states they are, and why a job was refused.

A file of notes in the folder of the run records the submitted jobs and their states. Each line of the file is one JSON object.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import NamedTuple

RUN_DIR = "RAYSWEEP_RUN_DIR"  # variable with the folder of the run of the Snakemake that calls this program
STATE_DIR = "RAYSWEEP_STATE_DIR"  # variable with the folder in which the sweeps of this Snakemake store their records
PYTHON = "RAYSWEEP_PYTHON"  # variable with the path of the Python that runs this file
INTERVAL = "RAYSWEEP_SQUEUE_INTERVAL_S"  # variable with the least time in seconds between two calls of squeue for one run
OWN_VARIABLES = (RUN_DIR, STATE_DIR, PYTHON, INTERVAL)
NOTES = "notes.jsonl"  # file of the notes in the folder of the run
EARLY_END_SIGNAL = "USR1"  # signal that Slurm sends to a job of several that Slurm ends before the job's time limit
JOB_CONFIG = "RAYSWEEP_JOB_CONFIG"  # variable with the path of the config of the sweep, inside of a job that was submitted to Slurm
PLANNED = "jobs.json"  # file that maps the comment of each job of this workflow that may be submitted to a PlannedJob
JOBS = ".jobs"  # folder below the state folder with one folder for each rule and sweep, in which the job of Slurm has its files


# The classes are NamedTuples, because the import of dataclasses takes about as long as the start of Python.
class PlannedJob(NamedTuple):
    """Describes a job of this workflow that Snakemake will run. The paths are relative to the folder in which Snakemake runs."""

    outputs: list[str]
    inputs: list[str]
    config: str | None  # config of the sweep as YAML; None where the rule reads no config
    num_jobs: int = 1  # number of Slurm jobs that do the work of the job together
    command: str = ""  # shell command of the rule


class JobNote(NamedTuple):
    """Describes a submitted job of the run after all notes about the job."""

    job: str  # Slurm's job id
    what: str = ""  # comment of the plugin, which names the rule and the wildcards; "" before this program has recorded the submission
    log: str = ""  # path of Slurm's log of the job
    folder: str = ""  # folder in which the job writes its exit code
    taken_up: bool = False  # whether an earlier run submitted the job
    is_array: bool = False  # whether the job is a job array
    state: str = "PENDING"
    reason: str | None = None  # Slurm's reason why the job waits
    missing_since: float | None = None  # time since which Slurm does not know the job, in seconds since the epoch
    # Reason why the job could never start, so that this program cancelled the job. None where this program did not cancel the job.
    hopeless: str | None = None

    @property
    def name(self) -> str:
        """Return the name of the job in messages for the user."""
        return name_of_comment(self.what)


class RefusalNote(NamedTuple):
    """Records that `sbatch` or this program refused a job of the plugin."""

    what: str  # comment of the plugin, which names the rule and the wildcards
    refused: str  # error message of `sbatch` or of this program
    by_us: bool = False  # whether this program refused the job


class Notes(NamedTuple):
    """Contains all notes of a run."""

    jobs: dict[str, JobNote]  # job id → note about the job
    refusals: dict[str, RefusalNote]  # comment of the plugin → note about the refused job


class Observation(NamedTuple):
    """Contains the state of a job at the moment of a status query."""

    state: str
    reason: str | None = None  # Slurm's reason why the job waits
    missing_since: float | None = None  # time since which Slurm does not know the job, in seconds since the epoch


def append(run_dir: Path, **fields: str | float | bool | None) -> bool:
    """Append a note in one short write, so that the notes of simultaneous calls do not mix. Return whether the note was written.

    If the disk is full, the note about a state is lost, but the status query is still answered.
    """
    note = json.dumps(fields).encode() + b"\n"
    try:
        with (run_dir / NOTES).open("ab", buffering=0) as stream:
            return stream.write(note) == len(note)
    except OSError:
        return False


def text_of(path: Path) -> str:
    """Return the text of a file, or "" where the file cannot be read, because this program must always answer a status query."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def age_s(path: Path) -> float:
    """Return the seconds since the last change of a file. The age is infinite where the file does not exist."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return math.inf


def read_notes(run_dir: Path) -> Notes:
    """Return the notes of a run. The fields in a later note about a job replace the fields of the earlier notes about this job."""
    jobs: dict[str, JobNote] = {}
    refusals: dict[str, RefusalNote] = {}
    for line in text_of(run_dir / NOTES).splitlines():
        try:
            fields = json.loads(line)
        except ValueError:  # the line is incomplete, because the disk was full
            continue
        if "job" in fields:
            jobs[fields["job"]] = jobs.get(fields["job"], JobNote(fields["job"]))._replace(**fields)
        else:
            refusals[fields["what"]] = RefusalNote(**fields)
    return Notes(jobs, refusals)


def name_of(rule: str, sweep: str) -> str:
    """Return the name of a job in messages for the user."""
    if not sweep:
        return rule
    return f"sweep {sweep}" if rule == "run_sweep" else f"sweep {sweep}, {rule}"


def name_of_comment(what: str) -> str:
    """Return the name in messages of the job with the plugin's comment `what`."""
    rule, _, sweep = what.removeprefix("rule_").partition("_wildcards_")
    return name_of(rule, sweep)
