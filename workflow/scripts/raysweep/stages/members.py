"""This module runs one of several Slurm jobs that work on one sweep together (`allocation.jobs`).

No job is special. The job that has the lock of the sweep leads, which means that this job runs Ray's head and the driver. All other jobs join the leader's
Ray cluster (cluster/gate.py). When the leader ends, another job gets the lock and continues the sweep from the record. The environment of the trials is
unpacked once in each job. The controller's Python runs this module.
"""

from __future__ import annotations

import math
import queue
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from raysweep.cluster.channel import (
    TICK_S,
    AgentAlive,
    AgentKey,
    EndRay,
    HeadAddress,
    LauncherMessage,
    NodeFailed,
    Notice,
    RayEnded,
    Start,
    WorkerUp,
)
from raysweep.cluster.children import ended_by_signals
from raysweep.cluster.gate import Gate, Relay
from raysweep.cluster.launcher import END_DEADLINE_S, Agents, Crew, Interrupted
from raysweep.cluster.lock import DRIVER_LOCK, LOCK, GateAddress, Lock, LockHeld, LockHolder
from raysweep.cluster.private_folder import base_for_ray, private_folder
from raysweep.cluster.run_secrets import seal_secrets
from raysweep.common.errors import RaysweepError, WorldError, logger, set_up_logging
from raysweep.common.files import age_s, written_aside
from raysweep.slurm.allocation import Allocation, Deadline, forget_job_options, local_dir_of_job
from raysweep.slurm.commands import cancel_waiting
from raysweep.stages.stage import Stage
from raysweep.stages.sweep import finish_sweep

# A job ends with this exit code (EX_TEMPFAIL) where the sweep goes on without the job.
LEFT = 75
LOOK_S = 0.5  # time in seconds between two looks at the lock file and at the file with the end of the sweep
ASK_INTERVAL_S = 10  # least time in seconds between two questions of all jobs together whether the leader's job is over
END = "end"  # file in the state folder of the sweep with the id of the job array and the exit code of the sweep, for the other jobs
ASKED = "asked"  # empty file in the state folder of the sweep; a job touches the file before the job asks Slurm
SILENT_TICKS = 6  # number of ticks without a sign of life after which a job doubts that the leader's job is alive
MOST_DELAY_S = 3  # time in seconds by which a job whose time is nearly over takes the lock later than a job that has just begun
DRIVER_END_S = (
    120  # longest time in seconds that a job waits for the end of the last leader's driver; Slurm kills a job 30 s after its end begins
)
MAX_FAILURES = 3  # number of times that Ray may fail on the nodes of this job, while the leader is alive, before this job leaves


def run_member(stage: Stage, path_to_config: Path, path_to_end: Path) -> int:
    """Run this job of the sweep. Return the exit code of the sweep, or LEFT where the sweep goes on without this job.

    Raises Interrupted when a signal ends this process, and WorldError where the nodes of this job cannot be used.
    """
    forget_job_options()
    allocation = Allocation.of_slurm()
    base = base_for_ray(local_dir_of_job())
    try:
        with ended_by_signals(), private_folder(base) as folder, (agents := Agents(allocation)):
            return Member(stage, path_to_config, path_to_end, Crew(allocation, agents, folder / "gate")).run()
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(f"Slurm has ended job {allocation.job_id}, and the sweep goes on without this job") from None


class AgentsAreGone(WorldError):
    """Reports that all agents of this job have ended, and with them all that the agents started."""


class AgentsAreSilent(WorldError):
    """Reports that an agent of this job does not answer."""


@dataclass
class Join:
    """Contains the state of this job while the job is a part of the Ray cluster of the job `holder`."""

    holder: LockHolder
    last_life_at_s: float  # time (`time.monotonic()`) of the leader's last sign of life
    is_up: bool = False  # whether Ray runs on a node of this job
    is_doubted: bool = False  # whether the connection to the leader was lost


