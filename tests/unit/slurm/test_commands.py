from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra

from fake_slurm import Fakes
from raysweep.common.errors import WorldError
from raysweep.slurm import commands
from raysweep.slurm.commands import ended_tasks, field_of, on_each_node, restarts_in, slurm_extra, slurm_extra_of_sweep, start_elsewhere
from typed import sweep_config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "--ntasks-per-node=1 --no-kill"),
        ({"gpus_per_node": 2}, "--ntasks-per-node=1 --no-kill --gpus-per-node=2"),
        ({"gpus_per_node": 1, "gpu_type": "a100_3g.20gb"}, "--ntasks-per-node=1 --no-kill --gpus-per-node=a100_3g.20gb:1"),
        ({"max_wait": "2h"}, "--ntasks-per-node=1 --no-kill --deadline=now+122minutes"),
        ({"resubmit": 1, "runtime_min": 10}, "--ntasks-per-node=1 --no-kill --requeue"),
    ],
)
def test_what_sbatch_is_told_beside_the_rules_resources(changes: dict[str, Any], words: str) -> None:
    assert slurm_extra(sweep_config(allocation=changes).allocation, "90s") == words


def test_the_job_of_a_sweep_may_start_with_less_time() -> None:
    allocation = sweep_config(allocation={"resubmit": 1, "runtime": "1h", "runtime_min": "10m"}).allocation
    words = slurm_extra_of_sweep(allocation)
    assert words == "--ntasks-per-node=1 --no-kill --time-min=10 --requeue"
    validate_slurm_extra(SimpleNamespace(resources=SimpleNamespace(slurm_extra=words)))


def test_only_of_several_jobs_each_hears_of_its_early_end() -> None:
    """Snakemake, which runs a single job, would end at the signal."""
    assert "--signal" not in slurm_extra_of_sweep(sweep_config().allocation)
    words = slurm_extra_of_sweep(sweep_config(allocation={"jobs": 2}).allocation)
    assert words.endswith(" --signal=B:USR1@10")
    validate_slurm_extra(SimpleNamespace(resources=SimpleNamespace(slurm_extra=words)))


def with_fake_scontrol(folder: Path, monkeypatch: pytest.MonkeyPatch, state: str, before: str) -> Fakes:
    """A scontrol that says this of every job, and accepts every command."""
    fakes = Fakes(folder / "fakes")
    monkeypatch.setenv("PATH", f"{fakes.folder}:/usr/bin:/bin")
    fakes.answer("scontrol", f"JobState={state} ExcNodeList={before} Requeue=1\n")
    monkeypatch.setattr(commands, "hostnames", lambda nodelist: nodelist.split(","))
    return fakes


@pytest.mark.parametrize(("before", "excluded"), [("(null)", "n2,n3"), ("n7,n8", "n7,n8,n2,n3")])
def test_a_job_starts_again_without_its_nodes_as_a_fake_scontrol_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, excluded: str
) -> None:
    fakes = with_fake_scontrol(tmp_path, monkeypatch, "RUNNING", before)
    assert start_elsewhere("12_1", ["n2", "n3"], 3)
    assert fakes.calls("scontrol") == ["show job 12_1", "requeue 12_1", f"update JobId=12_1 ExcNodeList={excluded}"]


@pytest.mark.parametrize(
    ("state", "before"), [("RUNNING", "n5,n6,n7"), ("CANCELLED", "(null)"), ("COMPLETING", "(null)"), ("PENDING", "(null)")]
)
def test_a_job_that_was_cancelled_or_has_left_enough_nodes_does_not_start_again_as_a_fake_scontrol_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, before: str
) -> None:
    fakes = with_fake_scontrol(tmp_path, monkeypatch, state, before)
    assert not start_elsewhere("12_1", ["n2"], 3)
    assert fakes.calls("scontrol") == ["show job 12_1"]


def test_a_refusal_of_slurm_is_one_line_as_a_fake_scontrol_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = with_fake_scontrol(tmp_path, monkeypatch, "RUNNING", "(null)")
    (fakes.folder / "scontrol").write_text('#!/bin/sh\n[ "$1" = show ] && echo JobState=RUNNING && exit\necho "Job is held" >&2\nexit 1\n')
    with pytest.raises(WorldError, match=r"^Slurm does not start job 12_1 again on other nodes: Job is held$"):
        start_elsewhere("12_1", ["n2"], 3)


def test_a_scontrol_that_hangs_is_not_waited_for_as_a_fake_scontrol_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = with_fake_scontrol(tmp_path, monkeypatch, "RUNNING", "(null)")
    hangs = f'#!/bin/sh\n[ "$1" = show ] && echo JobState=RUNNING && exit\necho $$ > {tmp_path}/pid\nexec sleep 600\n'
    (fakes.folder / "scontrol").write_text(hangs)
    monkeypatch.setattr(commands, "SLURM_DEADLINE_S", 1)
    try:
        with pytest.raises(WorldError, match=r"^Slurm does not start job 12_1 again on other nodes: scontrol did not answer within 2 s$"):
            start_elsewhere("12_1", ["n2"], 3)
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


@pytest.mark.parametrize(
    ("line", "ranks"),
    [
        ("srun: error: node2: task 1: Exited with exit code 2\n", [1]),
        ("srun: error: node[2-5]: tasks 0,2-4: Exited with exit code 1", [0, 2, 3, 4]),
        ("srun: error: node2: task 10: Killed", [10]),
        ("slurmstepd: error: execve(): /p/python: No such file or directory", []),
        ("srun: error: Node failure on node2", []),
    ],
)
def test_a_task_that_has_failed_is_not_waited_for(line: str, ranks: list[int]) -> None:
    assert ended_tasks(line) == ranks


@pytest.mark.parametrize(
    ("key", "value"),
    [("NodeList", "n[1-3]"), ("JobState", "RUNNING"), ("Reason", ""), ("Restarts", "2"), ("ClusterName", "ours"), ("List", "")],
)
def test_a_field_of_scontrols_text(key: str, value: str) -> None:
    text = "JobId=7 JobState=RUNNING Reason=\n   ReqNodeList=(null)\n   NodeList=n[1-3] Restarts=2\nClusterName             = ours\n"
    assert field_of(text, key) == value


def test_a_job_that_was_never_started_again() -> None:
    assert (restarts_in("JobId=7 Restarts=3"), restarts_in("JobId=7")) == (3, 0)


def test_a_command_runs_once_on_each_node() -> None:
    command = on_each_node(["python", "agent.py"], nodes=3, cpus=5)
    assert command[:4] == ["srun", "--overlap", "--nodes=3", "--ntasks=3"]
    assert {"--ntasks-per-node=1", "--cpus-per-task=5", "--mem=0", "--no-kill", "--kill-on-bad-exit=0"} <= set(command)
    assert command[-2:] == ["python", "agent.py"]
