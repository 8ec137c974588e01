"""This module defines how Ray is started on a node: command line, environment variables, address, object store, GPUs and dashboard.

Ray's defaults are dangerous on a machine with several users, because a default cluster listens on fixed ports, and runs code for anyone who can reach
these ports. Therefore Ray gets ports from the kernel, and asks for a token that only this job knows. The controller's Python runs this module, and the
module imports nothing from Ray.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from raysweep.cluster.children import tail_of
from raysweep.common.errors import WorldError
from raysweep.common.gpus import NVIDIA_SMI, REPLACED_VARIABLES, gpu_program, named_gpus, usable_gpus, visible_gpus, with_replaced_variables
from raysweep.common.machine import JOB_DEADLINE_RESOURCE, JOB_RESOURCE
from raysweep.environment.commands import last_line, run_captured
from raysweep.environment.manifest import LEAST_RAY, OLD_RAY, Environment
from raysweep.slurm.allocation import Node, submit_host, without_slurm
from raysweep.usercode.target import SCRIPTS_DIR
from raysweep.usercode.working_dir import TRIALS_DIR_ENV

# With this address, Ray's servers listen only on the loopback interface. By default, Ray replaces this address by an address that other machines can
# reach. The variable in ONE_NODE prevents the replacement, because Ray then believes that this operating system supports only clusters of one node.
LOOPBACK = "127.0.0.1"
ONE_NODE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Python code that ends with a message where Ray is too old, and otherwise runs Ray's command line without the server for remote clients. A head starts that
# server where grpc is installed, and many libraries install grpc. The server has the same port for all heads of a machine, and Ray refuses port 0 for the
# server. Therefore this code makes Ray believe that grpc is not installed. This behaviour was observed in Ray 2.60.
RAY_COMMAND_LINE = (
    f"import ray, sys; tuple(map(int, ray.__version__.split('.')[:2])) < {LEAST_RAY} and sys.exit(f'Ray {{ray.__version__}} {OLD_RAY}'); "
    "from ray.scripts import scripts; scripts.get_ray_client_dependency_error = lambda: ImportError(); scripts.main()"
)
# The same, but Ray does not start the process of the dashboard, for which the start would wait 2 s although nobody uses it. Ray also goes on without the
# process where the process cannot be started. This behaviour was observed in Ray 2.60.
WITHOUT_DASHBOARD = (
    f"from ray._private import services; services.start_api_server = lambda *args, **options: (None, None); {RAY_COMMAND_LINE}"
)
ADDRESS_FILE = "ray_current_cluster"  # file in Ray's folder, which Ray writes on each node as the last step of the start
# Ray's error messages for a start that takes longer than a time limit of Ray. The first limit, 30 s until the raylet has joined, is fixed in Ray 2.60. The
# second limit is GCS_START_S.
TIME_LIMIT_SIGNS = ("The current node timed out during startup", "Timed out waiting for file")
# Time limit in seconds of Ray's head for the start of the GCS. Each further start of Ray on a node doubles the limit. A busy node exceeds Ray's default of
# 30 s. A much longer limit would be wasted where a GCS never comes up, which happened in 3 of about 400 starts on two busy cores (Ray 2.60).
GCS_LIMIT_ENV = "RAY_gcs_server_port_wait_time_s"
GCS_START_S = 60
# Ray's line for one of Ray's processes that has ended, such as `raylet [exit code=-9]`. Seen in Ray 2.53 and 2.60.
ENDED_PROCESS = re.compile(r"\b(\w+) \[exit code=(-?\d+)")
LIKELY_CAUSE = {
    signal.SIGKILL: "as the kernel does when memory runs out. Ask for more memory (allocation.mem_mb_per_node), or for fewer trials at a time (max_concurrent)",
    signal.SIGTERM: "as `ray stop` does, which ends every Ray of yours on the machine. Do not use `ray stop` beside a sweep",
    signal.SIGBUS: "as happens where /dev/shm is full. Free space in /dev/shm",
}
OBJECT_STORE_SHARE = 0.1  # size of the object store as a fraction of the node's memory
LEAST_OBJECT_STORE_MB = 100
CODE_DIR = "code"  # name of the folder with the user's code, in the private folder of an agent
TRIALS_DIR = "trials"  # name of the folder with the trials' working directories, in the private folder of an agent
# Python code that prints the variable with which Ray shows a trial only the GPUs of the trial. Ray counts AMD's GPUs with the package amdsmi, and Intel's
# GPUs with dpctl. Without the package Ray takes all GPUs for NVIDIA's. This behaviour was observed in Ray 2.60.
ASK_FOR_GPU_VARIABLE = (
    "from ray._private import accelerators; "
    "print(accelerators.get_accelerator_manager_for_resource('GPU').get_visible_accelerator_ids_env_var())"
)
# Prefixes of environment variables that Ray does not inherit from the user.
SETTINGS_OF_THE_USER = ("RAY_", "TUNE_", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
# Snakemake sets these variables to the CPUs of the whole job. Where OMP_NUM_THREADS is not set, Ray sets it in each process to the CPUs of the trial or worker.
# A library reads OMP_NUM_THREADS only where the library's own variable is not set: NumPy's OpenBLAS, for example, reads OPENBLAS_NUM_THREADS first.
THREADS_OF_THE_JOB = (
    "OMP_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def ray_environment(folder: Path, *, is_alone: bool) -> dict[str, str]:
    """Return the environment variables of every Ray process.

    The result contains the user's variables, except the variables of Ray, Tune, Python and the Slurm job step and the numbers of threads, and adds the
    settings of this project. `is_alone` says that no other node is or will be in the Ray cluster.
    """
    left_out = SETTINGS_OF_THE_USER + THREADS_OF_THE_JOB
    kept = {key: value for key, value in without_slurm(dict(os.environ)).items() if not key.startswith(left_out)}
    kept = with_replaced_variables(kept)
    if is_alone:
        kept |= ONE_NODE
    return kept | {
        "PYTHONPATH": f"{SCRIPTS_DIR}{os.pathsep}{folder / CODE_DIR}",
        "RAYSWEEP_NODE_CODE": str(folder / CODE_DIR),
        TRIALS_DIR_ENV: str(folder / TRIALS_DIR),
        "PYTHONUNBUFFERED": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # hides all GPUs from a trial that has no GPU
        "RAY_DEDUP_LOGS": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # otherwise Ray takes 30 s to end, and Slurm sends SIGKILL 30 s after SIGTERM
        GCS_LIMIT_ENV: str(GCS_START_S),
        "RAY_gcs_rpc_server_reconnect_timeout_s": "20",  # otherwise the other nodes notice the loss of the head only after 60 s
        "RAY_timeout_ms_task_wait_for_death_info": "30000",  # otherwise Ray reports a crash on a busy node as the loss of the node
        "RAY_prestart_worker_first_driver": "0",  # otherwise Ray starts one process for each CPU, and no trial uses these processes
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # the working directory of a trial would lie in the state folder, without links to the user's files
        # Where ray[default] is installed, Ray starts two servers for metrics, which do not ask for a token. The first variable turns one server off. The
        # other server has the same port for all heads of a machine. Port 0 does not turn this server off, because a server with port 0 listens on any
        # free port. Therefore this server gets a port that does not exist.
        "RAY_enable_metrics_collection": "0",
        "DASHBOARD_METRIC_PORT": "65536",
        "TMPDIR": str(folder / "tmp"),  # the agent removes this folder at the end, with all temporary files of the trials
    }


def with_gpus_of(node: Node, environment: Environment, env: dict[str, str]) -> dict[str, str]:
    """Return the variables `env` of Ray's processes, where the GPUs of `node` are named only by the variable that Ray sets for each trial.

    On NVIDIA's GPUs this variable is CUDA_VISIBLE_DEVICES, so `env` does not change. AMD's GPUs obey HIP_VISIBLE_DEVICES, and CUDA_VISIBLE_DEVICES only
    where HIP_VISIBLE_DEVICES is not set. If Ray set another variable than the one that counts, all trials of the node would use the same GPU.

    Raises:
        WorldError: The node has several GPUs, and the GPUs ignore the variable that Ray sets.
    """
    program = gpu_program()
    if node.gpus == 0 or program.variables == NVIDIA_SMI.variables:
        return env
    gpus = named_gpus(program.variables, env) or [str(number) for number in range(node.gpus)]
    env = {key: value for key, value in env.items() if key not in program.variables or key in REPLACED_VARIABLES}
    run = run_captured(environment.command(["-c", ASK_FOR_GPU_VARIABLE]), env=env)
    variable = last_line(run.stdout if run.returncode == 0 else run.stderr)
    if variable not in program.variables and node.gpus > 1:
        raise WorldError(
            f"{node.name}: the GPUs that {program.name} lists do not obey what Ray sets for each trial ({variable}), so all trials would use one GPU."
            " Add dpctl (Intel) or amdsmi (AMD) to env.requirements, or ask for one GPU on each node (allocation.gpus_per_node: 1)"
        )
    return env | {variable if variable in program.variables else program.variables[0]: ",".join(gpus[: node.gpus])}


def object_store_mb(node: Node) -> int:
    """Return the size of Ray's object store in MB. The store is small, because sweeps store few objects, and because the store must fit into /dev/shm."""
    wanted = wanted_object_store_mb(node.mem_mb)
    shm = Path("/dev/shm")
    # Where /dev/shm is smaller than LEAST_OBJECT_STORE_MB, Ray puts the object store into a file.
    return min(wanted, max(LEAST_OBJECT_STORE_MB, shutil.disk_usage(shm).free // 2**20 // 2)) if shm.is_dir() else wanted


def wanted_object_store_mb(mem_mb: int) -> int:
    """Return the size of the object store in MB for a node with `mem_mb` MB of memory, where /dev/shm is large enough."""
    return max(LEAST_OBJECT_STORE_MB, int(mem_mb * OBJECT_STORE_SHARE))


def own_address(nodes: Sequence[Node], rank: int, peer: Node | None = None) -> str:
    """Return the IP address of the network interface through which the node `rank` of `nodes`, which is this machine, and the other nodes reach each other.

    `peer` is a node of another job. Where there is no other node, the address is the one of the loopback interface.

    The function does not look up the name of the node, because many sites map this name to the loopback address. Instead the function connects a UDP
    socket to another node. This sends no packet, and only asks the kernel for the route. Raises WorldError where no route leads to the other node.
    """
    if peer is None and len(nodes) == 1:
        return LOOPBACK
    peer = peer or nodes[1 if rank == 0 else 0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(peer.address), 9))
        except OSError as error:
            raise WorldError(f"{nodes[rank].name} finds no way to {peer.name} ({peer.address}): {error}") from None
        return str(probe.getsockname()[0])


def resources_of_job(job_id: str | None, job_deadline: float | None) -> dict[str, float]:
    """Return the resources of a Ray node that tell the driver to which Slurm job the node belongs, and after which time no trial may begin.

    Ray has no other place for such facts in all versions. No trial uses these resources.
    """
    resources = {} if job_id is None else {f"{JOB_RESOURCE}{job_id}": 1.0}
    return resources if job_deadline is None else resources | {JOB_DEADLINE_RESOURCE: job_deadline}


def start_command(
    environment: Environment,
    node: Node,
    temp_dir: Path,
    address: str,
    head_address: str | None,
    dashboard_port: int | None,
    resources: Mapping[str, float] = MappingProxyType({}),
) -> list[str]:
    """Return the command that starts Ray on this node.

    The command starts Ray's head where `head_address` is None. Otherwise the command starts a Ray node that joins the head at `head_address`. `resources`
    are the resources of the node beside CPUs, GPUs and memory.
    """
    store_mb = object_store_mb(node)
    command_line, role = WITHOUT_DASHBOARD, ["--head", "--port=0", "--no-monitor"]  # the monitor is the autoscaler, which has nothing to do
    if head_address is not None:
        role = [f"--address={head_address}"]
    elif dashboard_port is not None:
        command_line = RAY_COMMAND_LINE
        role += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]
    return environment.command(
        [
            *("-c", command_line, "start", "--block", *role),
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
            *([f"--resources={json.dumps(dict(resources))}"] if resources else []),
        ]
    )


