"""Each private name of Snakemake that this workflow uses: a test fails when the name changes."""

from __future__ import annotations

import dis
import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import pytest
import snakemake.api  # first: its parts import each other
import snakemake.jobs
import snakemake.workflow
import snakemake_executor_plugin_slurm as slurm_plugin
import snakemake_executor_plugin_slurm_jobstep as jobstep_plugin
from snakemake.cli import parse_config
from snakemake.path_modifier import PathModifier
from snakemake.scheduling.job_scheduler import JobScheduler
from snakemake_executor_plugin_slurm.utils import get_job_wildcards
from snakemake_interface_executor_plugins import utils
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from raysweep.common.errors import VERBOSITY_ENV
from raysweep.slurm import snakemake_private
from raysweep.slurm.detach import SIGNAL
from raysweep.slurm.executor import JobstepExecutor, SlurmExecutor
from raysweep.slurm.explanations import RuleJob
from raysweep.slurm.notes import PlannedJob
from raysweep.slurm.snakemake_private import (
    Inclusion,
    Scheduler,
    adapt_snakemake,
    inherit_verbosity,
    planned_jobs,
    plugin_comment,
    rule_job,
)


def names_in(function: Callable[..., Any]) -> set[str]:
    """All names that a function uses, those of the functions within it included."""

    def names(code: CodeType) -> set[str]:
        return {str(one.argval) for one in dis.get_instructions(code) if one.opname.startswith(("LOAD", "STORE"))} | {
            name for constant in code.co_consts if isinstance(constant, CodeType) for name in names(constant)
        }

    return names(inspect.unwrap(function).__code__)


@pytest.fixture
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake is put back at the end as it was."""
    plugins = ExecutorPluginRegistry().plugins
    monkeypatch.setattr(utils, "format_cli_value", utils.format_cli_value)
    monkeypatch.setattr(snakemake.workflow, "JobScheduler", JobScheduler)
    for name, plugin in (("slurm", slurm_plugin), ("slurm-jobstep", jobstep_plugin)):
        monkeypatch.setattr(plugins[name], "executor", plugin.Executor)
    monkeypatch.setattr(snakemake_private, "_hooks", [])


def parts() -> list[Any]:
    """Each place in Snakemake that is changed, as it is now."""
    plugins = ExecutorPluginRegistry().plugins
    return [utils.format_cli_value, snakemake.workflow.JobScheduler, plugins["slurm"].executor, plugins["slurm-jobstep"].executor]


@pytest.mark.usefixtures("as_it_was")
def test_snakemake_is_adapted_once_however_often_the_workflow_is_included() -> None:
    before = parts()
    adapt_snakemake()
    once = parts()
    adapt_snakemake()
    assert parts() == once == [snakemake_private.format_cli_value, Scheduler, SlurmExecutor, JobstepExecutor]
    assert Scheduler.__bases__ == (JobScheduler,)
    assert not set(map(id, once)) & set(map(id, before))
    assert utils.format_cli_arg("--a", "it's") == "--a 'it'\"'\"'s'"


def test_the_plugin_registry_keeps_the_executor_that_the_scheduler_starts() -> None:
    plugins = ExecutorPluginRegistry().plugins
    assert {"slurm", "slurm-jobstep"} <= set(plugins)
    assert ExecutorPluginRegistry().get_plugin("slurm") is plugins["slurm"], "one registry, one entry"
    assert "executor_plugin" in inspect.signature(JobScheduler.__init__).parameters
    assert "executor" in names_in(JobScheduler.__init__), "which is read when the scheduler begins, after the Snakefile"


def test_the_workflow_takes_the_scheduler_from_its_modules_globals() -> None:
    assert "JobScheduler" in names_in(snakemake.workflow.Workflow.execute)
    assert {"dryrun", "execution_settings", "no_hooks", "logger_manager", "get_logfile"} <= names_in(snakemake.workflow.Workflow.execute)
    assert "exit_gracefully" in names_in(JobScheduler.__init__), "the handler of SIGTERM"
    assert list(inspect.signature(JobScheduler.schedule).parameters) == ["self"]


def test_all_words_for_a_shell_go_through_one_function() -> None:
    assert "format_cli_value" in names_in(utils.format_cli_pos_arg)
    assert list(inspect.signature(utils.format_cli_value).parameters) == ["value", "quote", "base64_encode"]


@pytest.mark.slow
def test_a_signal_does_not_wait_for_the_code_that_it_interrupts() -> None:
    code = """
