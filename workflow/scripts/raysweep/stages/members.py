"""This module runs one of several Slurm jobs that work on one sweep together (`allocation.jobs`).

No job is special. The job that has the lock of the sweep leads, which means that this job runs Ray's head and the driver. All other jobs join the leader's
Ray cluster (cluster/gate.py). When the leader ends, another job gets the lock and continues the sweep from the record. The environment of the trials is
unpacked once in each job. The controller's Python runs this module.
"""

from __future__ import annotations

import math
import queue
import random
import signal
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from raysweep.cluster.channel import (
    TICK_S,
    HeadAddress,
    LauncherMessage,
    Start,
)
from raysweep.cluster.children import ended_by_signals, uninterrupted
from raysweep.cluster.early_ends import EarlyEnd, folder_beside, tell
from raysweep.cluster.gate import Gate, Relay
from raysweep.cluster.launcher import Agents, Crew, Interrupted, LostNode
from raysweep.cluster.lock import DRIVER_LOCK, LOCK, GateAddress, Lock, LockHeld, LockHolder
from raysweep.cluster.private_folder import base_for_ray, private_folder
from raysweep.common.errors import RaysweepError, WorldError, logger, set_up_logging
from raysweep.common.files import written_aside
from raysweep.record.budget import may_begin_trials
from raysweep.record.file import read_sweep
from raysweep.slurm.allocation import Allocation, Deadline, forget_job_options, local_dir_of_job
from raysweep.slurm.commands import cancel_waiting, start_elsewhere
from raysweep.slurm.notes import EARLY_END_SIGNAL
from raysweep.stages.job_nodes import AgentsAreGone, AgentsAreSilent, JobNodes
from raysweep.stages.leaders import OverLeaders
from raysweep.stages.stage import Stage
from raysweep.stages.sweep import finish_sweep

# A job ends with this exit code (EX_TEMPFAIL) where the sweep goes on without the job.
LEFT = 75
# Files in the state folder of the sweep. The first two begin with the id of the job array. END contains the exit code of the sweep for the other jobs, and
# LED_BY the identity of the sweep for the first leader.
END, LED_BY = "end", "led_by"
LOOK_S = 0.5  # time in seconds between two looks at the lock file and at END
SILENT_TICKS = 6  # number of ticks without a sign of life after which a job doubts that the leader's job is alive
MOST_DELAY_S = 3  # time in seconds by which a job whose time is nearly over takes the lock later than a job that has just begun
MOST_PAUSE_S = 30.0  # longest time in seconds between two relays to the same leader
OTHER_RUN_S = 30  # longest time in seconds that a job waits for the end of another run of the sweep
DRIVER_END_S = 120  # longest time in seconds that a leader waits for the end of the last leader's driver. Slurm kills a job after 30 s
# A job whose time is nearly over leaves after so many seconds without a trial. By then the driver has also seen the time, and begins no trial there.
EMPTY_S = 10
MAX_ELSEWHERE = 3  # greatest number of times that a job is started again on other nodes
MAX_FAILURES = 3  # number of times that Ray may fail on the nodes of this job, while the leader is alive, before this job leaves


def run_member(stage: Stage, path_to_config: Path, path_to_end: Path) -> int:
    """Run this job of the sweep. Return the exit code of the sweep, or LEFT where the sweep goes on without this job.

    Raises Interrupted when a signal ends this process, and WorldError or OSError where this job cannot go on. If the fault is one of the nodes, and no trial
    has run on them, Slurm starts the job again on other nodes.
    """
    is_signalled = threading.Event()
    signal.signal(signal.Signals[f"SIG{EARLY_END_SIGNAL}"], lambda *_: is_signalled.set())
    forget_job_options()
    allocation = Allocation.of_slurm()
    member: Member | None = None
    try:
        base = base_for_ray(local_dir_of_job())
        with ended_by_signals(), private_folder(base) as folder, (agents := Agents(allocation)):
            peer = allocation.neighbour() if len(allocation.nodes) == 1 else None
            crew = Crew(allocation, agents, folder / "gate", peer)
            folder_beside(crew.gate_path).mkdir()
            member = Member(stage, path_to_config, path_to_end, crew)
            threading.Thread(target=member.note_early_end, args=(is_signalled,), daemon=True).start()
            return member.run()
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(f"Slurm has ended job {allocation.job_id}, and the sweep goes on without this job") from None
    except (OSError, WorldError) as error:
        if member is None:
            leave_nodes(stage.name, allocation, (), error)
        elif not member.has_worked() and (member.nodes.broken or isinstance(error, AgentsAreGone | AgentsAreSilent)):
            leave_nodes(stage.name, allocation, member.nodes.broken, error)
        raise