def has_reached_time_limit(log: Path) -> bool:
    """Return whether the log of a start of Ray says that Ray ended the start because of a time limit of Ray."""
    text = log.read_text(errors="replace")
    return any(sign in text for sign in TIME_LIMIT_SIGNS)


def describe_end(ray_name: str, exit_code: int, log: Path) -> str:
    """Return a text that says which process of Ray has ended, which signal has ended the process, the likely cause, and what the user can do.

    `exit_code` is the exit code of the process `ray start`, which ends when another process of Ray ends. `log` contains the output of `ray start`.
    """
    ended = [(name, int(code)) for name, code in ENDED_PROCESS.findall(log.read_text(errors="replace"))]
    # The first process is the cause, unless a signal has ended another process, because a raylet ends when the GCS is gone.
    process, code = next((pair for pair in ended if pair[1] < 0), (*ended, ("ray start", exit_code))[0])
    if code < 0:
        number = signal.Signals(-code)
        end = f"was ended by signal {number} ({number.name}), {LIKELY_CAUSE.get(number, 'which is a fault of Ray or of the node')}"
    else:
        end = f"ended with exit code {code}, as happens after `ray stop`, which ends every Ray of yours on the machine, or where the disk is full"
        end += f" (Ray's last lines: {tail_of(log)})"
    return f"{ray_name} has ended, because its process {process} {end}. Run the same command again to go on"


