"""What `snakemake check_cluster` does: a new cluster is looked at before a sweep meets its faults, and each check says what to do.

First what Slurm says where Snakemake runs; where that rules a sweep out, no job is submitted. Then one job of the shape of the largest sweep:
each node is looked at (probe.py), and a Ray cluster is brought up as for a sweep.
"""

from __future__ import annotations

import datetime
import getpass
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from raysweep.cluster import launcher
from raysweep.cluster.agent import GRACE_S, LEAST_OBJECT_STORE_MB, OBJECT_STORE_SHARE
from raysweep.cluster.job import CheckJob
from raysweep.cluster.probe import SHARED_DEADLINE_S, Facts, probe, type_of_disk
from raysweep.common.durations import minutes
from raysweep.common.errors import RaysweepError
from raysweep.common.files import written_aside
from raysweep.config.model import AllocationConfig
from raysweep.environment.archive import ARCHIVE, UNPACKED_TO_PACKED, pack
from raysweep.environment.manifest import Environment
from raysweep.slurm.allocation import Allocation, Node
from raysweep.slurm.commands import slurm_extra
from raysweep.slurm.explanations import PROFILE, RuleJob

logger = logging.getLogger("raysweep")

COLUMNS = 100
ASK_DEADLINE_S = 30
STATES = ("ok", "warning", "FAILED")  # from good to bad

LEAST_SLURM = (22, 5)  # before, srun shared out CPUs and exclusive use of them differently
LEAST_KILL_WAIT_S = 2 * GRACE_S + 4  # an agent gives its children, and then theirs, GRACE_S each
LONGEST_POLL_S = 180  # of the plugin
# Measured with Ray 2.60: its own processes on a node have 125 threads, each worker about 20, and torch brings some.
THREADS, THREADS_PER_CPU = 300, 40
LEAST_OPEN_FILES, LEAST_OPEN_FILES_AT_MOST = (
    1024,
    4096,
)  # Ray's GCS and raylet keep the first limit; drivers and workers take the second, and Ray warns below this
LEAST_FREE_GB, LEAST_FREE_FILES = 5, 10_000  # for records, checkpoints and models
NETWORK_DISKS = (
    "nfs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "cifs",
    "smb",
    "afs",
    "panfs",
    "pvfs2",
    "wekafs",
    "glusterfs",
    "fuse.glusterfs",
    "fuse.sshfs",
)
LOCAL_DIR_REMEDY = "Ask the site for a folder on the nodes' own disks, and set TMPDIR to it where Snakemake is started"


@dataclass(frozen=True)
class Check:
    """One line of the table: what was found, and what to do about it where it is not ok."""

    name: str
    state: str
    found: str
    remedy: str = ""


def ok(name: str, found: str) -> Check:
    return Check(name, "ok", found)


def warning(name: str, found: str, remedy: str) -> Check:
    return Check(name, "warning", found, remedy)


def failed(name: str, found: str, remedy: str) -> Check:
    return Check(name, "FAILED", found, remedy)


def table(checks: Iterable[Check]) -> list[str]:
    """The checks as lines of at most COLUMNS; what to do stands below what was found."""
    lines = []
    for check in checks:
        for number, text in enumerate(filter(None, (check.found, check.remedy and f"→ {check.remedy}."))):
            first = "" if number else f"{check.state:<8} {check.name:<18} "
            lines += textwrap.wrap(
                text, COLUMNS, initial_indent=first or " " * 28, subsequent_indent=" " * (28 + 2 * number), break_on_hyphens=False
            )
    return lines


def over_nodes(checks: dict[str, Check]) -> Check:
    """One check of what was found on each node: the worst, with the nodes that it is true of."""
    worst = max((check.state for check in checks.values()), key=STATES.index)
    nodes_of: dict[str, list[str]] = {}
    for node, check in checks.items():
        if check.state == worst:
            nodes_of.setdefault(check.found, []).append(node)
    first = next(check for check in checks.values() if check.state == worst)
    if len(nodes_of) == 1 and len(nodes_of[first.found]) == len(checks):
        return first
    parts = [f"{some(nodes)}: {found}" for found, nodes in nodes_of.items()]
    rest = len(parts) - 3
    return Check(first.name, worst, "; ".join(parts[:3]) + (f"; {rest} other findings" if rest > 0 else ""), first.remedy)