class Member:
    """Runs one job of a sweep until the sweep is over, or until the job has to leave.

    `path_to_end` is the file in which the job that finishes the sweep writes the exit code of the sweep for Snakemake.
    """

    def __init__(self, stage: Stage, path_to_config: Path, path_to_end: Path, crew: Crew) -> None:
        self.stage, self.path_to_config, self.path_to_end, self.crew = stage, path_to_config, path_to_end, crew
        self.allocation, self.agents = crew.allocation, crew.agents
        self.start: Start | None = None  # latest message to the agents of this job, with the secrets
        self.dead: set[str] = set()  # tokens of leaders whose jobs are over
        self.num_failures = 0
        self.asked_at_s = -math.inf  # time (`time.monotonic()`) at which this job last asked Slurm
        self.last_trial_at_s = (
            math.inf
        )  # time (`time.monotonic()`) at which a trial last ran on the nodes of this job; infinite before Ray is up
        self.deadline = Deadline.of(self.allocation.started, self.allocation.ends, stage.sweep.allocation.walltime_margin_s)

    def run(self) -> int:
        """Lead the sweep or join the leader again and again. Return the exit code of the sweep, or LEFT where the sweep goes on without this job."""
        has_been_led = False
        while (code := self.end_of_sweep()) is None:
            if has_been_led:
                time.sleep(self.delay_s())
            if self.deadline.is_near():
                return self.leave("the time of the job is nearly over")
            if self.is_idle():
                cancel_waiting(str(self.allocation.array))  # a job that waits would have no trial either
                return self.leave("no trial has run on the job for as long as allocation.idle says")
            if self.num_failures >= MAX_FAILURES:
                return self.leave(f"Ray has failed {self.num_failures} times on the nodes of this job")
            try:
                with self.lock() as lock:
                    code = self.lead(lock)
            except LockHeld as held:
                has_been_led = True
                self.join(held.holder)
            else:
                return code if code is not None else self.leave("another job leads the sweep now")
        return code

    def delay_s(self) -> float:
        """Return how long this job waits before it takes the lock of a leader that is over, so that the job with the most time left leads."""
        started, ends = self.allocation.started, self.allocation.ends
        if started is None or ends is None:
            return 0.0
        return MOST_DELAY_S * min(1.0, (time.time() - started) / (ends - started))

    def end_of_sweep(self) -> int | None:
        """Return the exit code of the sweep, or None where the sweep is not over."""
        try:
            array, code = (self.stage.state_dir / END).read_text().split()
        except FileNotFoundError:
            return None
        return int(code) if array == self.allocation.array else None

    def lock(self) -> Lock:
        folder, title, job = self.stage.state_dir, f"sweep {self.stage.name}", self.allocation.slurm_job
        gate = GateAddress(str(self.allocation.array), str(self.allocation.job_number), str(self.crew.gate_path))
        return Lock(folder, title, job=job, gate=gate, is_dead=lambda holder: holder.token in self.dead)

    # ------------------------------------------------------------------------------------------------------------ the leader

    def lead(self, lock: Lock) -> int | None:
        """Run the remaining trials. Return the exit code of the sweep, or None where another job must continue the sweep.

        Raises Interrupted when Slurm or a signal ends this job.
        """
        set_up_logging(self.stage.call.path_to_log)
        logger.info("%s: job %s leads the sweep.", self.stage.name, self.allocation.job_id)
        try:
            self.wait_for_last_driver()
            with Gate(self.crew.gate_path) as gate, self.ended_driver():
                finish_sweep(self.stage, self.path_to_config, lock, replace(self.crew, gate=gate))
        except Interrupted:
            raise
        except WorldError as error:
            logger.warning("%s. Another job continues the sweep.", error)
            return None
        except RaysweepError as error:
            code, reason = 1, str(error)
        except SystemExit as end:
            code, reason = end.code if isinstance(end.code, int) else 1, "the driver has logged the reason"
        else:
            return self.end(0)
        # A job that was cut off from the network, and that Slurm has given up, ends with an error as soon as the job sees the lock of the next leader.
        if not lock.is_held():
            logger.warning("%s: another job leads the sweep now (%s).", self.stage.name, reason)
            return None
        logger.error("Error: %s", reason)
        return self.end(code)

    @contextmanager
    def ended_driver(self) -> Iterator[None]:
        """After the block, end Ray and the driver on the nodes of this job, because another job may take the lock as soon as this job releases the lock."""
        try:
            yield
        finally:
            with suppress(AgentsAreSilent):  # Slurm will kill the agents
                with suppress(AgentsAreGone):
                    self.end_ray()
                path = self.stage.state_dir / DRIVER_LOCK
                if (holder := LockHolder.read(path)) is not None and holder.job == self.allocation.slurm_job:
                    path.unlink(missing_ok=True)  # the driver was killed before the driver removed its lock

    def wait_for_last_driver(self) -> None:
        """Wait until the driver of the last leader has certainly ended. Raises WorldError after DRIVER_END_S seconds."""
        end_at_s = time.monotonic() + DRIVER_END_S
        while (holder := LockHolder.read(self.stage.state_dir / DRIVER_LOCK)) is not None and not (self.may_ask() and holder.is_dead()):
            if time.monotonic() > end_at_s:
                raise WorldError(f"{self.stage.name}: the driver of {holder} may still be at work")
            time.sleep(LOOK_S)

    def end(self, code: int) -> int:
        """Record that the sweep is over, cancel the jobs that wait, and return `code`."""
        with written_aside(self.stage.state_dir / END) as stream:
            stream.write(f"{self.allocation.array} {code}\n")
        with suppress(OSError):  # the folder does not exist any more where the Snakemake has ended that submitted the jobs
            self.path_to_end.write_text(f"{code}\n")
        cancel_waiting(str(self.allocation.array))
        return code

    # ------------------------------------------------------------------------------------------------------------ another job

    def join(self, holder: LockHolder) -> None:
        """Be a part of the leader's Ray cluster. Return when the leader has ended, Ray has failed on this job, or this job has to leave.

        Raises LockHeld where the leader belongs to another run of the sweep.
        """
        if holder.job is None or holder.gate is None or holder.gate.array != self.allocation.array:
            raise RaysweepError(f"sweep {self.stage.name}: another run is at work on it: {holder}")
        logger.info("%s: joining job %s.", self.stage.name, holder.job.id)
        joined = Join(holder, time.monotonic())
        try:
            while not self.is_over(joined) and self.is_served(joined):
                time.sleep(random.uniform(0, TICK_S))  # the relays of many jobs must not come at the same moment
        finally:
            if joined.is_up:
                self.end_ray()

    def is_served(self, joined: Join) -> bool:
        """Follow the leader's messages at one relay. Return whether a further relay to the same leader makes sense."""
        assert joined.holder.gate is not None
        with Relay(joined.holder.gate, str(self.allocation.job_id)) as relay:
            while not self.is_over(joined):
                if self.has_failed():
                    self.num_failures += 1
                    return False
                with suppress(queue.Empty):
                    message = relay.messages.get(timeout=LOOK_S)
                    if message is None:
                        joined.is_doubted = True
                        return True
                    self.obey(message, joined)
        return False

    def obey(self, message: LauncherMessage, joined: Join) -> None:
        """Pass a message of the leader on to the agents of this job. A further relay to the same leader repeats the message Start, which is left out."""
        joined.last_life_at_s, joined.is_doubted = time.monotonic(), False
        if isinstance(message, Start) and not joined.is_up:
            own, joined.is_up = self.allocation, True
            self.start = replace(message, nodes=own.nodes, job_id=own.job_id, job_ends=own.ends, peer=message.nodes[0], joins=True)
            self.agents.send(self.start.as_sent())
        elif isinstance(message, HeadAddress):
            self.agents.send(message)

    def has_failed(self) -> bool:
        """Log the messages of the agents, and return whether Ray has failed on a node of this job."""
        while not self.agents.messages.empty():
            message = self.agents.messages.get()
            if message is None:
                raise AgentsAreGone(f"the agents of job {self.allocation.job_id} went away: {self.agents.describe_end()}")
            if isinstance(message, AgentKey) and self.start is not None:
                self.agents.send(seal_secrets(self.start, message))
            if isinstance(message, AgentAlive) and message.has_trial:
                self.last_trial_at_s = time.monotonic()
            if isinstance(message, WorkerUp):
                self.last_trial_at_s = time.monotonic()
                logger.info("%s: Ray is up on %s.", self.stage.name, message.node)
            elif isinstance(message, Notice):
                logger.warning("%s: %s", message.node, message.text)
            elif isinstance(message, NodeFailed):
                logger.warning("%s: %s", message.node, message.reason)
                return True
        return False

    def is_over(self, joined: Join) -> bool:
        """Return whether this job is no longer a part of the leader's Ray cluster, because the leader, the sweep or the time of this job is over."""
        if self.end_of_sweep() is not None or self.deadline.is_here() or self.is_idle():
            return True
        holder = LockHolder.read(self.stage.state_dir / LOCK)
        if holder is None or holder.token != joined.holder.token:
            return True
        is_silent = time.monotonic() > joined.last_life_at_s + SILENT_TICKS * TICK_S
        if (joined.is_doubted or is_silent) and self.may_ask() and joined.holder.is_dead():
            self.dead.add(joined.holder.token)
            return True
        return False

    def is_idle(self) -> bool:
        """Return whether no trial has run on the nodes of this job for as long as the config allows."""
        limit_s = self.stage.sweep.allocation.idle_s
        return limit_s is not None and time.monotonic() > self.last_trial_at_s + limit_s

    def may_ask(self) -> bool:
        """Return whether this job may ask Slurm now. All jobs of the sweep together ask once in ASK_INTERVAL_S seconds."""
        asked, now_s = self.stage.state_dir / ASKED, time.monotonic()
        # The second limit counts where the clock of this node differs from the clock of the file system.
        if 0 <= age_s(asked) < ASK_INTERVAL_S or now_s < self.asked_at_s + ASK_INTERVAL_S:
            return False
        asked.touch()
        self.asked_at_s = now_s
        return True

    def end_ray(self) -> None:
        """Let the agents end Ray on all nodes of this job, and wait until they have done so.

        Raises AgentsAreGone or AgentsAreSilent where they do not answer.
        """
        self.agents.send(EndRay())
        waiting, end_at_s = {node.name for node in self.allocation.nodes}, time.monotonic() + END_DEADLINE_S
        while missing := waiting - self.agents.ended:
            if time.monotonic() > end_at_s:
                raise AgentsAreSilent(f"the agents on {', '.join(sorted(missing))} do not end Ray within {END_DEADLINE_S} s")
            with suppress(queue.Empty):
                message = self.agents.messages.get(timeout=LOOK_S)
                if message is None:
                    raise AgentsAreGone(f"the agents of job {self.allocation.job_id} went away: {self.agents.describe_end()}")
                if isinstance(message, RayEnded):
                    waiting.discard(message.node)

    def leave(self, why: str) -> int:
        """Start this job again where the config allows this, else return LEFT."""
        logger.info("%s: job %s leaves the sweep, because %s.", self.stage.name, self.allocation.job_id, why)
        if self.deadline.is_near() and self.allocation.restarts < self.stage.sweep.allocation.resubmit:
            self.allocation.start_again()
        return LEFT
