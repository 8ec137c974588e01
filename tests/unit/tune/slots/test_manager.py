"""The slots of engines on a real Ray, with small actors in the place of engines."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from raysweep.common.errors import RaysweepError
from raysweep.tune.slots.manager import MAX_RESTARTS, SlotManager
from raysweep.tune.slots.messages import EngineSetup

pytestmark = pytest.mark.slow  # starts Ray


class SmallEngine:
    """An actor that opens at once, and ends without an error when it is told to."""

    def __init__(self, ends: bool) -> None:
        self.ends = ends

    def open(self, setup: EngineSetup) -> None:
        self.setup = setup

    def wait_for_end(self) -> None:
        while not self.ends:
            time.sleep(0.01)

    def enter(self, key: str, config: dict[str, Any], storage: Any) -> None:
        self.entered = (key, config)

    def call(self, key: str, method: str, *args: Any) -> Any:
        return (self.entered, key, method, *args)


@pytest.fixture(scope="module")
def actor_class() -> Iterator[Any]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield ray.remote(SmallEngine).options(num_cpus=0, max_concurrency=4)
    ray.shutdown()


def manager(actor_class: Any, engines: list[bool]) -> SlotManager:
    """Return the slots of engines; each of `engines` says whether that engine ends at once, and its successors live."""
    slots = SlotManager(lambda: actor_class.remote(False), EngineSetup(2, is_prepared=False, unfolds=False))
    for ends in engines:
        slots.add(actor_class.remote(ends))
    return slots


def wait_until_open(slots: SlotManager) -> None:
    deadline = time.monotonic() + 60
    while not slots.has_resources_ready(None):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_engine_that_ends_without_an_error_is_replaced(actor_class: Any, caplog: pytest.LogCaptureFixture) -> None:
    slots = manager(actor_class, [True])
    ray.wait([slots.engines[0].end])
    wait_until_open(slots)
    assert (slots.restarts, len(slots.engines)) == (1, 1)
    assert "has ended (it ended without an error)" in caplog.text
    slots.clear()


def test_engines_that_end_again_and_again_end_the_sweep(actor_class: Any) -> None:
    slots = manager(actor_class, [True])
    slots.restarts = MAX_RESTARTS
    ray.wait([slots.engines[0].end])
    with pytest.raises(RaysweepError, match=f"has ended {MAX_RESTARTS + 1} times: it ended without an error. Set fuse: off"):
        slots.update_state()


def test_trials_fill_the_free_slots_of_all_engines(actor_class: Any) -> None:
    slots = manager(actor_class, [False, False])
    deadline = time.monotonic() + 60
    while any(engine.opening for engine in slots.engines):
        assert time.monotonic() < deadline
        slots.update_state()
    acquired = [slots.acquire_resources(None) for _ in range(4)]
    assert slots.acquire_resources(None) is None
    assert [engine.taken for engine in slots.engines] == [2, 2]
    first = acquired[0]
    assert first is not None
    assert first.annotate_remote_entities(["a"]) == [first]
    handle = first.remote(config={"x": 1}, storage=None)
    ray.get(handle.__ray_ready__.remote())
    assert ray.get(handle.train.remote(3)) == ((first.key, {"x": 1}), first.key, "train", 3)
    assert ray.get(handle.__ray_terminate__.remote())[2] == "stop"
    slots.free_resources(first)
    assert slots.has_resources_ready(None)
    slots.clear()
