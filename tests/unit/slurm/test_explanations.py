"""The one line on a job that failed: why, and which setting the user should change."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysweep.slurm.explanations import RuleJob, explanation
from raysweep.slurm.notes import JobNote, RefusalNote


def failed(rule: str = "run_sweep", **resources: Any) -> RuleJob:
    resources = {"slurm_account": "def-x", "slurm_partition": "", "runtime": 90, "nodes": 2, "mem_mb": 4000, "_cores": 6} | resources
    return RuleJob(rule, "lenet", f"rule_{rule}_wildcards_lenet", Path("logs") / rule / "lenet.log", resources)


def refusal(job: RuleJob, message: str) -> str:
    return explanation(job, RefusalNote(job.comment, message), "", None)


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("sbatch: error: invalid partition specified: x", "Change slurm_partition (now empty) in cluster/config.yaml; `sinfo --summarize`"),
        (
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
            "Change slurm_account (now def-x) or slurm_partition (now empty) in cluster/config.yaml",
        ),
        (
            "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
            "Change sweeps.lenet.allocation.runtime (now 90 minutes), or slurm_partition (now empty) in cluster/config.yaml",
        ),
        (
            "sbatch: error: Batch job submission failed: Node count specification invalid",
            "Change sweeps.lenet.allocation.nodes (now 2) or cpus_per_node (now 6)",
        ),
        (
            "sbatch: error: Batch job submission failed: Invalid generic resource (gres) specification",
            "Change sweeps.lenet.allocation.gpus_per_node or gpu_type",
        ),
        ("sbatch: error: Memory specification can not be satisfied", "Change sweeps.lenet.allocation.mem_mb_per_node (now 4000)"),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", "Change qos (now not set) in cluster/config.yaml"),
        (
            "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            "Ask for less in sweeps.lenet.allocation (nodes, cpus_per_node, gpus_per_node, gpu_type, mem_mb_per_node) or sweeps.lenet.allocation.runtime",
        ),
        (
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
            "Run the same command again when Slurm answers",
        ),
        (
            "sbatch: error: Batch job submission failed: Requested node configuration is not available",
            "Change sweeps.lenet.allocation (nodes, cpus_per_node, gpus_per_node, gpu_type, mem_mb_per_node), or slurm_partition",
        ),
    ],
)
def test_a_refusal_says_what_to_change(message: str, advice: str) -> None:
    text = refusal(failed(), f"{message}\n")
    assert text.startswith(f"sweep lenet: Slurm refused the job: {re.sub('^.*(error|failed): ', '', message)}. {advice}")


@pytest.mark.parametrize("rule", ["confirm", "tuning_confirm"])  # the latter in a module
def test_the_runtime_of_a_confirmation_is_a_key_of_its_own(rule: str) -> None:
    text = refusal(failed(rule), "Requested time limit is invalid")
    assert text.startswith(f"sweep lenet, {rule}: Slurm refused the job: ")
    assert "Change sweeps.lenet.confirm.runtime (now 90 minutes)" in text


@pytest.mark.parametrize(
    ("note", "line"),
    [
        ({"state": "CANCELLED"}, "job 7 was cancelled. Run the same command again to go on"),
        ({"state": "PREEMPTED"}, "Slurm took the nodes of job 7 for another, of higher priority. Run the same command again to go on"),
        ({"state": "NODE_FAIL"}, "job 7 lost its node. Run the same command again to go on"),
        (
            {"state": "TIMEOUT"},
            "job 7 reached its time limit. Run the same command again to go on. Change sweeps.lenet.allocation.runtime (now 90 minutes), or"
            " slurm_partition (now empty) in cluster/config.yaml, to need fewer jobs",
        ),
        (
            {"state": "OUT_OF_MEMORY"},
            "job 7 needed more memory than it was given. Change sweeps.lenet.allocation.mem_mb_per_node (now 4000)",
        ),
        (
            {"state": "CANCELLED", "hopeless": "QOSMaxNodePerJobLimit"},
            "job 7 could never start (QOSMaxNodePerJobLimit), so it was cancelled. Ask for less in sweeps.lenet.allocation (nodes, cpus_per_node,"
            " gpus_per_node, gpu_type, mem_mb_per_node) or sweeps.lenet.allocation.runtime, or name another account or partition in"
            " cluster/config.yaml",
        ),
        (
            {"state": "DEADLINE"},
            "no nodes were free for job 7 within allocation.max_wait. Change sweeps.lenet.allocation (nodes, cpus_per_node, gpus_per_node,"
            " gpu_type, mem_mb_per_node), or slurm_partition (now empty) in cluster/config.yaml, or wait longer",
        ),
        ({"state": "FAILED"}, "job 7 failed: see logs/run_sweep/lenet.log and 7.log"),
    ],
)
def test_what_slurm_did_to_a_job_says_what_to_do(note: dict[str, Any], line: str) -> None:
    job = failed()
    assert explanation(job, JobNote("7", job.comment, "7.log", **note), "", None) == f"sweep lenet: {line}"


def test_a_sweep_with_partitions_of_its_own_is_told_to_change_these() -> None:
    job = failed()
    job = replace(job, resources={**job.resources, "partitions": "gpu,nosuch"})
    note = RefusalNote(job.comment, "sbatch: error: Batch job submission failed: Invalid partition name specified\n")
    assert explanation(job, note, "", None) == (
        "sweep lenet: Slurm refused the job: Invalid partition name specified. Change sweeps.lenet.allocation.partitions (now gpu,nosuch);"
        " `sinfo --summarize` lists what there is"
    )


def test_a_site_that_lets_no_job_start_again_is_told_of_resubmit() -> None:
    note = RefusalNote(failed().comment, "sbatch: error: --requeue is not allowed here\n")
    assert explanation(failed(), note, "", None) == (
        "sweep lenet: Slurm refused the job: --requeue is not allowed here. Set sweeps.lenet.allocation.resubmit to 0, where the site does not let"
        " a job start again"
    )


def test_a_job_that_failed_by_itself_has_said_why_in_its_log() -> None:
    job = failed()
    note = JobNote("7", job.comment, "7.log", "FAILED")
    assert explanation(job, note, "", "lenet: all 20 trials failed.") == "sweep lenet: all 20 trials failed"


def test_a_refusal_of_ours_stands_as_it_is() -> None:
    job = failed()
    assert (
        explanation(job, RefusalNote(job.comment, "sweep lenet: still there. Wait", by_us=True), "", None)
        == "sweep lenet: still there. Wait"
    )


def test_a_job_that_was_not_submitted_for_no_reason_that_is_known() -> None:
    assert explanation(failed(), None, "", None) == "sweep lenet: the job was not submitted: Snakemake says why above"


def test_what_the_plugin_has_against_a_job_is_one_line() -> None:
    message = "Exception in run_job for rule run_sweep: The given account def-x appears to be invalid. Available accounts:\ndef-y, def-z\n[Wed]\nError"
    assert explanation(failed(), None, message, None) == (
        "sweep lenet: the job was not submitted: The given account def-x appears to be invalid. Available accounts: def-y, def-z."
        " Change slurm_account (now def-x) or slurm_partition (now empty) in cluster/config.yaml"
    )
    message = "Exception in run_job for rule run_sweep: [Errno 2] No such file or directory: 'sinfo'\nTraceback (most recent call last):\n"
    assert explanation(failed(), None, message, None).endswith(": 'sinfo'. Run it where Slurm's commands are, on a login node")