def some(names: list[str]) -> str:
    """A few of many names."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} others" if len(names) > 4 else "")


def size(mb: float) -> str:
    return f"{mb / 1000:.1f} GB" if mb >= 1000 else f"{mb:.0f} MB"


# ---------------------------------------------------------------------------------------------------------------- where Snakemake runs


@dataclass(frozen=True)
class Answer:
    """What a program said: its exit code, None where it does not answer, and its words."""

    code: int | None
    text: str


def ask(*argv: str) -> Answer:
    """Run a program that may hang, or not be there."""
    try:
        run = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False, timeout=ASK_DEADLINE_S
        )
    except subprocess.TimeoutExpired:
        return Answer(None, f"{argv[0]} does not answer within {ASK_DEADLINE_S} s")
    except OSError as error:
        return Answer(None, f"{argv[0]} cannot be run: {error.strerror}")
    return Answer(run.returncode, (run.stdout + run.stderr).strip())


def slurm_version(said: str) -> Check:
    """`said` by scontrol --version, such as `slurm-wlm 22.05.8`."""
    name, found = "Slurm", re.search(r"(\d+)\.(\d+)\S*", said)
    if found is None:
        return warning(name, f"its version cannot be told from {said!r}", "If a job does not start, report this")
    if (int(found[1]), int(found[2])) < LEAST_SLURM:
        return warning(name, found[0], "Only 22.05 and newer are tried: run a small sweep on two nodes first")
    return ok(name, found[0])


def setting(config: str, key: str) -> str:
    """The value of a key in what `scontrol show config` prints; nothing where it is not there."""
    found = re.search(rf"^{key}\s*= (.*)$", config, re.MULTILINE)
    return found[1].strip() if found else ""


def seconds_of(config: str, key: str) -> int | None:
    found = re.match(r"\d+", setting(config, key))
    return int(found[0]) if found else None


def kill_wait(config: str) -> Check:
    name, wait_s = "KillWait", seconds_of(config, "KillWait")
    if wait_s is None:
        return warning(
            name, "Slurm does not say", f"If files are left on nodes after scancel, ask the site for at least {LEAST_KILL_WAIT_S} s"
        )
    if wait_s < LEAST_KILL_WAIT_S:
        remedy = f"After scancel, files may be left on nodes until the next job there; ask the site for at least {LEAST_KILL_WAIT_S} s"
        return warning(name, f"{wait_s} s from Slurm's SIGTERM to its SIGKILL", remedy)
    return ok(name, f"{wait_s} s from Slurm's SIGTERM to its SIGKILL")


def min_job_age(config: str, accounts_jobs: bool) -> Check:
    """Whether Slurm still knows how a job ended when Snakemake asks."""
    name, age_s = "MinJobAge", seconds_of(config, "MinJobAge")
    text = "Slurm does not say" if age_s is None else f"Slurm forgets jobs {age_s} s after their end"
    if accounts_jobs or (age_s is not None and age_s > LONGEST_POLL_S):
        return ok(name, text + (", accounting does not" if accounts_jobs else ""))
    return warning(
        name, f"{text}, and there is no accounting", "A job that was killed may be told as failed without the reason: look into logs/slurm"
    )


def accounting(config: str, sacct: Answer) -> Check:
    name, kind = "accounting", setting(config, "AccountingStorageType")
    if kind.rpartition("/")[2] in ("", "none", "(null)"):
        return ok(name, "none, and none is needed")
    if sacct.code != 0:
        return warning(name, f"{kind}, but sacct fails: {last_line(sacct.text)}", "Jobs run without it; tell the site")
    return ok(name, "sacct answers")


def account(config: str, sacctmgr: Answer, wanted: str) -> Check:
    """`sacctmgr` says one account of the user's a line; `wanted` is slurm_account."""
    name = "account"
    if setting(config, "AccountingStorageType").rpartition("/")[2] in ("", "none", "(null)"):
        if wanted:
            return failed(
                name, f"slurm_account is {wanted}, but this Slurm keeps no accounts", f"Set slurm_account to an empty text in {PROFILE}"
            )
        return ok(name, "this Slurm keeps no accounts")
    if sacctmgr.code != 0:
        return warning(
            name, f"your accounts are not known: {last_line(sacctmgr.text)}", f"If sbatch refuses jobs, set slurm_account in {PROFILE}"
        )
    enforced = "associations" in setting(config, "AccountingStorageEnforce")
    yours = list(dict.fromkeys(sacctmgr.text.split()))
    if not yours and enforced:
        return failed(name, "you have none, and jobs need one", "Ask the site for an account")
    if wanted and wanted.lower() not in map(str.lower, yours):
        worse = failed if enforced else warning
        return worse(
            name, f"slurm_account is {wanted}, which is none of yours ({some(yours) or 'you have none'})", f"Name one of those in {PROFILE}"
        )
    if not wanted and len(yours) > 1:
        return warning(name, f"you have {some(yours)}; Slurm takes its default", f"Set slurm_account in {PROFILE} if another is to pay")
    return ok(name, wanted or (f"{yours[0]}, which Slurm takes for you" if yours else "none needed"))


