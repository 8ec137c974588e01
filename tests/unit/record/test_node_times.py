"""When nodes were a part of a sweep, and how many hours that makes."""

from __future__ import annotations

import pytest

from raysweep.record.node_times import array_jobs, most_at_a_time, node_times, used_hours
from raysweep.record.sweep import Sweep
from records import History

HOUR = 3600


def spans(history: History) -> list[tuple[str, str | None, float, float, bool]]:
    return [(t.node.name, t.job, t.start_s / HOUR, t.end_s / HOUR, t.is_lost) for t in node_times(history.sweep)]


def test_the_nodes_of_the_sessions_own_job_count_from_start_to_end() -> None:
    history = History()
    assert (node_times(history.sweep), used_hours(history.sweep, "gpus")) == ([], 0)
    history.begin(0, "7", ("a", 4, 2), ("b", 4, 2))
    assert used_hours(history.sweep, "cpus") == 0, "a session without events has no duration"
    history.end(3)
    assert spans(history) == [("a", "7", 0, 3, False), ("b", "7", 0, 3, False)]
    assert (used_hours(history.sweep, "gpus"), used_hours(history.sweep, "cpus")) == (12, 24)


def test_a_node_of_another_job_counts_from_its_join_to_its_loss() -> None:
    history = History()
    history.begin(0, "7_0", ("a", 4, 1))
    history.node(1, "b", "joined", "7_1", 4, 1)
    history.node(1, "c", "joined", "7_2", 8, 2)
    history.node(3, "b", "lost", "7_1", 4, 1)
    history.end(4)
    assert spans(history) == [("a", "7_0", 0, 4, False), ("b", "7_1", 1, 3, True), ("c", "7_2", 1, 4, False)]
    assert used_hours(history.sweep, "gpus") == 4 + 2 + 3 * 2
    times = node_times(history.sweep)
    assert [sum(time.hours("gpus", hour * HOUR) for time in times) for hour in (-1, 0, 1, 2, 3, 4, 9)] == [0, 0, 1, 5, 9, 12, 12]


def test_two_jobs_on_one_node_are_two_and_a_node_that_comes_back_counts_again() -> None:
    history = History()
    history.begin(0, "7_0", ("a", 2, 1))
    history.node(0, "a", "joined", "7_1", 2, 1)
    history.node(0.5, "a", "joined", "7_1", 2, 1)  # it is there already
    history.node(1, "a", "lost", "7_1", 2, 1)
    history.node(1.5, "a", "lost", "7_1", 2, 1)
    history.node(2, "a", "joined", "7_1", 2, 1)
    history.end(3)
    assert spans(history) == [("a", "7_0", 0, 3, False), ("a", "7_1", 0, 1, True), ("a", "7_1", 2, 3, False)]
    assert most_at_a_time(node_times(history.sweep), "cpus") == 4


def test_a_loss_of_the_leaders_own_node_ends_its_hours() -> None:
    history = History()
    history.begin(0, "7_0", ("a", 2, 1), ("b", 2, 1))
    history.node(1, "b", "lost", "7_0", 2, 1)
    history.end(2)
    assert used_hours(history.sweep, "gpus") == 3


def test_an_interrupted_session_counts_to_its_last_event_and_the_next_leader_has_joined_nodes_anew() -> None:
    history = History()
    history.begin(0, "7_0", ("a", 4, 1))
    history.node(1, "b", "joined", "7_1", 4, 1)
    history.begin(5, "7_1", ("b", 4, 1))  # the first leader was killed, and four hours without an event do not count
    history.node(5.5, "c", "joined", "7_2", 4, 1)
    history.tell(6, "fused", why_not="no")
    assert spans(history) == [("a", "7_0", 0, 1, False), ("b", "7_1", 1, 1, False), ("b", "7_1", 1, 2, False), ("c", "7_2", 1.5, 2, False)]
    assert used_hours(history.sweep, "gpus") == pytest.approx(2.5)
    assert most_at_a_time(node_times(history.sweep), "gpus") == 2


def test_a_record_without_sizes_has_only_nodes_of_the_session() -> None:
    history = History()
    history.begin(0, None, ("a", 4, 1), ("b", 8, 0))
    history.node(1, "b", "joined")  # its Ray came late, but the job had it from the start
    history.node(2, "b", "lost")
    history.node(3, "b", "joined")
    history.node(3, "unknown", "joined")
    history.node(3, "never seen", "lost")
    history.end(4)
    assert spans(history) == [("a", None, 0, 4, False), ("b", None, 0, 2, True), ("b", None, 3, 4, False), ("unknown", None, 3, 4, False)]
    assert used_hours(history.sweep, "cpus") == 16 + 16 + 8


def test_times_outside_of_the_session_are_cut_because_clocks_may_be_set() -> None:
    history = History()
    history.begin(1, "7_0", ("a", 1, 0))
    history.node(0, "b", "joined", "7_1", 1, 0)
    history.node(9, "b", "lost", "7_1", 1, 0)
    history.end(3)
    assert spans(history) == [("a", "7_0", 0, 2, False), ("b", "7_1", 0, 2, True)]


def test_the_jobs_of_an_array_are_in_the_order_of_slurm() -> None:
    history = History()
    history.begin(0, "98", ("a", 1, 0))
    history.begin(0, "123_10", ("a", 1, 0))
    history.node(1, "b", "joined", "123_2", 1, 0)
    history.node(1, "c", "joined", "99_3", 1, 0)
    assert array_jobs(history.sweep) == ["99_3", "123_2", "123_10"]
    assert array_jobs(Sweep()) == []


def test_of_a_loss_and_a_join_at_one_time_the_loss_comes_first() -> None:
    history = History()
    history.begin(0, "7_0", ("a", 1, 0))
    history.node(0, "b", "joined", "7_1", 4, 0)
    history.node(1, "b", "lost", "7_1", 4, 0)
    history.node(1, "c", "joined", "7_2", 4, 0)
    history.end(2)
    assert most_at_a_time(node_times(history.sweep), "cpus") == 5
    assert most_at_a_time([], "gpus") == 0
