"""When one of several jobs of a sweep leads, joins, asks Slurm and leaves. tests/slurm/test_several_jobs.py has real jobs."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raysweep.cluster.channel import AgentAlive, AgentMessage, EndRay, HeadAddress, NodeFailed, RayEnded, Start, WorkerUp
from raysweep.cluster.early_ends import EarlyEnd
from raysweep.cluster.job import CheckJob
from raysweep.cluster.launcher import Crew, Interrupted, LostNode
from raysweep.cluster.lock import DRIVER_LOCK, GateAddress, Lock, LockHolder
from raysweep.common.errors import RaysweepError, WorldError
from raysweep.record.file import Record
from raysweep.slurm.allocation import Allocation, Deadline, Node, SlurmJob
from raysweep.stages import job_nodes, members
from raysweep.stages.leaders import ASK_INTERVAL_S, ASKED
from raysweep.stages.members import END, LEFT, Join, Member, run_member
from typed import sweep_config

NUM_SAMPLES = 3
NODES = (Node("n2", 4, 1, 1000, "10.0.0.2"), Node("n3", 4, 1, 1000, "10.0.0.3"))


class MadeUpAgents:
    """Notes what the launcher sends to the agents, and answers EndRay as agents do."""

    def __init__(self) -> None:
        import queue

        self.messages: queue.Queue[AgentMessage | None] = queue.Queue()
        self.sent: list[object] = []
        self.ended: set[str] = set()
        self.is_ray_wanted = True
        self.has_ended_output = threading.Event()

    def send(self, message: object) -> None:
        self.sent.append(message)
        if isinstance(message, EndRay):
            for node in NODES:
                self.messages.put(RayEnded(node.name))

    def describe_end(self) -> str:
        return "srun ended"


Make = Callable[..., Member]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a member of the job array 12. `allocation` is the part `allocation` of the sweep's config, and `facts` are those of the job."""
    monkeypatch.setattr(members, "cancel_waiting", lambda array: (tmp_path / "cancelled").write_text(array))
    monkeypatch.setattr(members, "start_elsewhere", lambda job, names, most: (tmp_path / "elsewhere").write_text(f"{job}: {names} {most}"))

    def make(allocation: dict[str, Any] | None = None, **facts: Any) -> Member:
        sweep = sweep_config(trainable="user.py:train", allocation={"jobs": 4, **(allocation or {})}, num_samples=NUM_SAMPLES)
        state_dir = tmp_path / "state"
        stage: Any = SimpleNamespace(state_dir=state_dir, path_to_record=state_dir / "record.jsonl", name="s", sweep=sweep)
        stage.call = SimpleNamespace(path_to_log=tmp_path / "log")
        stage.read_horizon = lambda: None
        stage.identity = lambda: SimpleNamespace(sha256="an identity")
        job = Allocation(NODES, "12_1", started=time.time(), ends=time.time() + 3600, array="12", job_number="14")
        job = replace(job, **facts)
        agents: Any = MadeUpAgents()
        return Member(stage, tmp_path / "c.yaml", tmp_path / "12.exit", Crew(job, agents, tmp_path / "gate"))

    return make


def leader(folder: Path, number: int = 0, array: str = "12") -> Lock:
    """The lock of another job of an array, in whose block the job leads."""
    gate = GateAddress(array, str(number), str(folder / "gate"))
    return Lock(folder / "state", "sweep s", job=SlurmJob(f"{array}_{number}", None, 0), gate=gate)


def joined(lock: Lock) -> Join:
    return Join(lock.holder, time.monotonic())


def test_the_end_of_the_sweep_is_told_to_all_jobs_of_the_array_and_to_snakemake(make: Make, tmp_path: Path) -> None:
    member = make()
    member.stage.state_dir.mkdir()
    assert member.end_of_sweep() is None
    assert make().end(1) == 1
    assert (member.end_of_sweep(), make(array="13").end_of_sweep()) == (1, None), "an earlier array has another id"
    assert (tmp_path / "12.exit").read_text() == "1\n"
    assert (tmp_path / "cancelled").read_text() == "12", "jobs that wait are not needed any more"
    assert member.run() == 1


def test_a_snakemake_that_has_gone_does_not_hold_up_the_end(make: Make, tmp_path: Path) -> None:
    member = make()
    member.stage.state_dir.mkdir()
    member.path_to_end = tmp_path / "gone" / "12.exit"
    assert (member.end(0), member.end_of_sweep()) == (0, 0)


