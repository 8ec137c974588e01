"""Reports of made-up nodes."""

from __future__ import annotations

from pathlib import Path

from raysweep.cluster.check.node_checks import NodeFacts
from raysweep.cluster.check.node_report import GpuCounts, LocalDisk, NodeReport, NodeResources, PythonStatus, SocketAddress
from raysweep.cluster.check.probe import ProbedNode
from raysweep.slurm.allocation import Node

NODES = (Node("n1", 4, 1, 8000, "10.0.0.1"), Node("n2", 4, 1, 8000, "10.0.0.2"))
DISK = LocalDisk(Path("/scratch"), "xfs", free_mb=50_000, is_noexec=False, is_writable=True)
RESOURCES = NodeResources(
    local_disk=DISK,
    shm_free_mb=9000,
    object_store_mb=800,
    open_files_soft=1024,
    open_files_hard=4096,
    threads_left=None,
    gpus=GpuCounts(1, 1, "nvidia-smi lists 1"),
)
REPORT = NodeReport(0, RESOURCES, PythonStatus("3.11.7"), 0.0, SocketAddress("10.0.0.1", 5))
PROBED = ProbedNode(REPORT, seen_by_first_after_s=0.0, failed_connections={})
FACTS = NodeFacts(NODES[0], PROBED, environment_mb=0)
