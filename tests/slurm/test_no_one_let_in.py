"""No one is let in: what a neighbour on a node and one on the network try against a sweep that runs. The lines of SECURITY.md name these tests.

One sweep runs on node1 and node2. The stranger is a second user, where there is one, on node1, or on node3, which has no part in it. For each attempt
that has to fail, the same attempt of the sweep's owner, with the right token, shows that it can succeed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from slurm.cluster import GUEST, IS_ROOT, SlurmCluster, wait_until
from slurm.conf import address
from slurm.sweeps import SlurmProject, listening, stranger_tries, wait_until_idle

NODES = ("node1", "node2")
PLACES = ("node1", "node3")  # from where the stranger tries
STRANGER = GUEST if IS_ROOT else None  # to the network it is all the same who he is
needs_a_second_user = pytest.mark.skipif(not IS_ROOT, reason="only root can be a second user")
WRONG_TOKEN = "0" * 64
UNIMPLEMENTED, UNAUTHENTICATED = 12, 16  # of gRPC
KINDS = {  # the first that fits counts, since the command line of a raylet holds that of its environments
    "/gcs_server ": "GCS",
    "/raylet ": "raylet",
    "RuntimeEnvAgent": "environments",
    "/runtime_env/agent/main.py ": "environments",  # Ray 2.53 gives this process no name
    "/drive.py ": "driver",
    "ray::trial": "trial",
    "/srun ": "srun",
}
# Calls that say something of a server and change nothing; each server has one of them.
HARMLESS = [
    "/ray.rpc.NodeInfoGcsService/CheckAlive",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
]
REQUESTS = [("GET", "/"), ("GET", "/metrics"), ("GET", "/logs"), ("GET", "/api/jobs/"), ("POST", "/get_runtime_envs_info")]
JOIN = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
ray.get(ray.remote(num_cpus=0)(lambda path: open(path, "w").close()).remote(sys.argv[2]))
"""


@dataclass(frozen=True)
class Running:
    """A sweep that runs."""

    cluster: SlurmCluster
    project: SlurmProject
    job: str
    token: str
    servers: dict[tuple[str, int], str]  # address, port → what listens there
    before: dict[str, str]  # of the project's files: path → checksum

    def ports(self, *, srun: bool) -> list[tuple[str, int]]:
        return [where for where, kind in self.servers.items() if (kind == "srun") == srun]

    def private_paths(self, node: str) -> list[str]:
        """All that the job has on a node's own disk, by the node's own paths."""
        root = self.cluster.node_path(node, "/")
        patterns = (f"mnt/*.{self.job}.0", f"mnt/*.{self.job}.0/**/*", "dev/shm/*", "tmp/rs-*", "tmp/ray*")
        return [f"/{path.relative_to(root)}" for pattern in patterns for path in root.glob(pattern)]


def servers_of(cluster: SlurmCluster) -> dict[tuple[str, int], str]:
    """Address, port → what listens there. All that runs on the nodes is the job's."""
    found = {}
    for node in NODES:
        for pid, line in cluster.node_processes(node).items():
            for _, port in listening(pid):
                kind = next((kind for mark, kind in KINDS.items() if mark in line), None)
                assert kind, f"port {port} of {node}: {line}"
                found[address(node), port] = kind
    return found


def checksums(folder: Path) -> dict[str, str]:
    """Of the files that a running sweep leaves alone: all but its log, its record, and what it says of how far it has come."""
    written = (".log", ".jsonl", ".csv", ".journal")
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in written and ".snakemake" not in path.parts]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def methods_of_ray() -> list[str]:
    """Every call that Ray's servers may know."""
    import ray.core.generated

    [folder] = map(Path, ray.core.generated.__path__)
    found = [
        "/ray.rpc.syncer.RaySyncer/StartSync",
        "/ray.rpc.ObjectManagerService/Push",
        "/ray.rpc.ObjectManagerService/Pull",
    ]  # not in Python
    for path in folder.rglob("*_pb2.py"):
        module = importlib.import_module(".".join(("ray.core.generated", *path.relative_to(folder).with_suffix("").parts)))
        for service in module.DESCRIPTOR.services_by_name.values():
            found += [f"/{service.full_name}/{method.name}" for method in service.methods]
    return found