@pytest.mark.parametrize("has_lock", [True, False])
@pytest.mark.parametrize("error", [RaysweepError("all trials failed"), SystemExit(1)])
def test_only_the_job_with_the_lock_ends_the_sweep_for_all(
    make: Make, monkeypatch: pytest.MonkeyPatch, has_lock: bool, error: BaseException
) -> None:
    """A leader that was cut off comes back, sees that another job leads, and fails."""
    member = make()

    def fail(stage: object, path_to_config: Path, lock: Lock, crew: Crew) -> None:
        if not has_lock:
            lock.path.unlink()
        raise error

    monkeypatch.setattr(members, "finish_sweep", fail)
    monkeypatch.setattr(members, "set_up_logging", lambda path: None)
    monkeypatch.setattr(members, "TICK_S", 0)
    if has_lock:
        assert member.run() == 1
    else:
        with pytest.raises(WorldError, match="Ray has failed 3 times"):
            member.run()
    assert member.end_of_sweep() == (1 if has_lock else None)


def test_a_job_is_a_part_of_the_cluster_while_the_leader_has_the_lock(make: Make, tmp_path: Path) -> None:
    member = make()
    with leader(tmp_path) as lock:
        joining = joined(lock)
        assert not member.is_over(joining)
    assert not member.is_over(joining), "it looks seldom, because many jobs share the file system"
    joining.last_look_at_s -= members.TICK_S
    assert member.is_over(joining), "the leader has ended"
    with leader(tmp_path, 2):
        joining.last_look_at_s -= members.TICK_S
        assert member.is_over(joining), "another job leads"
        (member.stage.state_dir / END).write_text("12 0\n")


@pytest.mark.parametrize("sign", ["silent", "cut off"])
@pytest.mark.parametrize("is_dead", [True, False])
def test_slurm_is_asked_only_about_a_leader_in_doubt_and_seldom(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: str, is_dead: bool
) -> None:
    questions: list[str] = []
    monkeypatch.setattr(LockHolder, "is_dead", lambda holder: questions.append(holder.token) or is_dead)
    member, other = make(), make()
    with leader(tmp_path) as lock:
        joining = joined(lock)
        assert not member.is_over(joining)
        assert questions == []
        joining.last_life_at_s -= 1000 if sign == "silent" else 0
        joining.is_doubted = sign == "cut off"
        assert member.is_over(joining) is is_dead
        assert not other.is_over(joining), "another job has just asked"
        assert len(questions) == 1
        os.utime(member.stage.state_dir / ASKED, (0, 0))
        assert other.is_over(joining) is is_dead
        assert len(questions) == 2
        if is_dead:
            with member.lock():
                pass  # the lock of a leader that is over is removed
        else:
            with pytest.raises(RaysweepError, match="another run is at work on it"), member.lock():
                pass


def test_a_clock_that_differs_from_the_file_systems_does_not_make_a_job_ask_more_often(make: Make) -> None:
    member = make()
    member.stage.state_dir.mkdir()
    assert member.over_leaders.may_ask()
    for seconds in (-3600, 3600):
        os.utime(member.stage.state_dir / ASKED, (time.time() + seconds,) * 2)
        assert not member.over_leaders.may_ask()
    member.over_leaders.asked_at_s -= ASK_INTERVAL_S
    assert member.over_leaders.may_ask()


def test_the_nodes_of_a_job_join_the_leaders_first_node_once_for_each_leader(make: Make, tmp_path: Path) -> None:
    member = make()
    theirs = (Node("n1", 8, 2, 1000, "10.0.0.1"),)
    start = Start(
        True, theirs, tmp_path, None, "token", False, tmp_path / "log", 1, CheckJob(result=tmp_path, has_torch=False), is_joinable=True
    )
    with leader(tmp_path) as lock:
        joining = joined(lock)
        for message in (start, HeadAddress("10.0.0.1:5"), start):
            member.obey(message, joining)
    agents: Any = member.nodes.agents
    own, head = agents.sent
    assert (own.nodes, own.peer, own.joins, own.job_id, own.token) == (NODES, theirs[0], True, "12_1", "token")
    assert head == HeadAddress("10.0.0.1:5")


