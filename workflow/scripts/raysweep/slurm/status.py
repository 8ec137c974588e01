"""Answers the status queries of Snakemake's Slurm plugin.

The plugin (2.8) waits for ever in three cases: five status queries fail in one poll; the answer lacks a job; or the state of a job is PREEMPTED,
`CANCELLED by 1001`, or PENDING for a reason that does not change with time. This module therefore always answers for every submitted job, with states
that the plugin knows.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Collection
from pathlib import Path

from raysweep.slurm.notes import INTERVAL, JobNote, Notes, Observation, age_s, append, read_notes, text_of
from raysweep.slurm.queries import ask, columns, is_headless, queued_jobs

ASKED = "asked"  # empty file, which the program touches when squeue has answered

# Time in seconds after which a job that Slurm does not know counts as failed. Until then slurmctld may still be starting, and files that a node wrote may
# not be visible here yet.
FORGOTTEN_S = 90
INTERVAL_S = 30  # value of INTERVAL where the user sets no whole number of seconds
ENDED_S = 60  # time in seconds after a job's own end in which squeue is asked more often for the state of a failed job
ENDED_INTERVAL_S = 15  # least time in seconds between two calls of squeue in this time
# Maps the final state of a job in Slurm to the state that the plugin receives. NODE_FAIL becomes FAILED, because after NODE_FAIL the plugin would exclude
# all nodes of the job from the next jobs, although only one node was lost.
FINAL = {state: state for state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")}
FINAL |= {"PREEMPTED": "CANCELLED", "NODE_FAIL": "FAILED", "REVOKED": "FAILED"}
HELD = ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
# Reasons for which a job stays PENDING until somebody changes the job, the cluster or the account (slurm.h, job_state_reason). The list lacks limits of a
# group and nodes that are busy, down or reserved, because these reasons can end with time. The list also lacks a hold by the user, because the user can
# end this hold.
HOPELESS = re.compile(
    r"Partition(NodeLimit|TimeLimit|Config)|BadConstraints|MaxMemPerLimit|Invalid(Account|QOS)|(Account|QOS)NotAllowed|AccountingPolicy"
    r"|JobHeldAdmin|JobHoldMaxRequeue|DependencyNeverSatisfied|ReservationDeleted|QOSMin\w+"
    r"|(Assoc|QOS)Max(\w+PerJob|\w+PerNode|WallDuration)\w*|.*requeued held.*|.*special exit.*"
)


def listed_jobs(jobs: Collection[str]) -> dict[str, Observation] | None:
    """Return the jobs among `jobs` that slurmctld knows, as a map from the job id to the state, or None where squeue fails.

    A job array counts as one job, with the id of the array. The query does not name the run, because the job of an earlier run has the name of the earlier run.
    """
    queued = queued_jobs("--states=all")
    if queued is None:
        return None
    observations: dict[str, list[Observation]] = {}
    for one in queued:
        if one.array in jobs:
            is_lost = one.state == "RUNNING" and is_headless(one.first, one.nodes)
            observations.setdefault(one.array, []).append(start_again(one.job) if is_lost else Observation(one.state, one.reason))
    return {job: observation for job, of_job in observations.items() if (observation := combined(of_job)) is not None}


def combined(observations: list[Observation]) -> Observation | None:
    """Return the state of a job array from the states of its jobs.

    The array runs while one of its jobs runs. The array has failed where all its jobs have failed. Return None where all jobs have ended and one job has
    succeeded, because then a file with the exit code of the sweep becomes visible soon, or the sweep goes on without success.
    """
    alive = [observation for observation in observations if observation.state not in FINAL]
    if len(observations) == 1 or not alive:
        has_succeeded = len(observations) > 1 and any(observation.state == "COMPLETED" for observation in observations)
        return None if has_succeeded else observations[0]
    return next((observation for observation in alive if observation.state == "RUNNING"), alive[0])


def start_again(job: str) -> Observation:
    """Start a job again that has lost its first node, or cancel the job where the site does not allow a restart. Return the new state."""
    if ask("scontrol", "requeue", job) is not None:
        return Observation("PENDING", "BeginTime")
    ask("scancel", job)
    return Observation("NODE_FAIL", "None")


def accounted_states(jobs: list[str]) -> dict[str, str]:
    """Return the states of `jobs` in Slurm's accounting, as a map from the job id to the state. The map is empty on a cluster without accounting."""
    if not jobs:
        return {}
    lines = ask("sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={','.join(jobs)}", "--format=JobIDRaw,State")
    return {job: state.split()[0] for job, state in columns(lines or [], 2) if state}  # the first word of "CANCELLED by 1001" is the state


