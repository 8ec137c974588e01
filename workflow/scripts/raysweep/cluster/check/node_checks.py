"""This module checks the reports of the nodes of the job (probe.py): the measurements of each node, and the connections between the nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raysweep.cluster.check.node_report import NodeReport
from raysweep.cluster.check.probe import ProbedNode, ProbeResult, probe_nodes
from raysweep.cluster.check.probe_node import SHARED_DEADLINE_S
from raysweep.cluster.check.table import CheckResult, failed, few_of, first_of, format_size, ok, warning, worst_of_nodes
from raysweep.cluster.ray_node import wanted_object_store_mb
from raysweep.environment.archive import ARCHIVE, UNPACKED_TO_PACKED
from raysweep.environment.manifest import Environment
from raysweep.slurm.allocation import Allocation, Node
from raysweep.slurm.explanations import PROFILE

# Number of threads that Ray needs on a node: NUM_THREADS, and NUM_THREADS_PER_CPU for each CPU. Ray 2.60 was measured: Ray's own processes on a node have
# 125 threads, and each worker has about 20 threads. torch starts more threads in each worker.
NUM_THREADS, NUM_THREADS_PER_CPU = 300, 40
LEAST_OPEN_FILES_SOFT = 1024  # lowest soft limit of open files that is enough for Ray's GCS and raylet
LEAST_OPEN_FILES_HARD = 4096  # lowest hard limit without a warning of Ray; drivers and workers raise their soft limit to the hard limit
MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")
NETWORK_FILESYSTEMS = (
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
SHARED_FOLDER_REMEDY = "The project's folder has to lie on a disk that all nodes and the login node share"
# Texts in srun's error lines that mean that the file of the controller's Python does not exist on a node.
MISSING_FILE_SIGNS = ("execve", "No such file")


@dataclass(frozen=True)
class NodeFacts:
    """Contains a node, the report of the node, and the disk space that a sweep needs on the node."""

    node: Node
    probed: ProbedNode
    environment_mb: float  # size of the environment that is unpacked to the node's disk; 0 where nothing is unpacked

    @property
    def report(self) -> NodeReport:
        return self.probed.report


# ---------------------------------------------------------------------------------------------------------------- each node


def check_shared_folder(facts: NodeFacts) -> CheckResult:
    """Check whether this node saw the file of the first node, and whether the first node saw the file of this node."""
    name, forth_s, back_s = "shared folder", facts.report.shared_file_seen_after_s, facts.probed.seen_by_first_after_s
    if forth_s is None or back_s is None:
        finding = "it does not see what the first node writes" if forth_s is None else "what it writes is not seen by the first node"
        return failed(name, f"{finding}, after {SHARED_DEADLINE_S} s", SHARED_FOLDER_REMEDY)
    latency_s = max(forth_s, back_s)
    if latency_s > SHARED_DEADLINE_S / 2:
        return warning(name, f"files are seen after {latency_s:.0f} s", f"Raise latency-wait in {PROFILE}")
    return ok(name, "files are seen at once" if latency_s < 1 else f"files are seen after {latency_s:.0f} s")


def check_python(facts: NodeFacts) -> CheckResult:
    """Check whether the Python that the node environment uses runs on the node."""
    name, python = "env.python", facts.report.python
    if python.error is not None:
        return failed(name, python.error.rstrip("."), "Change env.python or env.modules")
    return ok(name, f"Python {python.version}")


def check_compiler(facts: NodeFacts) -> CheckResult:
    """Check whether steps of trials that are trained together can be compiled on the node. Only trials on a CPU use a C++ compiler."""
    name, python = "C++ compiler", facts.report.python
    if python.error is not None:
        return warning(name, "not tried, since env.python does not run", "Mend that first")
    if python.reason_not_to_compile is not None:
        remedy = "Name a module with a compiler in env.modules, and an env.python with headers; else trials of a model run without compiled steps"
        return warning(name, python.reason_not_to_compile, remedy)
    return ok(name, "there is one, and Python's headers")


def check_local_disk(facts: NodeFacts) -> CheckResult:
    """Check the folder for temporary files on the node. Trials write to this folder, and the environment may be unpacked to this folder."""
    name, disk, needed_mb = "node-local disk", facts.report.resources.local_disk, facts.environment_mb
    finding = f"{disk.folder} ({disk.filesystem}), {format_size(disk.free_mb)} free"
    if not disk.is_writable:
        return failed(name, f"{disk.folder} cannot be written to", LOCAL_DIR_REMEDY)
    if needed_mb and disk.is_noexec:
        return failed(name, f"{finding}: nothing may be run from it (noexec)", LOCAL_DIR_REMEDY)
    if disk.free_mb < needed_mb:
        remedy = "Ask for nodes with more disk of their own, or set TMPDIR to a larger one"
        return failed(name, f"{finding}: the environment takes {format_size(needed_mb)}", remedy)
    if disk.filesystem in MEMORY_FILESYSTEMS:
        remedy = f"Raise mem_mb_per_node by {format_size(needed_mb)} and more. {LOCAL_DIR_REMEDY}"
        return warning(name, f"{finding}: in memory, so what lies there counts as the job's", remedy)
    if disk.filesystem.startswith(NETWORK_FILESYSTEMS):
        return warning(name, f"{finding}: not the node's own, so Python starts slowly", LOCAL_DIR_REMEDY)
    return ok(name, finding)


def check_shared_memory(facts: NodeFacts) -> CheckResult:
    """Check whether Ray's object store fits into /dev/shm."""
    name, free_mb, store_mb = "/dev/shm", facts.report.resources.shm_free_mb, facts.report.resources.object_store_mb
    wanted_mb = wanted_object_store_mb(facts.node.mem_mb)
    if free_mb is None or free_mb < store_mb:
        free = "there is none" if free_mb is None else f"{format_size(free_mb)} free"
        remedy = f"Ask the site for {format_size(2 * wanted_mb)} of /dev/shm"
        return warning(name, f"{free}: Ray's object store becomes a file, which is slow", remedy)
    if store_mb < wanted_mb:
        finding = f"{format_size(free_mb)} free: an object store of {format_size(store_mb)} instead of {format_size(wanted_mb)}"
        return warning(name, finding, "Enough unless trials pass large objects; else ask the site for more")
    return ok(name, f"{format_size(free_mb)} free for an object store of {format_size(store_mb)}")


