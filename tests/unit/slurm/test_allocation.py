from __future__ import annotations

import ast
import dataclasses
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest

from raysweep.common.capacity import TrialResources, WorkerResources
from raysweep.common.errors import RaysweepError, WorldError
from raysweep.common.machine import NodeSize
from raysweep.config.model import SweepConfig
from raysweep.slurm import allocation
from raysweep.slurm.allocation import (
    VARIABLES,
    Allocation,
    Node,
    SlurmJob,
    SlurmVariables,
    Task,
    available_mem_mb,
    trial_resources,
    without_slurm,
)
from typed import sweep_config

WANTED = sweep_config(allocation={"cpus_per_node": 10, "gpus_per_node": 1, "mem_mb_per_node": 500}).allocation


def node(**changes: Any) -> Allocation:
    return Allocation((dataclasses.replace(Node("n1", cpus=4, gpus=0, mem_mb=1000), **changes),))


def sweep(cpu: float, gpu: float) -> SweepConfig:
    return sweep_config(trial_resources={"cpu": cpu, "gpu": gpu})


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that lists two GPUs, one of them split; on a PATH with nothing else."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "nvidia-smi"
    lines = ["GPU 0: NVIDIA A100 (UUID: GPU-1)", "  MIG 1g.5gb Device 0: (UUID: MIG-1)", "GPU 1: NVIDIA A100 (UUID: GPU-2)"]
    says = "".join(f"echo '{line}'\n" for line in lines)
    program.write_text(f'#!/bin/sh\n[ "$*" = --list-gpus ] || exit 2\n{says}')
    program.chmod(0o755)
    return program


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to a CPU")
def test_a_local_allocation_has_the_cpus_that_this_process_may_run_on() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert Allocation.local(WANTED, threads=8).nodes[0].cpus == 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_local_allocation_is_the_smallest_of_config_threads_and_machine(nvidia_smi: Path) -> None:
    [here] = Allocation.local(WANTED, threads=1).nodes
    assert (here.cpus, here.gpus, here.mem_mb) == (1, 1, 500)
    [here] = Allocation.local(dataclasses.replace(WANTED, cpus_per_node=1, gpus_per_node=0, mem_mb_per_node=10**9), threads=10**4).nodes
    assert (here.cpus, here.gpus) == (1, 0)
    assert 0 < here.mem_mb < 10**9


def test_free_memory_is_no_more_than_the_machine_has() -> None:
    assert 0 < available_mem_mb() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def test_a_trial_takes_what_the_config_says() -> None:
    assert trial_resources(sweep(2, 0.5), node(gpus=1)) == TrialResources(2, 0.5)
    assert trial_resources(sweep(4, 0), node()) == TrialResources(4, 0)


def test_without_a_gpu_trials_run_on_the_cpu_and_a_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    wanted = sweep(1, 0.1)
    logging.getLogger("raysweep").propagate = True
    with caplog.at_level(logging.INFO, "raysweep"):
        assert trial_resources(wanted, node()) == TrialResources(1, 0)
        assert trial_resources(sweep(1, 0), node()) == TrialResources(1, 0)
    assert caplog.messages == ["There is no GPU here: the trials run on the CPU."]


def test_a_trial_that_no_node_can_hold() -> None:
    with pytest.raises(RaysweepError, match=r"trial_resources\.cpu is 5, but this run has 4 CPUs .* run with more --cores"):
        trial_resources(sweep(5, 0), node())
    with pytest.raises(RaysweepError, match=r"trial_resources\.gpu is 2, but this run has 1 GPUs"):
        trial_resources(sweep(1, 2), node(gpus=1))


def test_a_trial_that_no_nodes_can_hold_with_its_workers(caplog: pytest.LogCaptureFixture) -> None:
    wanted = sweep_config(trial_resources={"workers": {"num": 2, "cpu": 2, "gpu": 1}})
    two = Allocation((Node("a", 3, 1, 1000), Node("b", 3, 1, 1000)), job_id="7")
    assert trial_resources(wanted, two) == TrialResources(1, 0, WorkerResources(2, 2, 1))
    message = r"trial_resources\.workers is 2 workers of 2 CPUs and 1 GPUs, but Slurm gave job 7 n1 with 4 CPUs and 1 GPUs, which hold no trial of 1 CPUs"
    with pytest.raises(RaysweepError, match=message):
        trial_resources(wanted, dataclasses.replace(node(gpus=1), job_id="7"))
    with pytest.raises(RaysweepError, match=r"trial_resources\.workers\.gpu is 1, but Slurm gave job 7 no GPU"):
        trial_resources(wanted, dataclasses.replace(node(), job_id="7"))
    logging.getLogger("raysweep").propagate = True
    with caplog.at_level(logging.INFO, "raysweep"):
        assert trial_resources(wanted, node(cpus=5)) == TrialResources(1, 0, WorkerResources(2, 2, 0))
    assert caplog.messages == ["There is no GPU here: the trials run on the CPU."]


