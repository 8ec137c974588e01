"""Trials without processes of their own: Tune takes each for an actor, but it is a seat in an engine (engine.py), one a device.

Tune's controller starts actors through a manager, once a resource manager has room for them. `Seats` is the latter: it has room while an engine has a free
seat, and hands out actors that pass each call on to that engine. So all that Tune does with a trial stays Tune's. The names are private: Ray is pinned, and
tests/integration/test_trained_together.py fails when they change.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.air.execution._internal import RayActorManager
from ray.air.execution.resources import ResourceManager
from ray.tune.execution.tune_controller import TuneController

from raysweep.common.errors import RaysweepError

logger = logging.getLogger("raysweep")

MOST_RESTARTS = 10  # for each engine


class EngineProcess:
    """The actor in which an engine is. A class of its own, so that the driver need not import torch."""

    def __init__(self, *arguments: Any) -> None:
        from raysweep.tune.slots.engine import Engine

        self.engine = Engine(*arguments)

    def look(self) -> dict[str, Any]:
        return self.engine.look()

    def open(self, seats: int, is_prepared: bool, unfolds: bool) -> None:
        self.engine.open(seats, is_prepared, unfolds)

    def enter(self, key: str, config: dict[str, Any], storage: Any) -> None:
        self.engine.enter(key, config, storage)

    def call(self, key: str, method: str, *args: Any, **options: Any) -> Any:
        return self.engine.call(key, method, *args, **options)

    def lives(self) -> None:
        """Never returns: whoever waits for it learns of the engine's end."""
        threading.Event().wait()


class Seat:
    """What Tune takes for the handle of a trial's actor."""

    def __init__(self, engine: Running, key: str, arguments: dict[str, Any]) -> None:
        self.engine, self.key, self.arguments = engine, key, arguments

    def __getattr__(self, name: str) -> _Method:
        return _Method(self, name)

    def kill(self) -> None:
        """End the engine, as there is no other way to end what hangs in it. Its other trials go on in the next one."""
        ray.kill(self.engine.actor)


@dataclass(frozen=True)
class _Method:
    seat: Seat
    name: str

    def remote(self, *args: Any, **options: Any) -> ray.ObjectRef:
        seat, actor = self.seat, self.seat.engine.actor
        if self.name == "__ray_ready__":
            return actor.enter.remote(seat.key, seat.arguments["config"], seat.arguments["storage"])
        return actor.call.remote(seat.key, "stop" if self.name == "__ray_terminate__" else self.name, *args, **options)


@dataclass(eq=False)
class Running:
    """An engine, and how many of its seats are taken."""

    actor: Any
    end: ray.ObjectRef  # becomes ready when it has ended
    begin: ray.ObjectRef | None  # becomes ready when it is up; None afterwards
    taken: int = 0


@dataclass
class _Taken:
    """What a trial has acquired; Tune asks it to make the trial's actor."""

    engine: Running
    key: str

    def annotate_remote_entities(self, entities: list[Any]) -> list[_Taken]:
        return [self for _ in entities]

    def remote(self, **arguments: Any) -> Seat:
        return Seat(self.engine, self.key, arguments)


@dataclass
class Seats(ResourceManager):
    """The seats of all engines. `start` starts an engine, `seats` is how many each has. Engines that end are replaced."""

    start: Callable[[], Any]
    seats: int
    is_prepared: bool
    unfolds: bool
    engines: list[Running] = field(default_factory=list)
    restarts: int = 0
    keys: Iterator[int] = field(default_factory=itertools.count)

    def add(self, actor: Any) -> None:
        self.engines.append(Running(actor, actor.lives.remote(), actor.open.remote(self.seats, self.is_prepared, self.unfolds)))

    def update_state(self) -> None:
        """Note which engines are up, and replace those that have ended."""
        futures = self.get_resource_futures()
        ready = set(ray.wait(futures, num_returns=len(futures), timeout=0)[0]) if futures else set()
        for engine in list(self.engines):
            if engine.end in ready:
                self.engines.remove(engine)
                self.restarts += 1
                try:
                    ray.get(engine.end)
                except ray.exceptions.RayError as error:
                    why = str(error).strip().splitlines()[-1]
                if self.restarts > MOST_RESTARTS * (len(self.engines) + 1):
                    raise RaysweepError(
                        f"the process in which trials are trained together has ended {self.restarts} times: {why}. Set fuse: off"
                    )
                logger.warning("The process in which trials are trained together has ended (%s): they go on in another one.", why)
                with contextlib.suppress(ray.exceptions.RayError):  # where only the way to it was lost it would keep its device
                    ray.kill(engine.actor)
                self.add(self.start())
            elif engine.begin in ready:
                engine.begin = None

    def get_resource_futures(self) -> list[ray.ObjectRef]:
        return [future for engine in self.engines for future in (engine.end, engine.begin) if future is not None]

    def request_resources(self, resource_request: Any) -> None:
        """Seats are there or not: nothing is requested."""

    def cancel_resource_request(self, resource_request: Any) -> None:
        """As nothing was requested."""

    def has_resources_ready(self, resource_request: Any) -> bool:
        self.update_state()
        return self._freest() is not None

    def _freest(self) -> Running | None:
        free = [engine for engine in self.engines if engine.begin is None and engine.taken < self.seats]
        return min(free, key=lambda engine: engine.taken, default=None)

    def acquire_resources(self, resource_request: Any) -> _Taken | None:
        if (engine := self._freest()) is None:
            return None
        engine.taken += 1
        return _Taken(engine, str(next(self.keys)))

    def free_resources(self, acquired_resource: _Taken) -> None:
        acquired_resource.engine.taken -= 1

    def clear(self) -> None:
        for engine in self.engines:
            ray.kill(engine.actor)
        self.engines.clear()


class _Manager(RayActorManager):
    """Tune's, but what it would kill is no process of its own."""

    def _try_kill_actor(self) -> bool:
        if not self._live_actors_to_kill:
            return False
        tracked = self._live_actors_to_kill.pop()
        self._cleanup_actor_futures(tracked)
        self._actor_stop_resolved(tracked)
        return True

    def cleanup(self) -> None:
        """The engines end all at once, in Seats.clear."""


@contextlib.contextmanager
def seated(seats: Seats) -> Iterator[None]:
    """Within, Tune's trials are seats."""

    class Controller(TuneController):
        def __init__(self, **options: Any) -> None:
            super().__init__(resource_manager_factory=lambda: seats, **options)
            self._actor_manager.__class__ = _Manager

    tune_module: Any = importlib.import_module("ray.tune.tune")
    tune_module.TuneController = Controller
    try:
        yield
    finally:
        tune_module.TuneController = TuneController
        seats.clear()
