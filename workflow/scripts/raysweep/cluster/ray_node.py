"""How Ray is started on a node: command line, environment, address, object store, GPUs, dashboard.

Ray's defaults harm other users: a default cluster listens on fixed ports, and runs code for anyone who can reach them. So Ray gets its ports from the
kernel, and asks for a token that only this job knows. Runs in the controller's Python, and imports nothing of Ray.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from raysweep.common.errors import WorldError
from raysweep.common.gpus import usable_gpus, visible_gpus
from raysweep.environment.manifest import Environment
from raysweep.slurm.allocation import Node, submit_host, without_slurm
from raysweep.usercode.target import SCRIPTS_DIR

# Only on this address do Ray's servers listen on the loopback and nowhere else. Ray replaces the address by an address that the network can reach, unless
# Ray believes that it runs on a system where there is only one node.
LOOPBACK = "127.0.0.1"
ONE_NODE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Ray's command line. Where grpc is installed, as many libraries have it, a head also serves remote clients, on a port that is the same for all heads of a
# machine. Ray refuses port 0 for that server, so Ray is made to believe that grpc is not installed. Seen in Ray 2.60.
RAY_COMMAND_LINE = "from ray.scripts import scripts; scripts.get_ray_client_dependency_error = lambda: ImportError(); scripts.main()"
ADDRESS_FILE = "ray_current_cluster"  # in Ray's folder: Ray writes it on each node, last of all
OBJECT_STORE_SHARE = 0.1
LEAST_OBJECT_STORE_MB = 100
SETTINGS_OF_THE_USER = ("RAY_", "TUNE_", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # prefixes of variables that do not reach our Ray


def ray_environment(folder: Path, num_nodes: int) -> dict[str, str]:
    """Return the environment of every Ray process: the user's, without settings of Ray and without Slurm's of the job step, and with ours."""
    kept = {key: value for key, value in without_slurm(dict(os.environ)).items() if not key.startswith(SETTINGS_OF_THE_USER)}
    if num_nodes == 1:
        kept |= ONE_NODE
    return kept | {
        "PYTHONPATH": str(SCRIPTS_DIR),
        "PYTHONUNBUFFERED": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without a GPU sees none
        "RAY_DEDUP_LOGS": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # else ending takes 30 s, and Slurm kills after 30
        "RAY_gcs_rpc_server_reconnect_timeout_s": "20",  # else the other nodes notice the loss of the head after 60 s
        "RAY_timeout_ms_task_wait_for_death_info": "30000",  # else a crash on a busy node passes for the loss of the node
        "RAY_prestart_worker_first_driver": "0",  # else a process for each CPU is started that no trial uses
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        # Where ray[default] is installed, Ray starts three servers of metrics. They ask nobody for a token, and two of them listen on ports that are the
        # same for all heads of a machine. One server can be turned off. The two others take 0 for a port of the kernel's choice, so they get a port
        # that does not exist.
        "RAY_enable_metrics_collection": "0",
        "AUTOSCALER_METRIC_PORT": "65536",
        "DASHBOARD_METRIC_PORT": "65536",
        "TMPDIR": str(folder / "tmp"),  # the files that trials leave in it go with the folder
    }


def object_store_mb(node: Node) -> int:
    """Return the size of Ray's object store in MB. Sweeps pass little through the store, and it must fit into /dev/shm."""
    wanted = wanted_object_store_mb(node.mem_mb)
    shm = Path("/dev/shm")
    # Where /dev/shm cannot even hold the least, Ray puts the object store into a file.
    return min(wanted, max(LEAST_OBJECT_STORE_MB, shutil.disk_usage(shm).free // 2**20 // 2)) if shm.is_dir() else wanted


def wanted_object_store_mb(mem_mb: int) -> int:
    """Return the size that the object store of a node with `mem_mb` of memory has where /dev/shm is large enough."""
    return max(LEAST_OBJECT_STORE_MB, int(mem_mb * OBJECT_STORE_SHARE))


def own_address(nodes: Sequence[Node], rank: int) -> str:
    """Return the address under which the other nodes reach this node: the address of the interface from which this node would reach them.

    The name of the node is no help, because many sites map the name to the loopback. Nothing is sent: connecting a UDP socket only asks the routes.
    Raises WorldError where no route leads to the other nodes.
    """
    if len(nodes) == 1:
        return LOOPBACK
    peer = nodes[1 if rank == 0 else 0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(peer.address), 9))
        except OSError as error:
            raise WorldError(f"{nodes[rank].name} finds no way to {peer.name} ({peer.address}): {error}") from None
        return str(probe.getsockname()[0])


def start_command(
    environment: Environment, node: Node, temp_dir: Path, address: str, head_address: str | None, dashboard_port: int | None
) -> list[str]:
    """Return the command that starts Ray on this node: Ray's head where `head_address` is None, else a node that joins the head there."""
    store_mb = object_store_mb(node)
    if head_address is not None:
        role = [f"--address={head_address}"]
    elif dashboard_port is None:
        role = ["--head", "--port=0", "--include-dashboard=false"]
    else:
        role = ["--head", "--port=0", "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]
    return environment.command(
        [
            *("-c", RAY_COMMAND_LINE, "start", "--block", *role),
            f"--node-ip-address={address}",
            f"--node-name={node.name}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--dashboard-agent-listen-port=0",
            "--disable-usage-stats",
            f"--num-cpus={node.cpus}",
            f"--num-gpus={node.gpus}",
            f"--memory={max(1, node.mem_mb - store_mb) * 2**20}",
            f"--object-store-memory={store_mb * 2**20}",
            f"--temp-dir={temp_dir}",
        ]
    )


def check_gpus(node: Node) -> None:
    """Raise WorldError when this node has fewer GPUs than Slurm counted for the job."""
    num_usable = usable_gpus()
    if num_usable < node.gpus:
        raise WorldError(
            f"Slurm gave {node.gpus} GPUs, but CUDA_VISIBLE_DEVICES names {num_usable}: tell the site, or ask for another gpu_type"
        )
    num_visible, description = visible_gpus()
    if num_visible < node.gpus:
        raise WorldError(
            f"Slurm gave {node.gpus} GPUs, but {description}: the node is broken, or it has no NVIDIA GPUs. Tell the site, or ask for another gpu_type"
        )


def free_port() -> int:
    """Return a port of the loopback that is free now; Ray takes another port where this one is taken meanwhile."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def how_to_open_dashboard(node: Node, port: int, path_to_token: Path, in_slurm: bool) -> str:
    """Return the commands that bring Ray's dashboard, which only this node can reach, to the user's own machine."""
    if not in_slurm:
        return f"http://127.0.0.1:{port} (it asks for the token in {path_to_token})"
    via = f"-J {submit_host()} " if submit_host() else ""
    return f"ssh {via}-L {port}:127.0.0.1:{port} {node.name}, then http://127.0.0.1:{port} (it asks for the token: ssh {via}{node.name} cat {path_to_token})"