def check_gpus(node: Node) -> None:
    """Raise WorldError when this job can use fewer GPUs on this node than Slurm gave to the job."""
    num_usable = usable_gpus()
    if num_usable < node.gpus:
        raise WorldError(
            f"Slurm gave {node.gpus} GPUs, but {' or '.join(gpu_program().variables)} names {num_usable}: tell the site, or ask for another gpu_type"
        )
    num_visible, description = visible_gpus()
    if num_visible < node.gpus:
        raise WorldError(
            f"Slurm gave {node.gpus} GPUs, but {description}: the node is broken, or it has no such GPUs. Tell the site, or ask for another gpu_type"
        )


def free_port() -> int:
    """Return a port of the loopback interface that is free now. Where another program takes the port before Ray starts, Ray chooses another port."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def how_to_open_dashboard(node: Node, port: int, path_to_token: Path, in_slurm: bool) -> str:
    """Return a text that says how the user opens Ray's dashboard.

    Only this node can reach the port of the dashboard. Therefore the text for a Slurm job contains a command for an SSH tunnel.
    """
    if not in_slurm:
        return f"http://127.0.0.1:{port} (it asks for the token in {path_to_token})"
    via = f"-J {submit_host()} " if submit_host() else ""
    return f"ssh {via}-L {port}:127.0.0.1:{port} {node.name}, then http://127.0.0.1:{port} (it asks for the token: ssh {via}{node.name} cat {path_to_token})"
