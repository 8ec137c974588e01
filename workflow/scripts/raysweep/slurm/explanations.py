"""Explains in one line why a job failed, and names the setting of the config or of the profile that the user should change."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

from raysweep.slurm.notes import JobNote, RefusalNote, name_of

PROFILE = "cluster/config.yaml"
RUN_AGAIN = "Run the same command again to go on"


class Setting(Enum):
    """Names the setting that the user should change."""

    SLURM_IS_AWAY = auto()  # the user should change nothing and wait until Slurm answers
    MACHINE = auto()
    LIMITS = auto()
    ACCOUNT = auto()
    QOS = auto()
    RUNTIME = auto()
    NODES = auto()
    PARTITION = auto()
    REQUEUE = auto()
    GPUS = auto()
    MEMORY = auto()
    ALLOCATION = auto()  # any key of the sweep's allocation, or the partition


# Maps patterns of Slurm's messages to the setting that the user should change. The first pattern that matches counts.
# The messages are the errors of sbatch (slurm_errno.c) and the reasons why jobs wait (slurm.h).
SETTING_FOR_REASON = (
    (r"Unable to contact|connect failure|timed out|squeue does not answer|did not end within", Setting.SLURM_IS_AWAY),
    (r"No such file or directory: '(sinfo|sbatch|sacctmgr|sshare)'", Setting.MACHINE),
    (r"(?i)requeue", Setting.REQUEUE),
    (r"violates accounting|AccountingPolicy|^(Assoc|QOS)(Max|Min)", Setting.LIMITS),
    (r"(?i)\baccount\b|InvalidAccount|AccountNotAllowed", Setting.ACCOUNT),
    (r"(?i)\bqos\b|InvalidQOS|QOSNotAllowed", Setting.QOS),
    (r"(?i)time limit|TimeLimit|--time", Setting.RUNTIME),
    (r"(?i)node count|PartitionNodeLimit|more (processors|nodes)", Setting.NODES),
    (r"(?i)invalid partition|partition name|permitted to use this partition", Setting.PARTITION),
    (r"(?i)gres|generic resource|TRES", Setting.GPUS),
    (r"(?i)memory", Setting.MEMORY),
)


@dataclass(frozen=True)
class RuleJob:
    """Describes a job of Snakemake, which runs one rule."""

    rule: str
    sweep: str = ""  # name of the sweep; "" for a rule that belongs to no sweep
    comment: str = ""  # Slurm comment with which the Slurm plugin submits the job
    log: Path = Path(os.devnull)  # log file of the rule
    resources: Mapping[str, Any] = field(default_factory=dict)  # Snakemake's resources of the job

    @property
    def name(self) -> str:
        """Return the name of the job in messages for the user."""
        return name_of(self.rule, self.sweep)

    def advice_for(self, reason: str) -> str:
        """Return the advice to the user for an error message of Slurm, or for Slurm's reason why a job waits."""
        return self.advice(next((setting for pattern, setting in SETTING_FOR_REASON if re.search(pattern, reason)), Setting.ALLOCATION))

    def advice(self, setting: Setting) -> str:
        """Return the sentence that tells the user to change `setting`. The sentence contains the present value of the setting."""
        allocation = f"sweeps.{self.sweep or '<name>'}.allocation"
        runtime = f"sweeps.{self.sweep}.confirm.runtime" if self.rule.endswith("confirm") else f"{allocation}.runtime"
        now = {key: "empty" if value == "" else value for key, value in self.resources.items()}
        now = dict.fromkeys(("slurm_account", "slurm_partition", "qos", "runtime", "nodes", "mem_mb", "_cores"), "not set") | now
        partition = f"slurm_partition (now {now['slurm_partition']}) in {PROFILE}"
        if now.get("partitions", "empty") != "empty":
            partition = f"{allocation}.partitions (now {now['partitions']})"
        or_partition = f"or {partition}"
        size = f"{allocation} (nodes, cpus_per_node, gpus_per_node, gpu_type, mem_mb_per_node)"
        return {
            Setting.SLURM_IS_AWAY: "Run the same command again when Slurm answers",
            Setting.MACHINE: "Run it where Slurm's commands are, on a login node",
            Setting.LIMITS: f"Ask for less in {size} or {runtime}, or name another account or partition in {PROFILE}",
            Setting.ACCOUNT: f"Change slurm_account (now {now['slurm_account']}) {or_partition}",
            Setting.QOS: f"Change qos (now {now['qos']}) in {PROFILE}",
            Setting.RUNTIME: f"Change {runtime} (now {now['runtime']} minutes), {or_partition}",
            Setting.NODES: f"Change {allocation}.nodes (now {now['nodes']}) or cpus_per_node (now {now['_cores']}), {or_partition}",
            Setting.PARTITION: f"Change {partition}; `sinfo --summarize` lists what there is",
            Setting.REQUEUE: f"Set {allocation}.resubmit to 0, where the site does not let a job start again",
            Setting.GPUS: f"Change {allocation}.gpus_per_node or gpu_type; `sinfo -o '%P %G'` lists what there is",
            Setting.MEMORY: f"Change {allocation}.mem_mb_per_node (now {now['mem_mb']})",
            Setting.ALLOCATION: f"Change {size}, {or_partition}",
        }[setting]


