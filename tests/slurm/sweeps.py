"""A user's project on the cluster: his config, his trainables, and Snakemake called as the README says."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

import sweeping
from slurm.cluster import REPOSITORY, SlurmCluster, wait_until
from sweeping import Project, sweep_of

IMPATIENT = Path(__file__).with_name("impatient.py")
# As the README has it, but for the pace of the queries.
COMMAND = [IMPATIENT, "--snakefile", REPOSITORY / "Snakefile", "--executor", "slurm", "--profile", REPOSITORY / "cluster"]
TRAINABLES = """
import json, os, time
from ray import tune

def seen(config):
    "Leaves what this trial sees: its node, GPUs, folder for temporary files, and the cluster's resources."
    import ray, socket, tempfile
    facts = {
        "host": socket.gethostname(),
        "cuda": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "nodes": sum(node["Alive"] for node in ray.nodes()),
        "total": {key: ray.cluster_resources().get(key, 0) for key in ("CPU", "GPU", "memory", "object_store_memory")},
        "slurm": sorted(key for key in os.environ if key.startswith("SLURM")),
        "tmp": tempfile.gettempdir(),
        "python": __import__("sys").executable,
        "module": os.environ.get("MODULE_LOADED"),
    }
    time.sleep(config.get("pause_s", 0))
    with open(shared(f"seen-{config['x']:.6f}.json"), "w") as stream:
        json.dump(facts, stream)
    tune.report({"score": config["x"]})

def crowds(config):
    "Ends when ten trials run at a time."
    with open(shared("crowd"), "a") as stream:
        print(os.environ.get("CUDA_VISIBLE_DEVICES"), file=stream)
    while len(open(shared("crowd")).readlines()) < 10:
        time.sleep(0.1)
    seen(config)

def waits(config):
    "Runs until the file `go` is there."
    with open(shared("begun"), "a") as stream:
        print(os.getpid(), file=stream)
    while not os.path.exists(shared("go")):
        time.sleep(0.1)
    seen(config)

def dawdles(config):
    "As `climb`, a second an epoch, until the file `go` is there."
    climb(config, lambda epoch: os.path.exists(shared("go")) or time.sleep(1))

def work(config):
    "What each worker of `distributed` does: x·epoch for each worker. It waits in its third epoch for the file `go`."
    import socket, tempfile, ray, ray.train, torch
    context, epoch = ray.train.get_context(), 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            epoch = int(open(os.path.join(folder, "epoch")).read())
    while epoch < 4:
        epoch += 1
        while epoch == 3 and not os.path.exists(shared("go")):
            time.sleep(0.1)
        score = torch.tensor(float(config["x"] * epoch))
        torch.distributed.all_reduce(score)
        with open(shared(f"seen-{context.get_world_rank()}-{epoch}.json"), "w") as stream:
            json.dump({"host": socket.gethostname(), "is_own_ray": os.environ["RAY_ADDRESS"] == ray.get_runtime_context().gcs_address}, stream)
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "epoch"), "w") as stream:
                stream.write(str(epoch))
            checkpoint = ray.train.Checkpoint.from_directory(folder) if context.get_world_rank() == 0 else None
            ray.train.report({"score": score.item()}, checkpoint=checkpoint)

def distributed(config):
    "Two workers of Ray Train, as Ray's documentation starts them: in a run that has the name of the trial, and that keeps its last checkpoint only."
    import ray.train, ray.train.torch
    from ray.tune.integration.ray_train import TuneReportCallback
    run_config = ray.train.RunConfig(
        name=f"train-trial_id={tune.get_context().get_trial_id()}",
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        callbacks=[TuneReportCallback()],
    )
    scaling_config = ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 2})
    ray.train.torch.TorchTrainer(work, train_loop_config=config, scaling_config=scaling_config, run_config=run_config).fit()

def waits_but_first(config):
    "The trial that begins first does not wait."
    try:
        open(shared("first"), "x").close()
    except FileExistsError:
        waits(config)
    tune.report({"score": config["x"]})
