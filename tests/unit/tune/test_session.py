from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from raysweep.common.machine import NodeSize
from raysweep.record.file import Record
from raysweep.slurm.capacity import TrialResources, capacity
from raysweep.tune.population import HandOvers
from raysweep.tune.samplers import ListSampler
from raysweep.tune.schedulers import ShieldedScheduler, make_scheduler
from raysweep.tune.session import Session, finish_whole
from raysweep.tune.slots.fusion import Fusion
from raysweep.tune.slots.manager import SlotManager
from raysweep.tune.slots.messages import EngineSetup
from tune_parts import new_record
from typed import search_job, sweep_config


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "most"),
    [
        ([(2, 0)], 1, 0, 2),
        ([(2, 0)], 3, 0, 0),
        ([(10, 1)], 1, 0.1, 10),  # the wiki's job
        ([(10, 1)], 1, 0.3, 3),
        ([(10, 2)], 1, 0.4, 4),  # a part does not cross the edge of a GPU
        ([(10, 2)], 1, 2, 1),
        ([(10, 3)], 1, 2, 1),
        ([(4, 1), (2, 1)], 1, 0.5, 4),
        ([(4, 0)], 0.5, 0, 8),
    ],
)
def test_capacity_follows_from_the_resources(nodes: list[tuple[int, int]], cpus: float, gpus: float, most: int) -> None:
    assert capacity([NodeSize("n", c, g) for c, g in nodes], TrialResources(cpus, gpus)) == most


def test_what_was_cut_off_after_its_last_report_is_finished(tmp_path: Path) -> None:
    with Record(tmp_path / "record.jsonl") as record:
        record.write("session", sweep={}, host="h", pid=1, nodes=[])
        for number, scores in enumerate(([0.1, 0.2, 0.3], [0.1, 0.9], [0.1], [])):
            trial = f"{number:05d}"
            record.write("trial", trial=trial, index=number, repeat=0, seed=0, config={})
            record.write("start", trial=trial, node="n", from_epoch=0)
            for epoch, score in enumerate(scores, start=1):
                record.write("result", trial=trial, epoch=epoch, metrics={"score": score}, time_s=1.0, node="n")
        finish_whole(record, "score", 3, {"score": {"at_least": 0.9}})
        assert [trial.status for trial in record.sweep.trials.values()] == ["TERMINATED", "TERMINATED", "RUNNING", "RUNNING"]


def session(folder: Path, fusion: Fusion | None = None, max_concurrent: int | None = None) -> Session:
    sweep = sweep_config(trainable="user.py:train", max_concurrent=max_concurrent)
    return Session(
        search_job(folder, sweep),
        (NodeSize("n", 8, 1),),
        new_record(folder),
        {},
        ListSampler([]),
        folder,
        fusion,
        resources=TrialResources(1, 0.5),
        measures_gpu=False,
        deadline=None,
    )


def test_tune_may_pickle_a_scheduler_that_asks_a_session_with_slots(tmp_path: Path) -> None:
    slots = SlotManager(lambda: None, EngineSetup(slots=2, is_prepared=False, unfolds=False))
    fused = session(tmp_path, Fusion(slots, 2, 1.0))
    scheduler = make_scheduler(fused.sweep, fused.record, {}, HandOvers())
    assert pickle.loads(pickle.dumps(ShieldedScheduler(scheduler, str.isdigit, fused.is_over)))


def test_capacity_follows_the_share_of_a_gpu_and_the_config(tmp_path: Path) -> None:
    assert [session(tmp_path).capacity(share) for share in (0.5, 0.25, 1.0)] == [2, 4, 1]
    assert session(tmp_path, max_concurrent=3).capacity(0.25) == 3
    slots = SlotManager(lambda: None, EngineSetup(slots=2, is_prepared=False, unfolds=False))
    assert session(tmp_path, Fusion(slots, 6, 1.0)).capacity(1.0) == 6
