"""Submits the jobs of Snakemake's Slurm plugin, and refuses a second job of a rule and a sweep."""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from raysweep.slurm.notes import OUTPUTS, OWN_VARIABLES, STATE_DIR, append, name_of
from raysweep.slurm.queries import DEADLINE_S, ask, columns, is_headless

SCRIPT = "/dev/stdin"  # file from which sbatch reads the script of a job
SUBMIT_DEADLINE_S = 300  # time limit in seconds for the real sbatch, which waits and tries again where slurmctld does not answer
COMPLETING_S = 120  # longest time in seconds for which a submission waits for the end of an earlier job that Slurm is completing


def option(arguments: list[str], name: str) -> str:
    """Return the value of the option `name` in `arguments`."""
    return arguments[arguments.index(name) + 1]


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


def array_script(run_dir: Path, command: str) -> str:
    """Return the script of each job of a job array, which runs the command of the rule without Snakemake.

    The job that finishes the sweep writes the exit code of the sweep into the file that the scripts of other jobs write (see `ending`).
    """
    return f'#!/bin/bash\n{command} --allocation slurm --end {shlex.quote(str(run_dir))}/"$SLURM_ARRAY_JOB_ID".exit\n'


def run_sbatch(command: list[str], script: str) -> subprocess.CompletedProcess[str]:
    """Run the real sbatch. An sbatch that does not end in time counts as failed."""
    env = {key: value for key, value in os.environ.items() if key not in OWN_VARIABLES}
    try:
        return subprocess.run(command, input=script, capture_output=True, text=True, check=False, env=env, timeout=SUBMIT_DEADLINE_S)
    except subprocess.TimeoutExpired:  # `refusal_of_second` notices at the next submission where Slurm has the job nevertheless
        return subprocess.CompletedProcess(command, 1, "", f"sbatch: error: sbatch did not end within {SUBMIT_DEADLINE_S} s\n")


def submit_array(command: list[str], script: str, num_jobs: int) -> subprocess.CompletedProcess[str]:
    """Submit a job array. Where Slurm refuses the array, submit half as many jobs, and so on."""
    script_begins, rest = script.split("\n", 1)
    refused = ""
    while True:
        run = run_sbatch([command[0], f"--array=0-{num_jobs - 1}", *command[1:]], f"{script_begins}\n{refused}{rest}")
        if run.returncode == 0 or num_jobs == 1:
            return run
        words = f"Slurm refuses {num_jobs} jobs: {' '.join(run.stderr.split())}"
        refused = f'[ "$SLURM_ARRAY_TASK_ID" != 0 ] || echo {shlex.quote(words)}\n'  # said once, in the log of the first job
        num_jobs //= 2


def submit(sbatch: str, arguments: list[str], run_dir: Path) -> int:
    """Submit a job for the plugin, record the job id or the refusal in the notes, and return the exit code for the plugin."""
    what = option(arguments, "--comment")
    # The comment contains the state folder, because two configs may each have a sweep with an equal name.
    comment = f"{what} in {os.environ[STATE_DIR]}"
    job_facts = json.loads((run_dir / OUTPUTS).read_text(encoding="utf-8")).get(what)  # None: a job of another workflow
    refusal = refusal_of_second(what, comment) if job_facts else None
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
    script = sys.stdin.read()
    log = option(arguments, "--output")
    if job_facts and job_facts["num_jobs"] > 1:
        log = log.replace("%j", "%A_%a")
        command[command.index("--output") + 1] = log
        run = submit_array(command, array_script(run_dir, job_facts["command"]), job_facts["num_jobs"])
    else:
        run = run_sbatch(command, script + ending(run_dir, job_facts and job_facts["output"]))
    sys.stderr.write(run.stderr)
    if run.returncode == 0:
        job = run.stdout.strip().split(";")[0]
        append(run_dir, job=job, what=what, log=log.replace("%j", job).replace("%A_%a", f"{job}_0"))
    else:
        append(run_dir, what=what, refused=run.stderr)
    sys.stdout.write(run.stdout)
    return run.returncode
