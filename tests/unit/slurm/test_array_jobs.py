"""What Slurm says of the jobs of a job array. The tests replace squeue by a fake."""

from __future__ import annotations

import pytest

from fake_slurm import Fakes
from raysweep.slurm.array_jobs import ASK_INTERVAL_S, ArrayJob, ArrayJobs

ANSWER = """\
a line of the site
123_10|PENDING||2026-11-30T14:03:11|Priority
123_2|RUNNING|node4|2026-11-30T09:00:00|None
123_0|RUNNING|node[1-2]|2026-11-30T09:00:00|None
123_11|PENDING||N/A|Nodes required for job are DOWN | reserved
1234_0|RUNNING|node3|2026-11-30T09:00:00|None
"""


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_fake_squeue_says_which_jobs_run_and_why_others_wait(fakes: Fakes) -> None:
    fakes.answer("squeue", ANSWER)
    assert ArrayJobs().of("123") == (
        ArrayJob("123_0", "RUNNING", "node[1-2]", "2026-11-30T09:00:00", "None"),
        ArrayJob("123_2", "RUNNING", "node4", "2026-11-30T09:00:00", "None"),
        ArrayJob("123_10", "PENDING", "", "2026-11-30T14:03:11", "Priority"),
        ArrayJob("123_11", "PENDING", "", "", "Nodes required for job are DOWN | reserved"),
    )
    assert fakes.calls("squeue") == ["--all --array --noheader --jobs=123 --format=%i|%T|%N|%S|%r"]


@pytest.mark.parametrize(("code", "jobs"), [(0, ()), (1, None)])
def test_a_fake_squeue_is_asked_once_in_the_interval_also_when_it_fails(fakes: Fakes, code: int, jobs: tuple[()] | None) -> None:
    fakes.answer("squeue", code=code)
    clock = Clock()
    array_jobs = ArrayJobs(clock)
    for now_s, calls in ((0, 1), (ASK_INTERVAL_S - 1, 1), (ASK_INTERVAL_S, 2), (ASK_INTERVAL_S + 1, 2)):
        clock.now_s = now_s
        assert array_jobs.of("123") == jobs
        assert len(fakes.calls("squeue")) == calls
    array_jobs.of("124")
    assert len(fakes.calls("squeue")) == 3, "another array is another question"
