from __future__ import annotations

from pathlib import Path

from raysweep.tune.node_watch import LOOK_INTERVAL_S, NodeWatch
from records import new_record
from tune_parts import Clock


def test_nodes_that_join_and_are_lost_are_recorded(tmp_path: Path) -> None:
    live, clock = {"10.0.0.1": "n1", "10.0.0.2": "n2"}, Clock()
    record = new_record(tmp_path)
    watch = NodeWatch(record, None, lambda: dict(live), clock)
    watch.look()
    assert record.sweep.nodes == []
    del live["10.0.0.2"]
    live["10.0.0.3"] = "n3"
    watch.look()
    assert record.sweep.nodes == [], "the interval is not over"
    clock.now_s += LOOK_INTERVAL_S
    watch.look()
    assert [(node.node, node.state) for node in record.sweep.nodes] == [("n2", "lost"), ("n3", "joined")]
    assert [watch.name_of(address) for address in ("10.0.0.2", "10.0.0.3")] == ["n2", "n3"]


def test_a_node_that_joined_since_the_last_look_has_a_name(tmp_path: Path) -> None:
    live = {"10.0.0.1": "n1"}
    watch = NodeWatch(new_record(tmp_path), None, lambda: dict(live), Clock())
    watch.look()
    live["10.0.0.2"] = "n2"
    assert watch.name_of("10.0.0.2") == "n2"
    assert watch.name_of("10.0.0.9") == "10.0.0.9"


def test_a_single_node_is_not_watched(tmp_path: Path) -> None:
    looks = []
    watch = NodeWatch(new_record(tmp_path), "n1", lambda: looks.append(1) or {}, Clock())  # type: ignore[func-returns-value]
    watch.look()
    assert watch.name_of("10.0.0.9") == "n1"
    assert looks == []
