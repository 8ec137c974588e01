"""Typed configs, jobs and stages for tests, with the defaults of the schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from raysweep.cluster.job import SearchJob
from raysweep.common.capacity import TrialResources
from raysweep.common.typed_json import from_json, to_json
from raysweep.config.load import validated
from raysweep.config.model import Config, SweepConfig
from raysweep.config.schema import load_schema, with_defaults
from raysweep.environment.manifest import Environment
from raysweep.record.events import SessionHeader
from raysweep.slurm.allocation import Deadline
from raysweep.stages.stage import Call, Stage
from raysweep.training.spec import TrainingSpec
from raysweep.tune.slots.messages import EngineJob
from raysweep.usercode.freeze import Code
from raysweep.usercode.target import Target

REQUIREMENTS = Path(__file__).resolve().parents[1] / "workflow" / "envs" / "node.in"


def sweep_config(**given: Any) -> SweepConfig:
    """Return a sweep of a validated config. What is not given has its default."""
    given = ({"training": {}, "optimizer": "sgd", "loss": "cross_entropy"} if "model" in given else {}) | given
    schema = load_schema()["properties"]["sweeps"]["additionalProperties"]
    return from_json(SweepConfig, with_defaults({"search_space": {}, "metric": "score", **given}, schema))


def search_job(root: Path, sweep: SweepConfig, **given: Any) -> SearchJob:
    """Return the job of a sweep in the folder `root`."""
    fields: dict[str, Any] = {
        "name": "s",
        "header": SessionHeader(),
        "code": Code(Target(root / "net.py", "Net", None), {}),
        "root": root,
        "record": root / "record.jsonl",
        "workflow_dirs": (),
        "resources_dir": root / "resources",
        "data_dir": None,
        "max_epochs": sweep.max_epochs,
        "total": 20,
        "trial_resources": TrialResources(1, 0),
        "slurm_job": None,
        "deadline": Deadline(),
    }
    return SearchJob(sweep=sweep, **fields | given)


def described_environment(**given: Any) -> Environment:
    """Return the description of an environment without packages that is used as it is. What is not given does not matter to most tests."""
    fields: dict[str, Any] = {
        "key": "k",
        "python": Path("/usr/bin/python3"),
        "python_version": "3.11.7",
        "torch_backend": None,
        "wheels": "none",
        "modules": (),
        "packages": {},
        "environment_sha256": "sha256",
    }
    return Environment(**fields | given)


def make_stage(
    folder: Path, environment_sha256: str = "e", wheels: str = "download", datasets: dict[str, Any] | None = None, **sweep: Any
) -> Stage:
    """Return the stage of a sweep whose trainable is `user.py:train`, in an environment with this checksum and these wheels."""
    (folder / "user.py").touch()
    if "train" not in (folder / "user.py").read_text():
        (folder / "user.py").write_text("def train(config): ...\n")
    section = {"trainable": "user.py:train", "metric": "score", "search_space": {"x": 1}} | sweep
    section = {key: value for key, value in section.items() if value is not None}
    config = {"datasets": datasets or {}, "env": {"requirements": str(REQUIREMENTS), "wheels": wheels}, "sweeps": {"s": section}}
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    environment = described_environment(wheels=wheels, environment_sha256=environment_sha256)
    (folder / "env.yaml").write_text(yaml.safe_dump(to_json(environment)))
    return Stage(Config.of(validated(config, [folder / "c.yaml"], folder)), "s", Call(folder, folder, folder / "log"))


def engine_job(root: Path, code: Code, **given: Any) -> EngineJob:
    """Return the job of an engine for two trials of two batch sizes, with the data in `root`/data."""
    fields: dict[str, Any] = {
        "data_dir": root / "data",
        "compiled_dir": root / "resources" / "compiled",
        "versions": ("0", "lock"),
        "spec": TrainingSpec("cross_entropy", "sgd", order_seed=0),
        "metric": "accuracy",
        "max_epochs": 1,
        "needs_gpu": False,
        "threads": 1,
        "compiler_threads": 1,
        "memory_mb": 4000,
        "micro_batch_size": 16,
        "share_rows": True,
        "max_slots": 2,
        "trials": 2,
        "num_forms": 1,
        "num_batch_sizes": 2,
        "samples": ({"lr": 0.01, "batch_size": 16}, {"lr": 0.02, "momentum": 0.9, "batch_size": 32}),
        "num_kinds": 2,
    }
    return EngineJob(root=root, code=code, **fields | given)
