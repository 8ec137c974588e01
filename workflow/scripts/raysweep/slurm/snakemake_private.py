"""Uses all names of Snakemake that Snakemake does not document. No other module of the package uses such names.

The names exist in Snakemake 9.27.1, snakemake-interface-executor-plugins 9.4.0, snakemake-executor-plugin-slurm 2.8.0 and -slurm-jobstep 0.6.1. For each
name, a unit test fails when the name changes. `submission.py` also knows the path of Snakemake's marks for incomplete outputs, because `submission.py` cannot
import this module.

| name | why the name is needed |
|---|---|
| `ExecutorPluginRegistry().plugins[…].executor` | Snakemake finds plugins by the name of their package. A subclass in another package needs this attribute. |
| `snakemake.workflow.JobScheduler` | `Workflow.execute` reads the scheduler's class from this name. No setting selects another class. |
| `utils.format_cli_value` | Snakemake formats each word of a job's command line with this function. An executor cannot override all these words. |
| `JobScheduler._open_jobs`, `_lock` and `running` | No setting changes where Ctrl-C takes effect, or for which jobs a scheduler waits. |
| attributes of `workflow` and of its jobs | A Snakefile has no other way to learn whether the Snakefile is a module, which jobs will run, and which failed. |
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import snakemake.api  # this import must be first, because snakemake.workflow and snakemake.api import each other
import snakemake.workflow
from snakemake.scheduling.job_scheduler import JobScheduler
from snakemake_interface_executor_plugins import utils
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from raysweep.common.errors import VERBOSITY_ENV
from raysweep.config.load import ConfigArgs, Module, keys_of
from raysweep.slurm.detach import SIGNAL, left_jobs_message
from raysweep.slurm.explanations import RuleJob
from raysweep.slurm.notes import RUN_DIR, PlannedJob
from raysweep.usercode.target import SCRIPTS_DIR

RULES_DIR = SCRIPTS_DIR.parent / "rules"
INTERRUPT_S = 0.5  # longest time in seconds from a Ctrl-C to its effect, where the scheduler waits for its jobs

_snakemakes_format_cli_value: Callable[..., str] = utils.format_cli_value


def adapt_snakemake() -> None:
    """Replace classes and functions of Snakemake with classes and functions of this package.

    Every inclusion of this workflow calls this function. A second call changes nothing, because each replacement is one object.
    """
    quote_words()
    snakemake.workflow.JobScheduler = Scheduler
    plugins = ExecutorPluginRegistry().plugins
    if {"slurm", "slurm-jobstep"} <= set(plugins):  # a machine without Slurm may lack these plugins
        from raysweep.slurm.executor import JobstepExecutor, SlurmExecutor

        plugins["slurm"].executor, plugins["slurm-jobstep"].executor = SlurmExecutor, JobstepExecutor


def quote_words() -> None:
    """Make Snakemake quote each word of a job's command line for a shell.

    Snakemake would otherwise quote words as Python does. A path that contains both `'` and `$(…)` is then in double quotes, and a shell runs the `$(…)`.
    """
    utils.format_cli_value = format_cli_value


def format_cli_value(value: Any, quote: bool = False, base64_encode: bool = False) -> str:
    """Return `value` as a word of a command line. A string is quoted for a shell, and Snakemake's function formats all other values."""
    if isinstance(value, str) and quote and not base64_encode:
        return shlex.quote(value)
    return _snakemakes_format_cli_value(value, quote=quote, base64_encode=base64_encode)


@dataclass(frozen=True)
class Hooks:
    """Contains two functions of a module that Scheduler calls, because Snakemake calls `onstart` and `onerror` only of the main Snakefile."""

    workflow: Any  # Snakemake's workflow object
    start: Callable[[], None]  # function that is called before jobs start
    fail: Callable[[Iterable[str]], None]  # function that is called after jobs have failed, with the paths of Snakemake's logs


_hooks: list[Hooks] = []


class LocalJobs(set[Any]):
    """Contains the jobs for whose end a detached scheduler waits. These are the jobs on this machine.

    Jobs in Slurm are not added, and the end of a job in Slurm that the scheduler notices nevertheless changes nothing.
    """

    remove = set.discard

    def update(self, *jobs: Iterable[Any]) -> None:
        """Add the jobs on this machine."""
        super().update(job for some in jobs for job in some if job.is_local)


