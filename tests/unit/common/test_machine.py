from __future__ import annotations

import os

import pytest

from raysweep.common.machine import usable_cpus


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to a CPU")
def test_cpus_are_those_that_this_process_may_run_on() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(("counted", "usable"), [(8, 8), (None, 1)])
def test_a_system_that_binds_no_process_to_a_cpu_has_all_of_them(monkeypatch: pytest.MonkeyPatch, counted: int | None, usable: int) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    assert usable_cpus() == usable
