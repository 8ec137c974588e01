"""The jobs of a sweep in `make watch`."""

from __future__ import annotations

import pytest
from rich.console import Console

from raysweep.slurm.array_jobs import ArrayJob
from raysweep.stages.watched_jobs import NO_LEADER, Row, array_of, jobs_table, rows_of, shortened_rows, state_with_jobs
from records import History


def job(number: int, state: str = "RUNNING", nodes: str = "", start: str = "", reason: str = "None") -> ArrayJob:
    return ArrayJob(f"12_{number}", state, nodes, start, reason)


def history(leader: str | None = "12_0") -> History:
    history = History()
    history.begin(0, leader, ("a", 4, 1))
    return history


LEADER, MEMBER, LATE = job(0, nodes="a"), job(1, nodes="b"), job(2, nodes="c")


def waiting(number: int, start: str = "", reason: str = "Priority") -> ArrayJob:
    return job(number, "PENDING", start=start, reason=reason)


@pytest.mark.parametrize(("leader", "array"), [("12_0", "12"), ("12", None), (None, None)])
def test_only_a_job_of_an_array_has_an_array(leader: str | None, array: str | None) -> None:
    history_ = history(leader)
    assert array_of(history_.sweep) == array
    assert (jobs_table(history_.sweep, "running", (), 80, 5) is None) is (array is None)


@pytest.mark.parametrize(
    ("state", "jobs", "expected"),
    [
        ("running", None, "running"),
        ("running", (LEADER, MEMBER), "running"),
        ("running", (MEMBER,), NO_LEADER),
        ("running", (waiting(0), MEMBER), NO_LEADER),  # Slurm starts the leader again
        ("running", (), "cut off"),
        ("out of time", (waiting(1),), NO_LEADER),
        ("out of time", (), "out of time"),
        ("out of time", None, "out of time"),
        ("cut off", (MEMBER,), NO_LEADER),
        ("complete", (MEMBER,), "complete"),
        ("incomplete", (MEMBER,), "incomplete"),
    ],
)
def test_a_sweep_goes_on_while_another_of_its_jobs_lives(state: str, jobs: tuple[ArrayJob, ...] | None, expected: str) -> None:
    assert state_with_jobs(state, history().sweep, jobs) == expected


def test_the_leader_comes_first_then_the_jobs_that_joined_and_those_that_wait_for_one_reason_share_a_row() -> None:
    running = history()
    running.node(0, "b", "joined", "12_1", 4, 1)
    running.node(0, "d", "joined", "12_3", 4, 1)
    running.node(1, "d", "lost", "12_3", 4, 1)
    jobs = (LATE, MEMBER, job(3, "COMPLETING", "d"), waiting(4), waiting(5), waiting(6, "2026-11-30T14:03:11"), LEADER)
    assert rows_of(running.sweep, "running", jobs) == [
        Row("12_0", "RUNNING", "a", "leads"),
        Row("12_1", "RUNNING", "b", "joined"),
        Row("12_2", "RUNNING", "c", "not joined yet"),
        Row("12_3", "COMPLETING", "d", ""),
        Row("2 jobs", "PENDING", "", "Priority"),
        Row("12_6", "PENDING", "", "Priority, expected start 2026-11-30 14:03"),
    ]
    assert [row.note for row in rows_of(running.sweep, NO_LEADER, (LEADER, MEMBER))] == ["not joined yet"] * 2
    assert rows_of(running.sweep, "running", None) == [Row("12_0", "", "a", "leads"), Row("12_1", "", "b", "joined")]


def shown(running: History, state: str, jobs: tuple[ArrayJob, ...] | None, max_rows: int = 9) -> str:
    table = jobs_table(running.sweep, state, jobs, 80, max_rows)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def test_the_table_has_the_numbers_of_jobs_and_says_what_it_leaves_out() -> None:
    running = history("12_3")
    running.begin(1, "12_0", ("a", 4, 1))
    text = shown(running, "running", (LEADER, waiting(1), waiting(2)))
    assert text.splitlines() == [
        "jobs of 12: 1 at work, 2 waiting, 1 ended",
        "12_0   RUNNING a leads",
        "2 jobs PENDING   Priority",
    ]
    assert "… and 2 more rows" in shown(running, "running", (LEADER, MEMBER, LATE), max_rows=2)
    assert "squeue does not list them" in shown(running, "running", None)
    long = job(0, nodes="[bold]" + "n" * 200)
    assert max(map(len, shown(running, "running", (long,)).splitlines())) <= 80


def test_the_reasons_of_the_jobs_that_wait_are_shown_also_where_many_jobs_run() -> None:
    rows = [Row(str(number), "RUNNING", "", "") for number in range(9)] + [Row(reason, "PENDING", "", "") for reason in "abcd"]
    assert [row.job or row.note for row in shortened_rows(rows, 6)] == ["0", "1", "2", "… and 8 more rows", "c", "d"]
    assert [row.job or row.note for row in shortened_rows(rows[:9], 3)] == ["0", "1", "… and 7 more rows"]
    assert shortened_rows(rows, 13) == rows


def test_a_sweep_that_is_over_has_no_table() -> None:
    for state in ("complete", "out of time", "cut off"):
        assert jobs_table(history().sweep, state, None, 80, 9) is None
