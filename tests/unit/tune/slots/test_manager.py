"""The slots of engines, with a fake Ray: futures and actors in this process. tests/integration/test_trained_together.py has the real Ray."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import ray

from raysweep.common.errors import RaysweepError
from raysweep.tune.slots.manager import MAX_RESTARTS, SlotManager
from raysweep.tune.slots.messages import EngineSetup

SETUP = EngineSetup(2, prepared_for=0, unfolds=False, whole_batches=False)


@dataclass(eq=False)
class Future:
    """The result of a call of an actor."""

    is_ready: bool = False
    error: Exception | None = None


@dataclass(eq=False)
class Actor:
    """An actor whose methods only note that they were called."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def __getattr__(self, method: str) -> Any:
        actor = self

        class Method:
            def remote(self, *arguments: Any) -> Future:
                actor.calls.append((method, *arguments))
                return Future()

        return Method()


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Actor]:
    """The actors that the fake Ray was told to kill."""
    actors: list[Actor] = []

    def wait(futures: list[Future], num_returns: int, timeout: float) -> tuple[list[Future], list[Future]]:
        assert num_returns == len(futures)
        assert timeout == 0
        return [future for future in futures if future.is_ready], [future for future in futures if not future.is_ready]

    def get(future: Future) -> None:
        assert future.is_ready
        if future.error:
            raise future.error

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "kill", actors.append)
    return actors


def slots_of(num_engines: int) -> SlotManager:
    """Return the slots of engines that are open."""
    slots = SlotManager(Actor, SETUP)
    for _ in range(num_engines):
        slots.add(Actor())
    for engine in slots.engines:
        engine.opening.is_ready = True
    slots.update_state()
    return slots


def test_an_engine_has_no_free_slot_before_it_is_open(killed: list[Actor]) -> None:
    slots = SlotManager(Actor, SETUP)
    slots.add(Actor())
    assert slots.engines[0].actor.calls == [("wait_for_end",), ("open", SETUP)]
    assert not slots.has_resources_ready(None)
    assert slots.acquire_resources(None) is None
    slots.engines[0].opening.is_ready = True
    assert slots.has_resources_ready(None)


@pytest.mark.parametrize(
    ("error", "reason"), [(None, "it ended without an error"), (ray.exceptions.RayError("a\nnode was lost"), "node was lost")]
)
def test_an_engine_that_ends_is_replaced(
    error: Exception | None, reason: str, killed: list[Actor], caplog: pytest.LogCaptureFixture
) -> None:
    slots = slots_of(2)
    ended = slots.engines[0]
    ended.end.is_ready, ended.end.error = True, error
    slots.update_state()
    assert (slots.restarts, len(slots.engines)) == (1, 2)
    assert killed == [ended.actor]
    assert slots.engines[1].actor.calls == [("wait_for_end",), ("open", SETUP)]
    assert f"has ended ({reason}). The trials continue in another process." in caplog.text


@pytest.mark.parametrize(
    ("error", "reason"), [(None, "it ended without an error"), (ray.exceptions.RayError("a\nnode was lost"), "node was lost")]
)
def test_engines_that_end_again_and_again_end_the_sweep(error: Exception | None, reason: str, killed: list[Actor]) -> None:
    slots = slots_of(1)
    slots.restarts = MAX_RESTARTS
    slots.engines[0].end.is_ready, slots.engines[0].end.error = True, error
    with pytest.raises(RaysweepError, match=rf"has ended {MAX_RESTARTS + 1} times: {reason}\. Set fuse: off"):
        slots.update_state()


def test_trials_take_turns_in_the_slots_of_all_engines(killed: list[Actor]) -> None:
    slots = slots_of(2)
    acquired = [slots.acquire_resources(None) for _ in range(4)]
    assert [slot.engine for slot in acquired if slot] == slots.engines * 2
    assert slots.acquire_resources(None) is None
    assert not slots.has_resources_ready(None)
    assert acquired[1] is not None
    slots.free_resources(acquired[1])
    assert slots.has_resources_ready(None)
    slots.clear()
    assert len(killed) == 2
    assert slots.engines == []


def test_a_handle_passes_tunes_calls_on_to_the_engine(killed: list[Actor]) -> None:
    slots = slots_of(1)
    slot = slots.acquire_resources(None)
    assert slot is not None
    assert slot.annotate_remote_entities(["a", "b"]) == [slot, slot]
    handle = slot.remote(config={"x": 1}, storage="storage")
    actor = slots.engines[0].actor
    actor.calls.clear()
    handle.__ray_ready__.remote()
    handle.train.remote()
    handle.__ray_terminate__.remote()
    assert actor.calls == [("enter", "0", {"x": 1}, "storage"), ("call", "0", "train"), ("call", "0", "stop")]
    handle.kill()
    assert killed == [actor]


def test_engines_follow_the_nodes_that_join_and_leave_and_a_leaving_node_gets_no_trial(killed: list[Actor]) -> None:
    wanted, leaving = [1], set()
    slots = SlotManager(Actor, SETUP)
    slots.add(Actor())
    slots.follow(lambda: wanted[0], leaving.__contains__)
    wanted[0] = 3
    slots.update_state()
    assert len(slots.engines) == 3
    for engine in slots.engines:
        assert engine.opening
        engine.opening.is_ready = True
    slots.update_state()
    first, second, third = slots.engines
    first.address, second.address, third.address = "a", "b", "c"
    leaving.add("b")
    taken = [slots.acquire_resources(None) for _ in range(4)]
    assert [slot.engine for slot in taken if slot] == [first, third, first, third]
    assert slots.acquire_resources(None) is None
    wanted[0] = 2
    slots.update_state()
    assert (slots.engines, killed) == ([first, third], [second.actor])
    wanted[0] = 0
    slots.update_state()
    assert slots.engines == [first, third], "they train"
    for slot in taken:
        assert slot is not None
        slots.free_resources(slot)
    slots.update_state()
    assert len(slots.engines) == 1, "the sweep may need one"
    slots.engines[0].end.is_ready = True
    slots.update_state()
    assert len(slots.engines) == 1, "an engine that has ended is replaced"
    assert slots.engines[0] not in (first, third)
