"""What stands between Snakemake's Slurm plugin and Slurm: the plugin's status query and its submissions. All other calls go on to Slurm as they are.

`cluster/bin` holds programs called `squeue`, `sacct` and `sbatch` that call this file. They are first on the PATH of a Snakemake that submits
to Slurm, and of nothing that it submits. Only Python's own library is imported, since a query is to take no time.

The plugin (2.8) waits for ever when five status queries fail in one poll, when its query leaves out a job, and when a job's state is PREEMPTED,
`CANCELLED by 1001`, or PENDING for a reason that time does not change. So a query is always answered, for every job that was submitted, in
words that the plugin knows. What a run submitted and has learned of it stands in its notes: a JSON object a line, in its own folder.
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
from typing import Any

RUN_DIR = "RAYSWEEP_RUN_DIR"  # folder of the notes of the Snakemake that calls
STATE_DIR = "RAYSWEEP_STATE_DIR"  # where its sweeps keep their records
PYTHON = "RAYSWEEP_PYTHON"  # what runs this file
OWN_VARIABLES = (RUN_DIR, STATE_DIR, PYTHON)
NOTES = "notes.jsonl"
SCRIPT = "/dev/stdin"  # whence sbatch has the job's commands
OUTPUTS = "outputs.json"  # of each of our jobs that may be submitted (what → one of them)

STARTED = time.monotonic()
DEADLINE_S = 50  # of all questions to Slurm together; the plugin waits 60 s for an answer
FORGOTTEN_S = (
    90  # so long may a job be unknown to Slurm before it counts as failed: slurmctld may be starting, and files of nodes may show late
)
# Slurm's last words on a job → the plugin's. As NODE_FAIL it would keep all nodes of the job from the jobs that follow, though one was lost.
FINAL = {state: state for state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")}
FINAL |= {"PREEMPTED": "CANCELLED", "NODE_FAIL": "FAILED", "REVOKED": "FAILED"}
HELD = ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
# Why a job stays PENDING until somebody changes it, the cluster or the account (slurm.h, job_state_reason). Limits of a group, busy, down and
# reserved nodes may pass with time, and a hold of the user's own is his.
HOPELESS = re.compile(
    r"Partition(NodeLimit|TimeLimit|Config)|BadConstraints|MaxMemPerLimit|Invalid(Account|QOS)|(Account|QOS)NotAllowed|AccountingPolicy"
    r"|JobHeldAdmin|JobHoldMaxRequeue|DependencyNeverSatisfied|ReservationDeleted|QOSMin\w+"
    r"|(Assoc|QOS)Max(\w+PerJob|\w+PerNode|WallDuration)\w*|.*requeued held.*|.*special exit.*"
)

Notes = dict[str, dict[str, Any]]


def append(run_dir: Path, **note: Any) -> None:
    """Add a note: one short write, so that calls at the same time do not mix theirs. A full disk costs the note, not the answer or the job."""
    with contextlib.suppress(OSError), (run_dir / NOTES).open("ab", buffering=0) as stream:
        stream.write(json.dumps(note).encode() + b"\n")


def text_of(path: Path) -> str:
    """What a file holds; nothing where it is not there or the file system is in trouble, which is to cost no answer either."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_notes(run_dir: Path) -> tuple[Notes, Notes]:
    """What a run knows: of its jobs (id → what, log, state, reason, missing_since, hopeless), and of what was refused (what → refused, by_us)."""
    jobs: Notes = {}
    refused: Notes = {}
    for line in text_of(run_dir / NOTES).splitlines():
        try:
            note = json.loads(line)
        except ValueError:  # the disk was full
            continue
        if "job" in note:
            jobs.setdefault(note["job"], {}).update(note)
        else:
            refused[note["what"]] = note
    return jobs, refused


