"""Submits the jobs of Snakemake's Slurm plugin. A job of an earlier run that is still there is taken up, or no second job is submitted."""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from raysweep.slurm.earlier_jobs import (
    CONFIG,
    SUBMISSION,
    changed_parts,
    comment_of,
    digests_of,
    earlier_job_to_decide_on,
    finished_job,
    job_folder,
)
from raysweep.slurm.notes import EARLY_END_SIGNAL, JOB_CONFIG, OWN_VARIABLES, PLANNED, PlannedJob, append, name_of_comment
from raysweep.slurm.queries import ask

SCRIPT = "/dev/stdin"  # file from which sbatch reads the script of a job
TIMED_OUT = 124  # exit code in the place of the exit code of an sbatch that did not end in time, whose jobs Slurm may have nevertheless
SUBMIT_DEADLINE_S = 300  # time limit in seconds for the real sbatch, which waits and tries again where slurmctld does not answer


class Call(NamedTuple):
    """Describes a call of sbatch by the plugin."""

    run_dir: Path  # folder of the run of Snakemake
    arguments: list[str]
    script: str
    what: str  # comment of the plugin, which names the rule and the wildcards
    planned: PlannedJob | None  # None for a job of another workflow, which has this workflow as a module

    @property
    def name(self) -> str:
        """Return the name of the job in messages for the user."""
        return name_of_comment(self.what)

    @property
    def mark(self) -> Path:
        """Return the path of Snakemake's mark for the first output of a planned job."""
        assert self.planned is not None
        return self.run_dir.parents[1] / incomplete_mark(self.planned.outputs[0])

    @property
    def job_name(self) -> str:
        """Return the name of a planned job in Slurm."""
        rule, _, sweep = self.what.removeprefix("rule_").partition("_wildcards_")
        words = [sweep, "" if rule.endswith("run_sweep") and sweep else rule]
        return "-".join(["raysweep", *filter(None, words)])

    @property
    def is_array(self) -> bool:
        """Return whether several Slurm jobs do the work of the job together."""
        return self.planned is not None and self.planned.num_jobs > 1

    @property
    def output(self) -> str:
        """Return the path of Slurm's log as an option of sbatch."""
        output = option(self.arguments, "--output")
        return output.replace("%j", "%A_%a") if self.is_array else output

    def log(self, job: str) -> str:
        """Return the path of Slurm's log of the job with the id `job`, or of the first job of the array with this id."""
        return self.output.replace("%j", job).replace("%A_%a", f"{job}_0")


def option(arguments: list[str], name: str) -> str:
    """Return the value of the option `name` in `arguments`."""
    return arguments[arguments.index(name) + 1]


def incomplete_mark(output: str) -> Path:
    """Return the path, relative to .snakemake, of the file with which Snakemake (9.27) marks an output as incomplete."""
    name = base64.urlsafe_b64encode(output.encode()).decode()
    *folders, last = [name[start : start + 254] for start in range(0, len(name), 254)]
    return Path("incomplete", *(f"@{folder}" for folder in folders), last)


def extended_script(call: Call, folder: Path) -> str:
    """Return the script of a job with commands at its start and at its end. The job writes its exit code into `folder`.

    Without the exit code nothing tells how a job ended that neither slurmctld nor accounting knows. A job that Slurm starts again removes its former code.

    The commands mark an output of the job as incomplete again, because the Snakemake inside of the job removes this mark too early. The Snakemake that
    follows the job must remove the mark, after this Snakemake has seen the end of the job and has recorded from which inputs the outputs were made. If this
    Snakemake has died, the mark makes the next Snakemake run the job again.

    The Snakemake inside of the job returns 0 where the inputs do not become visible in time and the rule does not run. So the first output of an earlier run
    is removed at the start, and a job without this output has failed. The job reads the config of the sweep as it was at the submission, because the user may
    change the config while the job waits.
    """
    code_file = f'{shlex.quote(str(folder))}/"$SLURM_JOB_ID".exit'
    start, check, mark = f"rm -f {code_file}", "", os.devnull
    if call.planned is not None:
        output = shlex.quote(str(call.run_dir.parents[2] / call.planned.outputs[0]))
        start += f"\nrm -rf {output}"
        check = f'[ "$code" != 0 ] || [ -e {output} ] || code=1\n'
        mark = shlex.quote(str(call.mark))
        if call.planned.config is not None:
            start += f"\nexport {JOB_CONFIG}={shlex.quote(str(folder / CONFIG))}"
    first, _, commands = call.script.partition("\n")  # the first line names the shell
    end = f'code=$?\n{check}{{ echo \'{{}}\' > {mark}; echo "$code" > {code_file}; }} 2> /dev/null\nexit "$code"'
    return f"{first}\n{start}\n{commands}\n{end}"


def array_script(call: Call, folder: Path) -> str:
    """Return the script of each job of a job array, which runs the command of the rule without Snakemake.

    The command takes the place of the shell, because Slurm sends EARLY_END_SIGNAL only to the process of the script. The signal is ignored until the command
    is ready for the signal. The command reads from Slurm when the job ends, so a signal that comes before is not needed.
    The job that finishes the sweep writes the exit code of the sweep into the file that the scripts of other jobs write (see `extended_script`). The last
    options of the command replace options that Snakemake has written.
    """
    assert call.planned is not None
    options = f'--allocation slurm --end {shlex.quote(str(folder))}/"$SLURM_ARRAY_JOB_ID".exit'
    if call.planned.config is not None:
        options += f" --config {shlex.quote(str(folder / CONFIG))}"
    return f"#!/bin/bash\ntrap '' {EARLY_END_SIGNAL}\nexec {call.planned.command} {options}\n"


