"""Kills at random moments, as `make faults` does many: no trial is lost, none is run twice, and the configurations are those of a quiet run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from faults import PARTS, Fault, check_whole, compare, kill_until, table
from raysweep.config.reference import with_table
from raysweep.record.sweep import Sweep
from raysweep.record.trials import Trial
from sweeping import REPOSITORY


def test_three_kills_cost_no_finished_trial(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown where the test fails
    rng = random.Random(seed)
    order = [*PARTS]
    rng.shuffle(order)
    faults = kill_until(tmp_path, order, 3, rng)
    assert sum(fault.times for fault in faults.values()) >= 3
    assert [(fault.name, fault.lost, fault.run_twice) for fault in faults.values() if fault.lost or fault.run_twice] == []


def trial(trial_id: str, status: str, attempts: int) -> Trial:
    return Trial(trial_id, 0, 0, 0, {}, status=status, attempts=[{}] * attempts)  # type: ignore[arg-type]


def test_what_is_lost_or_run_twice_is_counted() -> None:
    before = {name: trial(name, "TERMINATED", 1) for name in "abc"}
    fault = Fault("driver", times=1, recovered_s=[3.0])
    compare(
        fault, before, Sweep(trials={"a": trial("a", "TERMINATED", 1), "b": trial("b", "TERMINATED", 2), "c": trial("c", "PENDING", 1)})
    )
    assert (fault.finished_before, fault.finished_after, fault.lost, fault.run_twice) == (3, 2, 1, 1)
    assert "| 1 | 3 | 2 | 1 | 1 | 3 (3) |" in table([fault], 7, 60)


def test_a_sweep_that_is_not_as_an_undisturbed_one_is_noticed() -> None:
    with pytest.raises(AssertionError):
        check_whole(Sweep(trials={"00000": trial("00000", "TERMINATED", 1)}))


def test_what_is_measured_takes_the_place_of_the_table_before_and_of_nothing_else() -> None:
    page = REPOSITORY / "docs" / "faults.md"
    text = page.read_text(encoding="utf-8")
    before, _, measured = with_table(text, table([Fault("GCS", times=3)], 7, 60), page).partition("Written by `make faults` on ")
    assert text.startswith(before)
    assert before.endswith("## Measured\n\n<!-- begin of the generated table -->\n\n")
    assert [line.split(" | ")[:2] for line in measured.splitlines() if line.startswith("| ")][1:] == [["| Ray's GCS: SIGKILL", "3"]]
