"""This module checks the answers of Slurm's commands on the machine where Snakemake runs, and the disk of the project's folder."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from raysweep.cluster.check.node_report import filesystem_type
from raysweep.cluster.check.table import CheckResult, failed, few_of, ok, warning
from raysweep.cluster.children import GRACE_S
from raysweep.common.durations import minutes
from raysweep.common.errors import RaysweepError
from raysweep.config.model import AllocationConfig
from raysweep.slurm.commands import slurm_extra_of_sweep
from raysweep.slurm.explanations import PROFILE, RuleJob

PROGRAM_DEADLINE_S = 30  # time limit in seconds for each program that this module runs
# Oldest version of Slurm that was tried. Older versions of srun have other rules for CPUs that job steps share, and for CPUs that a step has alone.
LEAST_SLURM = (22, 5)
# Least KillWait in seconds. An agent needs GRACE_S to end the agent's children, and another GRACE_S to end the processes that these children started.
LEAST_KILL_WAIT_S = 2 * GRACE_S + 4
LONGEST_POLL_S = 180  # longest time in seconds between two queries of Snakemake's Slurm plugin
LEAST_FREE_GB, LEAST_FREE_FILES = 5, 10_000  # least free space in GB, and least number of files, for records, checkpoints and models
NO_ACCOUNTING = ("", "none", "(null)")  # ends of AccountingStorageType, after the last "/", in a Slurm without accounting
# Resource in the Snakemake profile → option of sbatch.
SBATCH_OPTIONS = {"slurm_account": "account", "slurm_partition": "partition", "qos": "qos", "constraint": "constraint"}


@dataclass(frozen=True)
class ProgramOutput:
    """Contains the output and the exit code of a program. The code is None where the program could not be run or did not end in time."""

    exit_code: int | None
    text: str

    @property
    def last_line(self) -> str:
        lines = self.text.strip().splitlines()
        return lines[-1].strip() if lines else "it says nothing"


def run_program(*argv: str) -> ProgramOutput:
    """Run a program, and return the output. The program may be missing. A program that hangs is ended after PROGRAM_DEADLINE_S."""
    try:
        run = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False, timeout=PROGRAM_DEADLINE_S
        )
    except subprocess.TimeoutExpired:
        return ProgramOutput(None, f"{argv[0]} does not answer within {PROGRAM_DEADLINE_S} s")
    except OSError as error:
        return ProgramOutput(None, f"{argv[0]} cannot be run: {error.strerror}")
    return ProgramOutput(run.returncode, (run.stdout + run.stderr).strip())


@dataclass(frozen=True)
class SlurmFacts:
    """Contains the answers of Slurm's commands and of `quota` for this user."""

    version: ProgramOutput  # output of `scontrol --version`, such as `slurm-wlm 22.05.8`
    config: str  # output of `scontrol show config`
    sacct: ProgramOutput
    sacctmgr: ProgramOutput  # output of `sacctmgr`, with one account of the user in each line
    quota: ProgramOutput
    wanted_account: str  # `slurm_account` of the profile, or "" where the profile sets no account
    project_dir: Path

    @classmethod
    def gather(cls, wanted_account: str, project_dir: Path) -> SlurmFacts:
        """Run the commands, and return the answers. Raises RaysweepError where there is no Slurm, or where Slurm does not answer."""
        if shutil.which("sbatch") is None:
            raise RaysweepError("check_cluster: there is no sbatch here. Run it where Slurm's commands are, on a login node")
        config = run_program("scontrol", "show", "config")
        if config.exit_code != 0:
            raise RaysweepError(f"check_cluster: Slurm does not answer: {config.last_line}. Run the same command again when it does")
        user = getpass.getuser()
        return cls(
            version=run_program("scontrol", "--version"),
            config=config.text,
            sacct=run_program("sacct", "--allocations", "--noheader", "--starttime=now"),
            sacctmgr=run_program("sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={user}", "format=Account"),
            quota=run_quota(user, project_dir),
            wanted_account=wanted_account,
            project_dir=project_dir,
        )

    def setting(self, key: str) -> str:
        """Return the value of a key in Slurm's configuration, or "" where the configuration has no such key."""
        match = re.search(rf"^{key}\s*= (.*)$", self.config, re.MULTILINE)
        return match[1].strip() if match else ""

    def seconds_of(self, key: str) -> int | None:
        match = re.match(r"\d+", self.setting(key))
        return int(match[0]) if match else None

    @property
    def accounting_type(self) -> str:
        return self.setting("AccountingStorageType")

    @property
    def has_accounting(self) -> bool:
        """Return whether Slurm is configured to keep accounts and to remember jobs that have ended."""
        return self.accounting_type.rpartition("/")[2] not in NO_ACCOUNTING

    @property
    def answers_about_jobs(self) -> bool:
        """Return whether `sacct` can tell how a job has ended."""
        return self.has_accounting and self.sacct.exit_code == 0


