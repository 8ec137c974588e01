"""This module lets Tune run trials in slots of engines (engine.py), although Tune expects that each trial is an actor with its own process.

Tune's controller starts an actor through an actor manager when a resource manager has free resources. `SlotManager` is this resource manager. `SlotManager` has
free resources while an engine has a free slot, and returns objects that look like actors but pass each call to the engine. So Tune decides about a trial in a
slot in the same way as about any other trial.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.air.execution.resources import ResourceManager

from raysweep.common.errors import RaysweepError, logger
from raysweep.record.events import NotFused
from raysweep.tune.private import resources_managed_by
from raysweep.tune.slots.messages import Benchmark, EngineJob, EngineSetup

MAX_RESTARTS = 10  # maximum average number of restarts per engine


class EngineProcess:
    """Is the Ray actor that contains an engine. This class is separate from Engine so that the driver does not need to import torch."""

    def __init__(self, job: EngineJob) -> None:
        from raysweep.tune.slots.engine import Engine

        self.engine = Engine(job)

    def benchmark(self) -> Benchmark | NotFused:
        return self.engine.benchmark()

    def open(self, setup: EngineSetup) -> str:
        """Prepare the engine to receive trials, and return the network address of the engine's node."""
        self.engine.open(setup)
        return str(self.engine.node_ip)

    def enter(self, key: str, config: dict[str, Any], storage: Any) -> None:
        self.engine.enter(key, config, storage)

    def call(self, key: str, method: str, *args: Any, **options: Any) -> Any:
        return self.engine.call(key, method, *args, **options)

    def wait_for_end(self) -> None:
        """Wait for ever. A caller that waits for the result of this method gets an error when the engine's process ends."""
        threading.Event().wait()


class SlotHandle:
    """Replaces the handle of a trial's actor for Tune."""

    def __init__(self, engine: RunningEngine, key: str, arguments: dict[str, Any]) -> None:
        self.engine, self.key, self.arguments = engine, key, arguments

    def __getattr__(self, name: str) -> _RemoteMethod:
        return _RemoteMethod(self, name)

    def kill(self) -> None:
        """End the engine, because there is no other way to end a hung trial in the engine. The engine's other trials continue in a new engine."""
        ray.kill(self.engine.actor)


@dataclass(frozen=True)
class _RemoteMethod:
    handle: SlotHandle
    name: str

    def remote(self, *args: Any, **options: Any) -> ray.ObjectRef:
        handle, actor = self.handle, self.handle.engine.actor
        if self.name == "__ray_ready__":
            return actor.enter.remote(handle.key, handle.arguments["config"], handle.arguments["storage"])
        return actor.call.remote(handle.key, "stop" if self.name == "__ray_terminate__" else self.name, *args, **options)


@dataclass(eq=False)
class RunningEngine:
    """Describes an engine that runs, and the number of its occupied slots."""

    actor: Any
    end: ray.ObjectRef  # becomes ready when the engine has ended
    opening: ray.ObjectRef | None  # becomes ready when the engine can receive trials. Afterwards the value is None
    taken: int = 0  # number of occupied slots
    address: str = ""  # network address of the engine's node; "" before the engine can receive trials


@dataclass
class _AcquiredSlot:
    """Represents the slot that a trial has acquired. Tune calls `remote` of this object to make the trial's actor."""

    engine: RunningEngine
    key: str

    def annotate_remote_entities(self, entities: list[Any]) -> list[_AcquiredSlot]:
        return [self for _ in entities]

    def remote(self, **arguments: Any) -> SlotHandle:
        return SlotHandle(self.engine, self.key, arguments)


