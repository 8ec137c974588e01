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
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from raysweep.cluster.certificates import new_authority, write_certificate
from slurm.cluster import GUEST, IS_ROOT, SlurmCluster, wait_until
from slurm.conf import address
from slurm.sweeps import SlurmProject, listening, stranger_tries, wait_until_idle

NODES = ("node1", "node2")
PLACES = ("node1", "node3")  # from where the stranger tries
STRANGER = GUEST if IS_ROOT else None  # to the network it is all the same who he is
needs_a_second_user = pytest.mark.skipif(not IS_ROOT, reason="only root can be a second user")
WRONG_TOKEN = "0" * 64
LISTENER = Path(__file__).with_name("listener.py")
# A real client of Ray whom no server answers gives up after a single attempt.
IMPATIENCE = {"RAY_gcs_server_port_wait_time_s": "1", "RAY_py_gcs_connect_timeout_s": "5"}
TLS_FILES = {"certfile": "tls_server_cert.pem", "keyfile": "tls_server_key.pem"}
# With what the stranger connects: TLS or not, a certificate, a token. What he gets of the one server that has no TLS.
WAYS = {
    "no TLS and no token": (None, None, {401}),
    "no TLS and a wrong token": (None, WRONG_TOKEN, {403}),
    "no certificate": ({}, None, set()),
    "a certificate of another run": ("foreign", WRONG_TOKEN, set()),
}
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
    foreign: dict[str, str]  # the variables of Ray for a certificate of another run
    listener: subprocess.Popen[str] | None

    @property
    def foreign_tls(self) -> dict[str, str]:
        return {"certfile": self.foreign["RAY_TLS_SERVER_CERT"], "keyfile": self.foreign["RAY_TLS_SERVER_KEY"]}

    @property
    def own_tls(self) -> dict[str, str]:
        """The certificate and the key of node1."""
        paths = self.private_paths("node1")
        return {key: next(path for path in paths if path.endswith(f"/{name}")) for key, name in TLS_FILES.items()}

    @property
    def own_env(self) -> dict[str, str]:
        """The variables of Ray for the certificate of node1."""
        files = self.own_tls
        authority = files["certfile"].replace("server_cert", "ca_cert")
        return {
            "RAY_USE_TLS": "1",
            "RAY_TLS_SERVER_CERT": files["certfile"],
            "RAY_TLS_SERVER_KEY": files["keyfile"],
            "RAY_TLS_CA_CERT": authority,
        }

    def keys(self) -> list[str]:
        """The private keys of all nodes."""
        paths = [(node, path) for node in NODES for path in self.private_paths(node) if path.endswith(TLS_FILES["keyfile"])]
        return [self.cluster.node_path(node, path).read_text() for node, path in paths]

    def gcs(self) -> str:
        [gcs] = [f"{host}:{port}" for (host, port), kind in self.servers.items() if kind == "GCS"]
        return gcs

    def assert_answers_its_owner(self) -> None:
        """With the certificate and the token of the run, each server of Ray answers."""
        what = {"targets": self.ports(srun=False), "requests": REQUESTS, "methods": HARMLESS, "token": self.token}
        with_tls, without = (stranger_tries(self.cluster, "ports", "node1", None, tls=tls, **what) for tls in (self.own_tls, None))
        for where, answer in with_tls.items():
            assert [0, None] in answer["grpc"].values() or without[where]["http"]["POST /get_runtime_envs_info"][0] == 200, where

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
    foreign = write_certificate(new_authority(), address("node3"), slurm.shared)
    for path in slurm.shared.glob("*.pem"):
        path.chmod(0o644)  # it is the stranger's
    listener = None
    if IS_ROOT:
        argv = [sys.executable, LISTENER, slurm.shared / "wire.json", *(f"v{node}" for node in slurm.nodes)]
        listener = slurm.popen(argv, stdin=subprocess.PIPE)
        assert listener.stdout
        assert listener.stdout.readline() == "listening\n"
    run = project.start()
    try:
        wait_until(lambda: project.begun() == 2 or run.poll() is not None, "trials run on both nodes", 300)
        assert run.poll() is None, f"{run.communicate()[0]}\n{project.log()}"
        wait_until(lambda: list(servers_of(slurm).values()).count("environments") == 2, "all of Ray is up")
        job = project.job()
        paths = [path for node in NODES for path in slurm.node_path(node, "/mnt").glob(f"*.{job}.0/rs-*/token")]
        [token] = {path.read_text() for path in paths}
        yield Running(slurm, project, job, token, servers_of(slurm), checksums(project.folder), foreign, listener)
    finally:
        if listener:
            listener.communicate()
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


@pytest.mark.skipif(not IS_ROOT, reason="only root can listen on the wire")
def test_a_listener_on_the_wire_reads_no_secret(running: Running) -> None:
    """From the start of the job on, all that the nodes send to each other. This test comes before those in which strangers send what they should not have."""
    assert running.listener
    running.listener.communicate(timeout=60)
    wire = json.loads((running.cluster.shared / "wire.json").read_text())
    # Slurm divides a long line into several messages, so this text is from the beginning of the line.
    assert any('{"in_slurm": true' in text for text in wire.values()), "the listener reads what the launcher says to the agents"
    assert [stream for stream, text in wire.items() if running.token in text or "PRIVATE KEY" in text] == []
    servers = {f"{host}:{port}": kind for (host, port), kind in running.servers.items() if kind != "srun"}
    of_ray = {stream: servers[end] for stream in wire for end in stream.split(">") if end in servers}
    assert set(of_ray.values()) >= {"GCS", "raylet", "trial", "driver"}
    assert "environments" not in of_ray.values(), "the only server without TLS is asked by its own node alone"
    assert {wire[stream][:2] for stream in of_ray} == {"\x16\x03"}, "each connection begins with a handshake of TLS"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", PLACES)