def run_quota(user: str, folder: Path) -> ProgramOutput:
    """Run the program that prints the quota of the user on the disk of a folder, and return the output."""
    if filesystem_type(folder) == "lustre":
        return run_program("lfs", "quota", "-q", "-u", user, str(folder))
    return run_program("quota", "--no-wrap", "--raw-grace", f"--filesystem={folder}")


# ---------------------------------------------------------------------------------------------------------------- the checks


def check_version(facts: SlurmFacts) -> CheckResult:
    name, text = "Slurm", facts.version.text
    match = re.search(r"(\d+)\.(\d+)\S*", text)
    if match is None:
        return warning(name, f"its version cannot be told from {text!r}", "If a job does not start, report this")
    if (int(match[1]), int(match[2])) < LEAST_SLURM:
        return warning(name, match[0], "Only 22.05 and newer are tried: run a small sweep on two nodes first")
    return ok(name, match[0])


def check_accounting(facts: SlurmFacts) -> CheckResult:
    name = "accounting"
    if not facts.has_accounting:
        return ok(name, "none, and none is needed")
    if not facts.answers_about_jobs:
        return warning(name, f"{facts.accounting_type}, but sacct fails: {facts.sacct.last_line}", "Jobs run without it; tell the site")
    return ok(name, "sacct answers")


def check_account(facts: SlurmFacts) -> CheckResult:
    """Check whether the user may use the account that the profile names, or the default account."""
    name, wanted = "account", facts.wanted_account
    if not facts.has_accounting:
        if wanted:
            remedy = f"Set slurm_account to an empty text in {PROFILE}"
            return failed(name, f"slurm_account is {wanted}, but this Slurm keeps no accounts", remedy)
        return ok(name, "this Slurm keeps no accounts")
    if facts.sacctmgr.exit_code != 0:
        remedy = f"If sbatch refuses jobs, set slurm_account in {PROFILE}"
        return warning(name, f"your accounts are not known: {facts.sacctmgr.last_line}", remedy)
    is_enforced = "associations" in facts.setting("AccountingStorageEnforce")
    accounts = list(dict.fromkeys(facts.sacctmgr.text.split()))
    if not accounts and is_enforced:
        return failed(name, "you have none, and jobs need one", "Ask the site for an account")
    if wanted and wanted.lower() not in map(str.lower, accounts):
        finding = f"slurm_account is {wanted}, which is none of yours ({few_of(accounts) or 'you have none'})"
        return (failed if is_enforced else warning)(name, finding, f"Name one of those in {PROFILE}")
    if not wanted and len(accounts) > 1:
        return warning(
            name, f"you have {few_of(accounts)}; Slurm takes its default", f"Set slurm_account in {PROFILE} if another is to pay"
        )
    return ok(name, wanted or (f"{accounts[0]}, which Slurm takes for you" if accounts else "none needed"))


def check_kill_wait(facts: SlurmFacts) -> CheckResult:
    """Check whether KillWait gives an agent enough time to end the agent's children before Slurm kills the agent."""
    name, wait_s = "KillWait", facts.seconds_of("KillWait")
    if wait_s is None:
        remedy = f"If files are left on nodes after scancel, ask the site for at least {LEAST_KILL_WAIT_S} s"
        return warning(name, "Slurm does not say", remedy)
    finding = f"{wait_s} s from Slurm's SIGTERM to its SIGKILL"
    if wait_s < LEAST_KILL_WAIT_S:
        remedy = f"After scancel, files may be left on nodes until the next job there; ask the site for at least {LEAST_KILL_WAIT_S} s"
        return warning(name, finding, remedy)
    return ok(name, finding)


def check_min_job_age(facts: SlurmFacts) -> CheckResult:
    """Check whether Slurm still remembers how a job ended when Snakemake asks for the state of the job."""
    name, age_s = "MinJobAge", facts.seconds_of("MinJobAge")
    finding = "Slurm does not say" if age_s is None else f"Slurm forgets jobs {age_s} s after their end"
    if facts.answers_about_jobs:
        return ok(name, f"{finding}, accounting does not")
    if age_s is not None and age_s > LONGEST_POLL_S:
        return ok(name, finding)
    remedy = "A job that was killed may be told as failed without the reason: look into logs/slurm"
    return warning(name, f"{finding}, and there is no accounting", remedy)