def test_the_largest_node_decides() -> None:
    both = Allocation((Node("a", 2, 0, 1000), Node("b", 8, 1, 1000)))
    assert trial_resources(sweep(8, 1), both) == TrialResources(8, 1)


def test_what_a_record_says_of_a_node() -> None:
    assert Node("a", 2, 1, 1000, "10.0.0.1").size == NodeSize("a", 2, 1)


def test_a_job_of_slurm_without_enough_is_told_where_to_ask_for_more() -> None:
    job = dataclasses.replace(node(), job_id="7")
    with pytest.raises(RaysweepError, match=r"Slurm gave job 7 no GPU\. Ask for one \(allocation\.gpus_per_node\)"):
        trial_resources(sweep(1, 1), job)
    with pytest.raises(RaysweepError, match=r"Slurm gave job 7 4 CPUs a node\. .*allocation\.cpus_per_node"):
        trial_resources(sweep(5, 0), job)


# Uneven, with typed and split GPUs, as 22.05 prints it.
JOB = """JobId=7 JobName=x
   JobState=RUNNING Reason=None Requeue=1 Restarts=2 BatchFlag=1
   StartTime=2026-11-25T04:16:56 EndTime=Unknown Deadline=N/A
   ReqNodeList=(null) ExcNodeList=(null)
   NodeList=n[1-3]
   NumNodes=3 NumCPUs=15 NumTasks=3 CPUs/Task=5 ReqB:S:C:T=0:0:*:*
   JOB_GRES=gpu:a100:2,gpu:a100_3g.20gb:1
     Nodes=n3 CPU_IDs=0-4 Mem=0 GRES=
     Nodes=n[1-2] CPU_IDs=0-4 Mem=500 GRES=gpu:a100-sxm4:2(IDX:0-1),gpu:a100_3g.20gb:1(IDX:2),shard:4(IDX:0)
"""
SCONTROL = """#!/bin/sh
case "$*" in
    "show job -d 7") cat "${0%/*}/job";;
    "show hostnames n[1-3]") printf "n1\\nn2\\nn3\\n";;
    "show hostnames n[1-2]") printf "n1\\nn2\\n";;
    "show hostnames n3") echo n3;;
    "show node n[1-2]") printf "NodeName=n1 Arch=x\\n   NodeAddr=10.0.0.1 NodeHostName=n1\\n\\nNodeName=n2\\n   NodeAddr=n2.local\\n";;
    "show node n3") printf "NodeName=n3\\n   NodeAddr=n3\\n";;
    *) echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1;;
esac
"""


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "job").write_text(JOB)
    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "ours")
    return tmp_path


def test_a_job_has_what_a_made_up_scontrol_says_in_the_order_of_sruns_tasks(scontrol: Path) -> None:
    job = Allocation.of_slurm()
    assert [(n.name, n.cpus, n.gpus, n.address) for n in job.nodes] == [
        ("n1", 5, 3, "10.0.0.1"),
        ("n2", 5, 3, "n2.local"),
        ("n3", 5, 0, "n3"),
    ]
    assert [n.mem_mb for n in job.nodes[:2]] == [500, 500]
    assert job.nodes[2].mem_mb > 0, "where Slurm does not hand out memory, what is free"
    assert (job.job_id, job.ends) == ("7", None)
    assert job.started is not None
    assert (job.cluster, job.restarts) == ("ours", 2)
    command = job.command(["python", "agent.py"])
    assert command[0] == "srun"
    assert {"--nodes=3", "--ntasks=3", "--cpus-per-task=5", "--no-kill", "--overlap"} <= set(command)
    assert command[-2:] == ["python", "agent.py"]


