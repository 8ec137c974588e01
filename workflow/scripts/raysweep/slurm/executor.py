"""The Snakemake that a user starts: what it leaves behind when it is killed, how it comes to submit to Slurm, and what it says last when jobs failed."""

from __future__ import annotations

import atexit
import json
import math
import os
import re
import shlex
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from raysweep.common.errors import SAYS
from raysweep.common.files import written_aside
from raysweep.common.processes import pid_namespace, started, this_process
from raysweep.slurm import status as slurm_client

PROFILE = "cluster/config.yaml"
WHO = "controller.json"

# What of the config or the profile Slurm means, by what it says: sbatch's refusals (slurm_errno.c), and reasons of jobs that wait (slurm.h).
MEANT = (
    (r"Unable to contact|connect failure|timed out|squeue does not answer", "slurm"),
    (r"No such file or directory: '(sinfo|sbatch|sacctmgr|sshare)'", "machine"),
    (r"violates accounting|AccountingPolicy|^(Assoc|QOS)(Max|Min)", "limits"),
    (r"(?i)\baccount\b|InvalidAccount|AccountNotAllowed", "account"),
    (r"(?i)\bqos\b|InvalidQOS|QOSNotAllowed", "qos"),
    (r"(?i)time limit|TimeLimit|--time", "runtime"),
    (r"(?i)node count|PartitionNodeLimit|more (processors|nodes)", "nodes"),
    (r"(?i)invalid partition|partition name|permitted to use this partition", "partition"),
    (r"(?i)gres|generic resource|TRES", "gpus"),
    (r"(?i)memory", "memory"),
)


def quote_python() -> None:
    """Have Slurm's executors quote the path of Python, which they put into shell lines as it is: with a space in it no job would start."""
    for plugin in ("snakemake_executor_plugin_slurm", "snakemake_executor_plugin_slurm_jobstep"):
        if plugin in sys.modules:
            sys.modules[plugin].Executor.get_python_executable = lambda self: shlex.quote(sys.executable)


def quote_words() -> None:
    """Have Snakemake quote for a shell what it hands on to its part in a job. It does so as Python would: of a path with `'` and `$(…)` in it, the shell
    would run the latter."""
    utils: Any = sys.modules["snakemake_interface_executor_plugins.utils"]
    as_it_was = utils.format_cli_value

    def format_cli_value(value: Any, quote: bool = False, base64_encode: bool = False) -> str:
        is_word = isinstance(value, str) and quote and not base64_encode
        return shlex.quote(value) if is_word else as_it_was(value, quote=quote, base64_encode=base64_encode)

    utils.format_cli_value = format_cli_value


def answer_signals_in_a_thread() -> None:
    """Have Snakemake act on SIGTERM in a thread of its own. As it is, the handler takes a lock that the code which it interrupts may hold (another SIGTERM
    a moment before is enough, and Slurm sends several), and so waits for itself for ever: a job's processes would stay after its end."""
    scheduler: Any = sys.modules["snakemake.scheduling.job_scheduler"].JobScheduler
    as_it_was = scheduler.exit_gracefully

    def exit_gracefully(self: Any, *signal: Any) -> None:
        threading.Thread(target=as_it_was, args=(self, *signal), daemon=True).start()

    scheduler.exit_gracefully = exit_gracefully


def cancel_all_on_ctrl_c() -> None:
    """Have Snakemake cancel all its jobs in Slurm when it is interrupted. As it is, it forgets them while it asks for their states, and those of a Ctrl-C
    in that moment would run on to their time limit."""
    if (plugin := sys.modules.get("snakemake_executor_plugin_slurm")) is None:
        return
    executor: Any = plugin.Executor
    ask, cancel = executor.check_active_jobs, executor.cancel_jobs

    async def check_active_jobs(self: Any, active_jobs: list[Any]) -> AsyncIterator[Any]:
        self.asked_about = active_jobs
        async for job in ask(self, active_jobs):
            yield job

    def cancel_jobs(self: Any, active_jobs: list[Any]) -> None:
        # Some have ended, which `scancel` does not mind.
        known = {job.external_jobid: job for job in [*getattr(self, "asked_about", []), *active_jobs]}
        cancel(self, list(known.values()))

    executor.check_active_jobs, executor.cancel_jobs = check_active_jobs, cancel_jobs