def check_project_disk(facts: SlurmFacts) -> CheckResult:
    """Check how much the user may still write to the project's folder.

    The check uses the free space of the disk. Where a program prints the user's quota, the check also uses this quota.
    """
    name, folder, quota = "project's disk", facts.project_dir, facts.quota
    disk = os.statvfs(folder)
    free_gb, free_files = disk.f_bavail * disk.f_frsize / 1e9, disk.f_favail if disk.f_files else None
    limited_by = "free on the disk"
    # `quota` and `lfs quota` print the same fields: used KB, quota in KB, limit in KB and grace time, and then the number of files, the quota of files and the
    # limit of files. 0 means that there is no limit. A star marks a number that is greater than the limit.
    pattern = r"\s(\d+)\*?\s+(\d+)\s+(\d+)\s+\S+\s+(\d+)\*?\s+(\d+)\s+(\d+)\s"
    if quota.exit_code == 0 and (match := re.search(pattern, f"{quota.text} ")):
        used_kb, soft_kb, hard_kb, used_files, soft_files, hard_files = map(int, match.groups())
        if limit_kb := soft_kb or hard_kb:
            free_gb, limited_by = min(free_gb, (limit_kb - used_kb) * 1024 / 1e9), "free by quota and disk"
        if limit_files := soft_files or hard_files:
            free_files = min(limit_files - used_files, free_files if free_files is not None else limit_files)
    files = "" if free_files is None else f" and {free_files} files"
    finding = f"{free_gb:.1f} GB{files} {limited_by} ({filesystem_type(folder)})"
    if free_gb < LEAST_FREE_GB or (free_files is not None and free_files < LEAST_FREE_FILES):
        return warning(name, finding, "Free some space, or move results_dir, state_dir and resources_dir of the config to a larger disk")
    return ok(name, finding)


SLURM_CHECKS: tuple[Callable[[SlurmFacts], CheckResult], ...] = (
    check_version,
    check_accounting,
    check_account,
    check_kill_wait,
    check_min_job_age,
    check_project_disk,
)

# ---------------------------------------------------------------------------------------------------------------- the sweeps


def dry_run_command(allocation: AllocationConfig, resources: Mapping[str, str]) -> list[str]:
    """Return the command that asks Slurm whether Slurm would accept the job of a sweep, without submitting the job.

    The command makes the same request as Snakemake's Slurm plugin. `allocation` is the allocation that the sweep asks for. `resources` are the
    resources that the Snakemake profile sets.
    """
    partitions = {"slurm_partition": ",".join(allocation.partitions)} if allocation.partitions else {}
    resources = {**resources, **partitions}
    return [
        *("sbatch", "--test-only", f"--nodes={allocation.nodes}", f"--ntasks={allocation.nodes}"),
        f"--cpus-per-task={allocation.cpus_per_node}",
        f"--mem={allocation.mem_mb_per_node}",
        f"--time={minutes(allocation.runtime)}",
        *(f"--{option}={resources[key]}" for key, option in SBATCH_OPTIONS.items() if resources.get(key)),
        *slurm_extra_of_sweep(allocation).split(),
        "--wrap=true",
    ]


def check_sweep(
    sweep: str, allocation: AllocationConfig, resources: Mapping[str, str], answer: ProgramOutput, nodes_out: ProgramOutput
) -> CheckResult:
    """Check whether Slurm would accept the job of a sweep.

    `answer` is the output of the command that `dry_run_command` returns. `nodes_out` is the output of `sinfo`, which lists the nodes that are out of service.
    """
    name, runtime_min = f"sweep {sweep}", minutes(allocation.runtime)
    gpus = f", {allocation.gpus_per_node} GPUs" if allocation.gpus_per_node else ""
    request = f"{allocation.nodes} × ({allocation.cpus_per_node} CPUs{gpus}, {allocation.mem_mb_per_node} MB), {runtime_min} minutes"
    if answer.exit_code == 0:
        start = re.search(r"to start at (\S+)", answer.text)
        return ok(name, f"{request}: could start at {start[1]}" if start else request)
    if answer.exit_code is None:
        return failed(name, answer.text, "Run the same command again when Slurm answers")
    reason = re.sub(r"^(sbatch: (error: )?|allocation failure: )+", "", answer.last_line)
    out = f"; out of service: {'; '.join(nodes_out.text.splitlines()[:4])}" if nodes_out.exit_code == 0 and nodes_out.text else ""
    requested = {
        "nodes": allocation.nodes,
        "mem_mb": allocation.mem_mb_per_node,
        "_cores": allocation.cpus_per_node,
        "runtime": runtime_min,
        "partitions": ",".join(allocation.partitions),
    }
    advice = RuleJob("run_sweep", sweep, resources={**requested, **resources}).advice_for(reason)
    return failed(name, f"{request}: Slurm says {reason!r}{out}", advice + (", or wait for nodes to return" if out else ""))


def check_slurm(allocations: Mapping[str, AllocationConfig], resources: Mapping[str, str], project_dir: Path) -> tuple[CheckResult, ...]:
    """Return the results of all checks of this module.

    `allocations` maps the name of each sweep to the allocation that the sweep asks for. `resources` are the resources that the Snakemake profile sets.
    Raises RaysweepError where there is no Slurm, or where Slurm does not answer.
    """
    facts = SlurmFacts.gather(resources.get("slurm_account", ""), project_dir)
    nodes_out = run_program("sinfo", "--list-reasons", "--noheader", "--format=%n (%T, %E)")
    return (
        *(check(facts) for check in SLURM_CHECKS),
        *(
            check_sweep(sweep, allocation, resources, run_program(*dry_run_command(allocation, resources)), nodes_out)
            for sweep, allocation in allocations.items()
        ),
    )
