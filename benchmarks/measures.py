"""What `make bench` measures: each function is one side of a figure, run once, in seconds or what its name says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import psutil

from raysweep.config.space import configuration, parse_space
from raysweep.environment.archive import pack, unpack
from raysweep.environment.build import build_environment
from raysweep.environment.requirements import EnvironmentSpec
from raysweep.tune.slots.fusion import KEEP_MEMORY
from slurm.cluster import SlurmCluster
from slurm.packages import reason_to_skip
from slurm.sweeps import project_on
from sweeping import Project, user_environment, wait_until

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
REFERENCE = HERE / "reference"
MODELS = {
    "lenet": str(REPOSITORY / "workflow/scripts/raysweep/models/lenet.py:LeNet"),
    "perceptron": str(HERE / "models.py:Perceptron"),
    "strided": str(HERE / "models.py:Strided"),
    "normalised": str(HERE / "models.py:Normalised"),
}
NUM_SAMPLES, SEED = 20, 0
SPACE = {"lr": {"loguniform": [1e-4, 1e-1]}, "batch_size": {"choice": [2, 4, 8, 16]}, "momentum": 0.9}
# Four forms of a network with dropout, for Optuna and ASHA.
FORMS = {"lr": {"loguniform": [1e-4, 1e-1]}, "batch_size": 16, "width": {"choice": [16, 32]}, "dropout": {"choice": [0.1, 0.3]}}
VALIDATION = 10_000  # images, as many as CIFAR-10's test set has
STOCK_NO_OPS = 100  # at a second or more each; what one costs does not depend on how many there are
NODES = 2
AT_A_TIME, WATCHED_S = 10, 30  # trials, where memory is measured
NO_OP = """
from ray import tune

def train(config):
    tune.report({"score": config["x"]})
