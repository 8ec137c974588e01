from __future__ import annotations

import json
from pathlib import Path

import pytest

from raysweep.cluster.job import Measurement, SearchJob, StepTimes
from raysweep.common.capacity import TrialResources
from raysweep.common.typed_json import from_json, to_json
from raysweep.record.events import FusionPlan, NotFused
from raysweep.slurm.allocation import Deadline
from typed import search_job, sweep_config


@pytest.mark.parametrize("together", [FusionPlan(2, 8, 3.5, "by one compiled step"), NotFused("the model is too large")])
def test_a_measurement_survives_json(together: FusionPlan | NotFused) -> None:
    measurement = Measurement("CPU", 4500, 500, (StepTimes(8, 1e-4, 5e-5), StepTimes(64, 2e-5, 1e-5)), together, 1.5)
    assert from_json(Measurement, json.loads(json.dumps(to_json(measurement)))) == measurement


@pytest.mark.parametrize("deadline", [Deadline(), Deadline.of(1000.0, 4600.0, 60)])
def test_a_job_survives_json(tmp_path: Path, deadline: Deadline) -> None:
    job = search_job(tmp_path, sweep_config(trainable="user.py:train"), deadline=deadline)
    assert from_json(SearchJob, json.loads(json.dumps(to_json(job)))) == job


@pytest.mark.parametrize(
    ("configured", "given", "packs"),
    [("auto", 1, True), ("auto", 0, False), (1, 1, False), (0.5, 0.5, False)],
    ids=["measured", "no GPU in the allocation", "a whole GPU", "a share from the config"],
)
def test_only_a_sweep_that_leaves_the_share_to_the_workflow_packs_gpus(
    tmp_path: Path, configured: object, given: float, packs: bool
) -> None:
    sweep = sweep_config(trainable="user.py:train", trial_resources={"gpu": configured})
    assert search_job(tmp_path, sweep, trial_resources=TrialResources(1, given)).packs_gpus is packs