def sweep_fits(name: str, allocation: AllocationConfig, answer: Answer, reasons: Answer, resources: dict[str, str]) -> Check:
    """Whether Slurm would take the job of a sweep, by the `answer` of `sbatch --test-only`. `reasons`: why nodes are out of service."""
    title = f"sweep {name}"
    gpus = f", {allocation.gpus_per_node} GPUs" if allocation.gpus_per_node else ""
    each = f"{allocation.nodes} × ({allocation.cpus_per_node} CPUs{gpus}, {allocation.mem_mb_per_node} MB), {minutes(allocation.runtime)} minutes"
    if answer.code == 0:
        start = re.search(r"to start at (\S+)", answer.text)
        return ok(title, f"{each}: could start at {start[1]}" if start else each)
    if answer.code is None:
        return failed(title, answer.text, "Run the same command again when Slurm answers")
    said = re.sub(r"^(sbatch: (error: )?|allocation failure: )+", "", last_line(answer.text))
    out = f"; out of service: {'; '.join(reasons.text.splitlines()[:4])}" if reasons.code == 0 and reasons.text else ""
    now = {
        "nodes": allocation.nodes,
        "mem_mb": allocation.mem_mb_per_node,
        "_cores": allocation.cpus_per_node,
        "runtime": minutes(allocation.runtime),
    }
    advice = RuleJob("run_sweep", name, resources=now | resources).advice_for(said)
    return failed(title, f"{each}: Slurm says {said!r}{out}", advice + (", or wait for nodes to return" if out else ""))


def test_only(allocation: AllocationConfig, resources: dict[str, str]) -> list[str]:
    """How to ask Slurm whether it would take the job of a sweep: as the plugin asks for it, without submitting it."""
    options = {"slurm_account": "account", "slurm_partition": "partition", "qos": "qos", "constraint": "constraint"}
    return [
        *("sbatch", "--test-only", f"--nodes={allocation.nodes}", f"--ntasks={allocation.nodes}"),
        *(
            f"--cpus-per-task={allocation.cpus_per_node}",
            f"--mem={allocation.mem_mb_per_node}",
            f"--time={minutes(allocation.runtime)}",
        ),
        *(f"--{option}={resources[key]}" for key, option in options.items() if resources.get(key)),
        *slurm_extra(allocation, allocation.runtime).split(),
        "--wrap=true",
    ]


