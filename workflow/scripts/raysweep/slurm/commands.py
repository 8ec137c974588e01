"""Builds Slurm's command lines as lists of words, and reads the output of `scontrol` and `srun`."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable

from raysweep.common.durations import minutes
from raysweep.common.errors import WorldError
from raysweep.config.model import AllocationConfig
from raysweep.slurm.notes import EARLY_END_SIGNAL

SLURM_DEADLINE_S = 120  # time limit in seconds for an answer of Slurm; slurmctld may be slow or may restart


def scontrol(*arguments: str) -> str:
    """Return the text that `scontrol` prints. If slurmctld does not answer, try again for up to SLURM_DEADLINE_S seconds.

    Raises:
        WorldError: `scontrol` is missing or fails, or slurmctld does not answer within this time.
    """
    end = time.monotonic() + SLURM_DEADLINE_S
    while True:
        try:
            run = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=SLURM_DEADLINE_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise WorldError(f"`scontrol {' '.join(arguments)}` does not work on {socket.gethostname()}: {error}") from None
        if run.returncode == 0:
            return run.stdout
        if "Unable to contact" not in run.stderr or time.monotonic() > end:
            said = " ".join(f"{run.stderr} {run.stdout}".split())
            raise WorldError(f"`scontrol {' '.join(arguments)}` fails on {socket.gethostname()}: {said}")
        time.sleep(2)  # Slurm does not tell its clients when slurmctld answers again


def hostnames(nodelist: str) -> list[str]:
    """Return the names of the nodes in a list such as `node[1-3]`."""
    return scontrol("show", "hostnames", nodelist).split()


def node_addresses(nodelist: str) -> dict[str, str]:
    """Return a map from the name of each node in a list such as `node[1-3]` to the network address of the node."""
    return dict(re.findall(r"NodeName=(\S+).*?NodeAddr=(\S+)", scontrol("show", "node", nodelist), re.DOTALL))


def field_of(text: str, key: str) -> str:
    """Return the value of the field `key` in the output of `scontrol`, or "" where the output has no such field."""
    match = re.search(rf"(?:^|\s){re.escape(key)}[ \t]*=[ \t]*(\S+)", text)
    return match[1] if match else ""


def restarts_in(job: str) -> int:
    """Return the number of times that Slurm has started a job again, from the output of `scontrol show job`."""
    return int(field_of(job, "Restarts") or 0)


def on_each_node(argv: list[str], nodes: int, cpus: int) -> list[str]:
    """Return the `srun` command that runs `argv` once on each of the job's `nodes` nodes. Each of these tasks gets `cpus` CPUs."""
    return [
        "srun",
        "--overlap",  # the task must share the CPUs with the batch step, which already uses all CPUs of the job
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={cpus}",  # srun does not use the job's number of CPUs without this option
        "--mem=0",  # the task may use all memory of the job; the task may also use all GPUs, because no option names GPUs
        "--mpi=none",
        "--no-kill",  # srun ends only the task on a lost node and keeps the other tasks
        "--kill-on-bad-exit=0",
        "--unbuffered",
        *argv,
    ]


def step_of_other_job(job_id: str, argv: list[str]) -> list[str]:
    """Return the `srun` command that runs `argv` once on the first node of another job of this user."""
    return [
        "srun",
        f"--jobid={job_id}",
        "--overlap",
        "--nodes=1",
        "--ntasks=1",
        "--relative=0",  # the first node, where the script of the job runs
        "--cpus-per-task=1",
        "--mem=0",
        "--mpi=none",
        "--unbuffered",
        "--quiet",
        *argv,
    ]