@dataclass
class SlotManager(ResourceManager):
    """Manages the slots of all engines, and replaces an engine that has ended. `start()` starts an engine and returns the engine's actor."""

    start: Callable[[], Any]
    setup: EngineSetup
    engines: list[RunningEngine] = field(default_factory=list)
    restarts: int = 0
    keys: Iterator[int] = field(default_factory=itertools.count)
    num_wanted: Callable[[], int] | None = None  # returns how many engines should run now; None: the number of engines is fixed
    is_leaving: Callable[[str], bool] = lambda address: False  # returns whether the node at this address gets no more trials

    def follow(self, num_wanted: Callable[[], int], is_leaving: Callable[[str], bool]) -> None:
        """Keep as many engines as `num_wanted` returns from now on, at least one. An engine that trains trials is not ended.

        No trial begins in an engine on a node whose address `is_leaving` accepts.
        """
        self.num_wanted, self.is_leaving = num_wanted, is_leaving

    def add(self, actor: Any) -> None:
        """Add the engine of `actor`, and prepare the engine to receive trials."""
        self.engines.append(RunningEngine(actor, actor.wait_for_end.remote(), actor.open.remote(self.setup)))

    def update_state(self) -> None:
        """Record which engines can receive trials, and replace the engines that have ended."""
        futures = self.get_resource_futures()
        ready = set(ray.wait(futures, num_returns=len(futures), timeout=0)[0]) if futures else set()
        for engine in list(self.engines):
            if engine.end in ready:
                self._replace(engine)
            elif engine.opening in ready:
                engine.address, engine.opening = ray.get(engine.opening), None
        if self.num_wanted is not None:
            self._adapt(max(1, self.num_wanted()))

    def _adapt(self, num_wanted: int) -> None:
        """Start engines until there are `num_wanted` engines, or end the engines without trials that are too many."""
        while len(self.engines) < num_wanted:
            self.add(self.start())
        free = [engine for engine in self.engines if engine.taken == 0]
        # An engine that is not open yet waits for room, which a node that is gone does not have any more.
        free.sort(key=lambda engine: engine.opening is None and not self.is_leaving(engine.address))
        for engine in free[: max(0, len(self.engines) - num_wanted)]:
            self.engines.remove(engine)
            ray.kill(engine.actor)

    def _replace(self, engine: RunningEngine) -> None:
        """Start a new engine in the place of an engine that has ended. Raises RaysweepError if engines have ended too often."""
        self.engines.remove(engine)
        self.restarts += 1
        reason = _reason_of_end(engine)
        if self.restarts > MAX_RESTARTS * (len(self.engines) + 1):
            raise RaysweepError(
                f"the process in which trials are trained together has ended {self.restarts} times: {reason}. Set fuse: off"
            )
        logger.warning("The process in which trials are trained together has ended (%s). The trials continue in another process.", reason)
        # If only the connection to the engine was lost, the engine still runs and would keep its device occupied.
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(engine.actor)
        if self.num_wanted is None:
            self.add(self.start())

    def get_resource_futures(self) -> list[ray.ObjectRef]:
        return [future for engine in self.engines for future in (engine.end, engine.opening) if future is not None]

    def request_resources(self, resource_request: Any) -> None:
        """Do nothing, because a free slot is available immediately and needs no request."""

    def cancel_resource_request(self, resource_request: Any) -> None:
        """Do nothing, because request_resources makes no request that could be cancelled."""

    def has_resources_ready(self, resource_request: Any) -> bool:
        self.update_state()
        return self._freest() is not None

    def _freest(self) -> RunningEngine | None:
        slots = self.setup.slots
        free = [
            engine for engine in self.engines if engine.opening is None and engine.taken < slots and not self.is_leaving(engine.address)
        ]
        return min(free, key=lambda engine: engine.taken, default=None)

    def acquire_resources(self, resource_request: Any) -> _AcquiredSlot | None:
        if (engine := self._freest()) is None:
            return None
        engine.taken += 1
        return _AcquiredSlot(engine, str(next(self.keys)))

    def free_resources(self, acquired_resource: _AcquiredSlot) -> None:
        acquired_resource.engine.taken -= 1

    def clear(self) -> None:
        for engine in self.engines:
            ray.kill(engine.actor)
        self.engines.clear()


def _reason_of_end(engine: RunningEngine) -> str:
    """Return the reason why an engine has ended."""
    try:
        ray.get(engine.end)
    except ray.exceptions.RayError as error:
        return str(error).strip().splitlines()[-1]
    return "it ended without an error"


@contextlib.contextmanager
def trials_in_slots(slots: SlotManager) -> Iterator[None]:
    """Let Tune run the trials that start within this context in slots. At the end of the context, end all engines."""
    with resources_managed_by(slots):
        try:
            yield
        finally:
            slots.clear()
