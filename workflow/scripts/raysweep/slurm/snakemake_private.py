"""Every name of Snakemake that Snakemake does not document. Nothing else in the package touches the insides of Snakemake.

Seen in Snakemake 9.27.1, snakemake-interface-executor-plugins 9.4.0, snakemake-executor-plugin-slurm 2.8.0 and -slurm-jobstep 0.6.1. One unit test per
name fails when the name changes. (`status.py` also knows where Snakemake marks incomplete outputs, because `status.py` can import nothing.)

| name | why the name is needed |
|---|---|
| `ExecutorPluginRegistry().plugins[…].executor` | Plugins are found by the name of a package: a subclass in another package cannot be registered otherwise. |
| `snakemake.workflow.JobScheduler` | `Workflow.execute` takes the scheduler's class from there. No setting names another class. |
| `utils.format_cli_value` | Each word that Snakemake hands on to its part in a job goes through it. An executor cannot override all these words. |
| attributes of `workflow` and of its jobs | A Snakefile has no other way to see whether it is a module, which jobs will run, and which have failed. |
"""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import snakemake.api  # first: snakemake.workflow and snakemake.api import each other
import snakemake.workflow
from snakemake.scheduling.job_scheduler import JobScheduler
from snakemake_interface_executor_plugins import utils
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from raysweep.common.errors import VERBOSITY_ENV
from raysweep.config.load import Module, keys_of
from raysweep.slurm.explanations import RuleJob

_snakemakes_format_cli_value: Callable[..., str] = utils.format_cli_value


def adapt_snakemake() -> None:
    """Put this package's classes and functions in the place of Snakemake's.

    All that is put in place exists once, so a second call, by another module that is this workflow, changes nothing.
    """
    quote_words()
    snakemake.workflow.JobScheduler = Scheduler
    plugins = ExecutorPluginRegistry().plugins
    if {"slurm", "slurm-jobstep"} <= set(plugins):  # a machine without Slurm may have no such plugins
        from raysweep.slurm.executor import JobstepExecutor, SlurmExecutor

        plugins["slurm"].executor, plugins["slurm-jobstep"].executor = SlurmExecutor, JobstepExecutor


def quote_words() -> None:
    """Have Snakemake quote for a shell each word that Snakemake hands on to its part in a job.

    Snakemake quotes words as Python would: a shell would run the `$(…)` of a path with `'` and `$(…)` in it.
    """
    utils.format_cli_value = format_cli_value


def format_cli_value(value: Any, quote: bool = False, base64_encode: bool = False) -> str:
    """Return `value` as a word of a command line. Only a text is quoted otherwise than by Snakemake."""
    if isinstance(value, str) and quote and not base64_encode:
        return shlex.quote(value)
    return _snakemakes_format_cli_value(value, quote=quote, base64_encode=base64_encode)


@dataclass(frozen=True)
class Hooks:
    """What a module has Snakemake call. Snakemake calls `onstart` and `onerror` of the main Snakefile, but not those of a module."""

    workflow: Any
    start: Callable[[], None]  # when jobs are about to start
    fail: Callable[[Iterable[str]], None]  # when jobs have failed, with the paths of Snakemake's logs


_hooks: list[Hooks] = []


class Scheduler(JobScheduler):  # type: ignore[misc, unused-ignore]  # Snakemake has no types
    """Snakemake's scheduler of jobs, with hooks of modules and a safe answer to SIGTERM."""

    def schedule(self) -> bool:
        """Run all jobs, and return whether all have succeeded."""
        is_silent = self.workflow.dryrun or self.workflow.execution_settings.no_hooks
        hooks = [] if is_silent else [hooks for hooks in _hooks if hooks.workflow is self.workflow]
        for hook in hooks:
            hook.start()
        has_succeeded: bool = super().schedule()
        if not has_succeeded:
            for hook in hooks:
                hook.fail(self.workflow.logger_manager.get_logfile())
        return has_succeeded

    def exit_gracefully(self, *signal: Any) -> None:
        """Answer SIGTERM in a thread of its own.

        Snakemake's handler takes a lock that the interrupted code may hold, and then waits for itself for ever: a job's processes would stay after its end.
        Another SIGTERM a moment before is enough for that, and Slurm sends several.
        """
        threading.Thread(target=super().exit_gracefully, args=signal, daemon=True).start()


