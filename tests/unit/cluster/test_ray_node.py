"""How Ray is started on a node. Ray itself is started in test_run_sweep.py."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from snakemake import shell

from raysweep.cluster import ray_node
from raysweep.cluster.ray_node import (
    ONE_NODE,
    check_gpus,
    describe_end,
    how_to_open_dashboard,
    own_address,
    ray_environment,
    start_command,
    with_gpus_of,
)
from raysweep.common.errors import WorldError
from raysweep.environment.manifest import Environment
from raysweep.slurm.allocation import Node
from typed import described_environment

ENVIRONMENT = described_environment()


def test_the_users_settings_of_ray_and_python_do_not_reach_our_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("MY_SETTING", "kept")
    env = ray_environment(tmp_path, is_alone=False)
    assert "RAY_ADDRESS" not in env
    assert (env["RAY_AUTH_MODE"], env["RAY_AUTH_TOKEN_PATH"]) == ("token", str(tmp_path / "token"))
    assert "elsewhere" not in env["PYTHONPATH"]
    assert env["MY_SETTING"] == "kept"


def test_a_trial_does_not_inherit_the_threads_of_the_whole_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/integration/test_examples.py checks the number that Ray sets in a trial."""
    of_snakemake = set(re.findall(r'envvars\["(\w+_THREADS)"\]', inspect.getsource(shell)))
    assert of_snakemake >= {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
    for name in of_snakemake:
        monkeypatch.setenv(name, "64")
    assert not of_snakemake & ray_environment(tmp_path, is_alone=True).keys()


def test_the_only_node_is_told_so_and_no_server_of_metrics_runs_that_asks_nobody_for_a_token(tmp_path: Path) -> None:
    """tests/integration/test_going_on.py and tests/slurm/ check the ports themselves."""
    one, two = ray_environment(tmp_path, is_alone=True), ray_environment(tmp_path, is_alone=False)
    assert one.items() - two.items() == ONE_NODE.items()
    assert two["RAY_enable_metrics_collection"] == "0"
    assert int(two["DASHBOARD_METRIC_PORT"]) == 65536, "the first port that does not exist"


def command(head_address: str | None = None, dashboard_port: int | None = None) -> set[str]:
    node = Node("n", cpus=3, gpus=2, mem_mb=4000)
    return set(start_command(ENVIRONMENT, node, Path("/tmp/x"), "10.0.0.2", head_address, dashboard_port))


def test_ray_gets_what_was_given_and_its_ports_from_the_kernel() -> None:
    from_kernel = {"--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"}
    assert {
        "--head",
        "--port=0",
        "--no-monitor",
        ray_node.WITHOUT_DASHBOARD,
        "--num-cpus=3",
        "--num-gpus=2",
        "--node-name=n",
    } | from_kernel <= command()
    worker = command(head_address="10.0.0.1:5")
    assert {"--address=10.0.0.1:5", "--num-cpus=3", "--node-ip-address=10.0.0.2"} | from_kernel <= worker
    assert not any(word.startswith(("--head", "--port", "--include-dashboard")) for word in worker)
    assert {ray_node.RAY_COMMAND_LINE, "--include-dashboard=true", "--dashboard-host=127.0.0.1", "--dashboard-port=8000"} <= command(
        dashboard_port=8000
    )
    store, memory = (
        int(next(word for word in command() if word.startswith(f"--{name}=")).split("=")[1]) for name in ("object-store-memory", "memory")
    )
    assert store + memory == 4000 * 2**20
    assert not any("token" in word for word in command())


@pytest.mark.slow
def test_ray_asks_by_the_name_that_is_replaced_whether_grpc_is_installed() -> None:
    from ray.scripts import scripts

    assert "get_ray_client_dependency_error()" in inspect.getsource(scripts.start.callback)
    assert f"scripts.{scripts.get_ray_client_dependency_error.__name__} = " in ray_node.RAY_COMMAND_LINE


@pytest.mark.slow
def test_ray_starts_its_dashboard_by_the_name_that_is_replaced_and_goes_on_without_it() -> None:
    from ray._private.node import Node as RayNode

    source = inspect.getsource(RayNode.start_api_server)
    assert "self._webui_url, process_info = ray._private.services.start_api_server(" in source
    assert "if process_info is not None:" in source


@pytest.mark.slow
def test_the_time_limits_of_rays_start_are_recognised_by_rays_own_words(tmp_path: Path) -> None:
    from ray import NodeID
    from ray._private.node import Node as RayNode
    from ray._raylet import wait_for_persisted_port

    fixed, of_gcs = ray_node.TIME_LIMIT_SIGNS
    source = inspect.getsource(RayNode)
    assert f'"{fixed}.' in source
    assert "raylet_start_wait_time_s = 30" in source, "if this becomes a setting, the workflow should set it"
    assert f'os.environ.get("{ray_node.GCS_LIMIT_ENV}", default_wait)' in source
    with pytest.raises(RuntimeError, match=f"^{of_gcs}"):
        wait_for_persisted_port(str(tmp_path), NodeID.from_random().hex(), "gcs_server", timeout_ms=1)


def test_the_only_node_keeps_to_the_loopback_and_several_nodes_to_the_route_between_them() -> None:
    one, other = Node("a", 1, 0, 1, "127.0.0.1"), Node("b", 1, 0, 1, "127.0.0.1")
    assert own_address([one], 0) == ray_node.LOOPBACK
    assert own_address([one, other], 1) == "127.0.0.1"
    with pytest.raises(WorldError, match=r"a finds no way to b \(no such host\.invalid\)"):
        own_address([one, dataclasses.replace(other, address="no such host.invalid")], 0)


def test_a_node_without_the_gpus_that_slurm_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node("n", cpus=1, gpus=2, mem_mb=1)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(WorldError, match="Slurm gave 2 GPUs, but CUDA_VISIBLE_DEVICES names 1"):
        check_gpus(node)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(WorldError, match="Slurm gave 2 GPUs, but there is no nvidia-smi, amd-smi, rocm-smi or xpu-smi"):
        check_gpus(node)


ROCM_SMI = "#!/bin/sh\nprintf 'GPU[0]\\t\\t: VRAM Total Memory (B): 1\\nGPU[1]\\t\\t: VRAM Total Memory (B): 1\\n'\n"
XPU_SMI = "#!/bin/sh\nprintf 'Device ID\\n0\\n1\\n'\n"
AMDSMI = """
AmdSmiInitFlags = type("AmdSmiInitFlags", (), {"INIT_AMD_GPUS": 0})
AmdSmiMemoryType = AmdSmiLibraryException = ImportError
amdsmi_init, amdsmi_shut_down, amdsmi_get_processor_handles = (lambda *flags: None), (lambda: None), (lambda: [0, 1])
"""


@pytest.fixture
def ray_here() -> Environment:
    """The environment of the tests, which has Ray."""
    return dataclasses.replace(described_environment(), python=Path(sys.executable), modules=(), container=None)


def with_program(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    monkeypatch.setenv("PATH", str(folder))
    for variable in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR"):
        monkeypatch.delenv(variable, raising=False)
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def variables_of_gpus(env: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in env.items() if key.endswith(("_VISIBLE_DEVICES", "_MASK", "_SELECTOR"))}


@pytest.mark.slow
def test_with_a_made_up_rocm_smi_the_gpus_have_the_variable_that_ray_sets_for_each_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_here: Environment
) -> None:
    """Where Ray set another variable than HIP_VISIBLE_DEVICES, which goes before CUDA_VISIBLE_DEVICES, all trials would use the first GPU."""
    with_program(tmp_path, monkeypatch, "rocm-smi", ROCM_SMI)
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "4,7")  # as Slurm does, with or without the variable of NVIDIA
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    node, env = Node("n", cpus=1, gpus=2, mem_mb=1), ray_environment(tmp_path, is_alone=True)
    check_gpus(node)
    assert variables_of_gpus(with_gpus_of(node, ray_here, env)) == {"CUDA_VISIBLE_DEVICES": "4,7"}, "without the package amdsmi"
    (tmp_path / "amdsmi.py").write_text(AMDSMI)
    with_amdsmi = env | {"PYTHONPATH": str(tmp_path)}
    assert variables_of_gpus(with_gpus_of(node, ray_here, with_amdsmi)) == {"HIP_VISIBLE_DEVICES": "4,7"}


