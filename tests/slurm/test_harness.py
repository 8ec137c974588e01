"""The Slurm of the tests is a real one, and leaves nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from slurm.cluster import ACCOUNT, GUEST, GUEST_UID, IS_ROOT, SlurmCluster
from slurm.supervisor import is_alive
from sweeping import SCRIPTS, wait_until

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)"
LISTEN = "import socket; s = socket.create_server(('', 4000)); s.accept()"


def start_daemon(cluster: SlurmCluster, node: str) -> int:
    """Have a job on a node leave a process behind; returns its pid on this machine."""
    # The job ends once the daemon has a session of its own, and not before: Slurm would end it, too.
    daemon = (
        "setsid sh -c 'touch /tmp/daemon; exec sleep 1000' >/dev/null 2>&1 & while [ ! -e /tmp/daemon ]; do sleep 0.1; done; rm /tmp/daemon"
    )
    cluster.run(["srun", f"--nodelist={node}", "sh", "-c", daemon])
    wait_until(lambda: list(cluster.node_processes(node).values()) == ["sleep 1000"], "the daemon alone is there")
    [pid] = cluster.node_processes(node)
    return pid


def test_each_node_is_a_machine_with_gpus_that_are_handed_out(slurm: SlurmCluster) -> None:
    told = "echo $(hostname) $(hostname -I) GPUs $CUDA_VISIBLE_DEVICES; touch $SLURM_TMPDIR/scratch /tmp/$(hostname) /dev/shm/$(hostname)"
    argv = ["srun", "--nodes=3", "--ntasks-per-node=1", "--cpus-per-task=12", "--gpus-per-node=2", "sh", "-euc", told]
    lines = sorted(slurm.run(argv).stdout.splitlines())
    assert lines == [f"node{number} 10.77.0.1{number} GPUs 0,1" for number in (1, 2, 3)]
    for node in slurm.nodes:
        for folder in ("/tmp", "/dev/shm"):
            assert [path.name for path in slurm.node_path(node, folder).glob("node*")] == [node]
            slurm.node_path(node, f"{folder}/{node}").unlink()
        (scratch,) = slurm.node_path(node, "/mnt").glob("*/scratch")
        scratch.unlink()
    assert not Path("/tmp/node1").exists()


def test_nodes_reach_each_other_and_nothing_else(slurm: SlurmCluster) -> None:
    listener = slurm.popen([sys.executable, "-c", LISTEN], node="node2")
    wait_until(
        lambda: slurm.run([sys.executable, "-c", CONNECT, "node2", "4000"], node="node1", check=False).returncode == 0, "a connection"
    )
    assert listener.wait() == 0
    with socket.create_server(("", 0)) as outside:
        port = outside.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        for address in ("127.0.0.1", "10.77.0.1"):
            refused = slurm.run([sys.executable, "-c", CONNECT, address, port], node="node1", check=False)
            assert "ConnectionRefusedError" in refused.stderr


@pytest.mark.skipif(not IS_ROOT, reason="only root can be a second user")
def test_a_second_user_has_jobs_of_his_own(slurm: SlurmCluster) -> None:
    assert slurm.run([sys.executable, "-c", "import os; print(os.getuid())"], user=GUEST).stdout == f"{GUEST_UID}\n"
    job = slurm.sbatch("--nodelist=node1", "--wrap", "id -un; sleep 1000", user=GUEST)
    output = slurm.base / "home" / GUEST / f"slurm-{job}.out"
    try:
        wait_until(lambda: output.exists() and output.read_text() == f"{GUEST}\n", "his job writes in his home")
        assert output.stat().st_uid == GUEST_UID
        wait_until(lambda: "sleep 1000" in slurm.node_processes("node1", GUEST_UID).values(), "his job sleeps")
        assert slurm.node_processes("node1", os.getuid()) == {}
    finally:
        slurm.run(["scancel", job], user=GUEST)
    wait_until(lambda: slurm.job_state(job) == "CANCELLED" and not slurm.node_processes("node1"), "his job is gone")


@pytest.mark.parametrize(
    "refused", ["--nodes=4", "--partition=nowhere", "--partition=short --nodes=2", "--partition=short --time=3", "--gpus=7"]
)
def test_a_job_that_can_never_run_is_refused(slurm: SlurmCluster, refused: str) -> None:
    assert "Batch job submission failed" in slurm.run(["sbatch", *refused.split(), "--wrap=true"], check=False).stderr


def test_a_node_without_power_is_noticed_and_jobs_outlive_the_controller(start_slurm: Callable[..., SlurmCluster]) -> None:
    cluster = start_slurm(nodes=2, gpus=0, slurmd_timeout_s=10, message_timeout_s=5)
    left = start_daemon(cluster, "node2")
    job = cluster.sbatch("--nodelist=node1", "--wrap", "sleep 1000")
    wait_until(lambda: cluster.job_state(job) == "RUNNING", "the job runs")
    cluster.power_off("node2")
    assert not psutil.pid_exists(left)
    wait_until(lambda: cluster.node_state("node2").startswith("down"), "Slurm notices")
    cluster.boot("node2")
    assert cluster.run(["srun", "--nodelist=node2", "hostname"]).stdout == "node2\n"
    cluster.stop_controller()
    assert cluster.run(["squeue"], check=False).returncode != 0
    assert "sleep 1000" in cluster.node_processes("node1").values()
    cluster.start_controller()
    assert cluster.job_state(job) == "RUNNING"


def test_accounting_knows_jobs_and_accounts(start_slurm: Callable[..., SlurmCluster]) -> None:
    cluster = start_slurm(nodes=1, gpus=1, gpu_type="a100_3g.20gb", accounting=True)
    job = cluster.sbatch(f"--account={ACCOUNT}", "--gpus-per-node=a100_3g.20gb:1", "--wrap=true")
    sacct = ["sacct", f"--jobs={job}", "--allocations", "--noheader", "--parsable2", "--format=State,Account"]
    wait_until(lambda: cluster.run(sacct).stdout == f"COMPLETED|{ACCOUNT}\n", "the job is in the books")
    assert "Invalid account" in cluster.run(["sbatch", "--account=other", "--wrap=true"], check=False).stderr


def test_nothing_is_left_at_the_end(start_slurm: Callable[..., SlurmCluster]) -> None:
    cluster = start_slurm(nodes=1)
    start_daemon(cluster, "node1")
    client = cluster.popen(["sh", "-c", "setsid sleep 1000 & wait"])
    wait_until(lambda: psutil.Process(client.pid).children(), "a command that nobody ends runs on the login machine")
    (supervisor,) = [child for child in psutil.Process().children() if is_alive(child) and child.cmdline()[-1] == str(cluster.base)]
    processes: list[psutil.Process] = []

    def names() -> list[str]:
        processes[:] = [supervisor, *supervisor.children(recursive=True), *psutil.Process(client.pid).children()]
        found = [process.name() for process in processes if is_alive(process)]
        return sorted(name for name in found if name != "unshare")

    expected = ["munged", "python", "sh", "sleep", "sleep", "slurmctld", "slurmd", "slurmscriptd"]
    wait_until(lambda: names() == expected, "all of them are there, and nothing else")
    cluster.close()
    assert [process for process in processes if is_alive(process)] == []
    assert not cluster.base.exists()
    client.communicate()


def test_nothing_is_left_when_the_tests_are_killed(slurm: SlurmCluster) -> None:
    base = Path(f"{slurm.base}-2")
    program = f"from slurm.cluster import *; base = Path({str(base)!r}); base.mkdir()\nwith SlurmCluster(base, nodes=1): print(); input()"
    path = f"{Path(__file__).parents[1]}:{SCRIPTS}"
    tests = subprocess.Popen(
        [sys.executable, "-uc", program], env=os.environ | {"PYTHONPATH": path}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert tests.stdout
    assert tests.stdout.readline() == b"\n"
    processes = psutil.Process(tests.pid).children(recursive=True)
    assert "slurmd" in [process.name() for process in processes]
    tests.kill()
    tests.communicate()
    wait_until(lambda: not any(map(is_alive, processes)), "all is ended")
    assert not base.exists()