import signal, threading
from raysweep.slurm.snakemake_private import Scheduler
scheduler = object.__new__(Scheduler)
scheduler._lock, scheduler._open_jobs, scheduler._user_kill = threading.Lock(), threading.Semaphore(0), None
signal.signal(signal.SIGTERM, scheduler.exit_gracefully)
with scheduler._lock:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
scheduler._open_jobs.acquire()
print(scheduler._user_kill)
"""
    env = os.environ | {"PYTHONPATH": str(Path(snakemake_private.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "graceful\n"


def test_an_interrupt_comes_where_the_scheduler_waits_and_a_second_one_at_once(scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python raises KeyboardInterrupt also in `Condition.__enter__`, after it has acquired the lock, which then nobody releases."""
    assert "_open_jobs" in names_in(JobScheduler.schedule)
    # `nohup`, for example, starts the tests with another handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    reached: list[str] = []

    def schedule(self: Any) -> bool:
        self._open_jobs.acquire()  # the first jobs are ready
        signal.raise_signal(signal.SIGINT)
        reached.append("the end of the step")
        try:
            self._open_jobs.acquire()
        except KeyboardInterrupt:
            reached.append("interrupted")
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            reached.append("interrupted again")
        return False

    monkeypatch.setattr(JobScheduler, "schedule", schedule)  # Snakemake's, which would run jobs
    scheduler._open_jobs = threading.Semaphore(1)
    assert not scheduler.schedule()
    assert reached == ["the end of the step", "interrupted", "interrupted again"]
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A scheduler whose jobs are done, or fail where its `_errors` are set."""
    monkeypatch.setattr(snakemake_private, "_hooks", [])
    scheduler = object.__new__(Scheduler)
    scheduler.workflow = SimpleNamespace(
        dryrun=False,
        is_main_process=True,
        execution_settings=SimpleNamespace(no_hooks=False),
        logger_manager=SimpleNamespace(get_logfile=lambda: ["a.log"]),
    )
    scheduler._local_executor, scheduler.running, scheduler._open_jobs = None, set(), threading.Semaphore(0)
    before = signal.getsignal(signal.SIGTERM)
    yield scheduler
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("succeeds", [True, False])
def test_the_hooks_of_modules_are_called_in_the_run_of_their_workflow(
    scheduler: Any, monkeypatch: pytest.MonkeyPatch, succeeds: bool
) -> None:
    called: list[str] = []

    def schedule(self: Any) -> bool:
        called.append("jobs")
        return succeeds

    monkeypatch.setattr(JobScheduler, "schedule", schedule)  # Snakemake's, which would run jobs
    for name, workflow in (("a", scheduler.workflow), ("b", scheduler.workflow), ("other", SimpleNamespace())):
        inclusion = Inclusion(workflow, Path(), SimpleNamespace(name=name), None)  # type: ignore[arg-type]
        inclusion.call_in_time(lambda name=name: called.append(f"{name} starts"), lambda log, name=name: called.append(f"{name}: {log}"))  # type: ignore[misc]
    Inclusion(scheduler.workflow, Path(), None, None).call_in_time(lambda: called.append("main"), lambda log: None)
    assert scheduler.schedule() == succeeds
    assert called == ["a starts", "b starts", "jobs", *([] if succeeds else ["a: ['a.log']", "b: ['a.log']"])]
    called.clear()
    scheduler.workflow.execution_settings.no_hooks = True
    scheduler.schedule()
    assert called == ["jobs"]


def test_a_detached_scheduler_waits_for_the_jobs_on_this_machine_only(
    scheduler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real loop of Snakemake runs in test_controller.py, on a real Slurm."""
    here, there, later = snakemakes_job(is_local=True), snakemakes_job(), snakemakes_job()
    monkeypatch.setenv("RAYSWEEP_RUN_DIR", str(tmp_path))
    at_exit: list[Any] = []
    monkeypatch.setattr(snakemake_private.atexit, "register", lambda function, *args, **options: at_exit.append((function, args, options)))
    scheduler._executor, scheduler._local_executor = SimpleNamespace(is_detached=False), SimpleNamespace()
    scheduler._lock, scheduler._open_jobs, scheduler._user_kill = threading.Lock(), threading.Semaphore(0), None
    scheduler.running = {here, there}

    def schedule(self: Any) -> bool:
        with self._lock:  # the signal does not wait for the code that it interrupts
            signal.raise_signal(SIGNAL)
        self._open_jobs.acquire()
        assert self._executor.is_detached
        assert self._user_kill == "graceful"
        with self._lock:
            self.running.update([later])
            assert self.running == {here}
            self.running.remove(there)  # the end of a job that the scheduler notices nevertheless
            self.running.remove(here)
            assert not self.running
        return False

    monkeypatch.setattr(JobScheduler, "schedule", schedule)
    before = signal.getsignal(SIGNAL)
    try:
        assert scheduler.schedule() is False
    finally:
        signal.signal(SIGNAL, before)
    [(function, args, options)] = at_exit
    function(*args, **options)
    assert capsys.readouterr().err == "Snakemake has left no job in Slurm. The same command goes on.\n"
    assert {"running", "_local_executor", "_executor", "_lock"} <= names_in(JobScheduler.__init__)
    assert "self.running.remove(job)" in inspect.getsource(JobScheduler)
    assert "self.running.update(run)" in inspect.getsource(JobScheduler)


