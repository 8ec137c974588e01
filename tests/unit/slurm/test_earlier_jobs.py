"""Which job of an earlier run is found. Slurm's programs are fakes on PATH. What comes of it: test_submission.py."""

from __future__ import annotations

import pytest

from fake_slurm import COMMENT, Fakes
from raysweep.slurm import earlier_jobs
from raysweep.slurm.earlier_jobs import EarlierJob, comment_of, earlier_job, earlier_job_to_decide_on

DIGESTS = {"config": "1", "inputs": "2"}


@pytest.fixture(autouse=True)
def _state_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSWEEP_STATE_DIR", "/projects/a [state]|")


def line(job: str, state: str, comment: str) -> str:
    return f"{job}|{job}|{state}|n1|n1|None|{comment}\n"


def test_the_job_of_the_same_rule_sweep_and_state_folder_is_found_with_a_fake_squeue(fakes: Fakes) -> None:
    others = ("rule_run_sweep_wildcards_lenet2", "rule_confirm_wildcards_lenet")
    fakes.answer("squeue", out="".join(line("7", "RUNNING", comment_of(other, DIGESTS)) for other in others))
    assert earlier_job(COMMENT) is None
    for digests in (DIGESTS, {}):
        fakes.answer("squeue", out=line("8", "PENDING", comment_of(COMMENT, digests)))
        assert earlier_job(COMMENT) == EarlierJob("8", "PENDING", digests)
    fakes.answer("squeue", code=1)
    with pytest.raises(LookupError):
        earlier_job(COMMENT)


def test_a_job_that_lost_its_first_node_is_cancelled_by_a_fake_scancel(fakes: Fakes) -> None:
    fakes.answer("squeue", out=f"8|8|RUNNING|n1|n[2-3]|None|{comment_of(COMMENT, DIGESTS)}\n")
    fakes.answer("scontrol", out="n2\nn3\n")
    assert earlier_job(COMMENT) is None
    assert fakes.calls("scancel") == ["8"]


def test_another_job_that_a_fake_squeue_shows_as_completing_is_waited_for(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    completing = line("8", "COMPLETING", comment_of(COMMENT, {}))
    fakes.answer("squeue", out=completing)
    monkeypatch.setattr(earlier_jobs.time, "sleep", lambda _: fakes.answer("squeue"))  # Slurm completes the job meanwhile
    assert earlier_job_to_decide_on(COMMENT, DIGESTS) is None
    assert len(fakes.calls("squeue")) == 2
    fakes.answer("squeue", out=completing)
    monkeypatch.setattr(earlier_jobs, "COMPLETING_S", 0)
    assert earlier_job_to_decide_on(COMMENT, DIGESTS) == EarlierJob("8", "COMPLETING", {})