def test_ray_ends_on_all_nodes_before_the_next_leader(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    member = make()
    agents: Any = member.nodes.agents
    member.nodes.end_ray()
    assert agents.sent == [EndRay()]
    agents.ended.add("n3")  # its node is lost
    monkeypatch.setattr(agents, "send", lambda message: agents.messages.put(RayEnded("n2")))
    member.nodes.end_ray()
    agents.ended.clear()
    monkeypatch.setattr(job_nodes, "END_DEADLINE_S", 0.1)
    with pytest.raises(WorldError, match=r"the agents on n3 do not end Ray within 0\.1 s"):
        member.nodes.end_ray()


def test_a_job_whose_ray_fails_again_and_again_leaves(make: Make, tmp_path: Path) -> None:
    member = make()
    agents: Any = member.nodes.agents
    agents.messages.put(WorkerUp("n2"))
    assert not member.nodes.have_failed()
    agents.messages.put(NodeFailed("n3", "no room"))
    assert not member.nodes.have_failed(), "its other node goes on"
    agents.messages.put(NodeFailed("n2", "no room"))
    assert member.nodes.have_failed()
    agents.has_ended_output.set()
    with pytest.raises(WorldError, match="the agents of job 12_1 went away: srun ended"):
        member.nodes.have_failed()
    member.num_failures = members.MAX_FAILURES
    with pytest.raises(WorldError, match="s: Ray has failed 3 times on the nodes of job 12_1"):
        member.run()


Ran = Callable[..., str | None]


@pytest.fixture
def ran(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Runs a job of the array 12 whose agents send these messages and then go away, and returns where the job does not start again."""

    def ran(*messages: AgentMessage, fault: BaseException | None = None, is_member: bool = True) -> str | None:
        member = make()
        agents: Any = member.nodes.agents
        for message in messages:
            agents.messages.put(message)
        member.nodes.have_failed()
        agents.has_ended_output.set()

        @contextmanager
        def private(base: Path) -> Iterator[Path]:
            if fault and not is_member:
                raise fault
            yield tmp_path

        def fail(joined: Join) -> bool:
            raise fault or AssertionError

        monkeypatch.setattr(members, "forget_job_options", lambda: None)
        monkeypatch.setattr(members, "private_folder", private)
        monkeypatch.setattr(members, "Agents", lambda allocation: nullcontext(agents))
        monkeypatch.setattr(members, "Member", lambda *arguments: member)
        monkeypatch.setattr(Allocation, "of_slurm", lambda: member.allocation)
        monkeypatch.setattr(Allocation, "neighbour", lambda allocation: None)
        monkeypatch.setattr(member, "is_served", lambda joined: member.nodes.have_failed())  # there is no srun
        if fault and is_member:
            monkeypatch.setattr(member, "is_over", fail)
        expected = WorldError if fault is None else Interrupted if isinstance(fault, KeyboardInterrupt) else type(fault)
        with leader(tmp_path), pytest.raises(expected):
            run_member(member.stage, tmp_path / "c.yaml", tmp_path / "12.exit")
        file = tmp_path / "elsewhere"
        return file.read_text() if file.exists() else None

    return ran


NO_ROOM = NodeFailed("n3", "no room")


def test_a_job_whose_agents_go_away_before_any_trial_ran_starts_again_on_other_nodes(ran: Ran) -> None:
    assert ran() == "12_1: ['n2', 'n3'] 6"


def test_a_job_whose_folder_cannot_be_made_starts_again_on_other_nodes(ran: Ran) -> None:
    assert ran(fault=OSError(errno.ENOSPC, "No space left on device"), is_member=False) == "12_1: ['n2', 'n3'] 6"


def test_only_the_nodes_that_failed_are_left(ran: Ran) -> None:
    assert ran(NO_ROOM) == "12_1: ['n3'] 6"


def test_a_job_that_the_user_cancels_does_not_start_again(ran: Ran) -> None:
    """The agents end by the same signal."""
    assert ran(NO_ROOM, fault=KeyboardInterrupt()) is None


def test_a_fault_of_the_shared_disk_is_no_fault_of_the_nodes(ran: Ran) -> None:
    assert ran(fault=OSError(errno.EDQUOT, "Disk quota exceeded")) is None


def test_a_job_on_whose_nodes_a_trial_ran_does_not_look_for_other_nodes(ran: Ran) -> None:
    assert ran(AgentAlive("n2", has_trial=True), NodeFailed("n2", "the cable is cut")) is None


def test_a_job_that_has_led_the_sweep_does_not_look_for_other_nodes(make: Make, ran: Ran) -> None:
    with Record(make().stage.path_to_record) as record:
        record.write("session", sweep={}, host="h", pid=1, nodes=[], slurm_job="12_1")
    assert ran() is None


def test_a_node_on_which_rays_head_fails_is_broken(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise LostNode("n2: no room", "n2")

    monkeypatch.setattr(members, "set_up_logging", lambda path: None)
    monkeypatch.setattr(members, "finish_sweep", fail)
    member = make()
    with member.lock() as lock:
        assert member.lead(lock) is None
    assert member.nodes.broken == {"n2"}


def test_a_job_without_a_trial_leaves_after_the_time_of_the_config_and_cancels_the_jobs_that_wait(make: Make, tmp_path: Path) -> None:
    member = make({"idle": 5})
    with Record(member.stage.path_to_record) as record:
        record.write("session", sweep={}, host="h", pid=1, nodes=[])
        for number in range(NUM_SAMPLES):
            record.write("trial", trial=f"{number:05d}", index=number, repeat=0, seed=0, config={})
            record.write("start", trial=f"{number:05d}", node="n1", from_epoch=0)
    assert not member.is_idle(), "Ray is not up"
    agents: Any = member.nodes.agents
    agents.messages.put(WorkerUp("n2"))
    member.nodes.have_failed()
    member.nodes.last_trial_at_s -= 299
    assert not member.is_idle()
    member.nodes.last_trial_at_s -= 2
    assert member.is_idle()
    agents.messages.put(AgentAlive("n3", has_trial=False))
    agents.messages.put(AgentAlive("n2", has_trial=True))
    member.nodes.have_failed()
    assert not member.is_idle(), "a trial runs on one of its nodes"
    assert not (tmp_path / "cancelled").exists()
    member.nodes.last_trial_at_s -= 301
    assert member.run() == LEFT
    assert (tmp_path / "cancelled").read_text() == "12"
    assert not make().is_idle(), "without the key there is no limit"
    with Record(member.stage.path_to_record) as record:
        record.write("pause", trial="00000")
    assert not member.is_idle(), "a trial that waits can begin here"


def test_a_job_is_not_idle_while_trials_can_begin(make: Make) -> None:
    """While the leader measures, or while no job leads, no trial runs on the other jobs."""
    member = make({"idle": 5})
    member.nodes.last_trial_at_s = time.monotonic() - 1000
    assert not member.is_idle()
    assert member.nodes.last_trial_at_s > time.monotonic() - 10


@pytest.mark.parametrize(("resubmit", "restarts", "is_started_again"), [(0, 0, False), (2, 1, True), (2, 2, False)])
def test_a_job_whose_time_is_nearly_over_starts_again_as_often_as_the_config_says(
    make: Make, monkeypatch: pytest.MonkeyPatch, resubmit: int, restarts: int, is_started_again: bool
) -> None:
    requeued: list[str | None] = []
    monkeypatch.setattr(Allocation, "start_again", lambda allocation: requeued.append(allocation.job_id))
    now = time.time()
    member = make({"resubmit": resubmit, "walltime_margin": 5}, started=now - 3600, ends=now + 299, restarts=restarts)
    assert member.run() == LEFT
    assert bool(requeued) is is_started_again


def test_a_job_whose_time_is_nearly_over_leaves_as_soon_as_it_has_no_trial(make: Make, tmp_path: Path) -> None:
    now = time.time()
    member = make({"walltime_margin": 5}, started=now - 3600, ends=now + 200)
    with leader(tmp_path) as lock:
        assert not member.is_over(joined(lock)), "Ray is not up"
        member.nodes.last_trial_at_s = time.monotonic() - members.EMPTY_S + 2
        assert not member.is_over(joined(lock)), "the driver may not have seen yet that the time is nearly over"
        member.nodes.last_trial_at_s -= 3
        assert member.is_over(joined(lock))
        member.deadline = Deadline.early(now + 100)
        assert not member.is_over(joined(lock)), "a trial may just have begun"
        member.deadline = Deadline()
        assert not member.is_over(joined(lock)), "a job with time left waits for trials"


@pytest.mark.parametrize("is_early", [True, False])
def test_a_job_that_slurm_ends_early_tells_the_leader_and_starts_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_early: bool
) -> None:
    told: list[tuple[str, EarlyEnd]] = []
    requeued: list[str | None] = []
    monkeypatch.setattr(members, "tell", lambda holder, early_end: told.append((holder.job.id, early_end)))
    monkeypatch.setattr(Allocation, "start_again", lambda allocation: requeued.append(allocation.job_id))
    now = float(int(time.time()))
    member = make({"walltime_margin": 5, "resubmit": 0}, started=now - 3600, ends=now + 3600)
    monkeypatch.setattr(Allocation, "present_end", lambda allocation: now + (100 if is_early else 3600))
    signalled = threading.Event()
    signalled.set()
    with leader(tmp_path):
        member.note_early_end(signalled)
    assert told == ([("12_0", EarlyEnd("12_1", now + 3300, now + 100))] if is_early else [])
    assert member.deadline.is_near() is is_early
    assert not member.deadline.is_here(), "trials have half of the time until their next checkpoint"
    if is_early:
        assert member.run() == LEFT
        assert requeued == ["12_1"], "as Slurm itself would start the job again, which is no matter of `resubmit`"


def test_the_job_with_the_most_time_left_takes_the_lock_first(make: Make) -> None:
    now = time.time()
    delays = [make(started=now - used, ends=now + 3600 - used).delay_s() for used in (10, 1800, 3500)]
    assert delays == sorted(delays)
    assert delays[-1] <= members.MOST_DELAY_S


def test_the_leader_of_another_run_is_not_joined(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier array, or a sweep that had one job."""
    member = make()
    monkeypatch.setattr(LockHolder, "is_dead", lambda holder: False)
    monkeypatch.setattr(members, "OTHER_RUN_S", 0)
    with leader(tmp_path, array="9"), pytest.raises(RaysweepError, match="another run is at work on it: job 9_0"):
        member.run()


@pytest.mark.parametrize("array", ["9", None])
def test_the_lock_of_an_earlier_run_whose_job_is_over_is_removed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: str | None
) -> None:
    monkeypatch.setattr(LockHolder, "is_dead", lambda holder: True)
    monkeypatch.setattr(members, "set_up_logging", lambda path: None)
    monkeypatch.setattr(members, "finish_sweep", lambda *arguments: None)
    member = make()
    stale = leader(tmp_path, array=array) if array else Lock(member.stage.state_dir, "sweep s", job=SlurmJob("8", None, 0))
    stale.__enter__()
    assert member.run() == 0


@pytest.mark.parametrize("code", [0, 1])
def test_a_job_that_gets_the_lock_after_the_end_of_the_sweep_does_not_lead(make: Make, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The job that has ended the sweep releases its lock after the last look of this job."""
    member = make()
    looks = iter([None, code])
    monkeypatch.setattr(member, "end_of_sweep", lambda: next(looks))
    monkeypatch.setattr(member, "lead", lambda lock: pytest.fail("it leads"))
    assert member.run() == code


def test_a_job_with_other_code_does_not_lead(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user has changed a file while the jobs waited."""
    monkeypatch.setattr(members, "set_up_logging", lambda path: None)
    monkeypatch.setattr(members, "TICK_S", 0)
    first, second, later = make(), make(), make(array="13")
    first.stage.state_dir.mkdir()
    assert first.is_same_sweep()
    assert second.is_same_sweep()
    second.stage.identity = lambda: SimpleNamespace(sha256="another identity")
    assert second.run() == LEFT
    assert not (tmp_path / "12.exit").exists()
    later.stage.identity = second.stage.identity
    assert later.is_same_sweep(), "an array that was submitted later has the new code"


def test_the_lock_of_a_driver_whose_job_is_over_is_removed_with_at_most_one_question(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[str] = []
    monkeypatch.setattr(LockHolder, "is_dead", lambda holder: questions.append(holder.token) or True)
    member = make()
    Lock(member.stage.state_dir, "sweep s", DRIVER_LOCK, SlurmJob("12_0", None, 0)).__enter__()
    member.wait_for_last_driver()
    assert len(questions) == 1
    assert not (member.stage.state_dir / DRIVER_LOCK).exists()
    Lock(member.stage.state_dir, "sweep s", DRIVER_LOCK, SlurmJob("12_0", None, 0)).__enter__()
    member.over_leaders.jobs.add(SlurmJob("12_0", None, 0))
    member.wait_for_last_driver()
    assert len(questions) == 1, "Slurm has said of this job that it is over"
    Lock(member.stage.state_dir, "sweep s", DRIVER_LOCK, SlurmJob("12_2", None, 0)).__enter__()
    monkeypatch.setattr(members, "DRIVER_END_S", 0)
    with pytest.raises(WorldError, match=r"the driver of job 12_2 .* may still be at work"):
        member.wait_for_last_driver()
