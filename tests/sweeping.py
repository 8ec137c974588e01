"""Run the stages of the workflow for real, in a project folder of a test."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from raysweep.config.load import validated
from raysweep.record.file import read_sweep
from raysweep.record.sweep import Sweep

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = REPOSITORY / "workflow" / "scripts"
# The environment that runs the tests has torch and Ray: sweeps use it as it is.
ENV = {"python": sys.executable, "wheels": "none", "requirements": str(REPOSITORY / "workflow" / "envs" / "node.in")}
TRAINABLES = '''
import os, tempfile, time
from ray import tune

# Each trial has its own working directory, so files that trials share, or that the test reads, are named with this folder.
HERE = os.path.dirname(os.path.abspath(__file__))

def shared(name):
    return os.path.join(HERE, name)

def at_once():
    return 1

def faulty(config):
    kind = config["kind"]
    if kind == "raises":
        raise ValueError("no such thing\\nas this")
    if kind == "exits":
        os._exit(3)
    if kind == "task":
        import ray
        ray.get(ray.remote(at_once).remote())
    if kind == "silent":
        return None
    if kind == "returns":
        return {"score": 0.9}
    values = {"nan": {"score": float("nan")}, "infinite": {"score": float("inf")}, "text": {"score": "good"}, "other": {"loss": 1.0}}
    tune.report(values.get(kind, {"score": 0.5}))

def climb(config, befalls=lambda epoch: None):
    """Reports x·epoch, checkpoints, and goes on from a checkpoint."""
    epoch = 0
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as folder:
            epoch = int(open(os.path.join(folder, "epoch")).read())
    while True:
        epoch += 1
        befalls(epoch)
        time.sleep(config.get("pause_s", 0))
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "epoch"), "w") as stream:
                stream.write(str(epoch))
            tune.report({"score": config["x"] * epoch}, checkpoint=tune.Checkpoint.from_directory(folder))

def rests(config):
    """As `climb`, but after `free_epochs` it waits for the file `go`."""
    def befalls(epoch):
        while epoch > config.get("free_epochs", 2) and not os.path.exists(shared("go")):
            time.sleep(0.1)
    climb(config, befalls)

def company(least):
    """How many trials are at this point at once, this one among them; waits until there were `least`. The first of all does not wait."""
    def is_made(path):
        try:
            open(path, "x").close()
        except FileExistsError:
            return False
        return True
    present, first, met = shared("here"), shared("first"), shared("met")
    os.makedirs(present, exist_ok=True)
    mine = tempfile.mkstemp(dir=present)[1]
    waits, seen, end = not is_made(first), 0, time.monotonic() + 120
    while waits and not os.path.exists(met) and time.monotonic() < end:
        seen = max(seen, len(os.listdir(present)))
        if seen >= least:
            is_made(met)
        time.sleep(0.1)
    time.sleep(1)  # for one too many
    seen = max(seen, len(os.listdir(present)))
    os.remove(mine)
    return seen

def stumbles(config):
    """As `climb`, but in its second epoch something happens, once."""
    import signal
    def happens():
        if config["kind"] == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif config["kind"] == "hang":
            time.sleep(1000)
        elif config["kind"] == "nan":
            with tempfile.TemporaryDirectory() as folder:
                tune.report({"score": float("nan")}, checkpoint=tune.Checkpoint.from_directory(folder))
        elif config["kind"] == "full gpu":
            raise RuntimeError("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")
    def befalls(epoch):
        if epoch == 2 and not os.path.exists(shared(config["kind"])):
            open(shared(config["kind"]), "x").close()
            happens()
    climb({"x": 1, **config}, befalls)

def told(config):
    with open(shared("told.txt"), "a") as stream:
        print(os.environ["RAYSWEEP_SEED"], os.environ["RAYSWEEP_MAX_EPOCHS"], os.environ.get("RAYSWEEP_DATA_DIR"), sorted(config), file=stream)
    tune.report({"score": 1})

def heavy(config):
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "weights"), "wb") as stream:
            stream.write(bytes(900_000))
        tune.report({"score": config["x"]}, checkpoint=tune.Checkpoint.from_directory(folder))

def nested(config):
    tune.report({"val": {"score": config["x"]}})

def failing(config):
    if not os.path.exists("ideas"):  # a relative path, because a trial sees the user's files in its working directory
        raise RuntimeError("out of ideas")
    tune.report({"score": 1})
'''
NET = """
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(48, 10)

    def forward(self, x):
        return self.out(F.avg_pool2d(x, 8).flatten(1))
"""
# A model whose forward pass takes `pause_s` seconds, or waits while there is a file `hang`.
SLOW_NET = """
import os
import time
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, pause_s=0.0):
        super().__init__()
        self.hidden, self.out, self.pause_s = nn.Linear(48, 16), nn.Linear(16, 10), pause_s

    def forward(self, x):
        time.sleep(self.pause_s)
        while os.path.exists("hang"):
            time.sleep(0.1)
        return self.out(F.relu(self.hidden(F.avg_pool2d(x, 8).flatten(1))))