def explanation(job: RuleJob, note: JobNote | RefusalNote | None, snakemake_log: str, last_error: str | None) -> str:
    """Return one line that says why `job` failed and what the user can do.

    Args:
        job: the job that failed.
        note: the latest note about the job, or None where the job was not submitted.
        snakemake_log: the text of Snakemake's log.
        last_error: the last error that the job wrote into the log of the rule, or None.
    """
    if note is None:
        return _not_submitted(job, snakemake_log)
    if isinstance(note, RefusalNote):
        return _refused(job, note)
    return _ended(job, note, last_error)


def _not_submitted(job: RuleJob, snakemake_log: str) -> str:
    """Return the explanation for a job that the Slurm plugin did not submit. The plugin writes its exception into Snakemake's log."""
    exceptions = re.findall(rf"Exception in run_job for rule {job.rule}: (.*?)(?:\nTraceback|\n\[|\Z)", snakemake_log, re.DOTALL)
    if not exceptions:
        return f"{job.name}: the job was not submitted: Snakemake says why above"
    reason = " ".join(exceptions[-1].split()).rstrip(".")
    return f"{job.name}: the job was not submitted: {reason}. {job.advice_for(reason)}"


def _refused(job: RuleJob, note: RefusalNote) -> str:
    """Return the explanation for a job that `sbatch` refused, or that this workflow refused before the call of `sbatch`."""
    lines = (re.sub(r"^sbatch: (error: )?(Batch job submission failed: )?", "", line) for line in note.refused.splitlines())
    reason = "; ".join(lines)
    return reason if note.by_us else f"{job.name}: Slurm refused the job: {reason}. {job.advice_for(reason)}"


def _ended(job: RuleJob, note: JobNote, last_error: str | None) -> str:
    """Return the explanation for a job that Slurm accepted and that has ended."""
    slurm_job = f"job {note.job}"
    if note.state == "CANCELLED" and note.hopeless is not None:
        return f"{job.name}: {slurm_job} could never start ({note.hopeless}), so it was cancelled. {job.advice_for(note.hopeless)}"
    explanations = {
        "CANCELLED": f"{slurm_job} was cancelled. {RUN_AGAIN}",
        "PREEMPTED": f"Slurm took the nodes of {slurm_job} for another, of higher priority. {RUN_AGAIN}",
        "NODE_FAIL": f"{slurm_job} lost its node. {RUN_AGAIN}",
        "BOOT_FAIL": f"a node for {slurm_job} did not boot. {RUN_AGAIN}",
        "TIMEOUT": f"{slurm_job} reached its time limit. {RUN_AGAIN}. {job.advice(Setting.RUNTIME)}, to need fewer jobs",
        "OUT_OF_MEMORY": f"{slurm_job} needed more memory than it was given. {job.advice(Setting.MEMORY)}",
        "DEADLINE": f"no nodes were free for {slurm_job} within allocation.max_wait. {job.advice(Setting.ALLOCATION)}, or wait longer",
        "COMPLETED": f"{slurm_job} ended well, but what it wrote is not seen here. {RUN_AGAIN}, or raise latency-wait in {PROFILE}",
    }
    if note.state in explanations:
        return f"{job.name}: {explanations[note.state]}"
    if last_error is None:
        return f"{job.name}: {slurm_job} failed: see {job.log} and {note.log}"
    return f"{job.name}: {last_error.removeprefix(f'{job.sweep}: ').rstrip('.')}"