def test_outside_of_a_job_there_is_nothing_that_slurm_gave(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(RaysweepError, match="SLURM_JOB_ID is not set"):
        Allocation.of_slurm()


def test_a_made_up_scontrol_that_refuses_is_one_line(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with pytest.raises(WorldError, match=r"`scontrol show job -d 8` fails on .*: slurm_load_jobs error: Invalid job id specified"):
        Allocation.of_slurm()
    (scontrol / "job").write_text("JobId=7\n")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(WorldError, match="Slurm does not say which nodes job 7 has: JobId=7"):
        Allocation.of_slurm()


def test_programs_of_the_users_do_not_take_themselves_for_one_task_of_many() -> None:
    env = {"SLURM_NTASKS": "3", "SLURMD_NODENAME": "n1", "PMIX_RANK": "0", "SRUN_DEBUG": "3", "SLURM_JOB_ID": "7", "HOME": "/h"}
    assert without_slurm(env) == {"SLURM_JOB_ID": "7", "HOME": "/h"}


def test_a_tasks_folder_is_slurms_if_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "2")
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    assert Task.current(in_slurm=True) == Task(2, tmp_path)
    assert Task.current(in_slurm=False).rank == 0, "a run on this machine, perhaps from inside a job, is not that job's"
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "gone"))
    assert Task.current(in_slurm=True).local_dir.is_dir()


def test_a_task_of_srun_has_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    with pytest.raises(WorldError, match="SLURM_PROCID is not set"):
        Task.current(in_slurm=True)


def test_each_field_has_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(VARIABLES) == [field.name for field in dataclasses.fields(SlurmVariables)]
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    assert set(dataclasses.asdict(SlurmVariables.read()).values()) == {None}
    for variable in VARIABLES.values():
        monkeypatch.setenv(variable, f"of {variable}")
    assert dataclasses.asdict(SlurmVariables.read()) == {field: f"of {variable}" for field, variable in VARIABLES.items()}


def test_no_other_module_reads_slurms_variables() -> None:
    """submission.py names one in the script of a job, for the shell that runs the script."""
    package = Path(allocation.__file__).parents[1]
    readers = set()
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        texts = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
        ]
        if any(re.search(r"\bSLURM_[A-Z]", text) for text in texts):
            readers.add(str(path.relative_to(package)))
    assert readers == {"slurm/allocation.py", "slurm/submission.py"}


def test_a_job_of_slurm_is_this_one_until_it_is_started_again(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scontrol / "scontrol").write_text(
        '#!/bin/sh\n[ "$*" = "show job 7" ] && exec cat "${0%/*}/job"\necho "Invalid job id specified" >&2\nexit 1\n'
    )
    job = SlurmJob.current()
    assert job == SlurmJob("7", "ours", 2)
    assert not job.is_over()
    assert dataclasses.replace(job, restarts=1).is_over(), "it was started again since"
    assert not SlurmJob("8", "other", 0).is_over(), "another cluster's cannot be asked for"
    assert SlurmJob("8", "ours", 0).is_over(), "Slurm has forgotten it"
    (scontrol / "job").write_text(JOB.replace("RUNNING", "TIMEOUT"))
    assert job.is_over()
    monkeypatch.delenv("SLURM_JOB_ID")
    assert SlurmJob.current() is None


@pytest.mark.parametrize(("nodes", "is_over"), [("n1", False), ("n1,n2", False), ("n2", True)])
def test_a_job_that_has_lost_its_first_node_is_over_though_slurm_says_that_it_runs(scontrol: Path, nodes: str, is_over: bool) -> None:
    """The script of the job ran there. A sweep has the option --no-kill."""
    job = f"JobId=7 JobState=RUNNING Restarts=0 NodeList={nodes} BatchHost=n1"
    (scontrol / "scontrol").write_text(
        f'#!/bin/sh\ncase "$*" in "show job 7") echo "{job}";; "show hostnames"*) echo "$3" | tr , "\\n";; esac\n'
    )
    assert SlurmJob("7", None, 0).is_over() is is_over


def test_a_job_of_an_array_that_slurm_has_forgotten_is_over(scontrol: Path) -> None:
    (scontrol / "scontrol").write_text('#!/bin/sh\necho "Job 7_0 not found"\nexit 1\n')
    assert SlurmJob("7_0", None, 0).is_over()