def room(folder: Path, quota: Answer) -> Check:
    """How much the user may still write into the project's folder, by his quota where `quota` or `lfs quota` tells it, and by the disk."""
    name, disk = "project's disk", os.statvfs(folder)
    free_gb, free_files = disk.f_bavail * disk.f_frsize / 1e9, disk.f_favail if disk.f_files else None
    words = "free on the disk"
    # Both programs print KB used, quota, limit, grace, then the same of files; 0 is no limit, and a star marks what is over it.
    found = re.search(r"\s(\d+)\*?\s+(\d+)\s+(\d+)\s+\S+\s+(\d+)\*?\s+(\d+)\s+(\d+)\s", f"{quota.text} ") if quota.code == 0 else None
    if found:
        used_kb, soft_kb, hard_kb, used, soft, hard = map(int, found.groups())
        if limit_kb := soft_kb or hard_kb:
            free_gb, words = min(free_gb, (limit_kb - used_kb) * 1024 / 1e9), "free by quota and disk"
        if limit := soft or hard:
            free_files = min(limit - used, free_files if free_files is not None else limit)
    text = f"{free_gb:.1f} GB" + (f" and {free_files} files" if free_files is not None else "") + f" {words} ({type_of_disk(folder)})"
    if free_gb < LEAST_FREE_GB or (free_files is not None and free_files < LEAST_FREE_FILES):
        return warning(name, text, "Free some space, or move results_dir, state_dir and resources_dir of the config to a larger disk")
    return ok(name, text)


def ask_quota(folder: Path) -> Answer:
    """The quota of this user on the disk of a folder, where a program tells it."""
    if type_of_disk(folder) == "lustre":
        return ask("lfs", "quota", "-q", "-u", getpass.getuser(), str(folder))
    return ask("quota", "--no-wrap", "--raw-grace", f"--filesystem={folder}")


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it says nothing"


def check_login(allocations: dict[str, AllocationConfig], resources: dict[str, str], root: Path) -> list[Check]:
    """What Slurm says. `allocations`: those of the sweeps; `resources`: the profile's. Raises RaysweepError where there is no Slurm."""
    if shutil.which("sbatch") is None:
        raise RaysweepError("check_cluster: there is no sbatch here. Run it where Slurm's commands are, on a login node")
    answer = ask("scontrol", "show", "config")
    if answer.code != 0:
        raise RaysweepError(f"check_cluster: Slurm does not answer: {last_line(answer.text)}. Run the same command again when it does")
    config = answer.text
    sacct = ask("sacct", "--allocations", "--noheader", "--starttime=now")
    accounts = accounting(config, sacct)
    yours = ask("sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={getpass.getuser()}", "format=Account")
    reasons = ask("sinfo", "--list-reasons", "--noheader", "--format=%n (%T, %E)")
    return [
        slurm_version(ask("scontrol", "--version").text),
        accounts,
        account(config, yours, resources.get("slurm_account", "")),
        kill_wait(config),
        min_job_age(config, accounts.found == "sacct answers"),
        room(root, ask_quota(root)),
        *(
            sweep_fits(name, allocation, ask(*test_only(allocation, resources)), reasons, resources)
            for name, allocation in allocations.items()
        ),
    ]


# ---------------------------------------------------------------------------------------------------------------- on the nodes

SHARE = "The project's folder has to lie on a disk that all nodes and the login node share"


def nodes_answer(nodes: tuple[Node, ...], heard: dict[str, Facts], words: str) -> Check:
    """Whether the controller's Python ran on each node."""
    name, silent = "nodes", [node.name for node in nodes if "shared_s" not in heard.get(node.name, {})]
    if not silent:
        return ok(name, f"srun runs the controller's Python on {some([node.name for node in nodes])}")
    remedy = SHARE if "execve" in words or "No such file" in words else "Have the site look at them, or leave them out (sbatch's --exclude)"
    return failed(name, f"{some(silent)}: no answer: {words or 'srun says nothing'}", remedy)


def shared_folder(facts: Facts) -> Check:
    """Whether a node saw a file that the first node wrote, and the first node one of its."""
    name, there_s, back_s = "shared folder", facts["shared_s"], facts["seen_s"]
    if there_s is None or back_s is None:
        which = "it does not see what the first node writes" if there_s is None else "what it writes is not seen by the first node"
        return failed(name, f"{which}, after {SHARED_DEADLINE_S} s", SHARE)
    late_s = max(there_s, back_s)
    if late_s > SHARED_DEADLINE_S / 2:
        return warning(name, f"files are seen after {late_s:.0f} s", f"Raise latency-wait in {PROFILE}")
    return ok(name, "files are seen at once" if late_s < 1 else f"files are seen after {late_s:.0f} s")


def python(facts: Facts) -> Check:
    name, found = "env.python", facts["python"]
    if "wrong" in found:
        return failed(name, found["wrong"].rstrip("."), "Change env.python or env.modules")
    return ok(name, f"Python {found['version']}")


