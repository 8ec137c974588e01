"""Trials without processes of their own: Tune takes each trial for an actor, but the trial is a slot in an engine (engine.py), one engine for each device.

Tune's controller starts actors through an actor manager, once a resource manager has room for them. `SlotManager` is the resource manager: it has room while
an engine has a free slot, and hands out actors that pass each call on to that engine. So Tune decides about a trial in a slot as it does about every trial.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.air.execution.resources import ResourceManager

from raysweep.common.errors import RaysweepError
from raysweep.record.events import NotFused
from raysweep.tune.private import resources_managed_by
from raysweep.tune.slots.messages import Benchmark, EngineJob, EngineSetup

logger = logging.getLogger("raysweep")

MAX_RESTARTS = 10  # for each engine


class EngineProcess:
    """The actor that holds an engine. It is a class of its own so that the driver need not import torch."""

    def __init__(self, job: EngineJob) -> None:
        from raysweep.tune.slots.engine import Engine

        self.engine = Engine(job)

    def benchmark(self) -> Benchmark | NotFused:
        return self.engine.benchmark()

    def open(self, setup: EngineSetup) -> None:
        self.engine.open(setup)

    def enter(self, key: str, config: dict[str, Any], storage: Any) -> None:
        self.engine.enter(key, config, storage)

    def call(self, key: str, method: str, *args: Any, **options: Any) -> Any:
        return self.engine.call(key, method, *args, **options)

    def wait_for_end(self) -> None:
        """Never return: a caller that waits for the result learns of the engine's end."""
        threading.Event().wait()


class SlotHandle:
    """What Tune takes for the handle of a trial's actor."""

    def __init__(self, engine: RunningEngine, key: str, arguments: dict[str, Any]) -> None:
        self.engine, self.key, self.arguments = engine, key, arguments

    def __getattr__(self, name: str) -> _RemoteMethod:
        return _RemoteMethod(self, name)

    def kill(self) -> None:
        """End the engine, because nothing else ends a trial that hangs in it. The engine's other trials continue in the next engine."""
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
    """An engine, and how many of its slots are taken."""

    actor: Any
    end: ray.ObjectRef  # becomes ready when the engine has ended
    opening: ray.ObjectRef | None  # becomes ready when the engine is open; None afterwards
    taken: int = 0


@dataclass
class _AcquiredSlot:
    """What a trial has acquired. Tune asks it to make the trial's actor."""

    engine: RunningEngine
    key: str

    def annotate_remote_entities(self, entities: list[Any]) -> list[_AcquiredSlot]:
        return [self for _ in entities]

    def remote(self, **arguments: Any) -> SlotHandle:
        return SlotHandle(self.engine, self.key, arguments)


@dataclass
class SlotManager(ResourceManager):
    """The slots of all engines. `start` starts an engine. An engine that ends is replaced."""

    start: Callable[[], Any]
    setup: EngineSetup
    engines: list[RunningEngine] = field(default_factory=list)
    restarts: int = 0
    keys: Iterator[int] = field(default_factory=itertools.count)

    def add(self, actor: Any) -> None:
        """Open the engine of that actor."""
        self.engines.append(RunningEngine(actor, actor.wait_for_end.remote(), actor.open.remote(self.setup)))

    def update_state(self) -> None:
        """Note which engines are open, and replace those that have ended."""
        futures = self.get_resource_futures()
        ready = set(ray.wait(futures, num_returns=len(futures), timeout=0)[0]) if futures else set()
        for engine in list(self.engines):
            if engine.end in ready:
                self._replace(engine)
            elif engine.opening in ready:
                engine.opening = None

    def _replace(self, engine: RunningEngine) -> None:
        """Start an engine in the place of one that has ended. Raises RaysweepError where engines have ended too often."""
        self.engines.remove(engine)
        self.restarts += 1
        reason = _reason_of_end(engine)
        if self.restarts > MAX_RESTARTS * (len(self.engines) + 1):
            raise RaysweepError(
                f"the process in which trials are trained together has ended {self.restarts} times: {reason}. Set fuse: off"
            )
        logger.warning("The process in which trials are trained together has ended (%s). The trials continue in another process.", reason)
        # An engine to which only the connection was lost would keep its device.
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(engine.actor)
        self.add(self.start())

    def get_resource_futures(self) -> list[ray.ObjectRef]:
        return [future for engine in self.engines for future in (engine.end, engine.opening) if future is not None]

    def request_resources(self, resource_request: Any) -> None:
        """Do nothing: a slot is free or taken, and none is requested."""

    def cancel_resource_request(self, resource_request: Any) -> None:
        """Do nothing, because nothing was requested."""

    def has_resources_ready(self, resource_request: Any) -> bool:
        self.update_state()
        return self._freest() is not None

    def _freest(self) -> RunningEngine | None:
        free = [engine for engine in self.engines if engine.opening is None and engine.taken < self.setup.slots]
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
    """Return why an engine that has ended did so."""
    try:
        ray.get(engine.end)
    except ray.exceptions.RayError as error:
        return str(error).strip().splitlines()[-1]
    return "it ended without an error"


@contextlib.contextmanager
def trials_in_slots(slots: SlotManager) -> Iterator[None]:
    """Have Tune put the trials that it starts within this context into slots."""
    with resources_managed_by(slots):
        try:
            yield
        finally:
            slots.clear()