"""


def python_in(folder: Path) -> Path:
    """The Python of the tests, at a path with a space in it, as where the folder of the whole project has one."""
    venv = folder / "the venv"
    if not venv.exists():
        venv.symlink_to(sys.prefix)
    return venv / "bin" / "python"


class SlurmProject(Project):
    """A project in a folder that all nodes share, with spaces in its name."""

    def __init__(self, cluster: SlurmCluster, folder: Path, user: str | None = None) -> None:
        super().__init__(folder)
        self.cluster, self.user = cluster, user
        self.write("user.py", sweeping.TRAINABLES + TRAINABLES)
        python_in(folder)

    def sweep(self, function: str = "seen", *, nodes: int = 1, cpus: int = 6, gpus: int = 0, runtime: object = 60, **values: Any) -> None:
        """One sweep, `s`, with a trainable of this module."""
        allocation = {"nodes": nodes, "cpus_per_node": cpus, "gpus_per_node": gpus, "mem_mb_per_node": 4000, "runtime": runtime}
        own = values.pop("allocation", {})
        self.configure(sweeps={"s": sweep_of(function, allocation=allocation | own, confirm={"seeds": 1, "runtime": 60}, **values)})

    def configure(self, name: str = "c.yaml", **config: Any) -> None:
        """Write the config. The environment that runs the tests counts as installed, and as one in which the sweeps can be imported, which takes 10 s."""
        super().configure(name, **config)
        if self.user is None and "env" not in config:
            self.build_env()
            described = self.folder / "env" / "env.yaml"
            installed = self.folder / "resources" / "env" / yaml.safe_load(described.read_text())["key"]
            (installed / "ready").mkdir(parents=True, exist_ok=True)
            shutil.copy(described, installed)
            for sweep in config["sweeps"]:
                (installed / "ready" / sweep).touch()

    def command(self, *arguments: object) -> list[object]:
        return [python_in(self.folder), *COMMAND, *arguments, "--configfile", "c.yaml"]

    def best(self, *arguments: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the sweep to its best.yaml."""
        return self.cluster.run(self.command("results/s/best.yaml", *arguments), user=self.user, cwd=self.folder, check=check, **options)

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:  # type: ignore[override]
        return self.cluster.popen(self.command("results/s/best.yaml", *arguments), user=self.user, cwd=self.folder, **options)

    def log(self, name: str = "s") -> str:
        path = self.folder / "logs" / "run_sweep" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def job_of(self, name: str) -> str:
        """The job of a sweep, once that is submitted."""
        found: list[str] = []

        def listed() -> bool:
            jobs = self.cluster.run(["squeue", "--noheader", "--states=all", "--format=%i %k"]).stdout
            found[:] = re.findall(rf"^(\d+) rule_run_sweep_wildcards_{name} in {re.escape(str(self.folder))}/", jobs, re.MULTILINE)
            return found != []

        wait_until(listed, f"the job of {name} is submitted", 400)
        [job] = found
        return job

    def begun(self) -> int:
        """How many trials have begun to wait."""
        path = self.folder / "begun"
        return len(path.read_text().split()) if path.exists() else 0

    def job(self) -> str:
        """The job of the sweep, once its trials have begun."""
        wait_until(lambda: self.begun() > 0, f"a trial has begun:\n{self.log()}", 300)
        user = self.cluster.run(["squeue", "--noheader", "--format=%i %Z"]).stdout
        [job] = [line.split()[0] for line in user.splitlines() if line.endswith(str(self.folder))]
        return job


def seen(project: SlurmProject) -> list[dict[str, Any]]:
    """What the trials of a sweep have seen."""
    return [json.loads(path.read_text()) for path in project.folder.glob("seen-*.json")]