def gpus(facts: Facts, given: int) -> Check:
    """Whether the NVIDIA driver and Slurm's variable agree with what Slurm counted."""
    name, remedy = "GPUs", "Tell the site, or ask for another gpu_type"
    if facts["gpus_named"] < given:
        return failed(name, f"{given} given, but CUDA_VISIBLE_DEVICES names {facts['gpus_named']}", remedy)
    if facts["gpus_seen"] < given:
        return failed(name, f"{given} given, but {facts['gpus_said']}", remedy)
    return ok(name, f"{given} given, {facts['gpus_said']}")


def local_disk(facts: Facts, needed_mb: float) -> Check:
    """The folder on the node's own disk, to which the environment (`needed_mb`, 0 where it is not unpacked there) and trials write."""
    name, kind = "node-local disk", facts["local_type"]
    text = f"{facts['local_dir']} ({kind}), {size(facts['local_free_mb'])} free"
    if not facts["local_writable"]:
        return failed(name, f"{facts['local_dir']} cannot be written to", LOCAL_DIR_REMEDY)
    if needed_mb and facts["local_noexec"]:
        return failed(name, f"{text}: nothing may be run from it (noexec)", LOCAL_DIR_REMEDY)
    if facts["local_free_mb"] < needed_mb:
        return failed(
            name,
            f"{text}: the environment takes {size(needed_mb)}",
            "Ask for nodes with more disk of their own, or set TMPDIR to a larger one",
        )
    if kind in ("tmpfs", "ramfs"):
        return warning(
            name,
            f"{text}: in memory, so what lies there counts as the job's",
            f"Raise mem_mb_per_node by {size(needed_mb)} and more. {LOCAL_DIR_REMEDY}",
        )
    if kind.startswith(NETWORK_DISKS):
        return warning(name, f"{text}: not the node's own, so Python starts slowly", LOCAL_DIR_REMEDY)
    return ok(name, text)


def shared_memory(facts: Facts, mem_mb: int) -> Check:
    """Whether Ray's object store fits into /dev/shm."""
    name, free_mb, store_mb = "/dev/shm", facts["shm_free_mb"], facts["store_mb"]
    wanted_mb = max(LEAST_OBJECT_STORE_MB, int(mem_mb * OBJECT_STORE_SHARE))
    if free_mb is None or free_mb < store_mb:
        found = "there is none" if free_mb is None else f"{size(free_mb)} free"
        return warning(
            name, f"{found}: Ray's object store becomes a file, which is slow", f"Ask the site for {size(2 * wanted_mb)} of /dev/shm"
        )
    if store_mb < wanted_mb:
        remedy = "Enough unless trials pass large objects; else ask the site for more"
        return warning(name, f"{size(free_mb)} free: an object store of {size(store_mb)} instead of {size(wanted_mb)}", remedy)
    return ok(name, f"{size(free_mb)} free for an object store of {size(store_mb)}")


def open_files(facts: Facts) -> Check:
    name, (soft, hard) = "open files", facts["open_files"]
    text = f"ulimit -n: {soft or 'no limit'}, at most {hard or 'no limit'}"
    if (soft is not None and soft < LEAST_OPEN_FILES) or (hard is not None and hard < LEAST_OPEN_FILES_AT_MOST):
        return warning(
            name, text, f"Start Snakemake after `ulimit -n {LEAST_OPEN_FILES_AT_MOST}`, which Slurm carries to jobs, or ask the site for it"
        )
    return ok(name, text)


def threads(facts: Facts, cpus: int) -> Check:
    """Whether Ray may start a worker for each CPU."""
    name, left, needed = "threads", facts["threads"], THREADS + THREADS_PER_CPU * cpus
    if left is None:
        return ok(name, "no limit")
    if left < needed:
        remedy = f"Raise `ulimit -u` where Snakemake is started, ask the site for it, or ask for fewer CPUs; Ray on {cpus} CPUs takes about {needed}"
        return warning(name, f"{left} more may be started", remedy)
    return ok(name, f"{left} more may be started")