def say_as_much_as(output: Any) -> None:
    """Have our own lines follow Snakemake's `--quiet` and `--verbose`, here and in its jobs. `output` are its settings of that name."""
    hidden = {item.name for item in output.quiet or ()}
    says = "all" if output.verbose else "little" if hidden & {"ALL", "PROGRESS"} else None
    if says:
        os.environ[SAYS] = says


def as_hooks(start: Callable[[], None], fail: Callable[[Iterable[str]], None]) -> None:
    """Have Snakemake call these when jobs are about to start and when some have failed, as it does `onstart` and `onerror` of the main Snakefile, but not
    those of a module."""
    scheduler: Any = sys.modules["snakemake.scheduling.job_scheduler"].JobScheduler
    as_it_was = scheduler.schedule

    def schedule(self: Any) -> bool:
        if self.workflow.dryrun or self.workflow.execution_settings.no_hooks:
            return as_it_was(self)
        start()
        if not (succeeded := as_it_was(self)):
            fail(self.workflow.logger_manager.get_logfile())
        return succeeded

    scheduler.schedule = schedule


def what_of(job: Any) -> str:
    """What the Slurm plugin calls one of Snakemake's jobs."""
    return f"rule_{job.rule.name}" + (f"_wildcards_{'_'.join(job.wildcards).replace('/', '_')}" if job.wildcards else "")


@dataclass(frozen=True)
class Failed:
    """A job that failed, as Snakemake knows it: its rule, its sweep ("" where it has none), its log, its resources."""

    rule: str
    sweep: str
    log: Path
    resources: dict[str, Any]

    def to_change(self, said: str) -> str:
        """What to do about something that Slurm said."""
        allocation = f"sweeps.{self.sweep or '<name>'}.allocation"
        runtime = f"sweeps.{self.sweep}.confirm.runtime" if self.rule.endswith("confirm") else f"{allocation}.runtime"
        now = {key: "empty" if value == "" else value for key, value in self.resources.items()}
        now = dict.fromkeys(("slurm_account", "slurm_partition", "qos", "runtime", "nodes", "mem_mb", "_cores"), "not set") | now
        or_partition = f"or slurm_partition (now {now['slurm_partition']}) in {PROFILE}"
        size = f"{allocation} (nodes, cpus_per_node, gpus_per_node, gpu_type, mem_mb_per_node)"
        advice = {
            "slurm": "Run the same command again when Slurm answers",
            "machine": "Run it where Slurm's commands are, on a login node",
            "limits": f"Ask for less in {size} or {runtime}, or name another account or partition in {PROFILE}",
            "account": f"Change slurm_account (now {now['slurm_account']}) {or_partition}",
            "qos": f"Change qos (now {now['qos']}) in {PROFILE}",
            "runtime": f"Change {runtime} (now {now['runtime']} minutes), {or_partition}",
            "nodes": f"Change {allocation}.nodes (now {now['nodes']}) or cpus_per_node (now {now['_cores']}), {or_partition}",
            "partition": f"Change slurm_partition (now {now['slurm_partition']}) in {PROFILE}; `sinfo --summarize` lists what there is",
            "gpus": f"Change {allocation}.gpus_per_node or gpu_type; `sinfo -o '%P %G'` lists what there is",
            "memory": f"Change {allocation}.mem_mb_per_node (now {now['mem_mb']})",
        }
        meant = next((meant for pattern, meant in MEANT if re.search(pattern, said)), None)
        return advice[meant] if meant else f"Change {size}, {or_partition}"