def cancel_waiting(array: str) -> None:
    """Cancel the jobs of a job array that wait. Where Slurm does not do so, each of these jobs ends as soon as the job starts."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(["scancel", "--state=PENDING", array], capture_output=True, timeout=SLURM_DEADLINE_S, check=False)


def start_elsewhere(job: str, names: Iterable[str], max_excluded: int) -> bool:
    """Ask Slurm to end the job `job` of this process, and to start the job again on other nodes than those with the names `names`.

    Do nothing, and return False, where the job is excluded from `max_excluded` nodes already, or where the job does not run any more, because the user may have
    cancelled the job. Slurm excludes nodes only for a waiting job, and ends this process as soon as the job is told to wait. So one shell that ignores SIGTERM
    gives both commands. Raises WorldError where Slurm refuses one of these.
    """
    text = scontrol("show", "job", job)
    excluded = field_of(text, "ExcNodeList")
    before = [] if excluded in ("", "(null)") else hostnames(excluded)
    if field_of(text, "JobState") != "RUNNING" or len(before) >= max_excluded:
        return False
    script = 'trap "" TERM; scontrol requeue "$1" && scontrol update JobId="$1" ExcNodeList="$2"'
    command = ["sh", "-c", script, "sh", job, ",".join([*before, *names])]
    refusal = f"Slurm does not start job {job} again on other nodes"
    # The errors go to a file, because after the time limit `subprocess.run` kills only the shell. With a pipe, `subprocess.run` would then wait until a hanging
    # scontrol closes the pipe.
    with tempfile.TemporaryFile("w+") as errors:
        deadline_s = 2 * SLURM_DEADLINE_S
        try:
            status = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=errors, timeout=deadline_s, check=False).returncode
        except OSError as error:
            raise WorldError(f"{refusal}: {error}") from None
        except subprocess.TimeoutExpired:
            raise WorldError(f"{refusal}: scontrol did not answer within {deadline_s:g} s") from None
        errors.seek(0)
        if status:
            raise WorldError(f"{refusal}: {' '.join(errors.read().split())}")
    return True


def ended_tasks(line: str) -> list[int]:
    """Return the numbers of the tasks that have failed according to a line of `srun`.

    An example of such a line is `srun: error: node[2-3]: tasks 1-2: Exited with exit code 2`.
    """
    match = re.match(r"srun: error: \S+: tasks? ([\d,-]+): ", line)
    spans = [span.split("-") for span in match[1].split(",")] if match else []
    return [rank for span in spans for rank in range(int(span[0]), int(span[-1]) + 1)]


def lost_node(line: str) -> str | None:
    """Return the node that is lost according to a line of `srun` such as `srun: error: Node failure on node2`, or None for any other line."""
    match = re.match(r"srun: error: Node failure on (\S+)", line)
    return match and match[1]


def slurm_extra(allocation: AllocationConfig, runtime: float | str, runtime_min: float | str | None = None) -> str:
    """Return the options of `sbatch` that the Slurm plugin accepts only in the resource `slurm_extra`.

    Slurm may start a job with a shorter time limit than `runtime`, but not with a shorter one than `runtime_min`.
    The plugin puts the options into a shell line without quotes, so the options contain only checked words and numbers.
    """
    words = ["--ntasks-per-node=1", "--no-kill"]
    if allocation.gpus_per_node:
        gpu_type = f"{allocation.gpu_type}:" if allocation.gpu_type else ""
        words.append(f"--gpus-per-node={gpu_type}{allocation.gpus_per_node}")
    if allocation.max_wait is not None:
        # Slurm removes a waiting job when the job can no longer end before its deadline. The deadline is therefore max_wait plus the runtime.
        words.append(f"--deadline=now+{minutes(allocation.max_wait) + minutes(runtime)}minutes")
    if runtime_min is not None:
        words.append(f"--time-min={minutes(runtime_min)}")
    if allocation.resubmit:
        words.append("--requeue")  # the default of some sites is that a job cannot be started again
    return " ".join(words)


def slurm_extra_of_sweep(allocation: AllocationConfig) -> str:
    """Return the options of `slurm_extra` for the job of a sweep.

    Where a sweep has several jobs, Slurm sends a signal to a job that ends early. Slurm also sends the signal shortly before the time limit, where the signal
    has no effect. The only job of a sweep gets no signal, because Snakemake runs in this job and would end at the signal.
    """
    words = slurm_extra(allocation, allocation.runtime, allocation.runtime_min)
    return words if allocation.jobs == 1 else f"{words} --signal=B:{EARLY_END_SIGNAL}@10"
