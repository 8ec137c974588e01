from __future__ import annotations

import time
from pathlib import Path

import pytest

from raysweep.cluster.early_ends import EarlyEnd
from raysweep.common.machine import NodeSize
from raysweep.tune.node_watch import LOOK_INTERVAL_S, LiveNode, NodeWatch, OtherJobs, RayNodes
from records import new_record
from tune_parts import Clock

N1, N2 = NodeSize("n1", 4, 0), NodeSize("n2", 4, 1)


class MadeUpNodes(RayNodes):
    """The nodes of a list, which a test changes."""

    def __init__(self, nodes: list[LiveNode]) -> None:
        self.nodes, self.num_looks = nodes, 0
        self.drained: list[str] = []

    def live(self) -> list[LiveNode]:
        self.num_looks += 1
        return self.nodes

    def drain(self, node: LiveNode) -> None:
        self.drained.append(node.id)


def node(number: int, name: str = "", **facts: object) -> LiveNode:
    return LiveNode(f"id{number}", f"10.0.0.{number}", NodeSize(name or f"n{number}", 4, 1), **facts)  # type: ignore[arg-type]


def test_nodes_that_join_and_are_lost_are_recorded(tmp_path: Path) -> None:
    live, clock = [node(1), node(2)], Clock()
    record = new_record(tmp_path)
    watch = NodeWatch(record, (N1, N2), ray_nodes=MadeUpNodes(live), clock=clock)
    watch.look()
    assert record.sweep.nodes == []
    live[1] = node(3)
    watch.look()
    assert record.sweep.nodes == [], "the interval is not over"
    clock.now_s += LOOK_INTERVAL_S
    watch.look()
    assert [(node.node, node.state) for node in record.sweep.nodes] == [("n2", "lost"), ("n3", "joined")]
    assert [watch.name_of(address) for address in ("10.0.0.2", "10.0.0.3")] == ["n2", "n3"]
    assert watch.sizes() == (N1, N2), "a lost node of the only job counts on: Slurm may give the job a room for it"


def test_a_node_that_joined_since_the_last_look_has_a_name(tmp_path: Path) -> None:
    live = [node(1)]
    watch = NodeWatch(new_record(tmp_path), (N1, N2), ray_nodes=MadeUpNodes(live), clock=Clock())
    watch.look()
    live.append(node(2))
    assert watch.name_of("10.0.0.2") == "n2"
    assert watch.name_of("10.0.0.9") == "10.0.0.9"


def test_a_single_node_is_not_watched(tmp_path: Path) -> None:
    ray_nodes = MadeUpNodes([])
    watch = NodeWatch(new_record(tmp_path), (N1,), ray_nodes=ray_nodes, clock=Clock())
    watch.look()
    assert watch.name_of("10.0.0.9") == "n1"
    assert ray_nodes.num_looks == 0


def test_nodes_of_other_jobs_count_from_their_first_look_to_their_loss(tmp_path: Path) -> None:
    live, clock = [node(1, job="7"), node(2, job="8"), node(3, name="n2", job="9")], Clock()
    record = new_record(tmp_path)
    watch = NodeWatch(record, (N1,), OtherJobs("7", tmp_path / "early-ends"), ray_nodes=MadeUpNodes(live), clock=clock)
    assert watch.sizes() == (N1,)
    watch.look()
    assert [(event.node, event.state, event.job, event.cpus, event.gpus) for event in record.sweep.nodes] == [
        ("n2", "joined", "8", 4, 1),
        ("n2", "joined", "9", 4, 1),
    ], "two jobs may have parts of one node"
    assert [size.name for size in watch.sizes()] == ["n1", "n2", "n2"]
    clock.now_s += LOOK_INTERVAL_S
    del live[1]
    watch.look()
    assert [size.name for size in watch.sizes()] == ["n1", "n2"]
    assert [(event.state, event.job) for event in record.sweep.nodes][2:] == [("lost", "8")]


@pytest.mark.parametrize("seconds_left", [1, -1])
def test_a_node_whose_job_is_nearly_over_gets_no_more_trials_and_gives_its_trials_away(tmp_path: Path, seconds_left: int) -> None:
    clock = Clock()
    live = [node(1, job="7", deadline=clock.now_s - 9), node(2, job="8", deadline=clock.now_s + seconds_left)]
    ray_nodes = MadeUpNodes(live)
    watch = NodeWatch(new_record(tmp_path), (N1,), OtherJobs("7", tmp_path / "early-ends"), ray_nodes, clock)
    watch.look()
    is_near = seconds_left < 0
    assert ray_nodes.drained == (["id2"] if is_near else []), "the session's own job has a deadline of its own"
    assert watch.is_leaving("10.0.0.2") is is_near
    assert not watch.is_leaving("10.0.0.1")
    assert [size.name for size in watch.sizes()] == (["n1"] if is_near else ["n1", "n2"])
    live.append(node(3, job="9"))
    live[-1] = LiveNode("id3", "10.0.0.2", NodeSize("n2", 4, 1), "9")
    clock.now_s += LOOK_INTERVAL_S - 1
    watch.last_look_at_s -= 1
    watch.look()
    assert not watch.is_leaving("10.0.0.2"), "a trial at this address may belong to the job that stays"


def test_a_node_whose_job_ends_early_gives_its_trials_away_and_an_early_end_of_the_own_job_is_a_deadline(tmp_path: Path) -> None:
    clock = Clock()
    ends = clock.now_s + 3600
    live = [node(1, job="12_0"), node(2, job="12_1", deadline=ends), node(3, job="12_2", deadline=ends), node(4, job="12_3", deadline=ends)]
    ray_nodes = MadeUpNodes(live)
    folder = tmp_path / "early-ends"
    watch = NodeWatch(new_record(tmp_path), (N1,), OtherJobs("12_0", folder), ray_nodes, clock)
    watch.look()
    assert (ray_nodes.drained, watch.early_deadline) == ([], None), "the folder need not exist"
    folder.mkdir()
    (folder / str(EarlyEnd("12_1", ends, clock.now_s + 30))).mkdir()
    (folder / str(EarlyEnd("12_2", ends - 1, clock.now_s + 30))).mkdir()
    (folder / str(EarlyEnd("12_3", ends, clock.now_s - 1))).mkdir()
    clock.now_s += LOOK_INTERVAL_S
    watch.look()
    assert ray_nodes.drained == ["id2"], "job 12_2 has been started again since, and the end of 12_3 is past"
    assert watch.early_deadline is None
    (folder / str(EarlyEnd("12_0", ends, time.time() + 100))).mkdir()
    clock.now_s += LOOK_INTERVAL_S
    watch.look()
    assert watch.early_deadline is not None
    assert watch.early_deadline.is_near()
    assert not watch.early_deadline.is_here()
    assert ray_nodes.drained == ["id2"], "the driver ends its own trials"