def connections(nodes: tuple[Node, ...], heard: dict[str, Facts]) -> Check:
    """Whether each node reaches each other one on the addresses that Ray uses."""
    name, remedy = "TCP", "Ask the site to open the ports above 1024 between the nodes of a job"
    if lost := {node: facts["no_address"] for node, facts in heard.items() if "no_address" in facts}:
        return failed(name, "; ".join(f"{node}: {why}" for node, why in list(lost.items())[:3]), remedy)
    pairs = [
        f"{node} → {nodes[int(rank)].name}: {why}" for node, facts in heard.items() for rank, why in facts.get("unreachable", {}).items()
    ]
    if pairs:
        return failed(name, "; ".join(pairs[:3]) + (f"; {len(pairs) - 3} other pairs" if len(pairs) > 3 else ""), remedy)
    if silent := [node for node, facts in heard.items() if "unreachable" not in facts]:
        return failed(name, f"{some(silent)}: no answer", remedy)
    return ok(name, "each node reaches each other" if len(nodes) > 1 else "one node: the loopback is enough")


def look_at_nodes(allocation: Allocation, environment: Environment, env_dir: Path, shared_dir: Path, cache_dir: str | None) -> list[Check]:
    """All checks but those that take a Ray cluster. `shared_dir` is a new folder in the project's."""
    heard, words = probe(allocation, env_dir, shared_dir)
    checks = [nodes_answer(allocation.nodes, heard, words)]
    unpacked = environment.wheels != "none" and cache_dir is None
    needed_mb = (env_dir / ARCHIVE).stat().st_size * UNPACKED_TO_PACKED / 2**20 if unpacked else 0.0
    answered = [node for node in allocation.nodes if "shared_s" in heard.get(node.name, {})]
    each: list[Callable[[Node, Facts], Check]] = [
        lambda node, facts: shared_folder(facts),
        lambda node, facts: python(facts),
        lambda node, facts: local_disk(facts, needed_mb),
        lambda node, facts: shared_memory(facts, node.mem_mb),
        lambda node, facts: open_files(facts),
        lambda node, facts: threads(facts, node.cpus),
    ]
    if any(node.gpus for node in answered):
        each.append(lambda node, facts: gpus(facts, node.gpus))
    if answered:
        checks += [over_nodes({node.name: judge(node, heard[node.name]) for node in answered}) for judge in each]
        checks.append(connections(allocation.nodes, {node.name: heard[node.name] for node in answered}))
    return checks


def environment_unpacks(environment: Environment, env_dir: Path, summary: str) -> Check:
    """By the `summary` of how Ray came up, see launcher.py."""
    name, took = "environment", re.search(r"environment ([\d.]+) s", summary)
    time = f"ready after {took[1]} s" if took else "ready"
    if environment.wheels == "none":
        return ok(name, f"{time}: that of env.python, as it is")
    return ok(name, f"{time}: {size((env_dir / ARCHIVE).stat().st_size / 1e6)} unpacked on each node")


def torch_computes(nodes: tuple[Node, ...], found: dict[str, Facts]) -> Check:
    """Whether torch computes on all GPUs of each node."""
    checks = {}
    for node in nodes:
        number, version = found[node.name]["gpus"], found[node.name]["torch"]
        remedy = "Choose a torch_backend that the driver of the nodes supports (`nvidia-smi` shows its CUDA version)"
        text = f"torch {version} computes on {number} of {node.gpus} GPUs"
        checks[node.name] = ok("torch", text) if number >= node.gpus else failed("torch", text, remedy)
    return over_nodes(checks)


