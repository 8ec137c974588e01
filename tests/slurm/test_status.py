"""No end of a job, and no silence of Slurm's, keeps Snakemake waiting. On a real Slurm, with a small workflow that submits as the project does."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil

from slurm.cluster import SlurmCluster, wait_until
from slurm.tiny import Workflow, ended

PREEMPTION = """PreemptType=preempt/partition_prio
PreemptMode=CANCEL
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=CANCEL
PartitionName=high Nodes=ALL PriorityTier=9 PreemptMode=OFF"""
Factory = Callable[..., SlurmCluster]


def job_ids(workflow: Workflow) -> dict[str, str]:
    """sweep → id of its job, as squeue shows it."""
    lines = workflow.cluster.run(["squeue", "--noheader", "--states=all", "--format=%i|%k"]).stdout.splitlines()
    return {comment.split(" in ")[0].removeprefix("rule_run_sweep_wildcards_"): job for job, comment in (line.split("|") for line in lines)}


def test_whatever_ends_a_job_ends_the_run_with_a_line_that_says_it(start_slurm: Factory) -> None:
    cluster = start_slurm(slurm_conf_extra=PREEMPTION)
    script = """
    case $1 in
        wrong) echo "2025-01-01 00:00:00,000 ERROR Error: wrong: lr is too high." >> "$3"; exit 1;;
        fine) mkdir -p results; echo yes > "$2";;
        *) sleep 600;;
    esac"""
    workflow = Workflow(cluster, cluster.shared / "ended by Slurm", script)
    sweeps = ["cancelled", "held", "preempted", "wrong", "fine"]
    everything = cluster.sbatch("--partition=high", "--nodes=3", "--exclusive", "--wrap=sleep 600")
    process = workflow.start("--default-resources", "slurm_partition=low", "--config", f"sweeps={','.join(sweeps)}")
    wait_until(lambda: set(sweeps) <= set(job_ids(workflow)), "all jobs are submitted")
    jobs = job_ids(workflow)
    cluster.run(["scontrol", "hold", jobs["held"]])
    cluster.run(["scancel", everything])
    wait_until(lambda: cluster.job_state(jobs["preempted"]) == "RUNNING", "the job to be preempted runs")
    node = cluster.run(["squeue", "--noheader", f"--jobs={jobs['preempted']}", "--format=%N"]).stdout.strip()
    cluster.sbatch("--partition=high", f"--nodelist={node}", "--exclusive", "--wrap=true")
    cluster.run(["scancel", jobs["cancelled"]])
    code, lines = ended(process)
    assert code == 1
    assert lines[-4:] == [
        f"Error: sweep cancelled: job {jobs['cancelled']} was cancelled. Run the same command again to go on.",
        f"Error: sweep held: job {jobs['held']} could never start (JobHeldAdmin), so it was cancelled. Change sweeps.held.allocation"
        " (nodes, cpus_per_node, gpus_per_node, gpu_type, mem_mb_per_node), or slurm_partition (now low) in cluster/config.yaml.",
        f"Error: sweep preempted: Slurm took the nodes of job {jobs['preempted']} for another, of higher priority. Run the same command again to go on.",
        "Error: sweep wrong: lr is too high.",
    ]
    assert (workflow.folder / "results/fine").exists()
    assert sum(line.startswith("Error: ") for line in lines) == 4


def test_a_run_outlives_the_absence_of_slurmctld(start_slurm: Factory) -> None:
    cluster = start_slurm(nodes=1, message_timeout_s=5)
    workflow = Workflow(
        cluster, cluster.shared / "without slurmctld", 'while [ ! -e go ]; do sleep 0.1; done; mkdir -p results; hostname > "$2"'
    )
    process = workflow.start()
    workflow.running_job()
    cluster.stop_controller()
    asked = psutil.Process(process.pid)
    for _ in range(2):  # the plugin asks five times a poll; two of them are enough to see that it is given answers
        wait_until(lambda: _queries(asked), "a query begins")
        wait_until(lambda: not _queries(asked), "a query ends")
        assert process.poll() is None
    cluster.start_controller()
    (workflow.folder / "go").touch()
    code, _ = ended(process)
    assert code == 0
    assert (workflow.folder / "results/a").read_text() == "node1\n"


def _queries(snakemake: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in snakemake.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
            if child.name() == "squeue" or "slurm_program.py" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_jobs_that_slurmctld_has_forgotten_are_judged_by_what_they_left(start_slurm: Factory, tmp_path: Path) -> None:
    """Snakemake is stopped until both jobs are forgotten; there is no accounting."""
    cluster = start_slurm(nodes=2, min_job_age_s=2)
    workflow = Workflow(
        cluster, cluster.shared / "forgotten", 'while [ ! -e go ]; do sleep 0.1; done; mkdir -p results; [ "$1" = good ] && date > "$2"'
    )
    process = workflow.start("--config", "sweeps=good,bad")
    wait_until(lambda: len(workflow.jobs()) == 2, "both jobs are submitted")
    jobs = job_ids(workflow)
    wait_until(lambda: all(cluster.job_state(job) == "RUNNING" for job in jobs.values()), "both jobs run")
    os.kill(process.pid, signal.SIGSTOP)
    (workflow.folder / "go").touch()
    wait_until(lambda: all(cluster.job_state(job) is None for job in jobs.values()), "both jobs are forgotten", 300)
    os.kill(process.pid, signal.SIGCONT)
    code, lines = ended(process)
    assert code == 1
    assert [line for line in lines if line.startswith("Error: ")] == [
        f"Error: sweep bad: job {jobs['bad']} failed: see logs/run_sweep/bad.log and {workflow.folder}/logs/slurm/rule_run_sweep/bad/{jobs['bad']}.log."
    ]
    assert (workflow.folder / "results/good").exists()
    assert not (workflow.folder / "results/bad").exists()
