"""How a job that Slurm ends early tells the driver. tests/slurm/test_several_jobs.py has a real preemption."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fake_slurm import Fakes
from raysweep.cluster.early_ends import EarlyEnd, early_ends, folder_beside, tell
from raysweep.cluster.lock import GateAddress, LockHolder
from raysweep.slurm.allocation import SlurmJob


def leader(folder: Path, job: str = "12_0") -> LockHolder:
    return LockHolder.this_process(SlurmJob(job, None, 0), GateAddress("12", "13", str(folder / "gate")))


@pytest.mark.parametrize("instead_of", [1_800_000_000.0, math.inf])
def test_the_leader_tells_its_own_driver(tmp_path: Path, instead_of: float) -> None:
    folder_beside(tmp_path / "gate").mkdir()
    early_end = EarlyEnd("12_0", instead_of, 1_700_000_000.0)
    tell(leader(tmp_path), early_end)
    assert early_ends(folder_beside(tmp_path / "gate")) == [early_end]


def test_another_job_tells_the_driver_with_a_step_in_the_leaders_job_as_a_fake_srun_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = Fakes(tmp_path / "fakes")
    fakes.answer("srun", "")
    monkeypatch.setenv("PATH", f"{fakes.folder}:/usr/bin:/bin")
    tell(leader(tmp_path), EarlyEnd("12_1", 20.0, 10.0))
    [call] = fakes.calls("srun")
    assert "--jobid=13" in call
    assert str(call).count("mkdir") == 1
    assert str(tmp_path / "early-ends/12_1@20@10") in call


def test_a_leader_that_is_gone_is_not_told(tmp_path: Path) -> None:
    tell(leader(tmp_path), EarlyEnd("12_0", 20.0, 10.0))
    tell(LockHolder.this_process(None), EarlyEnd("12_0", 20.0, 10.0))
    assert early_ends(folder_beside(tmp_path / "gate")) == []
    assert list(tmp_path.iterdir()) == [], "no folder is left on the node"