def exit_file(note: JobNote) -> Path:
    """Return the path of the file into which the script of a job writes the exit code of the job (see submission.py)."""
    return Path(note.folder, f"{note.job}.exit")


def exit_code(note: JobNote) -> str:
    """Return the exit code that the script of a job wrote at its end, or "" where the job was killed or has not ended."""
    return text_of(exit_file(note)).strip()


def forgotten(note: JobNote, accounted: str | None) -> Observation:
    """Return the state of a job that slurmctld does not know any more.

    The job has not written the exit code 0, so the state is COMPLETED only where Slurm's accounting proves that the job succeeded. A job deletes the outputs
    of an earlier run only when the job starts. For a job that never ran, the state COMPLETED would let Snakemake accept the outputs of an earlier run.
    """
    if accounted is not None and accounted in FINAL:
        return Observation(accounted)
    since = note.missing_since or time.time()
    is_lost = bool(exit_code(note)) or time.time() - since > FORGOTTEN_S
    return Observation("FAILED" if is_lost else note.state, missing_since=since)


def cancel_hopeless(run_dir: Path, notes: Notes, listed: dict[str, Observation]) -> bool:
    """Cancel the jobs that can never start, and return whether jobs were cancelled.

    A job is cancelled only if two successive queries give the same state and reason, because Slurm sometimes holds a job only for a moment.
    """
    hopeless = []
    for job, now in listed.items():
        is_stuck = now.state in HELD or (now.state == "PENDING" and HOPELESS.fullmatch(now.reason or "") is not None)
        before = notes.jobs.get(job)
        if is_stuck and before is not None and (before.state, before.reason) == (now.state, now.reason):
            append(run_dir, job=job, hopeless=now.state if now.state in HELD else now.reason)
            hopeless.append(job)
    return bool(hopeless) and ask("scancel", "--state=PENDING", *hopeless) is not None


def must_ask(run_dir: Path, failed: list[JobNote]) -> bool:
    """Return whether a status query must ask squeue, because the last answer is too old, or because one of the jobs `failed` has just ended.

    Only Slurm knows why a job failed. After ENDED_S seconds Slurm has started a failed job again, or has told the state of the job. In a minute this module
    asks at most six questions, so that a cluster whose administrators count the questions does not refuse an answer.
    """
    interval = os.environ.get(INTERVAL, "")
    interval_s = int(interval) if interval.isdecimal() else INTERVAL_S  # a value that is no number must not stop a status query
    asked_s = age_s(run_dir / ASKED)
    is_fresh = 0 <= asked_s < interval_s  # a negative age means that a clock was changed
    ended_s = min((age_s(exit_file(note)) for note in failed), default=math.inf)
    return not is_fresh or (ended_s < ENDED_S and (asked_s > ended_s or asked_s >= ENDED_INTERVAL_S))


def status(run_dir: Path) -> dict[str, str]:
    """Return the states of all jobs of a run, as a map from the job id to a state that the plugin knows.

    A job whose script wrote the exit code 0 is complete. `must_ask` decides whether squeue is asked about the other jobs. Otherwise, and while Slurm does not
    answer, the states come from the notes.
    """
    notes = read_notes(run_dir)
    codes = {job: exit_code(note) for job, note in notes.jobs.items()}
    now = {job: Observation("COMPLETED") for job, code in codes.items() if code == "0"}
    is_asked = must_ask(run_dir, [note for job, note in notes.jobs.items() if codes[job] not in ("", "0") and note.state not in FINAL])
    listed = listed_jobs(notes.jobs) if is_asked else None
    if listed is not None and cancel_hopeless(run_dir, notes, listed):
        listed = listed_jobs(notes.jobs)
    if listed is not None:
        with contextlib.suppress(OSError):  # on a full disk, squeue is asked more often
            (run_dir / ASKED).touch()
        now = listed | now
        missing = [job for job, note in notes.jobs.items() if job not in now and note.state not in FINAL]
        # Accounting tells the state of one job of an array, which says nothing about the sweep.
        accounted = accounted_states([job for job in missing if not notes.jobs[job].is_array])
        now |= {job: forgotten(notes.jobs[job], accounted.get(job)) for job in missing}
    for job, observation in now.items():
        before = notes.jobs.get(job)
        if before is None or observation != Observation(before.state, before.reason, before.missing_since):
            append(run_dir, job=job, **observation._asdict())
            notes.jobs[job] = (before or JobNote(job))._replace(**observation._asdict())
    return {job: FINAL.get(note.state, note.state) for job, note in notes.jobs.items()}