"""


@dataclass(frozen=True)
class Measured:
    """A number, and the validation accuracy of each trial where there are any."""

    value: float
    accuracies: tuple[float, ...] = ()


class Bench:
    """The machine, the data and a folder for it all. `data_dir` holds cifar-10-batches-py."""

    def __init__(self, folder: Path, data_dir: Path, wheels_dir: Path, cpus: int = 2, gpus: int = 0) -> None:
        self.folder, self.data_dir, self.wheels_dir, self.cpus, self.gpus = folder, data_dir, wheels_dir, cpus, gpus

    def sides(self) -> dict[str, Callable[[], Measured]]:
        """All that can be measured here, by name."""
        found: dict[str, Callable[[], Measured]] = {}
        for model in MODELS:
            found[f"{model}/reference"] = partial(self.reference_sweep, model)
            found[f"{model}/auto"] = partial(self.sweep, model, fuse="auto")
            if model == "lenet":  # directly after the first run
                found["lenet/again"] = partial(self.sweep, "lenet", fuse="auto", is_first=False)
        found["lenet/off"] = partial(self.sweep, "lenet", fuse="off")
        adaptive: dict[str, Any] = {
            "max_epochs": 4,
            "search_algorithm": "optuna",
            "scheduler": {"name": "asha", "grace_period": 1, "reduction_factor": 2},
            "trial_resources": {"cpu": 0.2},
        }
        for fuse in ("off", "on"):
            found[f"asha/{fuse}"] = partial(self.sweep, "lenet", fuse=fuse, **adaptive)
        for fuse in ("off", "auto"):
            found[f"forms/{fuse}"] = partial(self.sweep, "normalised", fuse=fuse, search_space=FORMS, **adaptive)
        for size in (2, 16):
            found[f"step {size}/reference"] = partial(self.plain_step, size)
            found[f"step {size}/fused"] = partial(self.fused_step, size)
        found["no-op/stock"] = self.stock_no_ops
        found["no-op/1000"] = partial(self.no_ops, 1_000)
        found["no-op/10000"] = partial(self.no_ops, 10_000)
        found["node/venv + pip"] = self.pip_environment
        found["node/unpacked"] = self.unpacked_environment
        found["node/cached"] = self.cached_environment
        found["bring-up/recipe"] = self.recipe_bring_up
        found["bring-up/ours"] = self.bring_up
        found["memory/reference"] = self.reference_memory
        found["memory/ours"] = self.memory
        found["dry run"] = self.dry_run
        return found

    # --------------------------------------------------------------------------------------------------------------- whole sweeps

    @cached_property
    def configs(self) -> list[dict[str, Any]]:
        """The configurations of both sides: those that our sweep draws."""
        space = parse_space(SPACE)
        return [configuration(space, SEED, index) for index in range(NUM_SAMPLES)]

    def reference_command(self, model: str, at_a_time: int) -> list[str]:
        path = self.folder / "configs.json"
        path.write_text(json.dumps([{key: config[key] for key in ("lr", "batch_size")} for config in self.configs]))
        argv = [
            sys.executable,
            str(REFERENCE / "sweep.py"),
            "--data-dir",
            str(self.data_dir),
            "--model",
            MODELS[model],
            "--configs",
            str(path),
        ]
        return [*argv, "--at-a-time", str(at_a_time), "--cpus", str(self.cpus), "--gpus", str(self.gpus)]

    def reference_sweep(self, model: str) -> Measured:
        found = output_of(self.reference_command(model, at_a_time=self.cpus))
        return Measured(found["seconds"], tuple(found["accuracies"]))

    @cached_property
    def source(self) -> Path:
        """CIFAR-10's batches with the test set dealt out to them, so that 50,000 images are left to train on beside 10,000 to validate on."""
        import pickle

        import numpy as np

        folder, published = self.folder / "cifar-10-batches-py", self.data_dir / "cifar-10-batches-py"
        folder.mkdir()
        test = pickle.loads((published / "test_batch").read_bytes(), encoding="latin1")
        for number in range(1, 6):
            batch = pickle.loads((published / f"data_batch_{number}").read_bytes(), encoding="latin1")
            part = slice((number - 1) * VALIDATION // 5, number * VALIDATION // 5)
            batch["data"] = np.concatenate([batch["data"], test["data"][part]])
            for key in ("labels", "filenames"):
                batch[key] = [*batch[key], *test[key][part]]
            (folder / f"data_batch_{number}").write_bytes(pickle.dumps(batch, protocol=4))
        for name in ("test_batch", "batches.meta"):
            shutil.copy(published / name, folder)
        return folder

    def project(self, **sweep: Any) -> Project:
        """A project with one sweep, `s`, on the staged data."""
        project = Project(Path(tempfile.mkdtemp(prefix="project-", dir=self.folder)))
        options: dict[str, Any] = {}
        if "model" in sweep:
            options["datasets"] = {"cifar10": {"source": str(self.source), "checksum": "none", "validation_fraction": 1 / 6}}
            options["resources_dir"] = str(self.folder / "resources")  # the same for all: staged once
            sweep = {"dataset": "cifar10", "metric": "accuracy", "search_space": SPACE, "num_samples": NUM_SAMPLES, "seed": SEED} | sweep
        else:
            project.write("user.py", NO_OP)
        allocation = {"cpus_per_node": self.cpus, "gpus_per_node": self.gpus, "mem_mb_per_node": 16_000}
        resources = {"cpu": 1, "gpu": "auto" if self.gpus else 0}
        project.configure(sweeps={"s": {"trial_resources": resources, "allocation": allocation} | sweep}, **options)
        if "model" in sweep:
            staged = project.snakemake("--until", "stage_data")
            assert staged.returncode == 0, staged.stderr
        project.build_env()
        return project

    def sweep(self, model: str, fuse: str, is_first: bool = True, **options: Any) -> Measured:
        """Our sweep from the start of its driver to best.yaml, Ray's start included.

        A first run finds nothing that an earlier run has measured or compiled. A second run of a model has to follow the first one.
        """
        project = self.project(model=MODELS[model], fuse=fuse, **options)
        compiled = self.folder / "resources" / "compiled"
        if is_first:
            shutil.rmtree(compiled, ignore_errors=True)
        elif not compiled.exists():
            raise Unmeasurable(f"it has to follow {model}/auto, which --only leaves out")
        began = time.time()
        took_s = timed(project, "s")
        first = min(datetime.fromisoformat(trial.started or "").timestamp() for trial in project.record("s").trials.values())
        print(f"    the first trial began {first - began:.0f} s after the start", flush=True)
        log = (project.folder / "logs" / "run_sweep-s.log").read_text()
        for line in re.findall(r"s: (trials are trained .*)", log):
            print(f"    {line}", flush=True)
        return Measured(took_s, tuple(float(trial["accuracy"]) for trial in project.trials("s") if trial["accuracy"]))

    # ------------------------------------------------------------------------------------------------------------------ single steps

    def plain_step(self, batch_size: int) -> Measured:
        argv = [sys.executable, str(REFERENCE / "plain_loop.py"), "--model", MODELS["lenet"], "--batch-size", str(batch_size)]
        return Measured(output_of(argv)["microseconds"])

    def fused_step(self, batch_size: int) -> Measured:
        with tempfile.TemporaryDirectory(dir=self.folder) as cache:
            argv = [sys.executable, str(HERE / "fused_steps.py"), "--model", MODELS["lenet"], "--batch-size", str(batch_size)]
            variables = KEEP_MEMORY | {"PYTHONPATH": str(REPOSITORY / "workflow/scripts"), "TORCHINDUCTOR_CACHE_DIR": cache}
            return Measured(output_of(argv, **variables)["microseconds"])

    # --------------------------------------------------------------------------------------------------------- trials that do nothing

    def stock_no_ops(self) -> Measured:
        argv = [sys.executable, str(REFERENCE / "no_op_trials.py"), "--trials", str(STOCK_NO_OPS), "--cpus", str(self.cpus)]
        return Measured(1000 * output_of(argv)["seconds"] / STOCK_NO_OPS)

    def no_ops(self, trials: int) -> Measured:
        """Milliseconds a trial, from the driver's start to what the sweep leaves."""
        space = {"x": {"uniform": [0, 1]}}
        resources = {"reuse_processes": True}  # the function leaves nothing behind
        project = self.project(trainable="user.py:train", metric="score", search_space=space, num_samples=trials, trial_resources=resources)
        return Measured(1000 * timed(project, "s") / trials)

    # ----------------------------------------------------------------------------------------------------------------- environments

    @cached_property
    def requirements(self) -> Path:
        """The node environment's requirements without torch, which no recipe for Ray installs, and their lock; the wheels are in `wheels_dir`."""
        folder = self.folder / "requirements"
        folder.mkdir()
        for suffix in (".in", ".txt"):
            lines = (REPOSITORY / "workflow/envs" / f"node{suffix}").read_text().splitlines()
            kept = [line for line in lines if not re.match(r"(torch|nvidia-|triton|cuda-)", line)]
            (folder / f"node{suffix}").write_text("\n".join(kept) + "\n")
        if not self.wheels_dir.exists():
            subprocess.run([sys.executable, "-m", "venv", self.folder / "pip"], check=True)  # the environment of the tests has none
            argv = [self.folder / "pip" / "bin" / "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*argv, "--requirement", folder / "node.txt", "--dest", self.wheels_dir], check=True)
        return folder / "node.in"

    @cached_property
    def built(self) -> Path:
        """Our environment of the same wheels, built and packed, as it is once where the network is."""
        folder = self.folder / "built"
        recipe = EnvironmentSpec(
            python=sys.executable, modules=(), requirements=self.requirements, wheels=str(self.wheels_dir), torch_backend="auto", gpu=False
        )
        build_environment(recipe, folder)
        pack(folder)
        return folder

    def pip_environment(self) -> Measured:
        """What each node does by the recipe."""
        lock = self.requirements.with_suffix(".txt")
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            began = time.monotonic()
            subprocess.run([sys.executable, "-m", "venv", f"{folder}/env"], check=True)
            argv = [
                f"{folder}/env/bin/pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-index",
                "--find-links",
                self.wheels_dir,
            ]
            subprocess.run([*argv, "--requirement", lock], check=True)
            return Measured(time.monotonic() - began)

    def unpacked_environment(self) -> Measured:
        built = self.built
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            began = time.monotonic()
            unpack(built, Path(folder))
            return Measured(time.monotonic() - began)

    def cached_environment(self) -> Measured:
        """A second job on a node that keeps environments."""
        built = self.built
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            unpack(built, Path(folder), cache_dir=Path(folder))
            began = time.monotonic()
            unpack(built, Path(folder), cache_dir=Path(folder))
            return Measured(time.monotonic() - began)

    # ---------------------------------------------------------------------------------------------------------- bring-up on two nodes

    @contextlib.contextmanager
    def cluster(self) -> Iterator[SlurmCluster]:
        if reason := reason_to_skip():
            raise Unmeasurable(reason)
        base = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        with SlurmCluster(base, shared=[self.folder]) as cluster:
            yield cluster

    def recipe_bring_up(self) -> Measured:
        """From the job's start until Ray has both nodes, with an environment made on each."""
        lock = self.requirements.with_suffix(".txt")
        with self.cluster() as cluster:
            script = cluster.shared / "recipe.sh"
            script.write_text((REFERENCE / "bring_up.sh").read_text())
            out = cluster.shared / "seconds"
            job = cluster.sbatch(
                f"--nodes={NODES}",
                "--ntasks-per-node=1",
                "--cpus-per-task=2",
                "--mem=4000M",
                script,
                sys.executable,
                self.wheels_dir,
                lock,
                out,
            )
            wait_until(out.exists, "the recipe's nodes are up", 600)
            wait_until(lambda: out.read_text().strip() != "", "it is written down")
            cluster.run(["scancel", job])
            wait_until(lambda: cluster.run(["squeue", "--noheader"]).stdout == "", "the job has ended")
            return Measured(float(out.read_text()))

    def bring_up(self) -> Measured:
        env = {"python": sys.executable, "wheels": str(self.wheels_dir), "requirements": str(self.requirements)}
        with self.cluster() as cluster:
            folder = Path(tempfile.mkdtemp(prefix="on-slurm-", dir=self.folder))
            with project_on(cluster, folder) as project:
                project.sweep(nodes=NODES, cpus=2, num_samples=2, trial_resources={"cpu": 1})
                project.configure(**project.config() | {"env": env})
                project.best(timeout=600)
                job = project.job_of("s")
                [started] = re.findall(r"StartTime=(\S+)", cluster.run(["scontrol", "show", "job", job]).stdout)
                up = datetime.fromisoformat(project.record("s").sessions[0].at).timestamp()  # the driver writes it once all nodes are there
                return Measured(up - datetime.fromisoformat(started).timestamp())  # Slurm tells whole seconds

    # ------------------------------------------------------------------------------------------------------------------------ memory

    def reference_memory(self) -> Measured:
        """MB, the largest sum of PSS while ten trials train."""
        process = subprocess.Popen(self.reference_command("lenet", AT_A_TIME), env=user_environment(), stdout=subprocess.DEVNULL)

        def are_all_there() -> bool:
            """Ten workers of Ray have a process that loads data."""
            workers = [one for one in family(process) if title_of(one).startswith("ray::")]
            return sum(any(title_of(child).startswith("ray::") for child in children_of(one)) for one in workers) >= AT_A_TIME

        try:
            return Measured(largest_pss_mb(process, are_all_there))
        finally:
            end(process)

    def memory(self) -> Measured:
        project = self.project(model=MODELS["lenet"], fuse="auto", max_concurrent=AT_A_TIME)
        process = subprocess.Popen(
            project.stage_command("run_sweep", "s"), cwd=project.folder, env=user_environment(), stdout=subprocess.DEVNULL
        )
        try:
            return Measured(largest_pss_mb(process, lambda: running(project) >= AT_A_TIME))
        finally:
            end(process)

    # ----------------------------------------------------------------------------------------------------------------------- dry run

    def dry_run(self) -> Measured:
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            shutil.copytree(REPOSITORY / "config", Path(folder) / "config")
            shutil.copytree(REPOSITORY / "workflow", Path(folder) / "workflow")
            argv = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile", "--dry-run", "--quiet"]
            began = time.monotonic()
            subprocess.run(argv, cwd=folder, check=True, capture_output=True, env=user_environment())
            return Measured(time.monotonic() - began)


class Unmeasurable(Exception):
    """What this machine cannot measure, and why."""


def output_of(argv: list[str], **variables: str) -> dict[str, Any]:
    """The JSON that a program prints last."""
    run = subprocess.run(argv, capture_output=True, text=True, env=user_environment() | variables, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)} ended with exit code {run.returncode}:\n{run.stderr[-3000:]}")
    return json.loads(run.stdout.strip().splitlines()[-1])


def timed(project: Project, sweep: str) -> float:
    """Seconds that run_sweep takes."""
    began = time.monotonic()
    run = subprocess.run(
        project.stage_command("run_sweep", sweep), cwd=project.folder, env=user_environment(), capture_output=True, text=True, check=False
    )
    took_s = time.monotonic() - began
    if run.returncode != 0:
        raise RuntimeError(f"run_sweep ended with exit code {run.returncode}:\n{run.stdout[-1000:]}{run.stderr[-2000:]}")
    return took_s


def family(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """A process and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        whole = psutil.Process(process.pid)
        return [whole, *whole.children(recursive=True)]
    return []


def children_of(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children()
    return []


def title_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def running(project: Project) -> int:
    """How many trials of its sweep have begun and not ended."""
    if not (project.folder / "state" / "s" / "record.jsonl").exists():
        return 0
    return sum(bool(trial.attempts) and not trial.finished for trial in project.record("s").trials.values())


def largest_pss_mb(process: subprocess.Popen[Any], are_all_there: Callable[[], bool]) -> float:
    """The largest sum over a program's processes within half a minute from when all trials are there."""
    largest, until = 0.0, None
    while (until is None or time.monotonic() < until) and process.poll() is None:
        if until is None and are_all_there():
            until = time.monotonic() + WATCHED_S
        if until is not None:
            total = 0
            for one in family(process):
                with contextlib.suppress(psutil.Error):
                    total += one.memory_full_info().pss
            largest = max(largest, total / 1e6)
        time.sleep(1)
    return largest


def end(process: subprocess.Popen[Any]) -> None:
    """End a program with all that it started."""
    started = family(process)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
    for one in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    os.sync()