def ray_comes_up(
    allocation: Allocation, environment: Environment, env_dir: Path, result: Path, path_to_log: Path, cache_dir: str | None
) -> list[Check]:
    """Bring a Ray cluster up as a sweep does, run a task on each node, and take it down. What tasks say goes to the file `result`."""
    name = "Ray cluster"
    with_torch = "torch" in environment.packages and any(node.gpus for node in allocation.nodes)
    job = CheckJob(result=result, has_torch=with_torch)
    try:
        code = launcher.run(allocation, env_dir, job, path_to_log, cache_dir=cache_dir)
    except RaysweepError as error:
        return [failed(name, str(error).rstrip("."), f"{path_to_log} has the details")]
    if code != 0:
        return [failed(name, f"the driver ended with exit code {code}", f"{path_to_log} says why")]
    summary = re.findall(r"Ray is up .*", path_to_log.read_text(errors="replace"))[-1].rstrip(".")
    found = json.loads(result.read_text())
    checks = [environment_unpacks(environment, env_dir, summary)]
    if wrong := {node: facts["wrong"] for node, facts in found.items() if "wrong" in facts}:
        text = "; ".join(f"{node}: {why}" for node, why in list(wrong.items())[:3])
        return [*checks, failed(name, f"a task does not run: {text}", f"{path_to_log} has the details")]
    checks.append(ok(name, f"{summary}; a task ran on each node"))
    return [*checks, torch_computes(allocation.nodes, found)] if with_torch else checks


def check_nodes(allocation: Allocation, env_dir: Path, work_dir: Path, path_to_log: Path, cache_dir: str | None) -> list[Check]:
    """All that is checked in the job. `work_dir` is a folder of the project for passing files."""
    pack(env_dir)
    environment = Environment.load(env_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=work_dir, ignore_cleanup_errors=True
    ) as folder:  # a network file system may keep what nodes had open
        shared_dir = Path(folder).absolute()
        checks = look_at_nodes(allocation, environment, env_dir, shared_dir, cache_dir)
        if wrong := [check.name for check in checks if check.state == "FAILED"]:
            return [*checks, warning("Ray cluster", f"not tried, since this has failed: {', '.join(wrong)}", "Mend that first")]
        return checks + ray_comes_up(allocation, environment, env_dir, shared_dir / "result.json", path_to_log, cache_dir)


# ---------------------------------------------------------------------------------------------------------------- the table


def write_checks(path: Path, title: str, checks: list[Check]) -> None:
    with written_aside(path) as stream:
        json.dump({"title": title, "checks": [asdict(check) for check in checks]}, stream)


def show(title: str, checks: list[Check]) -> None:
    logger.info("\n%s\n%s\n", title, "\n".join(table(checks)))


def refuse_failed(checks: list[Check], next_step: str) -> None:
    """Raise RaysweepError where a check has failed."""
    if wrong := [check.name for check in checks if check.state == "FAILED"]:
        raise RaysweepError(
            f"check_cluster: {len(wrong)} of {len(checks)} checks FAILED ({', '.join(wrong)}): the table above says what to do. {next_step}"
        )


def run_login(allocations: dict[str, AllocationConfig], resources: dict[str, str], output: Path) -> None:
    """The rule check_login. Where a check fails it says so at once: a job could wait for ever, or be in vain."""
    title = f"Slurm, {datetime.datetime.now().astimezone().isoformat(timespec='minutes')}"
    checks = check_login(allocations, resources, Path.cwd())
    if any(check.state == "FAILED" for check in checks):
        show(title, checks)
    refuse_failed(checks, "No job was submitted; then run the same command again")
    write_checks(output, title, checks)


def run_nodes(env_dir: Path, cache_dir: str | None, output: Path, path_to_log: Path) -> None:
    """The rule check_nodes, a job of Slurm."""
    allocation = Allocation.of_slurm()
    first = allocation.nodes[0]
    names = some([node.name for node in allocation.nodes])
    title = f"Job {allocation.job_id} on {names}: {first.cpus} CPUs, {first.gpus} GPUs, {first.mem_mb} MB each"
    write_checks(output, title, check_nodes(allocation, env_dir, output.parent, path_to_log, cache_dir))


def run_table(inputs: list[Path]) -> None:
    """The rule check_cluster."""
    everything: list[Check] = []
    for path in inputs:
        part = json.loads(path.read_text())
        path.unlink()  # so that it is not taken for new when it is asked for again, however this ends
        checks = [Check(**check) for check in part["checks"]]
        show(part["title"], checks)
        everything += checks
    refuse_failed(everything, "Then run the same command again")
    warnings = sum(check.state == "warning" for check in everything)
    logger.info("check_cluster: %d checks, %s.", len(everything), f"{warnings} warnings, nothing FAILED" if warnings else "all ok")