class Scheduler(JobScheduler):  # type: ignore[misc, unused-ignore]  # Snakemake has no types
    """Extends Snakemake's scheduler of jobs with calls of the modules' hooks, and with reactions to SIGTERM and to the signal of `make detach`."""

    running: set[Any]

    def schedule(self) -> bool:
        """Run all jobs, and return whether all jobs have succeeded."""
        is_silent = self.workflow.dryrun or self.workflow.execution_settings.no_hooks
        hooks = [] if is_silent else [hooks for hooks in _hooks if hooks.workflow is self.workflow]
        for hook in hooks:
            hook.start()
        if self.workflow.is_main_process and self._local_executor is not None:  # some jobs do not run on this machine
            signal.signal(SIGNAL, lambda *_: threading.Thread(target=self.detach, daemon=True).start())
        with self.interrupts_between_steps():
            has_succeeded: bool = super().schedule()
        if isinstance(self.running, LocalJobs):
            atexit.register(print, left_jobs_message(Path(os.environ[RUN_DIR])), file=sys.stderr)
        if not has_succeeded:
            for hook in hooks:
                hook.fail(self.workflow.logger_manager.get_logfile())
        return has_succeeded

    @contextlib.contextmanager
    def interrupts_between_steps(self) -> Iterator[None]:
        """Raise the first KeyboardInterrupt of the block only where the scheduler waits for its jobs, and each further one at once.

        A KeyboardInterrupt at any other place can leave a lock of the logger locked: Python raises it also between the acquisition of a lock by a function
        and the `try` that releases the lock. Snakemake would then wait for ever, and its jobs would run on. A Snakemake that did not end after a Ctrl-C was
        seen once, on a busy machine. The locked lock is the likely cause, and was not seen itself.
        """
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # another program runs Snakemake
            yield
            return
        acquire, is_interrupted = self._open_jobs.acquire, False

        def remember_interrupt(number: int, frame: FrameType | None) -> None:
            # This function must not use a lock or a thread, because the code that the signal interrupts may hold any lock.
            nonlocal is_interrupted
            if is_interrupted:
                raise KeyboardInterrupt
            is_interrupted = True

        def acquire_or_raise() -> None:
            while not is_interrupted and not acquire(timeout=INTERRUPT_S):
                pass
            if is_interrupted:
                raise KeyboardInterrupt

        self._open_jobs.acquire = acquire_or_raise
        signal.signal(signal.SIGINT, remember_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def exit_gracefully(self, *of_signal: Any) -> None:
        """Run Snakemake's handler of SIGTERM in a new thread.

        Snakemake's handler acquires a lock. The code that SIGTERM interrupts may already hold this lock, and the handler would then wait for ever in the
        main thread. The processes of a job would go on after the end of the job. Two SIGTERMs in quick succession cause this, and Slurm sends several.
        """
        threading.Thread(target=super().exit_gracefully, args=of_signal, daemon=True).start()

    def detach(self) -> None:
        """Make Snakemake end as soon as no job runs on this machine, and leave the jobs in Slurm.

        The function runs in a thread, because the code that the signal interrupts may hold the lock.
        """
        self._executor.is_detached = True
        with self._lock:
            local = LocalJobs()
            local.update(self.running)
            self.running = local
        super().exit_gracefully()


def inherit_verbosity(output_settings: Any) -> None:
    """Apply Snakemake's options `--quiet` and `--verbose` to the log lines of this package, in this process and in the jobs of this process."""
    quiet = {item.name for item in output_settings.quiet or ()}
    if output_settings.verbose:
        os.environ[VERBOSITY_ENV] = "all"
    elif quiet & {"ALL", "PROGRESS"}:
        os.environ[VERBOSITY_ENV] = "little"


def plugin_comment(job: Any) -> str:
    """Return the Slurm comment with which the Slurm plugin submits a job of Snakemake."""
    return f"rule_{job.rule.name}" + (f"_wildcards_{'_'.join(job.wildcards).replace('/', '_')}" if job.wildcards else "")


def planned_jobs(jobs: Iterable[Any], configs: Mapping[str, str]) -> dict[str, PlannedJob]:
    """Return a map from the plugin's comment to the planned job, for each job that will be submitted. Jobs without an output are left out.

    `configs` maps the path of the config of a sweep, which is a parameter of the rules, to the config as YAML.
    """
    return {
        plugin_comment(job): PlannedJob(
            outputs=[str(path) for path in job.output],
            inputs=[str(path) for path in job.input],
            config=configs.get(str(job.params.get("config"))),
            num_jobs=job.resources.get("jobs", 1),
            command=job.shellcmd or "",
        )
        for job in jobs
        if job.output and not job.is_local
    }


def is_own_shell_command(job: Any) -> bool:
    """Return whether a job runs the shell command of a rule of this workflow."""
    return not job.is_group() and bool(job.shellcmd) and Path(str(job.rule.basedir)).resolve() == RULES_DIR.resolve()


def rule_job(job: Any) -> RuleJob:
    """Return the facts about a job of Snakemake that an explanation of the job's failure needs."""
    log = Path(next(iter(job.log), os.devnull))
    return RuleJob(job.rule.name, "_".join(job.wildcards), plugin_comment(job), log, dict(job.resources))


def _is_map_of_text(value: Any) -> bool:
    """Return whether `value` is a map or a list whose values are all text."""
    if not isinstance(value, dict | list):
        return False
    return all(isinstance(inner, str) or _is_map_of_text(inner) for inner in (value.values() if isinstance(value, dict) else value))


@dataclass(frozen=True)
class Inclusion:
    """Describes one inclusion of this workflow in Snakemake. This workflow is the main workflow or a module of another workflow."""

    workflow: Any  # Snakemake's workflow object
    rules_dir: Path  # folder of this workflow's rule files
    module: Module | None  # None where this workflow is the main workflow
    path_modifier: Any  # Snakemake's object that adds the prefix of a module to a path

    @classmethod
    def of(cls, workflow: Any, rules_dir: Path, config: dict[str, Any]) -> Inclusion:
        """Return the inclusion that Snakemake reads at this moment. `config` is the config that the Snakefile sees."""
        modifier = workflow.modifier
        outer_config = workflow.modifier_stack[0].globals["config"]
        module = None if modifier.is_main_snakefile() else Module(modifier.namespace, keys_of(config, outer_config))
        return cls(workflow, rules_dir, module, modifier.path_modifier)

    def placed(self, folder: Path | str) -> Path:
        """Return the path of a folder of this workflow with the prefix of the module, for a parameter or for the config of a stage.

        Snakemake adds the prefix of a module only to paths that are the input, output or log of a rule.
        """
        return Path(self.path_modifier.replace_prefix(f"{folder}/"))

    def jobs_to_submit(self, configs: Mapping[str, str]) -> dict[str, PlannedJob]:
        """Return a map from the plugin's comment to the planned job, for each job of this workflow that Snakemake will submit. See `planned_jobs`."""
        return planned_jobs(self._own(self.workflow.dag.needrun_jobs()), configs)

    def submitted_jobs_that_failed(self) -> list[RuleJob]:
        """Return the failed jobs of this workflow that Snakemake did not run on this machine.

        The explanation is only for these jobs, because a job that failed on this machine has written its error to the terminal.
        """
        return [rule_job(job) for job in self._own(self.workflow.scheduler.failed) if not job.is_local]

    def _own(self, jobs: Iterable[Any]) -> list[Any]:
        """Return the jobs in `jobs` that run a rule of this workflow. The jobs of another workflow are left out."""
        return [job for job in jobs if not job.is_group() and Path(str(job.rule.basedir)) == self.rules_dir]

    @property
    def config_args(self) -> ConfigArgs:
        """Return the values of the option `--config` in which Snakemake reads everything as text, as pairs of the key and the YAML text.

        These values are maps and lists. In other values Snakemake reads numbers as numbers.
        """
        settings = self.workflow.config_settings
        entries = [entry.partition("=") for entry in settings.config_args or ()]
        return tuple((key, text.strip("'\"")) for key, _, text in entries if _is_map_of_text(settings.config.get(key)))

    def call_in_time(self, start: Callable[[], None], fail: Callable[[Iterable[str]], None]) -> None:
        """Register `start` and `fail` as Hooks if this workflow is a module. The main workflow uses `onstart` and `onerror` instead."""
        if self.module is not None:
            _hooks.append(Hooks(self.workflow, start, fail))

    def make_default(self, rule: str) -> None:
        """Make `rule` the default target if no default target exists yet, because Snakemake's `include` does not set a default target."""
        name = self.workflow.modifier.modify_rulename(rule)
        if not self.workflow.default_target and self.workflow.is_rule(name):  # the other workflow may use only other rules of this workflow
            self.workflow.default_target = name