def leave_nodes(title: str, allocation: Allocation, names: Collection[str], error: Exception) -> None:
    """Let Slurm start this job again on other nodes, because of `error`. Without this, Slurm would give the broken node to one job after the other.

    `title` is the name of the sweep, and `names` are the broken nodes. Without any name, all nodes of the job count as broken.
    """
    names = sorted(names or (node.name for node in allocation.nodes))
    with uninterrupted():  # Slurm ends this process before the job has its new nodes
        try:
            if start_elsewhere(str(allocation.job_id), names, MAX_ELSEWHERE * len(allocation.nodes)):
                logger.warning("%s: job %s starts again on other nodes than %s: %s", title, allocation.job_id, ", ".join(names), error)
        except WorldError as refusal:  # for example, the site forbids that a job starts again
            logger.warning("%s.", refusal)


@dataclass
class Join:
    """Contains the state of this job while the job is a part of the Ray cluster of the job `holder`."""

    holder: LockHolder
    last_life_at_s: float  # time (`time.monotonic()`) of the leader's last sign of life
    is_up: bool = False  # whether the agents of this job were told to start Ray
    is_doubted: bool = False  # whether the connection to the leader was lost
    last_look_at_s: float = -math.inf  # time (`time.monotonic()`) of the last look at the files of the shared file system