def ask(*command: str) -> list[str] | None:
    """The lines that a program of Slurm answers, or None when it does not."""
    # The user's own defaults, such as SQUEUE_PARTITION, would hide jobs.
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SACCT_"))}
    options: dict[str, Any] = {"env": env, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    try:
        run = subprocess.run(command, check=False, timeout=max(1.0, STARTED + DEADLINE_S - time.monotonic()), **options)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.splitlines() if run.returncode == 0 else None


def columns(lines: list[str], number: int) -> list[list[str]]:
    """The lines that have so many columns; sites add lines of their own."""
    return [line.split("|", number - 1) for line in lines if line.count("|") >= number - 1]


def listed_jobs(run_name: str) -> dict[str, tuple[str, str]] | None:
    """The jobs of a run that slurmctld knows: id → state, reason. `--all`: partitions may be hidden."""
    answer = ask("squeue", "--all", "--states=all", "--noheader", f"--name={run_name}", "--format=%i|%T|%B|%N|%r")
    if answer is None:
        return None
    return {
        job: start_again(job) if state == "RUNNING" and is_headless(first, nodes) else (state, reason)
        for job, state, first, nodes, reason in columns(answer, 5)
    }


def is_headless(first: str, nodes: str) -> bool:
    """Whether the node on which a job's script ran is not part of the job any more.

    So that a sweep outlives the loss of other nodes it asks for --no-kill, and Slurm then does not end the job when it is the first that is lost.
    """
    if nodes == first or not nodes:
        return False
    names = ask("scontrol", "show", "hostnames", nodes)
    return names is not None and names != [] and first not in names


def start_again(job: str) -> tuple[str, str]:
    """Have a job that lost its first node started again, or, where the site does not allow that, ended; its state then, and the reason."""
    if ask("scontrol", "requeue", job) is not None:
        return "PENDING", "BeginTime"
    ask("scancel", job)
    return "NODE_FAIL", "None"


def accounted_states(jobs: list[str]) -> dict[str, str]:
    """What accounting, where there is any, says of jobs that slurmctld has forgotten."""
    answer = (
        ask("sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={','.join(jobs)}", "--format=JobIDRaw,State") if jobs else None
    )
    return {job: state.split()[0] for job, state in columns(answer or [], 2) if state}  # CANCELLED by 1001


def exit_code(run_dir: Path, job: str) -> str:
    """What the job wrote when it ended, see `submit`; nothing where it was killed or did not end."""
    return text_of(run_dir / f"{job}.exit").strip()


def forgotten(run_dir: Path, job: str, before: dict[str, Any], accounted: str | None) -> dict[str, Any]:
    """What to think of a job that slurmctld does not know any more.

    "Completed" is said only where the job or accounting says so: Snakemake would take the outputs of an earlier run for this job's, since they
    are deleted by the job itself, when it starts.
    """
    code = exit_code(run_dir, job)
    if code == "0" or accounted in FINAL:
        return {"state": "COMPLETED" if code == "0" else accounted}
    since = before.get("missing_since") or time.time()
    lost = code or time.time() - since > FORGOTTEN_S
    return {"state": "FAILED" if lost else before.get("state", "PENDING"), "missing_since": since}


def cancel_hopeless(run_dir: Path, notes: Notes, listed: dict[str, tuple[str, str]]) -> bool:
    """Cancel the jobs that wait for what will not come. Seen twice, since Slurm also holds a job for moments."""
    hopeless = []
    for job, (state, reason) in listed.items():
        waits = state in HELD or (state == "PENDING" and HOPELESS.fullmatch(reason))
        if waits and (notes.get(job, {}).get("state"), notes.get(job, {}).get("reason")) == (state, reason):
            append(run_dir, job=job, hopeless=state if state in HELD else reason)
            hopeless.append(job)
    return bool(hopeless) and ask("scancel", "--state=PENDING", *hopeless) is not None


def status(run_dir: Path, run_name: str) -> dict[str, str]:
    """The state of every job of a run, in the plugin's words. While Slurm does not answer: what was known."""
    notes, _ = read_notes(run_dir)
    listed = listed_jobs(run_name)
    if listed is not None and cancel_hopeless(run_dir, notes, listed):
        listed = listed_jobs(run_name)
    if listed is not None:
        now: Notes = {job: {"state": state, "reason": reason} for job, (state, reason) in listed.items()}
        missing = [job for job in notes if job not in now and notes[job].get("state") not in FINAL]
        accounted = accounted_states(missing)
        now |= {job: forgotten(run_dir, job, notes[job], accounted.get(job)) for job in missing}
        for job, news in now.items():
            news = {"reason": None, "missing_since": None} | news
            if not news.items() <= notes.setdefault(job, {}).items():
                append(run_dir, job=job, **news)
                notes[job] |= news
    states = {job: note.get("state", "PENDING") for job, note in notes.items()}
    return {job: FINAL.get(state, state) for job, state in states.items()}


def option(arguments: list[str], *names: str) -> str:
    """The value of an option that is there."""
    for number, argument in enumerate(arguments):
        if argument in names:
            return arguments[number + 1]
    raise ValueError(f"none of {names} in {arguments}")


def name_of(rule: str, sweep: str) -> str:
    """A job as a user would call it."""
    if not sweep:
        return rule
    return f"sweep {sweep}" if rule == "run_sweep" else f"sweep {sweep}, {rule}"


def refusal_of_second(what: str, comment: str) -> str | None:
    """Why a job may not be submitted: another of the same rule and sweep, of a Snakemake that died perhaps, is still there."""
    rule, _, sweep = what.removeprefix("rule_").partition("_wildcards_")
    answer = ask("squeue", "--all", "--me", "--noheader", "--format=%i|%T|%B|%N|%k")
    if answer is None:
        return f"{name_of(rule, sweep)}: squeue does not answer, so that it cannot be seen whether a job of an earlier run is still there. Try again"
    for job, state, first, nodes, other in columns(answer, 5):
        if other == comment and state == "RUNNING" and is_headless(first, nodes):
            ask("scancel", job)
        elif other == comment:
            return (
                f"{name_of(rule, sweep)}: its job {job} of an earlier run is still there ({state}), so no second one is started. Wait for its end"
                f" (`make watch` follows it) and run the same command again, or end it with `scancel {job}`"
            )
    return None


def incomplete_mark(output: str) -> Path:
    """Where in .snakemake Snakemake (9.27) marks an output as not complete."""
    name = base64.urlsafe_b64encode(output.encode()).decode()
    *folders, last = [name[start : start + 254] for start in range(0, len(name), 254)]
    return Path("incomplete", *(f"@{folder}" for folder in folders), last)


def our_outputs(run_dir: Path) -> dict[str, str]:
    """An output of each job that is ours. A workflow that has us as a module submits others as well."""
    return json.loads((run_dir / OUTPUTS).read_text(encoding="utf-8"))


def ending(run_dir: Path, what: str) -> str:
    """What a job does last: it says how it ended, by which alone a job can be judged that slurmctld has forgotten and accounting does not know.

    And it marks its outputs as incomplete again. Snakemake's part in the job takes the mark away, which the Snakemake that submitted it shall
    do when it has seen the job's end and noted what the outputs were made from. Where that one has died, the next one has them made again.
    """
    output = our_outputs(run_dir).get(what)
    mark = shlex.quote(str(run_dir.parents[1] / incomplete_mark(output)) if output else os.devnull)
    said = f'{shlex.quote(str(run_dir))}/"$SLURM_JOB_ID".exit'  # the folder is gone where that Snakemake has ended
    return f'\ncode=$?\n{{ echo \'{{}}\' > {mark}; echo "$code" > {said}; }} 2> /dev/null\nexit "$code"'


def submit(sbatch: str, arguments: list[str], run_dir: Path) -> int:
    """Submit a job of the plugin's and note its id, or why there is none."""
    what = option(arguments, "--comment")
    # The sweep's folder is part of its name: two configs may have a sweep of one name each.
    comment = f"{what} in {os.environ[STATE_DIR]}"
    refusal = refusal_of_second(what, comment) if what in our_outputs(run_dir) else None
    if arguments[-1] != SCRIPT:
        refusal = (
            "cluster/config.yaml lacks slurm-pass-command-as-script: true, without which a shell could run what stands in a path or a text"
        )
    if refusal:
        append(run_dir, what=what, refused=refusal, by_us=True)
        print(refusal, file=sys.stderr)
        return 1
    own = [sbatch, *arguments]
    own[own.index("--comment") + 1] = comment
    script = sys.stdin.read() + ending(run_dir, what)
    env = {key: value for key, value in os.environ.items() if key not in OWN_VARIABLES}
    run = subprocess.run(own, input=script, capture_output=True, text=True, check=False, env=env)
    sys.stderr.write(run.stderr)
    if run.returncode == 0:
        job = run.stdout.strip().split(";")[0]
        append(run_dir, job=job, what=what, log=option(arguments, "--output").replace("%j", job))
    else:
        append(run_dir, what=what, refused=run.stderr)
    sys.stdout.write(run.stdout)
    return run.returncode


def is_status_query(program: str, arguments: list[str]) -> bool:
    """Whether this is how the plugin asks for the states of a run's jobs."""
    formats = {"squeue": "--format=%i|%T", "sacct": "--format=JobIdRaw,State"}
    return "--name" in arguments and formats.get(program) in arguments


def is_submission(program: str, arguments: list[str]) -> bool:
    """Whether this is how the plugin submits a job."""
    return program == "sbatch" and {"--parsable", "--job-name", "--comment", "--output"} <= set(arguments)


def main(called: str, *given: str) -> int:
    """Do as `called`, a file in cluster/bin, is asked to."""
    folder, program, arguments = os.path.realpath(os.path.dirname(called)), os.path.basename(called), list(given)
    path = [entry for entry in os.environ.get("PATH", os.defpath).split(os.pathsep) if os.path.realpath(entry) != folder]
    os.environ["PATH"] = os.pathsep.join(path)  # so that neither what follows nor a job finds these programs again
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
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C ends this without a word
    sys.exit(main(*sys.argv[1:]))
