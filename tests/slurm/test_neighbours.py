"""Sweeps that share a node, with each other, with another user's and with another Ray: none touches or sees another."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import GUEST, GUEST_UID, IS_ROOT, SlurmCluster, wait_until
from slurm.conf import address
from slurm.conftest import Factory
from slurm.sweeps import SlurmProject, listening, processes_of, seen, wait_until_idle

FOREIGN_RAY = [
    sys.executable,
    "-m",
    "ray.scripts.scripts",
    "start",
    "--head",
    "--block",
    "--port=6379",
    "--num-cpus=1",
    "--include-dashboard=false",
]


@pytest.fixture
def cluster(start_slurm: Factory) -> SlurmCluster:
    """One node, without a $SLURM_TMPDIR: the user's own TMPDIR counts."""
    return start_slurm(nodes=1, scratch=False)


@pytest.fixture
def foreign(cluster: SlurmCluster) -> Iterator[dict[str, str]]:
    """Another Ray of this user on the node, and all in his environment that would lead a Ray astray."""
    home, tmp = cluster.shared / "home", cluster.shared / ("long" * 25)
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("foreign")
    tmp.mkdir()
    tmp.chmod(0o1777)
    process = cluster.popen(FOREIGN_RAY, node="node1")
    marker = cluster.node_path("node1", "/tmp/ray/ray_current_cluster")
    wait_until(lambda: marker.exists() or process.poll() is not None, "the other Ray is up")
    assert process.poll() is None, process.communicate()[0]
    yield {
        "HOME": str(home),
        "TMPDIR": str(tmp),
        "RAY_ADDRESS": f"{address('node1')}:6379",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "foreign",
    }
    others = {pid: line for pid, line in cluster.node_processes("node1").items() if is_server(line)}
    assert len(others) == 2, f"the other Ray goes on, and no other is left: {others}"
    assert process.poll() is None
    for pid in cluster.node_processes("node1"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    process.communicate()


def is_server(line: str) -> bool:
    """Whether a command line is that of a process of Ray's own."""
    return "/gcs/gcs_server --" in line or "/raylet/raylet --" in line


def servers_of(cluster: SlurmCluster, job: str) -> set[int]:
    return {pid for pid, (_, line) in processes_of(cluster, job).items() if is_server(line)}


def test_sweeps_of_one_user_and_of_two_and_another_ray_share_a_node(cluster: SlurmCluster, foreign: dict[str, str]) -> None:
    users = [None, None, GUEST] if IS_ROOT else [None, None]
    projects = [SlurmProject(cluster, cluster.shared / f"project {number}", user) for number, user in enumerate(users)]
    runs, jobs = [], []
    for project in projects:
        project.sweep("waits", cpus=2, num_samples=2, trial_resources={"cpu": 1})
        if project.user:
            for path in (project.folder, *project.folder.rglob("*")):
                os.chown(path, GUEST_UID, GUEST_UID, follow_symlinks=False)
        runs.append(project.start(env=foreign | ({"HOME": str(cluster.base / "home" / GUEST)} if project.user else {})))
    for project in projects:
        jobs.append(project.job())
    servers = [servers_of(cluster, job) for job in jobs]
    assert [len(pids) for pids in servers] == [2] * len(jobs), "each has a GCS and a raylet of its own"
    for number, project in enumerate(projects):
        (project.folder / "go").touch()
        said, _ = runs[number].communicate(timeout=400)
        assert runs[number].returncode == 0, said
        wait_until(lambda: processes_of(cluster, jobs[number]) == {}, "its processes have ended")  # noqa: B023
        assert [servers_of(cluster, job) for job in jobs[number + 1 :]] == servers[number + 1 :], "those of the others have not"
        facts = seen(project)
        assert {(fact["host"], fact["nodes"], fact["total"]["CPU"]) for fact in facts} == {("node1", 1, 2)}
        assert all(str(fact["tmp"]).startswith(foreign["TMPDIR"]) for fact in facts)
    for folder in (
        Path(foreign["TMPDIR"]),
        cluster.node_path("node1", "/tmp"),
    ):  # Ray's sockets are in the latter, since their paths end at 107 bytes
        assert list(folder.glob("rs-*")) == []


def test_the_token_is_in_one_file_of_each_node_and_no_other_user_gets_near_it(slurm: SlurmCluster, tmp_path: Path) -> None:
    project = SlurmProject(slurm, tmp_path / "a project")
    project.sweep("waits", nodes=2, cpus=1, num_samples=2, trial_resources={"cpu": 1})
    run = project.start()
    wait_until(lambda: project.begun() == 2, "trials run on both nodes", 300)
    job = project.job()
    nodes = ("node1", "node2")
    tokens = [path for node in nodes for path in slurm.node_path(node, "/mnt").glob(f"*.{job}.0/rs-*/token")]
    assert [stat.S_IMODE(path.stat().st_mode) for path in tokens] == [0o600] * 2
    assert [stat.S_IMODE(path.parent.stat().st_mode) for path in tokens] == [0o700] * 2
    [token] = {path.read_text() for path in tokens}
    processes, modes = processes_of(slurm, job), 0
    rays = [pid for pid, (_, line) in processes.items() if is_server(line) or "/drive.py " in line or "ray::" in line]
    assert len(rays) >= 1 + 2 + 1 + 2, "a GCS, raylets, a driver, a worker for each trial"
    for pid in processes:
        try:
            environment, line = (Path(f"/proc/{pid}/{name}").read_text() for name in ("environ", "cmdline"))
        except (FileNotFoundError, ProcessLookupError):  # it ended just now
            continue
        assert token not in environment
        assert token not in line
        if pid in rays and not environment.startswith("\0"):  # Ray writes titles over the environments of some
            assert "RAY_AUTH_MODE=token" in environment.split("\0")
            modes += 1
    assert modes >= 1 + 2 + 1, "the GCS, the raylets, the driver"
    assert (
        token
        not in slurm.run(["scontrol", "show", "job", "-dd", job]).stdout + slurm.run(["scontrol", "write", "batch_script", job, "-"]).stdout
    )
    for path in [Path(where, name) for where, _, names in os.walk(project.folder) for name in names]:
        with contextlib.suppress(FileNotFoundError):  # it was removed just now
            assert not (path.is_file() and token.encode() in path.read_bytes()), f"nor in any file that the nodes share: {path}"
    ports = {port for pid in processes for _, port in listening(pid)}
    assert len(ports) >= 1 + 2 * 2 + 1 + 2
    assert not ports & {6379, 8265, 10001}, "no port that is the same for everyone"
    if IS_ROOT:
        for node, path in zip(nodes, tokens, strict=True):
            tried = slurm.run(["ls", f"/mnt/root.{job}.0/{path.parent.name}"], user=GUEST, node=node, check=False)
            assert "Permission denied" in tried.stderr
    (project.folder / "go").touch()
    assert run.wait(400) == 0
    wait_until_idle(slurm)