@contextlib.contextmanager
def project_on(cluster: SlurmCluster, folder: Path, user: str | None = None) -> Iterator[SlurmProject]:
    """A project that leaves nothing behind on any node: no process, and no file on a node's own disk."""
    project = SlurmProject(cluster, folder, user)
    try:
        yield project
    finally:
        jobs = [line.split(None, 1) for line in cluster.run(["squeue", "--noheader", "--format=%i %Z"]).stdout.splitlines()]
        for job in [job for job, where in jobs if where == str(folder)]:  # of a test that failed
            cluster.run(["scancel", job])
    wait_until_idle(cluster)


def wait_until_idle(cluster: SlurmCluster) -> None:
    """Until nothing of ours is left on any node, and no job: one that is not quite over keeps its nodes, and the next would get others."""
    try:
        wait_until(lambda: left_on(cluster) == [], "nothing is left")
    except AssertionError as error:  # this test has failed, but the next ones have done nothing
        error.add_note("\n".join(left_on(cluster)))
        for node in cluster.nodes_on:
            for path in cluster.node_path(node, "/mnt").glob("*/*"):
                shutil.rmtree(path)
        raise
    wait_until(lambda: cluster.run(["squeue", "--noheader"]).stdout == "", "no job is left")


def left_on(cluster: SlurmCluster, uid: int | None = None) -> list[str]:
    """What of ours is left on the nodes: processes and node-local files."""
    found = []
    for node in cluster.nodes_on:
        found += [f"{node}: {line}" for line in cluster.node_processes(node, uid).values()]
        for pattern in ("tmp/rs-*", "tmp/ray*", "dev/shm/*", "mnt/*/*"):
            found += [f"{node}: {path}" for path in cluster.node_path(node, "/").glob(pattern)]
    return found


def processes_of(cluster: SlurmCluster, job: str) -> dict[int, tuple[str, str]]:
    """The processes of a job: process id (on this machine, for signals) → node, command line. All of them know the job's id."""
    found = {}
    for node in cluster.nodes_on:
        for pid, line in cluster.node_processes(node).items():
            with contextlib.suppress(OSError):  # it ended just now
                if f"SLURM_JOB_ID={job}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found[pid] = (node, line)
        # Ray writes titles over the environments of its own processes, whose parents have theirs.
        for pid, line in cluster.node_processes(node).items():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(parent.pid in found for parent in psutil.Process(pid).parents()):
                    found[pid] = (node, line)
    return found


def listening(pid: int) -> list[tuple[str, int]]:
    """Addresses and ports on which a process, of whatever node, listens or takes datagrams. (psutil looks at this machine's own network only.)"""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
        sockets = set()
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it was closed just now
                sockets.add(os.readlink(entry))
        for protocol in ("tcp", "tcp6", "udp", "udp6"):
            for line in Path(f"/proc/{pid}/net/{protocol}").read_text().splitlines()[1:]:
                _, local, _, state, *_, inode = line.split()[:10]
                if f"socket:[{inode}]" in sockets and (state == "0A" or protocol.startswith("udp")):
                    words, port = local.split(":")
                    numbers = b"".join(bytes.fromhex(words[start : start + 8])[::-1] for start in range(0, len(words), 8))
                    found.append((str(ipaddress.ip_address(numbers)), int(port, 16)))
    return found


def stranger_tries(cluster: SlurmCluster, mode: str, node: str, user: str | None, **what: Any) -> dict[str, Any]:
    """What comes of an attempt, see intruder.py."""
    argv = [sys.executable, Path(__file__).with_name("intruder.py"), mode]
    process = cluster.popen(argv, node=node, user=user, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(json.dumps(what), timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)


def left_of(cluster: SlurmCluster, job: str) -> list[str]:
    """What is left of a job: its processes, and its files on the nodes' own disks."""
    found = [f"{node}: {line}" for node, line in processes_of(cluster, job).values()]
    return found + [f"{node}: {path}" for node in cluster.nodes_on for path in cluster.node_path(node, "/").glob(f"mnt/*.{job}.0/*")]
