"""The executors that this workflow registers in the place of the plugins' own."""

from __future__ import annotations

import asyncio
import inspect
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import snakemake_executor_plugin_slurm as slurm
import snakemake_executor_plugin_slurm_jobstep as jobstep
from snakemake_interface_executor_plugins import utils
from snakemake_interface_executor_plugins.executors.real import RealExecutor
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

from raysweep.slurm.executor import STATUS_INTERVAL_S, JobstepExecutor, SlurmExecutor
from raysweep.slurm.notes import append
from raysweep.slurm.snakemake_private import RULES_DIR, format_cli_value


def job(number: int) -> Any:
    return SimpleNamespace(external_jobid=str(number))


def executor_of(kind: type[Any]) -> Any:
    """An executor without a workflow, whose threads are not started."""
    executor = object.__new__(kind)
    executor.logger, executor._submitted_job_clusters = SimpleNamespace(), set()
    executor.next_seconds_between_status_checks = 10
    return executor


@pytest.mark.parametrize("kind", [SlurmExecutor, JobstepExecutor])
def test_the_path_of_python_is_quoted(kind: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/a $(touch no) folder/python")
    assert shlex.split(executor_of(kind).get_python_executable()) == ["/a $(touch no) folder/python"]


@pytest.mark.parametrize("conf", [None, "/etc/a $(touch no) folder/slurm.conf"])
def test_the_programs_of_slurm_find_the_configuration_inside_of_a_job(conf: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CONF", raising=False)
    if conf is not None:
        monkeypatch.setenv("SLURM_CONF", conf)
    prefix = executor_of(JobstepExecutor).get_job_exec_prefix(job(7))
    monkeypatch.delenv("SLURM_CONF", raising=False)  # as the plugin does
    script = " && ".join([*filter(None, [prefix]), 'printf %s "${SLURM_CONF-}"'])
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == (conf or "")


def job_of(rules_dir: Path, command: str | None, is_group: bool = False, **facts: Any) -> Any:
    facts = {"output": [], "log": []} | facts
    return SimpleNamespace(rule=SimpleNamespace(basedir=str(rules_dir)), shellcmd=command, is_group=lambda: is_group, **facts)


def test_a_rule_of_this_workflow_runs_without_another_snakemake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_CONF", "/a folder/slurm.conf")
    command = """printf '%s, "$HOME" %s' "$SLURM_CONF" "$(cat)"; false | true; echo never"""
    log, output, model = Path("logs/a sweep/x.log"), Path("results/x/best.yaml"), Path("results/x/model")
    for old in (log, output, model / "weights"):
        old.parent.mkdir(parents=True, exist_ok=True)
        old.write_text("of an earlier session")
    Path("kept.log").hardlink_to(log)
    facts = {"output": [str(output), str(model)], "log": [str(log)]}
    script = executor_of(JobstepExecutor).format_job_exec(job_of(RULES_DIR, command, **facts))
    monkeypatch.delenv("SLURM_CONF")
    done = subprocess.run(["sh", "-c", script], input="of the plugin", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, '/a folder/slurm.conf, "$HOME" ')
    assert not any(path.exists() for path in (log, output, model)), "each session has its own log, and old outputs do not look current"
    assert log.parent.is_dir()
    assert output.parent.is_dir()
    assert Path("kept.log").read_text() == "of an earlier session"


@pytest.mark.parametrize("other", [(Path("/rules"), "echo", False), (RULES_DIR, None, False), (RULES_DIR, "echo", True)])
def test_other_rules_run_as_the_plugin_runs_them(other: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RealExecutor, "format_job_exec", lambda self, job: "of the plugin")
    assert executor_of(JobstepExecutor).format_job_exec(job_of(*other)) == "of the plugin"


@pytest.mark.parametrize(("seconds", "capped"), [(5, 5), (180, STATUS_INTERVAL_S)])
def test_the_plugins_time_between_two_queries_is_capped(seconds: int, capped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check_active_jobs(self: Any, active_jobs: list[Any]) -> AsyncIterator[Any]:
        self.next_seconds_between_status_checks = seconds
        for one in active_jobs:
            yield one

    monkeypatch.setattr(slurm.Executor, "check_active_jobs", check_active_jobs)  # the plugin's, which would start Slurm's programs
    executor = executor_of(SlurmExecutor)

    async def query() -> list[Any]:
        return [one async for one in executor.check_active_jobs([job(7)])]

    assert len(asyncio.run(query())) == 1
    assert executor.next_seconds_between_status_checks == capped


def test_a_ctrl_c_during_a_query_cancels_all_jobs_with_a_fake_scancel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scancel").write_text(f"#!/bin/sh\necho \"$@\" >> '{tmp_path}/calls'\n")
    (tmp_path / "scancel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    asked: list[Any] = []

    async def check_active_jobs(self: Any, active_jobs: list[Any]) -> AsyncIterator[Any]:
        asked.extend(active_jobs)
        yield active_jobs[0]

    monkeypatch.setattr(slurm.Executor, "check_active_jobs", check_active_jobs)  # the plugin's, which would start Slurm's programs
    executor = executor_of(SlurmExecutor)

    async def query() -> None:
        jobs = [job(7), job(8)]
        async for still_active in executor.check_active_jobs(jobs):
            assert still_active is jobs[0]
            executor.cancel_jobs([job(9)])  # submitted during the query

    asyncio.run(query())
    assert [one.external_jobid for one in asked] == ["7", "8"]
    assert (tmp_path / "calls").read_text() == "7 8 9\n"


def test_after_make_detach_no_job_is_cancelled_by_a_fake_scancel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scancel").write_text(f"#!/bin/sh\ntouch '{tmp_path}/called'\n")
    (tmp_path / "scancel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    executor = executor_of(SlurmExecutor)
    executor.is_detached = True
    executor.cancel_jobs([job(7)])
    assert not (tmp_path / "called").exists()
    executor.is_detached = False
    executor.cancel_jobs([job(7)])
    assert (tmp_path / "called").exists()


@pytest.mark.parametrize(("files", "words"), [([], []), (["a file", "b"], ["--wait-for-files", "a file", "b"])])
def test_a_job_waits_for_its_inputs_and_for_no_folder_of_this_snakemake(
    files: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RealExecutor, "get_job_args", lambda self, job: "--target-jobs x")
    monkeypatch.setattr(utils, "format_cli_value", format_cli_value)
    executor = executor_of(SlurmExecutor)
    waits: Any = SimpleNamespace(get_wait_for_files=lambda: files)
    assert shlex.split(executor.get_job_args(waits)) == ["--target-jobs", "x", *words]


@pytest.mark.parametrize(
    ("partitions", "of_profile", "told", "lines"),
    [
        ("", "main", " -p main", []),
        ("gpu,gpu-preempt", "", " -p gpu,gpu-preempt", []),
        (
            "gpu",
            "main",
            " -p gpu",
            ["run_sweep: allocation.partitions (gpu) is used, and not slurm_partition of cluster/config.yaml (main)."],
        ),
    ],
)
def test_the_partitions_of_a_sweep_replace_that_of_the_profile(partitions: str, of_profile: str, told: str, lines: list[str]) -> None:
    executor = executor_of(SlurmExecutor)
    logged: list[str] = []
    executor.logger, executor._partitions, executor._fallback_partition = SimpleNamespace(info=logged.append), None, None
    resources = Resources(partitions=partitions, slurm_partition=of_profile)
    assert executor.get_partition_arg(SimpleNamespace(resources=resources, name="run_sweep")) == told
    assert logged == lines


class Resources(dict[str, Any]):
    __getattr__ = dict.__getitem__


def test_a_job_that_was_taken_up_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSWEEP_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(slurm.Executor, "report_job_submission", lambda self, job_info, register_job: None)
    append(tmp_path, job="7", what="rule_run_sweep_wildcards_a", taken_up=True)
    append(tmp_path, job="8", what="rule_run_sweep_wildcards_b")
    executor, lines = executor_of(SlurmExecutor), []
    executor.logger = SimpleNamespace(info=lines.append)
    for number in (7, 8, 9):
        executor.report_job_submission(job(number))
    assert lines == ["Job 7 was submitted by an earlier run, and nothing has changed. It is followed to its end."]


def test_the_plugins_methods_are_as_the_subclasses_expect() -> None:
    assert list(inspect.signature(slurm.Executor.check_active_jobs).parameters) == ["self", "active_jobs"]
    assert list(inspect.signature(slurm.Executor.cancel_jobs).parameters) == ["self", "active_jobs"]
    assert list(inspect.signature(slurm.Executor.get_partition_arg).parameters) == ["self", "job"]
    assert list(inspect.signature(slurm.Executor.report_job_submission).parameters) == ["self", "job_info", "register_job"]
    assert slurm.Executor.get_job_args is RemoteExecutor.get_job_args
    assert "wait_for_files.append(self.tmpdir)" in inspect.getsource(RemoteExecutor.get_job_args)
    assert list(inspect.signature(slurm.Executor.get_python_executable).parameters) == ["self"]
    assert list(inspect.signature(jobstep.Executor.get_python_executable).parameters) == ["self"]