"""
DESCRIBED: dict[str, str] = {}  # Python → env.yaml


class Project:
    """A folder in which a user has his files and starts the workflow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def configure(self, name: str = "c.yaml", **config: Any) -> None:
        self.write(name, yaml.safe_dump({"env": ENV} | config, sort_keys=False))

    def config(self) -> dict[str, Any]:
        return yaml.safe_load((self.folder / "c.yaml").read_text())

    def snakemake(self, *arguments: str, configfile: str = "c.yaml", cores: int = 2) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--cores", str(cores), *arguments]
        return self.finished([*argv, "--configfile", configfile])

    def finished(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command of the user's in his folder, to its end."""
        return subprocess.run(argv, cwd=self.folder, capture_output=True, text=True, check=False, env=user_environment(), timeout=900)

    def stage_command(self, stage: str, sweep: str) -> list[str]:
        """How the rule `stage` calls its script."""
        config = validated(self.config(), [self.folder / "c.yaml"], self.folder)
        config_file = self.folder / f"{sweep}.config.yaml"
        config_file.write_text(yaml.safe_dump(config | {"sweeps": {sweep: config["sweeps"][sweep]}}, sort_keys=False))
        argv = [sys.executable, str(SCRIPTS / f"{stage}.py"), "--sweep", sweep, "--config", str(config_file)]
        return [
            *argv,
            "--env-dir",
            str(self.folder / "env"),
            "--allocation",
            "local",
            "--threads",
            "2",
            "--log",
            str(self.folder / "logs" / f"{stage}-{sweep}.log"),
        ]

    def build_env(self) -> None:
        """Have `env/env.yaml` describe the environment that runs the tests. Made once for each Python: it imports torch and Ray."""
        python = self.config()["env"]["python"]
        if python not in DESCRIBED:
            argv = [sys.executable, str(SCRIPTS / "build_env.py"), "--python", python, "--wheels", "none"]
            argv += [
                "--requirements",
                ENV["requirements"],
                "--output-dir",
                str(self.folder / "described"),
                "--log",
                str(self.folder / "env.log"),
            ]
            subprocess.run(argv, cwd=self.folder, check=True, capture_output=True, env=user_environment())
            DESCRIBED[python] = (self.folder / "described" / "env.yaml").read_text()
        (self.folder / "env").mkdir(exist_ok=True)
        (self.folder / "env" / "env.yaml").write_text(DESCRIBED[python])

    def run(self, stage: str, sweep: str) -> subprocess.CompletedProcess[str]:
        """Run a stage as its rule does."""
        self.build_env()
        return self.finished(self.stage_command(stage, sweep))

    def start(self, stage: str, sweep: str) -> subprocess.Popen[str]:
        """Start a stage as a terminal would: as the leader of a process group of its own."""
        self.build_env()
        return subprocess.Popen(
            self.stage_command(stage, sweep),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=user_environment(),
            start_new_session=True,
        )

    def record(self, sweep: str) -> Sweep:
        return read_sweep(self.folder / "state" / sweep / "record.jsonl")

    def trials(self, sweep: str) -> list[dict[str, str]]:
        with (self.folder / "results" / sweep / "trials.csv").open(newline="") as stream:
            return list(csv.DictReader(stream))

    def result(self, sweep: str, name: str) -> Any:
        return yaml.safe_load((self.folder / "results" / sweep / name).read_text())


def user_environment() -> dict[str, str]:
    """The environment of a user: without the paths of the tests."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def processes_of(folder: Path) -> dict[int, str]:
    """Return the living processes of runs in `folder`: process id → command line.

    These are the processes that have the folder, or a folder below it, in their command line or as their working directory, and the processes whose
    working directory is that of a trial.
    """
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                working_dir = str((process / "cwd").resolve())
            except OSError:
                continue  # the process has ended, or belongs to another user
            is_of_run = str(folder) in line or working_dir.startswith(str(folder))
            # On a node of the tests' Slurm, a path is another file than here.
            is_of_run = is_of_run or (_mounts_of(process) == _mounts_of(Path("/proc/self")) and _is_of_trial(working_dir, folder))
            if int(process.name) != os.getpid() and is_of_run:
                found[int(process.name)] = line
    return found


def _mounts_of(process: Path) -> str | None:
    """Return the name of the mount namespace of a process, or None where the process has ended."""
    try:
        return os.readlink(process / "ns" / "mnt")
    except OSError:
        return None


def _is_of_trial(working_dir: str, folder: Path) -> bool:
    """Return whether a working directory is that of a trial of a run in `folder`, or of a trial whose run has ended, which must have no process."""
    private_folder, is_of_trial, _ = working_dir.partition("/trials/")
    if not is_of_trial or not Path(private_folder).name.startswith("rs-"):
        return False
    try:
        return str(folder) in (Path(private_folder) / "job.json").read_text()
    except FileNotFoundError:
        return not Path(private_folder).exists()


def ours(folder: Path) -> list[str]:
    """Return the command lines of the living processes of runs in `folder`."""
    return list(processes_of(folder).values())


def end_processes_of(folder: Path) -> None:
    """End the processes that a failed test has left: first with SIGTERM, so that the agents remove their folders, then with SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 20
        for pid in processes_of(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while processes_of(folder) and time.monotonic() < deadline:
            time.sleep(0.2)


def sweep_of(function: str, trial_resources: dict[str, object] | None = None, **values: object) -> dict[str, object]:
    return {
        "trainable": f"user.py:{function}",
        "metric": "score",
        "search_space": {"x": {"uniform": [0, 1]}},
        "allocation": {"cpus_per_node": 2},
        # The functions of the tests leave nothing behind, and the start of a process takes seconds.
        "trial_resources": {"reuse_processes": True} | (trial_resources or {}),
        **values,
    }


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = 120) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.05)