def run_sbatch(command: list[str], script: str) -> subprocess.CompletedProcess[str]:
    """Run the real sbatch. An sbatch that does not end in time counts as failed."""
    env = {key: value for key, value in os.environ.items() if key not in OWN_VARIABLES}
    try:
        return subprocess.run(command, input=script, capture_output=True, text=True, check=False, env=env, timeout=SUBMIT_DEADLINE_S)
    except subprocess.TimeoutExpired:  # the next submission finds the job where Slurm has the job nevertheless
        return subprocess.CompletedProcess(command, TIMED_OUT, "", f"sbatch: error: sbatch did not end within {SUBMIT_DEADLINE_S} s\n")


def submit_array(command: list[str], script: str, num_jobs: int) -> subprocess.CompletedProcess[str]:
    """Submit a job array. Where Slurm refuses the array, submit half as many jobs, and so on."""
    script_begins, rest = script.split("\n", 1)
    refused = ""
    while True:
        run = run_sbatch([command[0], f"--array=0-{num_jobs - 1}", *command[1:]], f"{script_begins}\n{refused}{rest}")
        if run.returncode in (0, TIMED_OUT) or num_jobs == 1:
            return run
        words = f"Slurm refuses {num_jobs} jobs: {' '.join(run.stderr.split())}"
        refused = f'[ "$SLURM_ARRAY_TASK_ID" != 0 ] || echo {shlex.quote(words)}\n'  # said once, in the log of the first job
        num_jobs //= 2


def refuse(call: Call, reason: str) -> int:
    """Record and print why a job is not submitted, and return the exit code for the plugin."""
    append(call.run_dir, what=call.what, refused=reason, by_us=True)
    print(reason, file=sys.stderr)
    return 1


def take_up(call: Call, job: str, state: str) -> int:
    """Answer with the id of a job of an earlier run, which the plugin then follows to its end. Return the exit code for the plugin."""
    folder = str(job_folder(call.what))
    if not append(
        call.run_dir, job=job, what=call.what, log=call.log(job), folder=folder, state=state, taken_up=True, is_array=call.is_array
    ):
        return refuse(call, f"{call.name}: its job {job} cannot be followed, because {call.run_dir} cannot be written to")
    print(job)
    return 0


def empty_folder(call: Call, digests: dict[str, str]) -> Path:
    """Empty the folder of a planned job, write the config and the digests of the job there, and return the folder. Raises OSError.

    The folder contains only files of jobs that have ended, because no job with this comment is in Slurm's queue.
    """
    folder = job_folder(call.what)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / SUBMISSION).write_text(json.dumps(digests), encoding="utf-8")
    if call.planned is not None and call.planned.config is not None:
        (folder / CONFIG).write_text(call.planned.config, encoding="utf-8")
    return folder


def call_sbatch(sbatch: str, call: Call, folder: Path, comment: str) -> int:
    """Submit a job, record the job id or the refusal in the notes, and return the exit code for the plugin."""
    command = [sbatch, *call.arguments]
    command[command.index("--comment") + 1] = comment
    command[command.index("--output") + 1] = call.output
    if call.planned is not None:
        command[command.index("--job-name") + 1] = call.job_name
    if call.planned is not None and call.is_array:
        run = submit_array(command, array_script(call, folder), call.planned.num_jobs)
    else:
        run = run_sbatch(command, extended_script(call, folder))
    sys.stderr.write(run.stderr)
    if run.returncode:
        append(call.run_dir, what=call.what, refused=run.stderr)
        return run.returncode
    job = run.stdout.strip().split(";")[0]
    if not append(call.run_dir, job=job, what=call.what, log=call.log(job), folder=str(folder), is_array=call.is_array):
        ask("scancel", job)  # nobody could follow the job
        return refuse(call, f"{call.name}: its job {job} is cancelled, because {call.run_dir} cannot be written to")
    sys.stdout.write(run.stdout)
    return 0


def submit(sbatch: str, arguments: list[str], run_dir: Path) -> int:
    """Submit a job for the plugin, or take up a job of an earlier run, and return the exit code for the plugin.

    A job must not be submitted while an earlier job of this rule and sweep exists, because two drivers must not write to one record.
    """
    what = option(arguments, "--comment")
    planned = json.loads((run_dir / PLANNED).read_text(encoding="utf-8")).get(what)
    call = Call(run_dir, arguments, sys.stdin.read(), what, planned and PlannedJob(**planned))
    if arguments[-1] != SCRIPT:
        return refuse(
            call,
            "cluster/config.yaml lacks slurm-pass-command-as-script: true, without which a shell could run what stands in a path or a text",
        )
    if call.planned is None:
        return call_sbatch(sbatch, call, run_dir, comment_of(what, {}))
    digests = digests_of(call.planned, arguments, call.script)
    try:
        earlier = earlier_job_to_decide_on(what, digests)
    except LookupError:
        return refuse(
            call,
            f"{call.name}: squeue does not answer, so that it cannot be seen whether a job of an earlier run is still there. Try again",
        )
    if earlier and earlier.digests == digests:
        return take_up(call, earlier.job, earlier.state)
    if earlier:
        return refuse(
            call,
            f"{call.name}: its job {earlier.job} of an earlier run is still there ({earlier.state}) and was submitted with"
            f" {changed_parts(earlier, digests)}, so no second one is started. Wait for its end (`make watch` follows it) and run the same command again,"
            f" or end it with `scancel {earlier.job}`",
        )
    if finished := finished_job(what, digests, call.planned, call.mark):
        return take_up(call, finished, "COMPLETED")
    try:
        folder = empty_folder(call, digests)
    except OSError as error:
        return refuse(call, f"{call.name}: {job_folder(what)} cannot be written to: {error.strerror}")
    return call_sbatch(sbatch, call, folder, comment_of(what, digests))
