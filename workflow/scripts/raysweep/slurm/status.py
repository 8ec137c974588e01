"""Runs as a program between Snakemake's Slurm plugin and Slurm. The program answers the plugin's status queries and submits the plugin's jobs.

The programs `squeue`, `sacct` and `sbatch` in `cluster/bin` run this file. `cluster/bin` is first on the PATH of a Snakemake that submits to Slurm, and is
not on the PATH of the submitted jobs. All other calls of these programs go on to Slurm unchanged. `python -I -S` runs this file, and the file imports only
Python's standard library, because a status query must be fast.

The plugin (2.8) waits for ever in three cases: five status queries fail in one poll; the answer lacks a job; or the state of a job is PREEMPTED,
`CANCELLED by 1001`, or PENDING for a reason that does not change with time. This program therefore always answers for every submitted job, with states
that the plugin knows. A file of notes in the folder of the run records the submitted jobs and their states. Each line of the file is one JSON object.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

RUN_DIR = "RAYSWEEP_RUN_DIR"  # variable with the folder of the run of the Snakemake that calls this program
STATE_DIR = "RAYSWEEP_STATE_DIR"  # variable with the folder in which the sweeps of this Snakemake store their records
PYTHON = "RAYSWEEP_PYTHON"  # variable with the path of the Python that runs this file
INTERVAL = "RAYSWEEP_SQUEUE_INTERVAL_S"  # variable with the least time in seconds between two calls of squeue for one run
OWN_VARIABLES = (RUN_DIR, STATE_DIR, PYTHON, INTERVAL)
NOTES = "notes.jsonl"  # file of the notes in the folder of the run
ASKED = "asked"  # empty file, which the program touches when squeue has answered
SCRIPT = "/dev/stdin"  # file from which sbatch reads the script of a job
OUTPUTS = "outputs.json"  # file that maps the comment of each job of this workflow that may be submitted to one output of the job

STARTED = time.monotonic()  # time at which this program started
DEADLINE_S = 50  # time limit in seconds for all queries to Slurm together; the limit is below the 60 s that the plugin waits for an answer
# Time in seconds after which a job that Slurm does not know counts as failed. Until then slurmctld may still be starting, and files that a node wrote may
# not be visible here yet.
FORGOTTEN_S = 90
INTERVAL_S = 30  # value of INTERVAL where the user sets no whole number of seconds
SUBMIT_DEADLINE_S = 300  # time limit in seconds for the real sbatch, which waits and tries again where slurmctld does not answer
ENDED_S = 60  # time in seconds after a job's own end in which each status query asks squeue for the state of a failed job
COMPLETING_S = 120  # longest time in seconds for which a submission waits for the end of an earlier job that Slurm is completing
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


# The classes are NamedTuples, because the import of dataclasses takes about as long as the start of Python.
class JobNote(NamedTuple):
    """Describes a submitted job of the run after all notes about the job."""

    job: str  # Slurm's job id
    what: str = ""  # comment of the plugin, which names the rule and the wildcards; "" before this program has recorded the submission
    log: str = ""  # path of Slurm's log of the job
    state: str = "PENDING"
    reason: str | None = None  # Slurm's reason why the job waits
    missing_since: float | None = None  # time since which Slurm does not know the job, in seconds since the epoch
    # Reason why the job could never start, so that this program cancelled the job. None where this program did not cancel the job.
    hopeless: str | None = None


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


def append(run_dir: Path, **fields: str | float | bool | None) -> None:
    """Append a note in one short write, so that the notes of simultaneous calls do not mix.

    If the disk is full, the note is lost, but the status query is still answered and the job is still submitted.
    """
    with contextlib.suppress(OSError), (run_dir / NOTES).open("ab", buffering=0) as stream:
        stream.write(json.dumps(fields).encode() + b"\n")


def text_of(path: Path) -> str:
    """Return the text of a file, or "" where the file cannot be read, because this program must always answer a status query."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


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


