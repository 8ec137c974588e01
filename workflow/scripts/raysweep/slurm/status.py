"""The program between Snakemake's Slurm plugin and Slurm: it answers the plugin's status queries and makes the plugin's submissions.

`cluster/bin` holds programs called `squeue`, `sacct` and `sbatch` that run this file. They are first on the PATH of a Snakemake that submits
to Slurm, and on the PATH of nothing that this Snakemake submits. All other calls go on to Slurm unchanged. A bare `python -I -S` runs this file, and
the file imports Python's own library alone, because a query must take no time.

The plugin (2.8) waits for ever when five status queries fail in one poll, when its query leaves out a job, and when a job's state is PREEMPTED,
`CANCELLED by 1001`, or PENDING for a reason that time does not change. So this program always answers, for every job that was submitted, in
words that the plugin knows. What a run has submitted and has learned of its jobs stands in the run's notes: a JSON object a line, in the run's folder.
"""

from __future__ import annotations

import base64
import contextlib
import json
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

RUN_DIR = "RAYSWEEP_RUN_DIR"  # folder of the notes of the Snakemake that calls
STATE_DIR = "RAYSWEEP_STATE_DIR"  # where its sweeps keep their records
PYTHON = "RAYSWEEP_PYTHON"  # the interpreter that runs this file
OWN_VARIABLES = (RUN_DIR, STATE_DIR, PYTHON)
NOTES = "notes.jsonl"
SCRIPT = "/dev/stdin"  # from which sbatch reads the job's commands
OUTPUTS = "outputs.json"  # comment of each of this workflow's jobs that may be submitted → one output of the job