def inherit_verbosity(output_settings: Any) -> None:
    """Have this package's own lines follow Snakemake's `--quiet` and `--verbose`, in this process and in its jobs."""
    quiet = {item.name for item in output_settings.quiet or ()}
    if output_settings.verbose:
        os.environ[VERBOSITY_ENV] = "all"
    elif quiet & {"ALL", "PROGRESS"}:
        os.environ[VERBOSITY_ENV] = "little"


def plugin_comment(job: Any) -> str:
    """Return the comment by which the Slurm plugin submits one of Snakemake's jobs."""
    return f"rule_{job.rule.name}" + (f"_wildcards_{'_'.join(job.wildcards).replace('/', '_')}" if job.wildcards else "")


def outputs_of(jobs: Iterable[Any]) -> dict[str, str]:
    """Return the first output of each of Snakemake's jobs that has outputs, by the plugin's comment."""
    return {plugin_comment(job): str(job.output[0]) for job in jobs if job.output}


def rule_job(job: Any) -> RuleJob:
    """Return the facts about one of Snakemake's jobs by which its failure is explained."""
    log = Path(next(iter(job.log), os.devnull))
    return RuleJob(job.rule.name, "_".join(job.wildcards), plugin_comment(job), log, dict(job.resources))


@dataclass(frozen=True)
class Inclusion:
    """One inclusion of this workflow's Snakefile in Snakemake's `workflow`: as the main workflow, or as a module of another workflow."""

    workflow: Any
    rules_dir: Path  # of this workflow's rule files
    module: Module | None  # None in the main workflow
    path_modifier: Any

    @classmethod
    def of(cls, workflow: Any, rules_dir: Path, config: dict[str, Any]) -> Inclusion:
        """Return the inclusion that is in progress. `config` is the config that the Snakefile sees."""
        modifier = workflow.modifier
        outer_config = workflow.modifier_stack[0].globals["config"]
        module = None if modifier.is_main_snakefile() else Module(modifier.namespace, keys_of(config, outer_config))
        return cls(workflow, rules_dir, module, modifier.path_modifier)

    def placed(self, folder: Path | str) -> Path:
        """Return where one of this workflow's folders lies, for a parameter or for the config of a stage.

        Snakemake changes the paths of a module where they are input, output or log, and nowhere else.
        """
        return Path(self.path_modifier.replace_prefix(f"{folder}/"))

    def outputs_to_make(self) -> dict[str, str]:
        """Return an output of each of this workflow's jobs that Snakemake will run, by the plugin's comment."""
        return outputs_of(self._own(self.workflow.dag.needrun_jobs()))

    def submitted_jobs_that_failed(self) -> list[RuleJob]:
        """Return this workflow's jobs that failed elsewhere. A job that failed on this machine has written its error to the terminal."""
        return [rule_job(job) for job in self._own(self.workflow.scheduler.failed) if not job.is_local]

    def _own(self, jobs: Iterable[Any]) -> list[Any]:
        """Return those of the jobs that belong to this workflow's rules, whether this workflow is a module or not."""
        return [job for job in jobs if not job.is_group() and Path(str(job.rule.basedir)) == self.rules_dir]

    def call_in_time(self, start: Callable[[], None], fail: Callable[[Iterable[str]], None]) -> None:
        """Have Snakemake call `start` and `fail` if this is a module, see Hooks. The main workflow has `onstart` and `onerror`."""
        if self.module is not None:
            _hooks.append(Hooks(self.workflow, start, fail))

    def make_default(self, rule: str) -> None:
        """Make a rule of this workflow the default target, where there is none yet. `include` leaves the default target as it was."""
        name = self.workflow.modifier.modify_rulename(rule)
        if not self.workflow.default_target and self.workflow.is_rule(name):  # a module may take other rules only
            self.workflow.default_target = name
