"""Typed configs and jobs for tests, with the defaults of the schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raysweep.cluster.job import SearchJob, Walltime
from raysweep.common.typed_json import from_json
from raysweep.config.model import SweepConfig
from raysweep.config.schema import load_schema, with_defaults
from raysweep.record.events import SessionHeader
from raysweep.slurm.capacity import TrialResources
from raysweep.usercode.freeze import Code
from raysweep.usercode.target import Target


def sweep_config(**given: Any) -> SweepConfig:
    """Return a sweep of a validated config. What is not given has its default."""
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
        "data_dir": None,
        "max_epochs": sweep.max_epochs,
        "total": 20,
        "trial_resources": TrialResources(1, 0),
        "slurm_job": None,
        "walltime": Walltime(None, None, 0),
    }
    return SearchJob(sweep=sweep, **fields | given)