class Run:
    """One run of Snakemake in the folder `root`. What it needs for itself lies in a folder below .snakemake, which goes when it ends."""

    def __init__(self, root: Path, *logs_dirs: Path) -> None:
        self.runs_dir, self.locks_dir, self.logs_dirs = root / ".snakemake" / "raysweep", root / ".snakemake" / "locks", list(logs_dirs)
        self.said: set[str] = set()

    def clear_up(self) -> None:
        """Remove the locks of a Snakemake that was killed on this machine; name one that may be at work, which Snakemake's own words on locks do not."""
        began = min((path.stat().st_mtime for path in self.locks_dir.glob("*.lock")), default=math.inf)
        found = [Other.read(path) for path in sorted(self.runs_dir.glob(f"*/{WHO}"))]
        others = [other for other in found if other is not None]
        # A run takes its locks first: those that are younger than what it says of itself are not its own.
        holders = [other for other in others if other.since >= began]
        for other in holders:
            if words := other.at_work():
                print(words, file=sys.stderr)
        if holders and not any(other.at_work() for other in holders) and holders[0].take_away():
            shutil.rmtree(self.locks_dir, ignore_errors=True)  # another's end removes the folder as well
        for other in others:
            if not other.at_work():
                other.take_away()

    def begin(self) -> None:
        """Say who holds the locks from now on: once, whoever asks for it again. What logs hold is of earlier runs."""
        if hasattr(self, "dir"):
            return
        self.runs_dir.mkdir(parents=True, exist_ok=True)
        self.dir = Path(tempfile.mkdtemp(dir=self.runs_dir))
        atexit.register(shutil.rmtree, self.dir, ignore_errors=True)
        with written_aside(self.dir / WHO) as stream:
            json.dump(this_process(), stream)
        os.environ[slurm_client.RUN_DIR] = str(self.dir)  # by which the next one knows what this one has started
        self.log_sizes = {path: path.stat().st_size for logs_dir in self.logs_dirs for path in logs_dir.rglob("*.log")}

    def use_slurm(self, bin_dir: Path, state_dir: Path, jobs: Iterable[Any]) -> None:
        """Put our `squeue`, `sacct` and `sbatch` between the Slurm plugin and Slurm, see slurm_client.py. `jobs` are Snakemake's, before they run."""
        outputs = {what_of(job): str(job.output[0]) for job in jobs if job.output}
        (self.dir / slurm_client.OUTPUTS).write_text(json.dumps(outputs), encoding="utf-8")
        os.environ |= {
            slurm_client.STATE_DIR: str(state_dir.resolve()),
            slurm_client.PYTHON: sys.executable,
            "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}",
        }

    def explain(self, jobs: Iterable[Any], snakemake_logs: Iterable[str]) -> None:
        """Have Snakemake's very last words be a line for each of its `jobs` that failed elsewhere; those that failed here have said it themselves."""
        submitted, refused = slurm_client.read_notes(self.dir)
        last = refused | {note["what"]: note for note in submitted.values() if "what" in note}
        said = "".join(Path(path).read_text(errors="replace") for path in snakemake_logs)
        lines = set()
        for job in jobs:
            failed = Failed(job.rule.name, "_".join(job.wildcards), Path(next(iter(job.log), os.devnull)), dict(job.resources))
            lines.add(f"Error: {self.why(failed, last.get(what_of(job)), said)}.\n")
        atexit.register(sys.stderr.write, "".join(sorted(lines - self.said)))
        self.said |= lines

    def why(self, failed: Failed, note: dict[str, Any] | None, said: str) -> str:
        """Why a job failed, and what to do, by the last that is known of it."""
        name = slurm_client.name_of(failed.rule, failed.sweep)
        if note is None:  # it was not even submitted: the plugin has something against it
            found = re.findall(rf"Exception in run_job for rule {failed.rule}: (.*?)(?:\nTraceback|\n\[|\Z)", said, re.DOTALL)
            if not found:
                return f"{name}: the job was not submitted: Snakemake says why above"
            text = " ".join(found[-1].split()).rstrip(".")
            return f"{name}: the job was not submitted: {text}. {failed.to_change(text)}"
        if "refused" in note:
            text = "; ".join(
                re.sub(r"^sbatch: (error: )?(Batch job submission failed: )?", "", line) for line in note["refused"].splitlines()
            )
            return text if note.get("by_us") else f"{name}: Slurm refused the job: {text}. {failed.to_change(text)}"
        job, state = f"job {note['job']}", note.get("state", "PENDING")
        again = "Run the same command again to go on"
        if state == "CANCELLED" and "hopeless" in note:
            return f"{name}: {job} could never start ({note['hopeless']}), so it was cancelled. {failed.to_change(note['hopeless'])}"
        words = {
            "CANCELLED": f"{job} was cancelled. {again}",
            "PREEMPTED": f"Slurm took the nodes of {job} for another, of higher priority. {again}",
            "NODE_FAIL": f"{job} lost its node. {again}",
            "BOOT_FAIL": f"a node for {job} did not boot. {again}",
            "TIMEOUT": f"{job} reached its time limit. {again}. {failed.to_change('TimeLimit')}, to need fewer jobs",
            "OUT_OF_MEMORY": f"{job} needed more memory than it was given. {failed.to_change('memory')}",
            "DEADLINE": f"no nodes were free for {job} within allocation.max_wait. {failed.to_change('')}, or wait longer",
            "COMPLETED": f"{job} ended well, but what it wrote is not seen here. {again}, or raise latency-wait in {PROFILE}",
        }
        if state in words:
            return f"{name}: {words[state]}"
        error = self.last_error(failed.log)
        if error is None:
            return f"{name}: {job} failed: see {failed.log} and {note['log']}"
        return f"{name}: {error.removeprefix(f'{failed.sweep}: ').rstrip('.')}"

    def last_error(self, log: Path) -> str | None:
        """The last error in the log of a rule, if it is of this run."""
        if not log.is_file():
            return None
        with log.open("rb") as stream:
            before = self.log_sizes.get(log, 0)
            stream.seek(before if before <= log.stat().st_size else 0)
            text = stream.read().decode(errors="replace")
        found = re.findall(r"^\S+ \S+ (?:ERROR|CRITICAL) Error: (.*)$", text, re.MULTILINE)
        return found[-1] if found else None


