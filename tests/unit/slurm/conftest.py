"""Fakes of Slurm's programs on PATH, and the folder of a run that has submitted a job."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from fake_slurm import COMMENT, Fakes
from raysweep.slurm import queries
from raysweep.slurm.notes import PlannedJob, append


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    fakes = Fakes(tmp_path / "fakes")
    fakes.answer("scancel")
    monkeypatch.setenv("PATH", f"{fakes.folder}:/usr/bin:/bin")  # which hold no Slurm
    monkeypatch.setenv("RAYSWEEP_SQUEUE_INTERVAL_S", "0")
    monkeypatch.setattr(queries, "STARTED", time.monotonic())
    return fakes


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The folder of a run that has submitted job 12."""
    folder = tmp_path / ".snakemake/raysweep/a run"
    folder.mkdir(parents=True)
    (tmp_path / ".snakemake/incomplete").mkdir()
    planned = PlannedJob(["results/lenet/trials.csv"], ["train.py"], "a: config\n")
    (folder / "jobs.json").write_text(json.dumps({COMMENT: planned._asdict()}))
    append(folder, job="12", what=COMMENT, log="12.log", folder=str(folder))
    return folder