def snakemakes_job(**changes: Any) -> Any:
    wildcards = {"sweep": "lenet"}
    attributes = {"rule": SimpleNamespace(name="run_sweep", basedir="/w/rules"), "wildcards": list(wildcards.values())}
    attributes |= {
        "wildcards_dict": wildcards,
        "output": ["trials.csv", "best.yaml"],
        "log": ["x.log"],
        "resources": {"nodes": 2, "jobs": 4},
        "shellcmd": "run it",
    }
    attributes |= {"is_group": lambda: False, "is_local": False, "input": ["env.yaml"], "params": {"config": Path("s/.config/lenet.yaml")}}
    return Job(**attributes | changes)


class Job(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


def test_a_job_is_called_as_the_plugin_calls_it() -> None:
    job = snakemakes_job()
    assert rule_job(job) == RuleJob("run_sweep", "lenet", "rule_run_sweep_wildcards_lenet", Path("x.log"), {"nodes": 2, "jobs": 4})
    assert plugin_comment(snakemakes_job(wildcards=[])) == "rule_run_sweep"
    for name in ("wildcard_str", "get_job_wildcards", "rule_"):
        assert name in inspect.getsource(slurm_plugin.Executor.run_job)
    assert (
        f"rule_run_sweep_wildcards_{get_job_wildcards(SimpleNamespace(wildcards=['a/b', 'c'], is_group=lambda: False))}"
        == plugin_comment(snakemakes_job(wildcards=["a/b", "c"]))
    )
    found = planned_jobs([job, snakemakes_job(output=[]), snakemakes_job(is_local=True, wildcards=["b"])], {"s/.config/lenet.yaml": "a: 1"})
    assert found == {"rule_run_sweep_wildcards_lenet": PlannedJob(["trials.csv", "best.yaml"], ["env.yaml"], "a: 1", 4, "run it")}
    [without_config] = planned_jobs([snakemakes_job(params={})], {}).values()
    assert without_config.config is None


def test_only_jobs_of_this_workflows_rules_are_its_own() -> None:
    own, local = snakemakes_job(), snakemakes_job(is_local=True, wildcards=["b"])
    foreign = snakemakes_job(rule=SimpleNamespace(name="paper", basedir="/outer"))
    group = snakemakes_job(is_group=lambda: True)
    jobs = [own, local, foreign, group]
    workflow = SimpleNamespace(dag=SimpleNamespace(needrun_jobs=lambda: jobs), scheduler=SimpleNamespace(failed=jobs))
    inclusion = Inclusion(workflow, Path("/w/rules"), None, None)
    assert list(inclusion.jobs_to_submit({})) == ["rule_run_sweep_wildcards_lenet"]
    assert inclusion.submitted_jobs_that_failed() == [rule_job(own)]


def test_snakemakes_jobs_have_what_is_read_of_them() -> None:
    assert {"is_group", "is_local", "resources", "wildcards", "log", "input", "output", "params", "rule", "shellcmd"} <= set(
        dir(snakemake.jobs.Job)
    ) | names_in(snakemake.jobs.Job.__init__)
    assert hasattr(snakemake.workflow.DAG, "needrun_jobs")
    assert isinstance(snakemake.workflow.Workflow.is_main_process, property)
    assert "failed" in names_in(JobScheduler.__init__)
    assert "basedir" in dir(snakemake.workflow.Rule) or "basedir" in names_in(snakemake.workflow.Rule.__init__)


def test_an_inclusion_is_read_of_the_modifier_in_force() -> None:
    assert {"is_main_snakefile", "globals", "namespace", "path_modifier"} <= names_in(snakemake.workflow.WorkflowModifier.__init__) | set(
        dir(snakemake.workflow.WorkflowModifier)
    )
    assert {"modifier", "modifier_stack"} <= set(dir(snakemake.workflow.Workflow)) | names_in(snakemake.workflow.Workflow.__post_init__)
    assert hasattr(PathModifier, "replace_prefix")
    part: dict[str, Any] = {"sweeps": {}}
    modifier = SimpleNamespace(
        is_main_snakefile=lambda: False, namespace="tuning", path_modifier=SimpleNamespace(replace_prefix=lambda path: f"a/{path}")
    )
    outer = SimpleNamespace(globals={"config": {"tuning": part}})
    inclusion = Inclusion.of(SimpleNamespace(modifier=modifier, modifier_stack=[outer]), Path("/w/rules"), part)
    assert inclusion.module is not None
    assert (inclusion.module.name, inclusion.module.keys) == ("tuning", ("tuning",))
    assert inclusion.placed("results") == Path("a/results")


@pytest.mark.parametrize(
    ("quiet", "verbose", "expected"),
    [((), False, None), (("RULES",), False, None), (("PROGRESS",), False, "little"), (("ALL",), False, "little"), (("ALL",), True, "all")],
)
def test_how_much_is_printed_follows_snakemake(
    monkeypatch: pytest.MonkeyPatch, quiet: tuple[str, ...], verbose: bool, expected: str | None
) -> None:
    monkeypatch.setenv(VERBOSITY_ENV, "")
    monkeypatch.delenv(VERBOSITY_ENV)
    inherit_verbosity(SimpleNamespace(quiet=[SimpleNamespace(name=name) for name in quiet], verbose=verbose))
    assert os.environ.get(VERBOSITY_ENV) == expected


@pytest.mark.parametrize(
    ("before", "rules", "after"),
    [(None, {"tuning_all"}, "tuning_all"), ("paper", {"tuning_all"}, "paper"), (None, {"tuning_confirm"}, None)],
)
def test_a_rule_becomes_the_default_target_where_there_is_none(before: str | None, rules: set[str], after: str | None) -> None:
    modifier = SimpleNamespace(modify_rulename=lambda rule: f"tuning_{rule}")
    workflow = SimpleNamespace(modifier=modifier, is_rule=rules.__contains__, default_target=before)
    Inclusion(workflow, Path(), None, None).make_default("all")
    assert workflow.default_target == after


def test_the_default_target_is_restored_after_an_include() -> None:
    assert {"default_target", "overwrite_default_target"} <= names_in(snakemake.workflow.Workflow.include)
    assert hasattr(snakemake.workflow.Workflow, "is_rule")
    assert hasattr(snakemake.workflow.WorkflowModifier, "modify_rulename")


@pytest.mark.parametrize(
    ("entry", "given"),
    [
        ("sweeps={s: {num_samples: 3, fuse: off}}", "{s: {num_samples: 3, fuse: off}}"),
        ("xx=[1, [a, '2']]", "[1, [a, '2']]"),
        ("xx='{a: 1}'", "{a: 1}"),
        ("xx=1", None),
        ("xx=True", None),
        ("results_dir=no", None),
        ("xx={a: &a {b: *a}}", None),
    ],
)
def test_maps_and_lists_of_the_option_config_come_as_text(entry: str, given: str | None) -> None:
    settings = snakemake.api.ConfigSettings(config=parse_config([entry]), config_args=[entry])
    inclusion = Inclusion(SimpleNamespace(config_settings=settings), Path(), None, None)
    key = entry.partition("=")[0]
    assert inclusion.config_args == (() if given is None else ((key, given),))


def test_a_config_that_a_program_gives_to_snakemake_is_left_as_it_is() -> None:
    for config in ({}, {"sweeps": {"s": {"num_samples": 3, "dataset": None}}}):
        settings = snakemake.api.ConfigSettings(config=config)
        assert Inclusion(SimpleNamespace(config_settings=settings), Path(), None, None).config_args == ()
