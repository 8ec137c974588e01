from __future__ import annotations

import logging
from typing import Any

import pytest

from raysweep.record.progress import ProgressLine
from raysweep.record.sweep import Sweep


def sweep(*trials: tuple[str, float | None], metric: str = "accuracy") -> Sweep:
    """Trials of these statuses, each with a value or without a report."""
    made = Sweep()

    def apply(event: str, **values: Any) -> None:
        made.apply({"event": event, "at": "2026-03-01T09:00:00.000Z", **values})

    apply("session", sweep={})
    for number, (status, value) in enumerate(trials):
        trial = f"{number:05d}"
        apply("trial", trial=trial, index=number, repeat=0, seed=number, config={})
        if status != "PENDING":
            apply("start", trial=trial, node="n1", from_epoch=0)
        if value is not None:
            apply("result", trial=trial, epoch=1, metrics={metric: value}, time_s=1.0, node="n1")
        if status not in ("PENDING", "RUNNING"):
            apply("finish", trial=trial, status=status, error=None)
    return made


def line(total: int = 20, mode: Any = "max") -> ProgressLine:
    progress = ProgressLine("lenet", total=total, metric="accuracy", mode=mode)
    progress.started_s = progress.shown_s = 0.0
    return progress


def test_nothing_yet() -> None:
    assert line().text(sweep(), 12) == "lenet: 0/20 trials done, 0 running, 0 failed, 12s elapsed"


def test_the_counts_the_best_and_the_time_left() -> None:
    trials = sweep(("TERMINATED", 0.41234), ("STOPPED", 0.2), ("ERROR", 0.9), ("RUNNING", 0.5), ("RUNNING", None), ("PENDING", None))
    assert line().text(trials, 300) == (
        "lenet: 3/20 trials done, 2 running, 1 failed, best accuracy 0.5 (trial 00003), 5m00s elapsed, about 28m20s left"
    )


def test_the_smallest_value_is_best_where_it_is_wanted() -> None:
    assert "best accuracy 0.25 (trial 00001)" in line(mode="min").text(sweep(("TERMINATED", 0.5), ("TERMINATED", 0.25)), 1)


def test_what_earlier_sessions_did_does_not_make_the_rest_look_faster() -> None:
    progress = line(total=12)
    progress.show(sweep(*[("TERMINATED", 0.1)] * 9, ("RUNNING", None)), now=0)
    assert "left" not in progress.text(sweep(*[("TERMINATED", 0.1)] * 9), 50)
    assert progress.text(sweep(*[("TERMINATED", 0.1)] * 10), 60).endswith("1m00s elapsed, about 2m00s left")


def test_a_finished_sweep_has_no_time_left() -> None:
    assert line(total=1).text(sweep(("TERMINATED", 0.1)), 60).endswith("about 0s left")


def test_a_line_comes_at_most_every_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    progress = line()
    logging.getLogger("raysweep").propagate = True
    with caplog.at_level(logging.INFO, "raysweep"):
        for now in (0, 9.9, 10, 10.1, 19.9, 20.0, 45):
            progress.show(sweep(), now)
    assert [message.rpartition(", ")[2] for message in caplog.messages] == ["10s elapsed", "20s elapsed", "45s elapsed"]