@pytest.mark.slow
def test_with_a_made_up_xpu_smi_several_gpus_need_the_package_with_which_ray_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_here: Environment
) -> None:
    with_program(tmp_path, monkeypatch, "xpu-smi", XPU_SMI)
    monkeypatch.setenv("ONEAPI_DEVICE_SELECTOR", "level_zero:1,0")
    node, env = Node("n", cpus=1, gpus=2, mem_mb=1), ray_environment(tmp_path, is_alone=True)
    with pytest.raises(
        WorldError, match=r"xpu-smi lists do not obey .*\(CUDA_VISIBLE_DEVICES\), so all trials would use one GPU\. Add dpctl"
    ):
        with_gpus_of(node, ray_here, env)
    assert variables_of_gpus(with_gpus_of(dataclasses.replace(node, gpus=1), ray_here, env)) == {"ZE_AFFINITY_MASK": "1"}


def test_the_dashboard_is_reached_through_the_machine_from_which_the_job_was_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    node, token = Node("n1", 1, 0, 1), Path("/tmp/rs-1/token")
    monkeypatch.setenv("SLURM_SUBMIT_HOST", "login1")
    assert how_to_open_dashboard(node, 8000, token, in_slurm=False) == "http://127.0.0.1:8000 (it asks for the token in /tmp/rs-1/token)"
    assert how_to_open_dashboard(node, 8000, token, in_slurm=True).startswith("ssh -J login1 -L 8000:127.0.0.1:8000 n1, then http://")
    monkeypatch.delenv("SLURM_SUBMIT_HOST")
    assert how_to_open_dashboard(node, 8000, token, in_slurm=True).endswith("(it asks for the token: ssh n1 cat /tmp/rs-1/token)")