def check_open_files(facts: NodeFacts) -> CheckResult:
    name, soft, hard = "open files", facts.report.resources.open_files_soft, facts.report.resources.open_files_hard
    finding = f"ulimit -n: {soft or 'no limit'}, at most {hard or 'no limit'}"
    if (soft is not None and soft < LEAST_OPEN_FILES_SOFT) or (hard is not None and hard < LEAST_OPEN_FILES_HARD):
        remedy = f"Start Snakemake after `ulimit -n {LEAST_OPEN_FILES_HARD}`, which Slurm carries to jobs, or ask the site for it"
        return warning(name, finding, remedy)
    return ok(name, finding)


def check_threads(facts: NodeFacts) -> CheckResult:
    """Check whether this user may start enough threads for Ray's own processes and for one Ray worker on each CPU."""
    name, left, cpus = "threads", facts.report.resources.threads_left, facts.node.cpus
    if left is None:
        return ok(name, "no limit")
    needed = NUM_THREADS + NUM_THREADS_PER_CPU * cpus
    if left < needed:
        remedy = f"Raise `ulimit -u` where Snakemake is started, ask the site for it, or ask for fewer CPUs; Ray on {cpus} CPUs takes about {needed}"
        return warning(name, f"{left} more may be started", remedy)
    return ok(name, f"{left} more may be started")


def check_gpus(facts: NodeFacts) -> CheckResult:
    """Check whether the environment variables name, and the vendor's program lists, all GPUs that Slurm gave to the job on this node."""
    name, given, gpus, remedy = "GPUs", facts.node.gpus, facts.report.resources.gpus, "Tell the site, or ask for another gpu_type"
    if gpus is None:
        return ok(name, f"{given} given")
    if gpus.num_named < given:
        return failed(name, f"{given} given, but variables such as CUDA_VISIBLE_DEVICES name {gpus.num_named}", remedy)
    if gpus.num_listed < given:
        return failed(name, f"{given} given, but {gpus.description}", remedy)
    return ok(name, f"{given} given, {gpus.description}")


