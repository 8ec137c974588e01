from __future__ import annotations

import logging
from pathlib import Path

import pytest
from ray.tune import PlacementGroupFactory

from raysweep.tune.gpu_share import MAX_TRIALS_PER_GPU, GpuShare, gpus_of
from records import new_record
from tune_parts import tune_trial


@pytest.mark.parametrize(
    ("used_mb", "sharing"),
    [(1000, 9), (4500, 2), (4501, 1), (20_000, 1), (0, MAX_TRIALS_PER_GPU)],
)
def test_as_many_trials_share_a_gpu_as_its_memory_holds(tmp_path: Path, used_mb: int, sharing: int) -> None:
    record = new_record(tmp_path)
    share = GpuShare(record, 1.0, is_measuring=True)
    share.pack((used_mb, 10_000))
    assert (share.share, share.is_measuring) == (1 / sharing, False)
    assert (record.sweep.gpu_share, record.sweep.gpu_memory_mb) == (1 / sharing, (used_mb, 10_000))
    share.pack((10_000, 10_000))
    assert share.share == 1 / sharing, "only the first report says so"


def test_where_the_memory_is_unknown_each_trial_has_a_gpu_for_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = new_record(tmp_path)
    share = GpuShare(record, 1.0, is_measuring=True)
    with caplog.at_level(logging.WARNING):
        share.pack(None)
    assert (share.share, share.is_measuring, record.sweep.gpu_share) == (1.0, False, None)
    assert "Set trial_resources.gpu to a number" in caplog.text


def test_a_share_is_doubled_once_for_trials_that_fail_in_the_same_moment(tmp_path: Path) -> None:
    record = new_record(tmp_path)
    share = GpuShare(record, 0.3)
    for _ in range(2):
        share.double(0.3)
    assert share.share == 0.6 == record.sweep.gpu_share
    share.double(0.6)
    assert share.share == 1.0
    assert record.sweep.is_crowded


def test_a_trial_that_waits_takes_the_present_share(tmp_path: Path) -> None:
    share = GpuShare(new_record(tmp_path), 0.5)
    on_gpu, on_cpu = tune_trial("00000", 0.25), tune_trial("00001", 0)
    for trial in (on_gpu, on_cpu):
        share.apply(trial)
    assert on_gpu.placement_group_factory.required_resources == {"CPU": 1, "GPU": 0.5}
    assert on_cpu.placement_group_factory.required_resources == {"CPU": 1}


def test_the_workers_of_a_trial_keep_their_gpus(tmp_path: Path) -> None:
    trial = tune_trial("00000")
    for own in ({"CPU": 1}, {"CPU": 1, "GPU": 0.25}):
        trial.placement_group_factory = PlacementGroupFactory([own, {"CPU": 4, "GPU": 1}])
        assert gpus_of(trial) == own.get("GPU", 0)
        GpuShare(new_record(tmp_path / str(len(own))), 0.5).apply(trial)
        assert trial.placement_group_factory.bundles == [own | ({"GPU": 0.5} if "GPU" in own else {}), {"CPU": 4, "GPU": 1}]