class Member:
    """Runs one job of a sweep until the sweep is over, or until the job has to leave.

    `path_to_end` is the file in which the job that finishes the sweep writes the exit code of the sweep for Snakemake.
    """

    def __init__(self, stage: Stage, path_to_config: Path, path_to_end: Path, crew: Crew) -> None:
        self.stage, self.path_to_config, self.path_to_end, self.crew = stage, path_to_config, path_to_end, crew
        self.allocation = crew.allocation
        self.nodes = JobNodes(stage.name, crew.allocation, crew.agents)
        self.over_leaders = OverLeaders(stage.state_dir)
        self.last_leader = ""  # token of the leader that this job has joined last
        self.num_failures = 0
        self.ends_early = False  # whether Slurm ends the job before the job's time limit
        self.has_other_code = False  # whether the code, the data or the environment differs from that of the first leader
        self.deadline = Deadline.of(self.allocation.started, self.allocation.ends, stage.sweep.allocation.walltime_margin_s)

    def run(self) -> int:
        """Lead the sweep while no other job does, and otherwise join the leader, until the sweep ends or this job leaves.

        Return the exit code of the sweep, or LEFT where the sweep goes on without this job.

        Raises WorldError where Ray fails again and again on the nodes of this job.
        """
        has_been_led = False
        while (code := self.end_of_sweep()) is None:
            if has_been_led:
                time.sleep(self.delay_s())
            if (reason := self.reason_to_leave()) is not None:
                return self.leave(reason)
            has_been_led = True
            try:
                with self.lock() as lock:
                    # Another job may have ended the sweep before that job released the lock.
                    code = self.end_of_sweep()
                    code = self.lead(lock) if code is None else code
            except LockHeld as held:
                self.join(held.holder)
                continue
            if code is not None:
                return code
            self.num_failures += 1
            time.sleep(TICK_S)  # another job takes the lock first
        return code

    def reason_to_leave(self) -> str | None:
        """Return why this job must leave the sweep, or None where the job goes on. Where no trial is left for this job, cancel the jobs that wait.

        Raises WorldError where Ray has failed too often.
        """
        if self.deadline.is_near():
            return "the time of the job is nearly over"
        if self.is_idle():
            cancel_waiting(str(self.allocation.array))  # a job that waits would have no trial either
            return "no trial has run on the job for as long as allocation.idle says"
        if self.has_other_code:
            return "the code, the data or the environment has changed since the first job began"
        if self.num_failures >= MAX_FAILURES:
            raise WorldError(f"{self.stage.name}: Ray has failed {self.num_failures} times on the nodes of job {self.allocation.job_id}")
        return None

    def note_early_end(self, is_signalled: threading.Event) -> None:
        """Wait for EARLY_END_SIGNAL, and then ask Slurm when this job ends. Where the end is early, let the trials on this job pause at their next checkpoint.

        This method runs in a thread, because the main thread may be at any place, such as inside of a lock.
        """
        is_signalled.wait()
        try:
            ends = self.allocation.present_end()
            leader = LockHolder.read(self.stage.state_dir / LOCK)
        except (RaysweepError, OSError) as error:
            logger.warning("%s.", error)
            return
        # Slurm also sends the signal before the time limit.
        if ends is None or (self.allocation.ends is not None and ends >= self.allocation.ends):
            return
        job = str(self.allocation.job_id)
        logger.info("%s: Slurm will end job %s before its time limit, as for a preemption.", self.stage.name, job)
        before, self.ends_early, self.deadline = self.deadline_of_nodes(), True, Deadline.early(ends)
        if leader is not None:
            tell(leader, EarlyEnd(job, math.inf if before is None else before, ends))

    def deadline_of_nodes(self) -> float | None:
        """Return the time after which no trial may begin on the nodes of this job, in whole seconds since the epoch, or None where there is no such time."""
        return None if self.deadline.near == math.inf else float(math.floor(self.deadline.near))

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
        except (OSError, ValueError):  # there is no file yet, or another node has just replaced the file
            return None
        return int(code) if array == self.allocation.array else None

    def lock(self, file_name: str = LOCK) -> Lock:
        folder, title, job = self.stage.state_dir, f"sweep {self.stage.name}", self.allocation.slurm_job
        gate = GateAddress(str(self.allocation.array), str(self.allocation.job_number), str(self.crew.gate_path))
        return Lock(folder, title, file_name, job, gate, is_dead=lambda holder: holder in self.over_leaders)

    # ------------------------------------------------------------------------------------------------------------ the leader

    def lead(self, lock: Lock) -> int | None:
        """Run the remaining trials. Return the exit code of the sweep, or None where another job must continue the sweep.

        Raises Interrupted when Slurm or a signal ends this job.
        """
        set_up_logging(self.stage.call.path_to_log)
        logger.info("%s: job %s leads the sweep.", self.stage.name, self.allocation.job_id)
        self.stage.read_horizon()
        self.has_other_code = not self.is_same_sweep()
        if self.has_other_code:
            return None
        try:
            with Gate(self.crew.gate_path) as gate, self.ended_driver():
                self.wait_for_last_driver()
                finish_sweep(self.stage, self.path_to_config, lock, replace(self.crew, gate=gate))
        except Interrupted:
            raise
        except (WorldError, LockHeld) as error:
            if isinstance(error, LostNode):
                self.nodes.broken.add(error.node)
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

    def is_same_sweep(self) -> bool:
        """Return whether this job knows the sweep as the first leader of the array does.

        The user may have changed the code or the data before this job started. A leader with other code would set the trials of the other jobs aside.
        """
        path, own = self.stage.state_dir / LED_BY, f"{self.allocation.array} {self.stage.identity().sha256}\n"
        first = path.read_text() if path.exists() else ""
        if first.split(" ")[0] != self.allocation.array:
            with written_aside(path) as stream:
                stream.write(own)
            return True
        return first == own

    @contextmanager
    def ended_driver(self) -> Iterator[None]:
        """After the block, end Ray and the driver on the nodes of this job, because another job may take the lock as soon as this job releases the lock."""
        try:
            yield
        finally:
            with suppress(AgentsAreSilent):  # Slurm will kill the agents
                with suppress(AgentsAreGone):
                    self.nodes.end_ray()
                path = self.stage.state_dir / DRIVER_LOCK
                if (holder := LockHolder.read(path)) is not None and holder.job == self.allocation.slurm_job:
                    path.unlink(missing_ok=True)  # the driver was killed before the driver removed its lock

    def wait_for_last_driver(self) -> None:
        """Wait until the driver of the last leader has certainly ended, and remove the lock of this driver. Raises WorldError after DRIVER_END_S seconds."""
        end_at_s = time.monotonic() + DRIVER_END_S
        while (holder := LockHolder.read(self.stage.state_dir / DRIVER_LOCK)) is not None:
            if self.over_leaders.find_out(holder):
                with self.lock(DRIVER_LOCK):
                    return
            if time.monotonic() > end_at_s:
                raise WorldError(f"{self.stage.name}: the driver of {holder} may still be at work")
            time.sleep(LOOK_S)

    def end(self, code: int) -> int:
        """Record that the sweep is over, cancel the jobs that wait, and return `code`."""
        with written_aside(self.stage.state_dir / END) as stream:
            stream.write(f"{self.allocation.array} {code}\n")
        cancel_waiting(str(self.allocation.array))
        with suppress(OSError):  # the folder does not exist any more where the Snakemake has ended that submitted the jobs
            self.path_to_end.write_text(f"{code}\n")
        return code

    # ------------------------------------------------------------------------------------------------------------ another job

    def join(self, holder: LockHolder) -> None:
        """Be a part of the leader's Ray cluster. Return when the leader has ended, Ray has failed on this job, or this job has to leave.

        Raises RaysweepError where another run of the sweep has the lock and may be alive.
        """
        joined = Join(holder, time.monotonic())
        if holder.job is None or holder.gate is None or holder.gate.array != self.allocation.array:
            self.wait_for_other_run(joined)
            return
        logger.info("%s: joining job %s.", self.stage.name, holder.job.id)
        if holder.token != self.last_leader:
            self.last_leader, self.num_failures = holder.token, 0
        self.nodes.last_trial_at_s = math.inf
        pause_s = float(TICK_S)
        while not self.is_over(joined) and self.is_served(joined):
            # The relays of many jobs must not come at the same moment, and must not come often while the leader does not answer.
            time.sleep(random.uniform(0, pause_s))
            pause_s = min(2 * pause_s, MOST_PAUSE_S)
        self.nodes.end_ray()  # after an error or a signal, `run_member` ends the agents

    def wait_for_other_run(self, joined: Join) -> None:
        """Return when the lock of another run is free, or the job of the other run is over. Raises RaysweepError after OTHER_RUN_S seconds."""
        joined.is_doubted, end_at_s = True, time.monotonic() + OTHER_RUN_S
        while not self.is_over(joined):
            if time.monotonic() > end_at_s:
                raise RaysweepError(f"sweep {self.stage.name}: another run is at work on it: {joined.holder}")
            time.sleep(LOOK_S)

    def is_served(self, joined: Join) -> bool:
        """Follow the leader's messages at one relay. Return whether a further relay to the same leader makes sense."""
        assert joined.holder.gate is not None
        with Relay(joined.holder.gate, str(self.allocation.job_id)) as relay:
            while not self.is_over(joined):
                if self.nodes.have_failed():
                    self.num_failures += not joined.is_doubted  # without a leader Ray ends, which is no fault of this job
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
            joined.is_up = True
            self.nodes.join(message, self.deadline_of_nodes())
        elif isinstance(message, HeadAddress):
            self.nodes.agents.send(message)

    def is_over(self, joined: Join) -> bool:
        """Return whether this job is no longer a part of the leader's Ray cluster, because the leader, the sweep or the time of this job is over."""
        if self.deadline.is_here() or self.is_empty() or self.is_idle():
            return True
        is_silent = time.monotonic() > joined.last_life_at_s + SILENT_TICKS * TICK_S
        if not (joined.is_doubted or is_silent) and time.monotonic() < joined.last_look_at_s + TICK_S:
            return False  # many jobs that look often would keep the file system busy
        joined.last_look_at_s = time.monotonic()
        if self.end_of_sweep() is not None:
            return True
        holder = LockHolder.read(self.stage.state_dir / LOCK)
        if holder is None or holder.token != joined.holder.token:
            return True
        return (joined.is_doubted or is_silent) and self.over_leaders.find_out(joined.holder)

    def is_empty(self) -> bool:
        """Return whether the time of this job has been nearly over for EMPTY_S seconds, and no trial has run on its nodes for so long."""
        return time.time() > self.deadline.near + EMPTY_S and time.monotonic() > self.nodes.last_trial_at_s + EMPTY_S

    def is_idle(self) -> bool:
        """Return whether no trial has run on the nodes of this job for as long as the config allows, and no trial can begin there.

        For example, a trial can begin later while the leader still measures, or while another job takes the lead.
        """
        limit_s = self.stage.sweep.allocation.idle_s
        if limit_s is None or time.monotonic() <= self.nodes.last_trial_at_s + limit_s:
            return False
        recorded = read_sweep(self.stage.path_to_record)
        has_new = len(recorded.trials) < self.stage.sweep.num_trials and may_begin_trials(recorded, self.stage.sweep)
        if has_new or any(trial.status != "RUNNING" for trial in recorded.trials.values() if not trial.finished):
            self.nodes.last_trial_at_s = time.monotonic()
            return False
        return True

    def leave(self, why: str) -> int:
        """Start this job again where the time of the job is nearly over and the config allows a restart, else return LEFT.

        A job that Slurm preempts always starts again, as Slurm itself lets a job start again that does not end before the end of the grace time.
        """
        logger.info("%s: job %s leaves the sweep, because %s.", self.stage.name, self.allocation.job_id, why)
        may_restart = self.ends_early or self.allocation.restarts < self.stage.sweep.allocation.resubmit
        if self.deadline.is_near() and may_restart:
            try:
                self.allocation.start_again()
            except WorldError as error:  # for example, the site forbids that a job starts again
                logger.warning("%s.", error)
        return LEFT

    def has_worked(self) -> bool:
        """Return whether a trial has run on the nodes of this job, or this job has led the sweep."""
        sessions = read_sweep(self.stage.path_to_record).sessions
        return self.nodes.have_had_trial or any(session.slurm_job == self.allocation.job_id for session in sessions)
