"""The configuration files of the tests' Slurm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

SUBNET = "10.77.0"
# A task's folder on the node's own disk. Nothing removes it: the tests look for what is left. A node waits for as long as a test's $HOLD/<node> is there.
TASK_PROLOG = """#!/bin/sh
while [ -n "$HOLD" ] && [ -e "$HOLD/$(hostname)" ]; do sleep 0.1; done
scratch=/mnt/$SLURM_JOB_USER.$SLURM_JOB_ID.0
mkdir -p -m 700 "$scratch"
echo "export SLURM_TMPDIR=$scratch"
"""

# A job in the partition `high` takes the nodes of jobs in `low`, which hear of it 30 s before.
PREEMPTION = """PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=ALL PriorityTier=9 PreemptMode=OFF"""


@dataclass(frozen=True)
class Options:
    """What tests choose. CPUs, GPUs and memory are each node's, and are counted and handed out, no more."""

    nodes: int = 3
    cpus: int = 12
    gpus: int = 2
    gpu_type: str | None = None
    mem_mb: int = 16_000
    shm_mb: int = 2000
    scratch: bool = True  # whether there is a $SLURM_TMPDIR
    accounting: bool = False
    kill_wait_s: int = 30
    min_job_age_s: int = 3600
    # The loss of a node is noticed after these, but on a busy machine a node that is there may be silent for some time.
    slurmd_timeout_s: int = 300
    message_timeout_s: int = 10
    slurm_conf_extra: str = ""  # lines that may overrule others

    @property
    def names(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.nodes + 1)]


def address(node: str) -> str:
    return f"{SUBNET}.{10 + int(node.removeprefix('node'))}"


def write_conf(base: Path, options: Options, packages: Path) -> None:
    """Write base/etc/slurm.conf and what it refers to."""
    etc = base / "etc"
    user = psutil.Process().username()
    (plugins,) = packages.glob("usr/lib/*/slurm-wlm")
    settings = {
        "ClusterName": "tests",
        "SlurmctldHost": f"login({SUBNET}.1)",
        "SlurmUser": user,
        "SlurmdUser": user,
        # A requeued job waits for as long as its old credential lives: two minutes, if nothing is said.
        "AuthInfo": f"socket={base}/run/munge,cred_expire=10",
        "PluginDir": plugins,
        "StateSaveLocation": base / "spool/slurmctld",
        "SlurmdSpoolDir": base / "spool/%n",
        "SlurmctldPidFile": base / "run/slurmctld.pid",
        "SlurmdPidFile": base / "run/%n.pid",
        "SlurmctldLogFile": base / "log/slurmctld.log",
        "SlurmdLogFile": base / "log/%n.log",
        "MailProg": "/bin/true",
        # No control groups, and nodes that claim more CPUs than there are. This proctrack loses processes whose parents have ended: what a
        # job leaves behind stays, and the tests see it.
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SlurmdParameters": "config_overrides",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "DefMemPerCPU": 100,  # else a job that names no memory takes all of a node's
        "SchedulerParameters": "batch_sched_delay=0,bf_interval=1,sched_interval=1",
        "EnforcePartLimits": "ALL",  # what can never run is refused
        "ReturnToService": 2,
        "SlurmdTimeout": options.slurmd_timeout_s,
        "MessageTimeout": options.message_timeout_s,
        "KillWait": options.kill_wait_s,
        "MinJobAge": options.min_job_age_s,
    }
    if options.scratch:
        (etc / "task_prolog").write_text(TASK_PROLOG)
        (etc / "task_prolog").chmod(0o755)
        settings["TaskProlog"] = etc / "task_prolog"
    if options.gpus:
        settings["GresTypes"] = "gpu"
        for number in range(options.gpus):
            (base / "dev" / f"nvidia{number}").symlink_to("/dev/null")  # Slurm insists on a character device
        gpus = "Name=gpu" + (f" Type={options.gpu_type}" if options.gpu_type else "") + f" File={base}/dev/nvidia[0-{options.gpus - 1}]"
        (etc / "gres.conf").write_text(f"NodeName=node[1-{options.nodes}] {gpus}\n")
    if options.accounting:
        settings |= {
            "JobAcctGatherType": "jobacct_gather/linux",
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": f"{SUBNET}.1",
            "AccountingStoragePass": base / "run/munge",
            "AccountingStorageTRES": "gres/gpu",
            "AccountingStorageEnforce": "associations",
        }
        database = {
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={base}/run/munge",
            "DbdHost": "login",
            "DbdAddr": f"{SUBNET}.1",
            "SlurmUser": user,
            "PluginDir": plugins,
            "LogFile": base / "log/slurmdbd.log",
            "PidFile": base / "run/slurmdbd.pid",
            "StorageType": "accounting_storage/mysql",
            "StorageHost": "127.0.0.1",
            "StoragePort": 3306,
            "StorageUser": "slurm",
            "StoragePass": "none",
        }
        (etc / "slurmdbd.conf").touch(mode=0o600)
        (etc / "slurmdbd.conf").write_text(_lines(database))
    each = f"CPUs={options.cpus} RealMemory={options.mem_mb}"
    if options.gpus:
        each += " Gres=gpu:" + (f"{options.gpu_type}:" if options.gpu_type else "") + str(options.gpus)
    lines = [f"NodeName={node} NodeHostname={node} NodeAddr={address(node)} {each}" for node in options.names]
    lines += ["PartitionName=main Nodes=ALL Default=YES", "PartitionName=short Nodes=ALL MaxTime=2 MaxNodes=1", options.slurm_conf_extra]
    (etc / "slurm.conf").write_text(_lines(settings) + "\n".join(lines) + "\n")


def _lines(settings: Mapping[str, object]) -> str:
    return "".join(f"{key}={value}\n" for key, value in settings.items())