def ask(*command: str, limit_s: float | None = None) -> list[str] | None:
    """Return the lines that a program of Slurm prints, or None where the program fails or does not end in `limit_s` seconds.

    Without `limit_s`, the program may use the rest of DEADLINE_S.
    """
    if limit_s is None:
        limit_s = max(1.0, STARTED + DEADLINE_S - time.monotonic())
    # Default options that the user has set, such as SQUEUE_PARTITION, would hide jobs.
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SACCT_"))}
    options: dict[str, Any] = {"env": env, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    try:
        run = subprocess.run(command, check=False, timeout=limit_s, **options)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.splitlines() if run.returncode == 0 else None


def columns(lines: list[str], number: int) -> list[list[str]]:
    """Split the lines with at least `number` columns, and leave out all other lines, because sites add lines to Slurm's output."""
    return [line.split("|", number - 1) for line in lines if line.count("|") >= number - 1]


def listed_jobs(run_name: str) -> dict[str, Observation] | None:
    """Return the jobs of a run that slurmctld knows, as a map from the job id to the state, or None where squeue fails.

    The option `--all` is needed because some partitions may be hidden.
    """
    lines = ask("squeue", "--all", "--states=all", "--noheader", f"--name={run_name}", "--format=%i|%T|%B|%N|%r")
    if lines is None:
        return None
    return {
        job: start_again(job) if state == "RUNNING" and is_headless(first, nodes) else Observation(state, reason)
        for job, state, first, nodes, reason in columns(lines, 5)
    }


def is_headless(first: str, nodes: str) -> bool:
    """Return whether a job has lost its first node `first`, on which the script of the job ran. `nodes` is the list of the job's present nodes.

    A sweep uses the option --no-kill, so that the job goes on after the loss of another node. With this option Slurm does not end the job after the loss of
    the first node.
    """
    if nodes == first or not nodes:
        return False
    names = ask("scontrol", "show", "hostnames", nodes)
    return names is not None and names != [] and first not in names


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


def exit_code(run_dir: Path, job: str) -> str:
    """Return the exit code that the script of a job wrote at its end (see `ending`), or "" where the job was killed or has not ended."""
    return text_of(run_dir / f"{job}.exit").strip()


def forgotten(run_dir: Path, note: JobNote, accounted: str | None) -> Observation:
    """Return the state of a job that slurmctld does not know any more.

    The job has not written the exit code 0, so the state is COMPLETED only where Slurm's accounting proves that the job succeeded. A job deletes the outputs
    of an earlier run only when the job starts. For a job that never ran, the state COMPLETED would let Snakemake accept the outputs of an earlier run.
    """
    if accounted is not None and accounted in FINAL:
        return Observation(accounted)
    since = note.missing_since or time.time()
    is_lost = bool(exit_code(run_dir, note.job)) or time.time() - since > FORGOTTEN_S
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


def age_s(path: Path) -> float:
    """Return the seconds since the last change of a file. The age is infinite where the file does not exist."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return math.inf


def must_ask(run_dir: Path, failed: list[str]) -> bool:
    """Return whether a status query must ask squeue, because the last answer is too old, or because one of the jobs `failed` has just ended.

    Only Slurm knows why a job failed. After ENDED_S seconds Slurm has started a failed job again, or has told the state of the job.
    """
    interval = os.environ.get(INTERVAL, "")
    interval_s = int(interval) if interval.isdecimal() else INTERVAL_S  # a value that is no number must not stop a status query
    is_fresh = 0 <= age_s(run_dir / ASKED) < interval_s  # a negative age means that a clock was changed
    return not is_fresh or any(age_s(run_dir / f"{job}.exit") < ENDED_S for job in failed)


def status(run_dir: Path, run_name: str) -> dict[str, str]:
    """Return the states of all jobs of a run, as a map from the job id to a state that the plugin knows.

    A job whose script wrote the exit code 0 is complete. `must_ask` decides whether squeue is asked about the other jobs. Otherwise, and while Slurm does not
    answer, the states come from the notes.
    """
    notes = read_notes(run_dir)
    codes = {job: exit_code(run_dir, job) for job in notes.jobs}
    now = {job: Observation("COMPLETED") for job, code in codes.items() if code == "0"}
    is_asked = must_ask(run_dir, [job for job, code in codes.items() if code not in ("", "0") and notes.jobs[job].state not in FINAL])
    listed = listed_jobs(run_name) if is_asked else None
    if listed is not None and cancel_hopeless(run_dir, notes, listed):
        listed = listed_jobs(run_name)
    if listed is not None:
        with contextlib.suppress(OSError):  # on a full disk, squeue is asked more often
            (run_dir / ASKED).touch()
        now = listed | now
        missing = [job for job, note in notes.jobs.items() if job not in now and note.state not in FINAL]
        accounted = accounted_states(missing)
        now |= {job: forgotten(run_dir, notes.jobs[job], accounted.get(job)) for job in missing}
    for job, observation in now.items():
        before = notes.jobs.get(job)
        if before is None or observation != Observation(before.state, before.reason, before.missing_since):
            append(run_dir, job=job, **observation._asdict())
            notes.jobs[job] = (before or JobNote(job))._replace(**observation._asdict())
    return {job: FINAL.get(note.state, note.state) for job, note in notes.jobs.items()}


def option(arguments: list[str], name: str) -> str:
    """Return the value of the option `name` in `arguments`."""
    return arguments[arguments.index(name) + 1]


def name_of(rule: str, sweep: str) -> str:
    """Return the name of a job in messages for the user."""
    if not sweep:
        return rule
    return f"sweep {sweep}" if rule == "run_sweep" else f"sweep {sweep}, {rule}"


def earlier_job(comment: str) -> tuple[str, str] | None:
    """Return the id and the state of a job of this user with an equal comment, or None where there is no such job.

    A job that has lost its first node is cancelled instead, because nobody waits for this job. Raises LookupError where squeue does not answer.
    """
    lines = ask("squeue", "--all", "--me", "--noheader", "--format=%i|%T|%B|%N|%k", limit_s=DEADLINE_S)
    if lines is None:
        raise LookupError
    for job, state, first, nodes, other_comment in columns(lines, 5):
        if other_comment == comment:
            if state != "RUNNING" or not is_headless(first, nodes):
                return job, state
            ask("scancel", job)
    return None


def refusal_of_second(what: str, comment: str) -> str | None:
    """Return why a job may not be submitted, or None where the job may be submitted.

    A job must not be submitted while an earlier job of this rule and sweep exists, which a dead Snakemake may have left. A job that Slurm is completing ends
    soon, so this function waits for this end for up to COMPLETING_S seconds.
    """
    rule, _, sweep = what.removeprefix("rule_").partition("_wildcards_")
    end = time.monotonic() + COMPLETING_S
    try:
        while (earlier := earlier_job(comment)) and earlier[1] == "COMPLETING" and time.monotonic() < end:
            time.sleep(1)  # Slurm has no program that waits for the end of a job
    except LookupError:
        return f"{name_of(rule, sweep)}: squeue does not answer, so that it cannot be seen whether a job of an earlier run is still there. Try again"
    return earlier and (
        f"{name_of(rule, sweep)}: its job {earlier[0]} of an earlier run is still there ({earlier[1]}), so no second one is started. Wait for its end"
        f" (`make watch` follows it) and run the same command again, or end it with `scancel {earlier[0]}`"
    )


def incomplete_mark(output: str) -> Path:
    """Return the path, relative to .snakemake, of the file with which Snakemake (9.27) marks an output as incomplete."""
    name = base64.urlsafe_b64encode(output.encode()).decode()
    *folders, last = [name[start : start + 254] for start in range(0, len(name), 254)]
    return Path("incomplete", *(f"@{folder}" for folder in folders), last)


def ending(run_dir: Path, output: str | None) -> str:
    """Return shell commands for the end of the script of a job with this output. A job of another workflow, which has this workflow as a module, has None.

    The commands write the exit code of the job into a file. Without this file nothing tells how a job ended that neither slurmctld nor accounting knows.
    The commands also mark an output of the job as incomplete again, because the Snakemake inside of the job removes this mark too early. The Snakemake that
    submitted the job must remove the mark, after this Snakemake has seen the end of the job and has recorded from which inputs the outputs were made.
    If this Snakemake has died, the mark makes the next Snakemake run the job again.
    """
    mark = shlex.quote(str(run_dir.parents[1] / incomplete_mark(output)) if output else os.devnull)
    code_file = f'{shlex.quote(str(run_dir))}/"$SLURM_JOB_ID".exit'  # the folder does not exist any more where that Snakemake has ended
    return f'\ncode=$?\n{{ echo \'{{}}\' > {mark}; echo "$code" > {code_file}; }} 2> /dev/null\nexit "$code"'


def submit(sbatch: str, arguments: list[str], run_dir: Path) -> int:
    """Submit a job for the plugin, record the job id or the refusal in the notes, and return the exit code for the plugin."""
    what = option(arguments, "--comment")
    # The comment contains the state folder, because two configs may each have a sweep with an equal name.
    comment = f"{what} in {os.environ[STATE_DIR]}"
    output: str | None = json.loads((run_dir / OUTPUTS).read_text(encoding="utf-8")).get(what)
    refusal = refusal_of_second(what, comment) if output is not None else None
    if arguments[-1] != SCRIPT:
        refusal = (
            "cluster/config.yaml lacks slurm-pass-command-as-script: true, without which a shell could run what stands in a path or a text"
        )
    if refusal:
        append(run_dir, what=what, refused=refusal, by_us=True)
        print(refusal, file=sys.stderr)
        return 1
    command = [sbatch, *arguments]
    command[command.index("--comment") + 1] = comment
    script = sys.stdin.read() + ending(run_dir, output)
    env = {key: value for key, value in os.environ.items() if key not in OWN_VARIABLES}
    try:
        run = subprocess.run(command, input=script, capture_output=True, text=True, check=False, env=env, timeout=SUBMIT_DEADLINE_S)
    except subprocess.TimeoutExpired:  # `refusal_of_second` notices at the next submission where Slurm has the job nevertheless
        run = subprocess.CompletedProcess(command, 1, "", f"sbatch: error: sbatch did not end within {SUBMIT_DEADLINE_S} s\n")
    sys.stderr.write(run.stderr)
    if run.returncode == 0:
        job = run.stdout.strip().split(";")[0]
        append(run_dir, job=job, what=what, log=option(arguments, "--output").replace("%j", job))
    else:
        append(run_dir, what=what, refused=run.stderr)
    sys.stdout.write(run.stdout)
    return run.returncode


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
        for job, state in status(Path(run_dir), option(arguments, "--name")).items():
            print(f"{job}|{state}")
        return 0
    real = shutil.which(program)
    if real is None:
        print(f"{program}: command not found: run this where Slurm's commands are, on a login node", file=sys.stderr)
        return 127
    if run_dir is None or not is_submission(program, arguments):
        os.execv(real, [program, *arguments])
    return submit(real, arguments, Path(run_dir))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # after Ctrl-C this program ends without a traceback
    sys.exit(main(*sys.argv[1:]))