def test_no_server_of_ray_answers_a_stranger(running: Running, place: str, way: str) -> None:
    """No call that Ray knows is answered, not even by a refusal. The server of the environments has no TLS, and asks for the token."""
    tls, token, codes_of_environments = WAYS[way]
    what = {"targets": running.ports(srun=False), "requests": REQUESTS, "tls": running.foreign_tls if tls == "foreign" else tls}
    answers = stranger_tries(running.cluster, "ports", place, STRANGER, token=token, methods=methods_of_ray(), **what)
    for where, answer in answers.items():
        statuses = {status[0] for status in answer["grpc"].values() if status}
        codes = {status[0] for status in answer["http"].values() if status}
        if running.servers[(where.split(":")[0], int(where.split(":")[1]))] == "environments":
            assert (statuses, codes) == (set(), codes_of_environments)
        else:
            assert (statuses, codes) == (set(), set()), where
    told = json.dumps(answers)
    assert not [word for word in (running.token, running.project.folder.name, "user.py", "score", "RAYSWEEP") if word in told]
    running.assert_answers_its_owner()


@pytest.mark.parametrize("token", [None, WRONG_TOKEN], ids=["no token", "a wrong token"])
def test_the_certificate_without_the_token_is_not_enough(running: Running, token: str | None) -> None:
    """Of all calls that Ray knows, each is refused for want of the token, or unknown to that server."""
    targets = [where for where, kind in running.servers.items() if kind not in ("srun", "environments")]
    what = {"targets": targets, "requests": [], "methods": methods_of_ray(), "tls": running.own_tls}
    for where, answer in stranger_tries(running.cluster, "ports", "node1", None, token=token, **what).items():
        assert {status[0] for status in answer["grpc"].values() if status} == {UNIMPLEMENTED, UNAUTHENTICATED}, where


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("tls", [None, {}, "foreign"], ids=["no TLS", "no certificate", "a certificate of another run"])
def test_a_malformed_call_of_a_stranger_ends_nothing(running: Running, place: str, tls: dict[str, str] | str | None) -> None:
    """A call that ends a server of Ray 2.60 which listens without TLS, because the server reads the call before it looks at the token."""
    what = {"targets": running.ports(srun=False), "requests": [], "tls": running.foreign_tls if tls == "foreign" else tls}
    answers = stranger_tries(running.cluster, "ports", place, STRANGER, token=None, methods=methods_of_ray(), malformed=True, **what)
    assert {status for answer in answers.values() for status in answer["grpc"].values()} == {None}
    running.assert_answers_its_owner()
    assert servers_of(running.cluster) == running.servers


def test_no_stranger_runs_code_on_the_cluster(running: Running) -> None:
    """A real client of Ray, as the documentation has it."""
    gcs, token = running.gcs(), {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": running.token}
    no_token, wrong_token = {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": WRONG_TOKEN}

    def join(node: str, user: str | None, env: dict[str, str], proof: str = "pwned") -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", JOIN, gcs, running.cluster.shared / proof]
        return running.cluster.popen(argv, node=node, user=user, env=env | IMPATIENCE)

    without_certificate = [join(place, STRANGER, token | tls) for place in PLACES for tls in ({}, running.foreign)]
    without_token = [join("node1", None, env | running.own_env) for env in (no_token, wrong_token)]
    for processes, word in ((without_certificate, "Failed to connect to Ray cluster"), (without_token, "token")):
        for process in processes:
            said, _ = process.communicate(timeout=400)
            assert process.returncode != 0
            assert word in said, "it is refused for the want of this, and not because nobody listens"
            assert running.token not in said
    assert not (running.cluster.shared / "pwned").exists()

    trace = running.cluster.shared / "trace"
    allowed = join("node1", None, token | running.own_env, trace.name)
    assert allowed.wait(400) == 0
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
    assert {"token", *TLS_FILES.values(), "raylet.out", "ray_current_cluster"} <= names
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


def test_no_file_that_nodes_share_holds_a_secret(running: Running) -> None:
    """There is no rendezvous file either: agents and launcher talk through `srun`."""

    secrets = [secret.encode() for secret in (running.token, *running.keys())]
    assert len(secrets) == 3

    def holding(folders: list[Path]) -> list[Path]:
        found = []
        for path in [Path(where, name) for folder in folders for where, _, names in os.walk(folder) for name in names]:
            with contextlib.suppress(FileNotFoundError):  # Slurm has removed it just now
                if path.is_file() and not path.is_symlink():
                    text = path.read_bytes()
                    found += [path for secret in secrets if secret in text]
        return found

    base = running.cluster.base
    assert holding([base / name for name in ("shared", "spool", "home", "log", "run", "etc")]) == []
    found = [path.name for path in holding([base / "nodes" / node for node in NODES])]
    assert (found.count("token"), found.count(TLS_FILES["keyfile"])) == (2, 2)