@pytest.fixture(scope="module")
def running(slurm: SlurmCluster) -> Iterator[Running]:
    """A sweep with a trial on each of two nodes. After all attempts it ends as if there had been none."""
    project = SlurmProject(slurm, slurm.shared / "a project")
    project.sweep("waits", nodes=2, cpus=1, num_samples=2, trial_resources={"cpu": 1})
    run = project.start()
    try:
        wait_until(lambda: project.begun() == 2 or run.poll() is not None, "trials run on both nodes", 300)
        assert run.poll() is None, f"{run.communicate()[0]}\n{project.log()}"
        wait_until(lambda: list(servers_of(slurm).values()).count("environments") == 2, "all of Ray is up")
        job = project.job()
        paths = [path for node in NODES for path in slurm.node_path(node, "/mnt").glob(f"*.{job}.0/rs-*/token")]
        [token] = {path.read_text() for path in paths}
        yield Running(slurm, project, job, token, servers_of(slurm), checksums(project.folder))
    finally:
        (project.folder / "go").touch()
        said, _ = run.communicate(timeout=400)
    assert run.returncode == 0, said
    assert [fact["nodes"] for fact in map(json.loads, (path.read_text() for path in project.folder.glob("seen-*.json")))] == [2, 2]
    assert not list(project.folder.parent.rglob("pwned"))
    wait_until_idle(slurm)


def test_every_port_of_the_job_is_known(running: Running) -> None:
    kinds = sorted(kind for kind in running.servers.values() if kind != "srun")
    assert kinds == sorted(["GCS", *["raylet", "raylet", "environments", "trial"] * 2, "driver"])
    assert "srun" in running.servers.values()


@pytest.mark.parametrize("token", [None, WRONG_TOKEN], ids=["no token", "a wrong token"])
@pytest.mark.parametrize("place", PLACES)
def test_no_server_of_ray_answers_a_stranger(running: Running, place: str, token: str | None) -> None:
    """Of all calls that Ray knows, each is refused for want of the token, or unknown to that server. So are requests of a browser."""
    what = {"targets": running.ports(srun=False), "requests": REQUESTS}
    answers = stranger_tries(running.cluster, "ports", place, STRANGER, token=token, methods=methods_of_ray(), **what)
    for where, answer in answers.items():
        statuses = {status[0] for status in answer["grpc"].values() if status}
        codes = {status[0] for status in answer["http"].values() if status}
        if running.servers[(where.split(":")[0], int(where.split(":")[1]))] == "environments":
            assert (statuses, codes) == (set(), {401} if token is None else {403})
        else:
            assert (statuses, codes) == ({UNIMPLEMENTED, UNAUTHENTICATED}, set()), where
    told = json.dumps(answers)
    assert not [word for word in (running.token, running.project.folder.name, "user.py", "score", "RAYSWEEP") if word in told]

    allowed = stranger_tries(running.cluster, "ports", "node1", None, token=running.token, methods=HARMLESS, **what)
    for where, answer in allowed.items():
        assert [0, None] in answer["grpc"].values() or answer["http"]["POST /get_runtime_envs_info"][0] == 200, where


def test_no_stranger_runs_code_on_the_cluster(running: Running) -> None:
    """A real client of Ray, as the documentation has it."""
    [gcs] = [f"{host}:{port}" for (host, port), kind in running.servers.items() if kind == "GCS"]
    [token_path] = [path for path in running.private_paths("node1") if path.endswith("/token")]
    credentials = {"no token": {"RAY_AUTH_MODE": "disabled"}, "a wrong token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": WRONG_TOKEN}}
    tried = {}
    for name, env in credentials.items():
        for place in PLACES:
            argv = [sys.executable, "-c", JOIN, gcs, running.cluster.shared / "pwned"]
            tried[name, place] = running.cluster.popen(argv, node=place, user=STRANGER, env=env)
    for process in tried.values():
        said, _ = process.communicate(timeout=400)
        assert process.returncode != 0
        assert "token" in said, "it is refused for want of the token, and not because nobody listens"
        assert running.token not in said
    assert not (running.cluster.shared / "pwned").exists()

    trace = running.cluster.shared / "trace"
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token_path}
    running.cluster.run([sys.executable, "-c", JOIN, gcs, trace], node="node1", env=env)
    trace.unlink()


@pytest.mark.parametrize("place", PLACES)
def test_srun_gives_nothing_to_a_stranger(running: Running, place: str) -> None:
    """The ports through which Slurm carries what the launcher and the agents say."""
    answers = stranger_tries(
        running.cluster, "ports", place, STRANGER, targets=running.ports(srun=True), token=None, methods=[], requests=[]
    )
    assert {answer["bytes"] for answer in answers.values()} <= {"", None}