@pytest.mark.parametrize(
    ("version", "runs"),
    [
        ("2.49.2", False),
        ("2.52.1+site", False),
        ("1.13.0", False),
        ("2.53.0", True),
        ("2.53.0rc1", True),
        ("2.60.0", True),
        ("3.0.0.dev0", True),
    ],
)
def test_a_ray_that_does_not_ask_for_the_token_is_not_started(tmp_path: Path, version: str, runs: bool) -> None:
    (tmp_path / "ray/scripts").mkdir(parents=True)
    (tmp_path / "ray/__init__.py").write_text(f"__version__ = {version!r}")
    (tmp_path / "ray/scripts/__init__.py").touch()
    (tmp_path / "ray/scripts/scripts.py").write_text("def main(): print('started')")
    command = [sys.executable, "-c", ray_node.RAY_COMMAND_LINE]
    done = subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is runs
    assert done.stdout == ("started\n" if runs else "")
    assert runs or done.stderr == f"Ray {version} does not check which programs connect. The least version is 2.53\n"


OF_RAY = "2026-11-29 14:38:49,426 ERR scripts.py:1307 -- Some Ray subprocesses exited unexpectedly:\n"
AGAIN = "Run the same command again to go on"


@pytest.mark.parametrize(
    ("log", "exit_code", "process", "end"),
    [
        (f"{OF_RAY}  raylet [exit code=-9]\n--- END raylet.out (exit code(s)=-9) ---", 1, "raylet", "was ended by signal 9 (SIGKILL), as the kernel does"),
        (f"{OF_RAY}  raylet [exit code=1]\n  gcs_server [exit code=-9 (signal 9)]\n", 1, "gcs_server", "was ended by signal 9 (SIGKILL), as the kernel does"),
        (f"{OF_RAY}  raylet [exit code=-7]\n", 1, "raylet", "was ended by signal 7 (SIGBUS), as happens where /dev/shm is full. Free space in /dev/shm"),
        (f"{OF_RAY}  gcs_server [exit code=-11]\n", 1, "gcs_server", "was ended by signal 11 (SIGSEGV), which is a fault of Ray or of the node"),
        (f"{OF_RAY}  raylet [exit code=1]\n", 1, "raylet", "ended with exit code 1, as happens after `ray stop`"),
        ("", -9, "ray start", "was ended by signal 9 (SIGKILL), as the kernel does when memory runs out."),
        ("", -15, "ray start", "was ended by signal 15 (SIGTERM), as `ray stop` does"),
        ("no such file", 1, "ray start", "ended with exit code 1, as happens after `ray stop`"),
    ],
)  # fmt: skip
def test_the_end_of_ray_names_the_process_the_signal_the_cause_and_what_to_type(
    tmp_path: Path, log: str, exit_code: int, process: str, end: str
) -> None:
    (tmp_path / "log").write_text(log)
    line = describe_end("Ray's head", exit_code, tmp_path / "log")
    assert line.startswith(f"Ray's head has ended, because its process {process} {end}")
    assert line.endswith(AGAIN)
    assert ("Ray's last lines" in line) == ("exit code" in end), "where no signal tells the cause, Ray's own words do"


def test_rays_words_for_a_process_that_has_ended() -> None:
    """Ray then prints a line such as `raylet [exit code=-9]`."""
    assert '_tags={"exit code": str(process.returncode)}' in inspect.getsource(importlib.import_module("ray.scripts.scripts"))