NodeCheck = Callable[[NodeFacts], CheckResult]
NODE_CHECKS: tuple[NodeCheck, ...] = (
    check_shared_folder,
    check_python,
    check_local_disk,
    check_shared_memory,
    check_open_files,
    check_threads,
)
GPU_CHECKS: tuple[NodeCheck, ...] = (check_gpus,)  # checks that run only where a node of the job has GPUs
CPU_CHECKS: tuple[NodeCheck, ...] = (check_compiler,)  # checks that run only where no node of the job has GPUs

# ---------------------------------------------------------------------------------------------------------------- all nodes


def check_nodes_answer(nodes: Sequence[Node], probe: ProbeResult) -> CheckResult:
    """Check whether the controller's Python ran on each node."""
    name = "nodes"
    if not (silent := [node.name for node in nodes if node.name not in probe.nodes]):
        return ok(name, f"srun runs the controller's Python on {few_of([node.name for node in nodes])}")
    is_missing_file = any(sign in probe.errors for sign in MISSING_FILE_SIGNS)
    remedy = SHARED_FOLDER_REMEDY if is_missing_file else "Have the site look at them, or leave them out (sbatch's --exclude)"
    return failed(name, f"{few_of(silent)}: no answer: {probe.errors or 'srun says nothing'}", remedy)


def check_connections(nodes: Sequence[Node], probe: ProbeResult) -> CheckResult:
    """Check whether each node that has sent a report can connect to the other nodes, through the addresses that Ray uses."""
    name, remedy = "TCP", "Ask the site to open the ports above 1024 between the nodes of a job"
    without_address = [f"{node}: {probed.report.address_error}" for node, probed in probe.nodes.items() if probed.report.address is None]
    if without_address:
        return failed(name, "; ".join(without_address[:3]), remedy)
    pairs = [
        f"{node} → {nodes[int(rank)].name}: {reason}"
        for node, probed in probe.nodes.items()
        for rank, reason in (probed.failed_connections or {}).items()
    ]
    if pairs:
        return failed(name, first_of(pairs, "pairs"), remedy)
    if silent := [node for node, probed in probe.nodes.items() if probed.failed_connections is None]:
        return failed(name, f"{few_of(silent)}: no answer", remedy)
    return ok(name, "each node reaches each other" if len(nodes) > 1 else "one node: the loopback is enough")


def unpacked_mb(environment: Environment, env_dir: Path, cache_dir: Path | None) -> float:
    """Return the size in MB of the environment that is unpacked to the private folder of an agent, or 0 where nothing is unpacked."""
    if environment.wheels == "none" or cache_dir is not None:
        return 0.0
    return (env_dir / ARCHIVE).stat().st_size * UNPACKED_TO_PACKED / 2**20


def check_nodes(
    allocation: Allocation, environment: Environment, env_dir: Path, shared_dir: Path, cache_dir: Path | None
) -> tuple[CheckResult, ...]:
    """Return the results of all checks of this module. `shared_dir` is a new folder in the project's folder, for the files of the nodes."""
    probe = probe_nodes(allocation, env_dir, shared_dir)
    environment_mb = unpacked_mb(environment, env_dir, cache_dir)
    facts = [NodeFacts(node, probe.nodes[node.name], environment_mb) for node in allocation.nodes if node.name in probe.nodes]
    if not facts:
        return (check_nodes_answer(allocation.nodes, probe),)
    checks = NODE_CHECKS + (GPU_CHECKS if any(each.node.gpus for each in facts) else CPU_CHECKS)
    return (
        check_nodes_answer(allocation.nodes, probe),
        *(worst_of_nodes({each.node.name: check(each) for each in facts}) for check in checks),
        check_connections(allocation.nodes, probe),
    )