@needs_a_second_user
def test_slurm_keeps_the_job_from_another_user(running: Running) -> None:
    refused = running.cluster.run(["scancel", running.job], user=GUEST, check=False)
    assert "denied" in refused.stderr
    script = ["scontrol", "write", "batch_script", running.job, "-"]
    assert running.cluster.run(script, user=GUEST, check=False).stdout == ""
    step = ["srun", f"--jobid={running.job}", "--overlap", "--nodes=1", "--ntasks=1", "--mem=0", "touch", running.cluster.shared / "pwned"]
    assert running.cluster.run(step, user=GUEST, check=False).returncode != 0
    assert not (running.cluster.shared / "pwned").exists()
    assert running.token not in running.cluster.run(["scontrol", "show", "job", "-dd", running.job], user=GUEST).stdout

    assert running.cluster.run(script).stdout.startswith("#!")
    running.cluster.run([*step[:-1], running.cluster.shared / "trace"])
    (running.cluster.shared / "trace").unlink()


@needs_a_second_user
@pytest.mark.parametrize("node", NODES)
def test_another_user_gets_at_nothing_in_the_private_folders(running: Running, node: str) -> None:
    """The token, the job, the logs of Ray, its sockets, the temporary files of trials."""
    paths = running.private_paths(node)
    tried = stranger_tries(running.cluster, "files", node, GUEST, paths=paths, alter=True)
    assert {path: done for path, done in tried.items() if done} == {}

    allowed = stranger_tries(running.cluster, "files", node, None, paths=paths, alter=False)
    assert {path for path, done in allowed.items() if not done} == set()
    names = {Path(path).name for path, done in allowed.items() if done == ["read"]}
    assert {"token", "raylet.out", "ray_current_cluster"} <= names
    assert {Path(path).name for path, done in allowed.items() if done == ["connect"]} == {"raylet", "plasma_store"}


@needs_a_second_user
@pytest.mark.parametrize("node", NODES)
def test_another_user_sees_of_the_processes_no_more_than_command_lines(running: Running, node: str) -> None:
    """`/proc/*/cmdline` is for everyone, and the token is in none. Environments, memory, open files, signals and debuggers are refused."""
    seen = stranger_tries(running.cluster, "processes", node, GUEST)
    others = {pid: process for pid, process in seen.items() if process["uid"] == 0}
    assert len([one for one in others.values() if any(mark in one["line"] for mark in KINDS)]) >= 3
    assert {pid: process["done"] for pid, process in others.items() if process["done"]} == {}
    assert running.token not in json.dumps(seen)
    [[own_done]] = [[process["done"]] for pid, process in seen.items() if pid not in others]
    assert len(own_done) == 7, "to a process of his own he can do all of it"


@needs_a_second_user
def test_another_user_alters_no_file_of_the_project_and_reads_none_where_its_folder_is_closed(running: Running) -> None:
    folder = running.project.folder
    paths = [str(path) for path in (folder, *folder.rglob("*")) if not path.is_symlink() and "pycache" not in str(path)]
    open_to_all = stranger_tries(running.cluster, "files", "node3", GUEST, paths=paths, alter=True)
    assert {action for done in open_to_all.values() for action in done} == {"read", "list"}, "as the user's umask has it"
    assert checksums(folder) == running.before
    folder.chmod(0o700)
    try:
        closed = stranger_tries(running.cluster, "files", "node3", GUEST, paths=paths, alter=False)
    finally:
        folder.chmod(0o755)
    assert {path: done for path, done in closed.items() if done} == {}


def test_no_file_that_nodes_share_holds_the_token(running: Running) -> None:
    """There is no rendezvous file either: agents and launcher talk through `srun`."""

    def holding(folders: list[Path]) -> list[Path]:
        found = []
        for path in [Path(where, name) for folder in folders for where, _, names in os.walk(folder) for name in names]:
            with contextlib.suppress(FileNotFoundError):  # Slurm has removed it just now
                if path.is_file() and not path.is_symlink() and running.token.encode() in path.read_bytes():
                    found.append(path)
        return found

    base = running.cluster.base
    assert holding([base / name for name in ("shared", "spool", "home", "log", "run", "etc")]) == []
    found = [path.name for path in holding([base / "nodes" / node for node in NODES])]
    assert found.count("token") == 2
