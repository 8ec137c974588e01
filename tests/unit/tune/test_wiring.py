from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from raysweep.common.machine import NodeSize
from raysweep.record.events import SessionHeader
from raysweep.record.file import Record
from raysweep.tune.population import HandOvers, Replay
from raysweep.tune.session import open_session
from raysweep.tune.wiring import EXPERIMENT, disk_fault, make_parts, make_search, make_session_scheduler, make_tuner
from records import two_hours_of_two_gpus
from typed import search_job, sweep_config

LOCKED = """
import threading
from ray.tune.search import Searcher

class Locked(Searcher):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def set_search_properties(self, metric, mode, config, **spec):
        return True

    def save(self, checkpoint_path):
        raise NotImplementedError
"""


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_searcher_with_a_lock_does_not_keep_tune_from_its_snapshot(tmp_path: Path, repeats: int) -> None:
    (tmp_path / "mine.py").write_text(LOCKED)
    algorithm = {"name": "mine.py:Locked"}
    sweep = sweep_config(trainable="user.py:train", search_algorithm=algorithm, search_space={"x": {"uniform": [0, 1]}})
    with Record(tmp_path / "record.jsonl") as record:
        session = open_session(search_job(tmp_path, sweep, header=SessionHeader(repeats=repeats)), (NodeSize("n", 2, 0),), record)
        replaying = Replay(record, HandOvers(), ())
        parts = make_parts(session, replaying, lambda: None)
        scheduler = make_session_scheduler(session, parts, replaying)
        make_tuner(session, parts, scheduler)
    snapshot = pickle.loads((session.scratch / EXPERIMENT / "tuner.pkl").read_bytes())
    tune_config, run_config = snapshot["_tune_config"], snapshot["_run_config"]
    for pickled in (tune_config.search_alg, tune_config.scheduler, run_config.stop, *run_config.callbacks):
        assert vars(pickled) == {}


@pytest.mark.parametrize(
    ("budget", "may_start"),
    [
        ({}, True),
        ({"max_gpu_hours": 5}, True),
        ({"max_gpu_hours": 4}, False),
        ({"time_budget": "3h"}, True),
        ({"time_budget": "2h"}, False),
    ],
)
def test_no_new_trial_starts_after_the_budget(tmp_path: Path, budget: dict[str, Any], may_start: bool) -> None:
    two_hours_of_two_gpus(tmp_path)
    sweep = sweep_config(trainable="user.py:train", allocation={"gpus_per_node": 2}, search_space={"x": {"uniform": [0, 1]}}, **budget)
    with Record(tmp_path / "record.jsonl") as record:
        session = open_session(search_job(tmp_path, sweep), (NodeSize("n", 2, 2),), record)
        search = make_search(session, make_parts(session, Replay(record, HandOvers(), ()), lambda: None))
        assert search.conditions.may_start_new() is may_start


def test_a_fault_that_is_no_full_disk_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    assert disk_fault(ValueError("a bug of ours"), tmp_path) is None
    assert disk_fault(OSError(errno.EACCES, "Permission denied"), tmp_path) is None


def test_a_disk_that_was_full_is_the_fault_although_it_has_room_again(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "snapshot"))
    with pytest.raises(RuntimeError) as raised:
        raise RuntimeError("Tune failed") from full
    assert disk_fault(raised.value, tmp_path) is full


def test_a_folder_that_takes_no_write_is_the_fault(tmp_path: Path) -> None:
    fault = disk_fault(ValueError("Tune failed"), tmp_path / "gone")
    assert fault is not None
    assert fault.errno == errno.ENOENT
