"""Slurm's command lines, as lists of words, and how the answers of `scontrol` and `srun` are read."""

from __future__ import annotations

import re
import socket
import subprocess
import time

from raysweep.common.durations import minutes
from raysweep.common.errors import WorldError
from raysweep.config.model import AllocationConfig

SLURM_DEADLINE_S = 120  # slurmctld may be restarted, or have much to do


def scontrol(*arguments: str) -> str:
    """Return the text that `scontrol` prints. Ask again while slurmctld is away.

    Raises:
        WorldError: `scontrol` is missing, fails, or slurmctld stays away.
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
            raise WorldError(f"`scontrol {' '.join(arguments)}` fails on {socket.gethostname()}: {' '.join(run.stderr.split())}")
        time.sleep(2)  # Slurm offers no event for its controller's return


def hostnames(nodelist: str) -> list[str]:
    """Return the names of the nodes in a list such as `node[1-3]`."""
    return scontrol("show", "hostnames", nodelist).split()


def node_addresses(nodelist: str) -> dict[str, str]:
    """Return the address of each node in a list such as `node[1-3]`, by the node's name."""
    return dict(re.findall(r"NodeName=(\S+).*?NodeAddr=(\S+)", scontrol("show", "node", nodelist), re.DOTALL))


def field_of(text: str, key: str) -> str:
    """Return the value of a field `key=value` in a text of `scontrol`, or "" where the text has no such field."""
    match = re.search(rf"(?:^|\s){re.escape(key)}[ \t]*=[ \t]*(\S+)", text)
    return match[1] if match else ""


def restarts_in(job: str) -> int:
    """Return how often Slurm has started a job again, from the text that `scontrol show job` prints."""
    return int(field_of(job, "Restarts") or 0)


def on_each_node(argv: list[str], nodes: int, cpus: int) -> list[str]:
    """Return the command that runs `argv` once on each of the job's nodes, with `cpus` CPUs each."""
    return [
        "srun",
        "--overlap",  # the batch step holds the CPUs
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={cpus}",  # srun does not take the number from the job
        "--mem=0",  # all memory of the job; srun also gives all GPUs of the job, because no option names GPUs
        "--mpi=none",
        "--no-kill",  # a lost node ends only the task on that node
        "--kill-on-bad-exit=0",
        "--unbuffered",
        *argv,
    ]


def ended_tasks(line: str) -> list[int]:
    """Return the tasks that have failed by a line of srun's, such as `srun: error: node[2-3]: tasks 1-2: Exited with exit code 2`."""
    match = re.match(r"srun: error: \S+: tasks? ([\d,-]+): ", line)
    spans = [span.split("-") for span in match[1].split(",")] if match else []
    return [rank for span in spans for rank in range(int(span[0]), int(span[-1]) + 1)]


def slurm_extra(allocation: AllocationConfig, runtime: float | str) -> str:
    """Return the options of `sbatch` that the plugin takes only as the resource `slurm_extra`.

    The plugin pastes the options into a shell line, so they hold nothing but checked words and numbers.
    """
    words = ["--ntasks-per-node=1", "--no-kill"]
    if allocation.gpus_per_node:
        gpu_type = f"{allocation.gpu_type}:" if allocation.gpu_type else ""
        words.append(f"--gpus-per-node={gpu_type}{allocation.gpus_per_node}")
    if allocation.max_wait is not None:
        # Slurm removes a job that can no longer end before its deadline. The deadline therefore includes the runtime.
        words.append(f"--deadline=now+{minutes(allocation.max_wait) + minutes(runtime)}minutes")
    return " ".join(words)
