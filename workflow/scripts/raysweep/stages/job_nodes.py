"""This module follows Ray on the nodes of one of several Slurm jobs that work on one sweep together. The controller's Python runs this module."""

from __future__ import annotations

import math
import queue
import time
from contextlib import suppress
from dataclasses import replace

from raysweep.cluster.channel import AgentAlive, AgentKey, EndRay, NodeFailed, Notice, RayEnded, Start, WorkerUp
from raysweep.cluster.launcher import END_DEADLINE_S, Agents
from raysweep.cluster.run_secrets import seal_secrets
from raysweep.common.errors import WorldError, logger
from raysweep.slurm.allocation import Allocation

WAIT_S = 0.5  # longest time in seconds of one wait for a message of an agent


class AgentsAreGone(WorldError):
    """Reports that all agents of this job have ended, and with them all that the agents started."""


class AgentsAreSilent(WorldError):
    """Reports that an agent of this job does not answer."""


class JobNodes:
    """Starts and ends Ray on the nodes of a job that joins the Ray cluster of another job. `title` is the name of the sweep."""

    def __init__(self, title: str, allocation: Allocation, agents: Agents) -> None:
        self.title, self.allocation, self.agents = title, allocation, agents
        self.start: Start | None = None  # latest message to the agents, with the secrets
        self.failed: set[str] = set()  # names of the nodes on which the present Ray has failed
        self.broken: set[str] = set()  # names of the nodes on which some Ray has failed
        self.have_had_trial = False
        self.last_trial_at_s = math.inf  # time (`time.monotonic()`) at which a trial last ran on the nodes; infinite before Ray is up

    def join(self, message: Start, deadline: float | None) -> None:
        """Let the agents start Ray as a part of the Ray cluster whose launcher has sent `message`. No trial may begin after the time `deadline`."""
        own = self.allocation
        self.start = replace(message, nodes=own.nodes, job_id=own.job_id, job_deadline=deadline, peer=message.nodes[0], joins=True)
        self.agents.send(self.start.as_sent())

    def have_failed(self) -> bool:
        """Handle the messages of the agents, and return whether Ray has failed on all nodes of this job. Raises AgentsAreGone."""
        if self.agents.has_ended_output.is_set():
            raise AgentsAreGone(f"the agents of job {self.allocation.job_id} went away: {self.agents.describe_end()}")
        while not self.agents.messages.empty():
            message = self.agents.messages.get()
            if isinstance(message, AgentKey) and self.start is not None:
                self.agents.send(seal_secrets(self.start, message))
            has_trial = isinstance(message, AgentAlive) and message.has_trial
            self.have_had_trial |= has_trial
            if has_trial or isinstance(message, WorkerUp):
                self.last_trial_at_s = time.monotonic()
            if isinstance(message, WorkerUp):
                logger.info("%s: Ray is up on %s.", self.title, message.node)
            elif isinstance(message, Notice):
                logger.warning("%s: %s", message.node, message.text)
            elif isinstance(message, NodeFailed):
                logger.warning("%s: %s", message.node, message.reason)
                self.failed.add(message.node)
                self.broken.add(message.node)
        return self.failed >= {node.name for node in self.allocation.nodes}

    def end_ray(self) -> None:
        """Let the agents end Ray on all nodes of this job, and wait until they have done so. Do nothing where no Ray was started.

        Raises AgentsAreGone or AgentsAreSilent where the agents do not answer.
        """
        if not self.agents.is_ray_wanted:
            return
        self.agents.send(EndRay())
        self.failed.clear()
        waiting, end_at_s = {node.name for node in self.allocation.nodes}, time.monotonic() + END_DEADLINE_S
        while missing := waiting - self.agents.ended:
            if self.agents.has_ended_output.is_set():
                raise AgentsAreGone(f"the agents of job {self.allocation.job_id} went away: {self.agents.describe_end()}")
            if time.monotonic() > end_at_s:
                raise AgentsAreSilent(f"the agents on {', '.join(sorted(missing))} do not end Ray within {END_DEADLINE_S} s")
            with suppress(queue.Empty):
                message = self.agents.messages.get(timeout=WAIT_S)
                if isinstance(message, RayEnded):
                    waiting.discard(message.node)