@cache
def the_run(root: Path) -> Run:
    """The run of this process: one, though several modules of Snakemake may be this workflow."""
    return Run(root)


@dataclass(frozen=True)
class Other:
    """A Snakemake in this folder, by what it wrote of itself into its own one."""

    folder: Path
    since: float
    uid: int
    host: str
    pids: str
    pid: int
    started: str | None

    @classmethod
    def read(cls, path: Path) -> Other | None:
        """None where it has just ended."""
        try:
            status = path.stat()
            return cls(path.parent, status.st_mtime, status.st_uid, **json.loads(path.read_text()))
        except FileNotFoundError:
            return None

    def at_work(self) -> str | None:
        """What a user is to know where it may be at work; None when it and all it started have provably ended: here, under this user."""
        here = (self.host, self.pids, self.uid) == (socket.gethostname(), pid_namespace(), os.getuid())
        if not here or started(self.pid) == self.started:
            return (
                f"A Snakemake is at work in this folder: process {self.pid} on {self.host}. If it is not there any more:"
                " `snakemake --unlock`, then the same command again."
            )
        # Its jobs on this machine outlive a Snakemake that was killed, and a sweep has one record.
        if left := [path.parent.name for path in Path("/proc").glob("[0-9]*/environ") if self.is_environment(path)]:
            return (
                f"A Snakemake that was killed has left processes at work in this folder: {' '.join(left)}. Wait for their end, or end them"
                f" with `kill {' '.join(left)}`, then the same command again."
            )
        return None

    def is_environment(self, path: Path) -> bool:
        """Whether this is the environment of a process that it started."""
        try:
            return f"{slurm_client.RUN_DIR}={self.folder}".encode() in path.read_bytes().split(b"\0")
        except OSError:  # it has just ended, or is another user's
            return False

    def take_away(self) -> bool:
        """Remove its folder. Of several Snakemakes that start now, only one succeeds."""
        aside = self.folder.with_name(f"{self.folder.name}.over")
        try:
            self.folder.rename(aside)
        except FileNotFoundError:
            return False
        shutil.rmtree(aside)
        return True