STARTED = time.monotonic()
DEADLINE_S = 50  # of all questions to Slurm together; the plugin waits 60 s for an answer
# For so long may a job be unknown to Slurm before it counts as failed: slurmctld may be starting, and files of nodes may show late.
FORGOTTEN_S = 90
# Slurm's last state of a job → the plugin's word. For NODE_FAIL the plugin would keep all nodes of the job from the next jobs, though one node was lost.
FINAL = {state: state for state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")}
FINAL |= {"PREEMPTED": "CANCELLED", "NODE_FAIL": "FAILED", "REVOKED": "FAILED"}
HELD = ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
# Why a job stays PENDING until somebody changes the job, the cluster or the account (slurm.h, job_state_reason). Limits of a group, and busy, down
# and reserved nodes, may pass with time. A hold of the user's own is for the user to end.
HOPELESS = re.compile(
    r"Partition(NodeLimit|TimeLimit|Config)|BadConstraints|MaxMemPerLimit|Invalid(Account|QOS)|(Account|QOS)NotAllowed|AccountingPolicy"
    r"|JobHeldAdmin|JobHoldMaxRequeue|DependencyNeverSatisfied|ReservationDeleted|QOSMin\w+"
    r"|(Assoc|QOS)Max(\w+PerJob|\w+PerNode|WallDuration)\w*|.*requeued held.*|.*special exit.*"
)


# The notes. NamedTuple, because the import of dataclasses takes about as long as the start of Python.


class JobNote(NamedTuple):
    """A job of the run, as folded from the notes on it."""

    job: str
    what: str = ""  # the plugin's comment, which names rule and wildcards; "" before the submission is noted
    log: str = ""
    state: str = "PENDING"
    reason: str | None = None  # why the job waits
    missing_since: float | None = None  # since when Slurm does not know the job, in seconds since the epoch
    hopeless: str | None = None  # the reason for which this program has cancelled the job


class RefusalNote(NamedTuple):
    """A job that was refused when the plugin submitted it."""

    what: str
    refused: str  # the message of `sbatch`, or of this program
    by_us: bool = False


class Notes(NamedTuple):
    """All notes of a run."""

    jobs: dict[str, JobNote]  # by the job's id
    refusals: dict[str, RefusalNote]  # by the plugin's comment


class Observation(NamedTuple):
    """What is known of a job at the moment of a query."""

    state: str
    reason: str | None = None
    missing_since: float | None = None


def append(run_dir: Path, **fields: str | float | bool | None) -> None:
    """Append a note, in one short write, so that notes of simultaneous calls do not mix. A full disk costs the note, not the answer or the job."""
    with contextlib.suppress(OSError), (run_dir / NOTES).open("ab", buffering=0) as stream:
        stream.write(json.dumps(fields).encode() + b"\n")


def text_of(path: Path) -> str:
    """Return the text of a file, or "" where the file is missing or the file system is in trouble, because neither may cost an answer."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_notes(run_dir: Path) -> Notes:
    """Return the notes of a run. A later note on a job replaces the fields that it names."""
    jobs: dict[str, JobNote] = {}
    refusals: dict[str, RefusalNote] = {}
    for line in text_of(run_dir / NOTES).splitlines():
        try:
            fields = json.loads(line)
        except ValueError:  # the disk was full
            continue
        if "job" in fields:
            jobs[fields["job"]] = jobs.get(fields["job"], JobNote(fields["job"]))._replace(**fields)
        else:
            refusals[fields["what"]] = RefusalNote(**fields)
    return Notes(jobs, refusals)


# Slurm.


def ask(*command: str) -> list[str] | None:
    """Return the lines that a program of Slurm prints, or None when the program fails."""
    # The user's own defaults, such as SQUEUE_PARTITION, would hide jobs.
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SACCT_"))}
    options: dict[str, Any] = {"env": env, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    try:
        run = subprocess.run(command, check=False, timeout=max(1.0, STARTED + DEADLINE_S - time.monotonic()), **options)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.splitlines() if run.returncode == 0 else None


def columns(lines: list[str], number: int) -> list[list[str]]:
    """Return the lines that have so many columns, split. Sites add lines of their own."""
    return [line.split("|", number - 1) for line in lines if line.count("|") >= number - 1]


def listed_jobs(run_name: str) -> dict[str, Observation] | None:
    """Return the jobs of a run that slurmctld knows, by id, or None when squeue fails. `--all`: partitions may be hidden."""
    lines = ask("squeue", "--all", "--states=all", "--noheader", f"--name={run_name}", "--format=%i|%T|%B|%N|%r")
    if lines is None:
        return None
    return {
        job: start_again(job) if state == "RUNNING" and is_headless(first, nodes) else Observation(state, reason)
        for job, state, first, nodes, reason in columns(lines, 5)
    }


def is_headless(first: str, nodes: str) -> bool:
    """Return whether the job has lost its first node, on which the job's script ran.

    A sweep asks for --no-kill, so that it outlives the loss of other nodes. Slurm then does not end the job when the first node is lost.
    """
    if nodes == first or not nodes:
        return False
    names = ask("scontrol", "show", "hostnames", nodes)
    return names is not None and names != [] and first not in names


def start_again(job: str) -> Observation:
    """Have Slurm start a job again that lost its first node, or end the job where the site does not allow that."""
    if ask("scontrol", "requeue", job) is not None:
        return Observation("PENDING", "BeginTime")
    ask("scancel", job)
    return Observation("NODE_FAIL", "None")


def accounted_states(jobs: list[str]) -> dict[str, str]:
    """Return the states that accounting has of jobs that slurmctld has forgotten. Not every cluster has accounting."""
    if not jobs:
        return {}
    lines = ask("sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={','.join(jobs)}", "--format=JobIDRaw,State")
    return {job: state.split()[0] for job, state in columns(lines or [], 2) if state}  # CANCELLED by 1001


# The status query.


def exit_code(run_dir: Path, job: str) -> str:
    """Return the exit code that the job wrote when it ended, see `ending`, or "" where the job was killed or has not ended."""
    return text_of(run_dir / f"{job}.exit").strip()


def forgotten(run_dir: Path, note: JobNote, accounted: str | None) -> Observation:
    """Return the state of a job that slurmctld does not know any more.

    The state is COMPLETED only where the job or accounting says so. Otherwise Snakemake would take the outputs of an earlier run for this job's,
    because the job itself deletes them when it starts.
    """
    code = exit_code(run_dir, note.job)
    if code == "0":
        return Observation("COMPLETED")
    if accounted is not None and accounted in FINAL:
        return Observation(accounted)
    since = note.missing_since or time.time()
    is_lost = bool(code) or time.time() - since > FORGOTTEN_S
    return Observation("FAILED" if is_lost else note.state, missing_since=since)


def cancel_hopeless(run_dir: Path, notes: Notes, listed: dict[str, Observation]) -> bool:
    """Cancel the jobs that can never start, and return whether there were any. Two queries must agree, since Slurm also holds a job for moments."""
    hopeless = []
    for job, now in listed.items():
        is_stuck = now.state in HELD or (now.state == "PENDING" and HOPELESS.fullmatch(now.reason or "") is not None)
        before = notes.jobs.get(job)
        if is_stuck and before is not None and (before.state, before.reason) == (now.state, now.reason):
            append(run_dir, job=job, hopeless=now.state if now.state in HELD else now.reason)
            hopeless.append(job)
    return bool(hopeless) and ask("scancel", "--state=PENDING", *hopeless) is not None


def status(run_dir: Path, run_name: str) -> dict[str, str]:
    """Return the state of every job of a run, in the plugin's words: the state in the notes while Slurm does not answer."""
    notes = read_notes(run_dir)
    listed = listed_jobs(run_name)
    if listed is not None and cancel_hopeless(run_dir, notes, listed):
        listed = listed_jobs(run_name)
    if listed is not None:
        now = dict(listed)
        missing = [job for job, note in notes.jobs.items() if job not in now and note.state not in FINAL]
        accounted = accounted_states(missing)
        now |= {job: forgotten(run_dir, notes.jobs[job], accounted.get(job)) for job in missing}
        for job, observation in now.items():
            before = notes.jobs.get(job)
            if before is None or observation != Observation(before.state, before.reason, before.missing_since):
                append(run_dir, job=job, **observation._asdict())
                notes.jobs[job] = (before or JobNote(job))._replace(**observation._asdict())
    return {job: FINAL.get(note.state, note.state) for job, note in notes.jobs.items()}


# The submission.


def option(arguments: list[str], *names: str) -> str:
    """Return the value of an option that the arguments have."""
    for number, argument in enumerate(arguments):
        if argument in names:
            return arguments[number + 1]
    raise ValueError(f"none of {names} in {arguments}")


def name_of(rule: str, sweep: str) -> str:
    """Return the name by which a user knows a job."""
    if not sweep:
        return rule
    return f"sweep {sweep}" if rule == "run_sweep" else f"sweep {sweep}, {rule}"


def refusal_of_second(what: str, comment: str) -> str | None:
    """Return why a job may not be submitted, or None: a job of the same rule and sweep may be left of a Snakemake that died."""
    rule, _, sweep = what.removeprefix("rule_").partition("_wildcards_")
    lines = ask("squeue", "--all", "--me", "--noheader", "--format=%i|%T|%B|%N|%k")
    if lines is None:
        return f"{name_of(rule, sweep)}: squeue does not answer, so that it cannot be seen whether a job of an earlier run is still there. Try again"
    for job, state, first, nodes, other_comment in columns(lines, 5):
        if other_comment == comment and state == "RUNNING" and is_headless(first, nodes):
            ask("scancel", job)
        elif other_comment == comment:
            return (
                f"{name_of(rule, sweep)}: its job {job} of an earlier run is still there ({state}), so no second one is started. Wait for its end"
                f" (`make watch` follows it) and run the same command again, or end it with `scancel {job}`"
            )
    return None


def incomplete_mark(output: str) -> Path:
    """Return the path below .snakemake at which Snakemake (9.27) marks an output as incomplete."""
    name = base64.urlsafe_b64encode(output.encode()).decode()
    *folders, last = [name[start : start + 254] for start in range(0, len(name), 254)]
    return Path("incomplete", *(f"@{folder}" for folder in folders), last)


def own_outputs(run_dir: Path) -> dict[str, str]:
    """Return an output of each job that is this workflow's, by the plugin's comment. A workflow that has this one as a module submits other jobs too."""
    outputs: dict[str, str] = json.loads((run_dir / OUTPUTS).read_text(encoding="utf-8"))
    return outputs


def ending(run_dir: Path, what: str) -> str:
    """Return the commands with which the script of a job ends.

    They write the job's exit code: nothing else tells how a job ended that slurmctld has forgotten and that accounting does not know.

    They also mark the job's outputs as incomplete again. Snakemake's part in the job removes the mark. But the Snakemake that submitted the job is to
    remove it, when it has seen the job's end and has noted what the outputs were made from. Where that Snakemake has died, the next one makes the
    outputs again.
    """
    output = own_outputs(run_dir).get(what)
    mark = shlex.quote(str(run_dir.parents[1] / incomplete_mark(output)) if output else os.devnull)
    code_file = f'{shlex.quote(str(run_dir))}/"$SLURM_JOB_ID".exit'  # its folder is gone where that Snakemake has ended
    return f'\ncode=$?\n{{ echo \'{{}}\' > {mark}; echo "$code" > {code_file}; }} 2> /dev/null\nexit "$code"'


def submit(sbatch: str, arguments: list[str], run_dir: Path) -> int:
    """Submit a job of the plugin's, note the job's id or the refusal, and return the exit code for the plugin."""
    what = option(arguments, "--comment")
    # The sweep's folder is part of the comment: two configs may each have a sweep of one name.
    comment = f"{what} in {os.environ[STATE_DIR]}"
    refusal = refusal_of_second(what, comment) if what in own_outputs(run_dir) else None
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
    script = sys.stdin.read() + ending(run_dir, what)
    env = {key: value for key, value in os.environ.items() if key not in OWN_VARIABLES}
    run = subprocess.run(command, input=script, capture_output=True, text=True, check=False, env=env)
    sys.stderr.write(run.stderr)
    if run.returncode == 0:
        job = run.stdout.strip().split(";")[0]
        append(run_dir, job=job, what=what, log=option(arguments, "--output").replace("%j", job))
    else:
        append(run_dir, what=what, refused=run.stderr)
    sys.stdout.write(run.stdout)
    return run.returncode


# The program.


def is_status_query(program: str, arguments: list[str]) -> bool:
    """Return whether the plugin asks for the states of a run's jobs with these arguments."""
    formats = {"squeue": "--format=%i|%T", "sacct": "--format=JobIdRaw,State"}
    return "--name" in arguments and formats.get(program) in arguments


def is_submission(program: str, arguments: list[str]) -> bool:
    """Return whether the plugin submits a job with these arguments."""
    return program == "sbatch" and {"--parsable", "--job-name", "--comment", "--output"} <= set(arguments)


def main(called: str, *given: str) -> int:
    """Do the work of `called`, a file in cluster/bin, and return the exit code."""
    folder, program, arguments = os.path.realpath(os.path.dirname(called)), os.path.basename(called), list(given)
    path = [entry for entry in os.environ.get("PATH", os.defpath).split(os.pathsep) if os.path.realpath(entry) != folder]
    os.environ["PATH"] = os.pathsep.join(path)  # so that neither this program nor a job finds the programs in cluster/bin again
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
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C ends this program without a traceback
    sys.exit(main(*sys.argv[1:]))
