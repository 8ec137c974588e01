"""Computes from the record when each node was a part of a sweep, and from these times the GPU-hours and CPU-hours of the sweep.

The driver (`max_gpu_hours`), the report, the comparison and `make watch` use these times.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from raysweep.common.machine import NodeSize
from raysweep.record.events import NodeEvent, Session
from raysweep.record.sweep import Sweep

Device = Literal["cpus", "gpus"]


@dataclass(frozen=True)
class NodeTime:
    """Describes a time without interruption in which a node was a part of a session. Both times are seconds of the sweep's running time."""

    session: int  # number of the session, from 0
    node: NodeSize
    job: str | None  # id of the node's Slurm job; None outside of Slurm
    start_s: float
    end_s: float
    is_lost: bool  # whether the node was lost at `end_s`; otherwise the session ended, or is still running

    def hours(self, device: Device, until_s: float = math.inf) -> float:
        """Return the GPU-hours ("gpus") or CPU-hours ("cpus") of the node before the second `until_s` of the sweep's running time."""
        return float(getattr(self.node, device)) * max(0.0, min(self.end_s, until_s) - self.start_s) / 3600


def node_times(sweep: Sweep) -> list[NodeTime]:
    """Return the times in which nodes were a part of the sweep, in the order of the sessions.

    The nodes of a session's own job count from the start of the session, because the job has these nodes also before Ray runs on them. A node of another job
    counts from its join. A node counts until its loss, or until the end of the session.
    """
    times: list[NodeTime] = []
    before_s = 0.0
    events: dict[int, list[NodeEvent]] = {}
    for event in sweep.nodes:
        events.setdefault(event.session, []).append(event)
    for number, session in enumerate(sweep.sessions):
        times += _times_of_session(number, session, events.get(number, []), before_s)
        before_s += session.duration_s
    return times


def _times_of_session(number: int, session: Session, events: list[NodeEvent], before_s: float) -> list[NodeTime]:
    """Return the times of one session, in the order in which the nodes joined. `before_s` is the running time of all earlier sessions in seconds.

    A node is identified by its job and its name, because two jobs may have parts of one node.
    """
    duration_s = session.duration_s
    times: list[NodeTime] = []
    alive: dict[tuple[str | None, str], int] = {}  # job and name of a node that is a part of the session → index in `times`

    def add(node: NodeSize, job: str | None, at_s: float) -> None:
        if (job, node.name) not in alive:
            alive[job, node.name] = len(times)
            times.append(NodeTime(number, node, job, before_s + at_s, before_s + duration_s, is_lost=False))

    for node in session.nodes:
        add(node, session.slurm_job, 0.0)
    sizes = {node.name: node for node in session.nodes}
    for event in events:
        at_s = min(max(session.seconds_until(event.at), 0.0), duration_s)
        # The record of a sweep with one job contains no job and no sizes, because only the session's own nodes can join or be lost.
        job = session.slurm_job if event.job is None else event.job
        size = NodeSize(event.node, event.cpus, event.gpus)
        if event.state == "joined":
            add(size if event.cpus else sizes.get(event.node, size), job, at_s)
        elif (index := alive.pop((job, event.node), None)) is not None:
            times[index] = replace(times[index], end_s=before_s + at_s, is_lost=True)
    return times


def used_hours(sweep: Sweep, device: Device) -> float:
    """Return the GPU-hours ("gpus") or CPU-hours ("cpus") that the sweep was given. Hours in which a device was not used also count, as a cluster counts."""
    return sum(time.hours(device) for time in node_times(sweep))


def most_at_a_time(times: Iterable[NodeTime], device: Device) -> int:
    """Return the largest number of GPUs ("gpus") or CPUs ("cpus") that were a part of the sweep at the same time."""
    changes = [(at_s, sign * getattr(time.node, device)) for time in times for at_s, sign in ((time.start_s, 1), (time.end_s, -1))]
    most = number = 0
    for _, change in sorted(changes):  # of changes at the same time, the losses come first
        number += change
        most = max(most, number)
    return most


def array_jobs(sweep: Sweep) -> list[str]:
    """Return the ids of the jobs of job arrays that worked on the sweep, such as "123_2", in Slurm's order. Only `allocation.jobs` makes a job array."""
    jobs = {time.job for time in node_times(sweep)} | {session.slurm_job for session in sweep.sessions}
    return sorted((job for job in jobs if job is not None and "_" in job), key=lambda job: [int(part) for part in re.findall(r"\d+", job)])
