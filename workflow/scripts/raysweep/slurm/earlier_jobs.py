"""Finds a job that an earlier run of Snakemake submitted for the same rule and sweep, and decides whether this run may take the job up.

A job is taken up only if all that it was submitted with is unchanged. Otherwise Snakemake would record the outputs of the job as made from inputs and a
config that the job never read. The comment of a job in Slurm contains one digest for each part of the submission.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import time
from pathlib import Path
from typing import NamedTuple

from raysweep import __version__
from raysweep.slurm.notes import JOBS, STATE_DIR, PlannedJob, text_of
from raysweep.slurm.queries import ask, is_headless, queued_jobs

COMPLETING_S = 120  # longest time in seconds for which a submission waits for the end of an earlier job that Slurm is completing
COMPLETING_INTERVAL_S = 15  # time in seconds between two questions about such a job
DIGITS = 12  # length of a digest
SUBMISSION = "submission.json"  # file in the folder of a job with the digests of the submission
CONFIG = "config.yaml"  # file in the folder of a job with the config of the sweep, as it was when the job was submitted
# Options that differ between two submissions of the same job: the name of the run, its texts, and nodes that failed in the run.
PASSING_OPTIONS = ("--job-name", "--output", "--comment")
# Option with a folder for downloaded sources, which is new in each run. No rule of this workflow has such a source.
PASSING_WORD = "--runtime-source-cache-path"

# Maps the name of each part of a submission to words for another value of this part, in messages.
PARTS = {
    "config": "another config",
    "inputs": "other input files",
    "resources": "other options of sbatch",
    "command": "another command of Snakemake",
    "version": "another version of this workflow",
}


class EarlierJob(NamedTuple):
    """Describes a job of an earlier run that Slurm still knows."""

    job: str  # Slurm's job id, or the id of a job array
    state: str
    digests: dict[str, str]  # name of a part of the submission → digest; empty where another version submitted the job


def digest(value: object) -> str:
    """Return a short digest of a value that consists of texts, numbers, lists and maps."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:DIGITS]


def without(words: list[str], *options: str) -> list[str]:
    """Return `words` without the `options` and the word after each of them."""
    return [word for before, word in zip(["", *words], words, strict=False) if word not in options and before not in options]


def state_of_file(path: str) -> tuple[str, int, int] | tuple[str]:
    """Return the path, size and modification time of an input. A missing input has only a path."""
    try:
        status = os.stat(path)
    except OSError:
        return (path,)
    return path, status.st_size, status.st_mtime_ns


def digests_of(planned: PlannedJob, arguments: list[str], script: str) -> dict[str, str]:
    """Return the digests of all that a job is submitted with, as a map from the name of each part in PARTS."""
    asked = [word for word in without(arguments, *PASSING_OPTIONS) if not word.startswith("--exclude=")]
    return {
        "config": digest(planned.config),
        "inputs": digest([state_of_file(path) for path in planned.inputs]),
        "resources": digest(asked),
        # Snakemake writes the values of some options in another order in each run.
        "command": digest(sorted(without(shlex.split(script, comments=True), PASSING_WORD))),
        "version": __version__,
    }


def job_folder(what: str) -> Path:
    """Return the folder for the files of the job of a rule and a sweep. `what` is the plugin's comment.

    The folder is below the state folder, because the job outlives the folder of the run that submitted the job.
    """
    return Path(os.environ[STATE_DIR], JOBS, what)


def comment_of(what: str, digests: dict[str, str]) -> str:
    """Return the comment of a job in Slurm.

    The comment contains the state folder, because two configs may each have a sweep with an equal name.
    """
    parts = " ".join(f"{name}={value}" for name, value in digests.items())
    return f"{what} in {os.environ[STATE_DIR]}" + (f" [{parts}]" if parts else "")


def earlier_job(what: str) -> EarlierJob | None:
    """Return the job of this rule and sweep that Slurm still knows, or None where there is no such job. Of a job array, a running job comes first.

    A job that has lost its first node is cancelled instead, because the script of the job has ended. Raises LookupError where squeue does not answer.
    """
    queued = queued_jobs()
    if queued is None:
        raise LookupError
    pattern = re.compile(re.escape(comment_of(what, {})) + r"(?: \[(.*)\])?")
    for one in sorted(queued, key=lambda one: (one.state == "COMPLETING", one.state != "RUNNING")):
        if match := pattern.fullmatch(one.comment):
            if one.state != "RUNNING" or not is_headless(one.first, one.nodes):
                return EarlierJob(one.array, one.state, dict(part.split("=", 1) for part in (match[1] or "").split() if "=" in part))
            ask("scancel", one.job)
    return None


def earlier_job_to_decide_on(what: str, digests: dict[str, str]) -> EarlierJob | None:
    """Return the earlier job that a submission with `digests` must take up or must be refused for, or None where the submission may go on.

    A job with other digests that Slurm is completing ends soon, so this function waits for this end for up to COMPLETING_S seconds. Raises LookupError
    where squeue does not answer.
    """
    end = time.monotonic() + COMPLETING_S
    while (earlier := earlier_job(what)) and earlier.digests != digests and earlier.state == "COMPLETING" and time.monotonic() < end:
        time.sleep(COMPLETING_INTERVAL_S)  # Slurm has no program that waits for the end of a job
    return earlier


def finished_job(what: str, digests: dict[str, str], planned: PlannedJob, mark: Path) -> str | None:
    """Return the id of a job that ended well while no Snakemake followed it, and whose outputs are still there. Return None where there is no such job.

    `mark` is the file with which the job marked an output as incomplete at its end. A Snakemake that has recorded the outputs has removed this mark. Outputs
    that are newer than the end of the job are of a later run on this machine.
    """
    folder = job_folder(what)
    ends = [path for path in folder.glob("*.exit") if text_of(path).strip() == "0"]
    if len(ends) != 1 or text_of(folder / SUBMISSION) != json.dumps(digests) or not mark.exists():
        return None
    try:
        is_newest = all(os.stat(output).st_mtime_ns <= ends[0].stat().st_mtime_ns for output in planned.outputs)
    except OSError:  # an output is missing
        return None
    return ends[0].stem if is_newest else None


def changed_parts(earlier: EarlierJob, digests: dict[str, str]) -> str:
    """Return what a submission has differently from that of an earlier job, for a message."""
    names = [name for name in digests if digests[name] != earlier.digests.get(name)]
    return " and ".join(PARTS[name] for name in (["version"] if "version" in names else names))
