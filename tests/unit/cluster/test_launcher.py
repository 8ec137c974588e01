"""What the launcher makes of the messages of the agents. `srun` is a made-up program that sends a script's messages; real agents are in test_run_sweep.py
and slurm/."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from raysweep.cluster import launcher, node_tasks
from raysweep.cluster.channel import (
    AgentKey,
    AgentMessage,
    DriverEnded,
    EnvironmentReady,
    HeadAddress,
    HeadUp,
    LauncherMessage,
    NodeFailed,
    Notice,
    SealedSecrets,
    Secrets,
    Start,
    WorkerUp,
    read_launcher_message,
)
from raysweep.cluster.job import CheckJob
from raysweep.cluster.launcher import LaunchRequest, LaunchResult
from raysweep.cluster.sealing import Recipient
from raysweep.common.errors import RaysweepError, WorldError
from raysweep.common.typed_json import from_json, to_json
from raysweep.slurm.allocation import Allocation, Node
from sweeping import SCRIPTS

NODES = tuple(Node(name, cpus=4, gpus=1, mem_mb=1000, address=name) for name in ("n1", "n2", "n3"))
HEAD = HeadUp("n1", "10.0.0.1:5", None)
DONE = DriverEnded("n1", 0)
JOB = CheckJob(result=Path("/result.json"), has_torch=False)
# Writes each line of its input to the file `received`, and its arguments to the file `arguments`. The nodes in `answering` answer each tick.
AGENTS = """
import json, os, sys, threading, time
folder = {folder!r}
with open(folder + "/arguments", "w") as stream:
    json.dump(sys.argv[1:], stream)
received = open(folder + "/received", "w", buffering=1)
is_over = threading.Event()
answering, is_sending = [], threading.Lock()
def receive():
    for line in sys.stdin:
        received.write(line)
        for node in answering:
            send({{"node": node, "event": "alive"}})
    is_over.set()
threading.Thread(target=receive, daemon=True).start()
def send(message):
    with is_sending:
        print(json.dumps(message), flush=True)
def wait_for(name):
    while not os.path.exists(folder + "/" + name):
        time.sleep(0.01)
{script}
is_over.wait()
"""


@dataclass(frozen=True)
class Cluster:
    """Made-up agents in a folder."""

    folder: Path
    allocation: Allocation

    @property
    def srun(self) -> Path:
        return self.folder / "bin" / "srun"

    def agents_do(self, *steps: AgentMessage | str) -> None:
        """Have the agents send messages, and run lines of Python."""
        script = "\n".join(step if isinstance(step, str) else f"send({to_json(step)!r})" for step in steps)
        (self.folder / "agents.py").write_text(AGENTS.format(folder=str(self.folder), script=script))
        self.srun.parent.mkdir(exist_ok=True)
        self.srun.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{self.folder}/agents.py" "$@"\n')
        self.srun.chmod(0o755)

    def run(self, *steps: AgentMessage | str, num_nodes: int = 3, min_nodes: int | None = None) -> LaunchResult:
        self.agents_do(*steps)
        allocation = replace(self.allocation, nodes=NODES[:num_nodes])
        return launcher.run(LaunchRequest(allocation, self.folder, self.folder / "log", min_nodes), JOB)

    def received(self) -> list[LauncherMessage]:
        """The messages that the agents have received."""
        return [read_launcher_message(line) for line in (self.folder / "received").read_text().splitlines()]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A job of Slurm with the made-up `srun` on PATH."""
    cluster = Cluster(tmp_path, Allocation(NODES, "7", started=time.time() - 5))
    monkeypatch.setenv("PATH", str(cluster.srun.parent), prepend=":")
    return cluster


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    logging.getLogger("raysweep").propagate = True
    caplog.set_level(logging.INFO, "raysweep")
    return caplog


def up(*names: str) -> list[AgentMessage]:
    """The messages of nodes that come up; n1 is the first node."""
    return [*(EnvironmentReady(name) for name in names), HEAD, *(WorkerUp(name) for name in names if name != "n1")]


def test_all_nodes_come_up_and_the_drivers_exit_code_is_returned(cluster: Cluster, log: pytest.LogCaptureFixture) -> None:
    result = cluster.run(*up("n1", "n2", "n3"), DriverEnded("n1", 3))
    assert result.exit_code == 3
    [line] = log.messages
    assert line.startswith("Ray is up on 3 of 3 nodes after ")
    assert re.search(r": 12 CPUs, 3 GPUs \(start of the job \d+ s, environment [\d.]+ s, head [\d.]+ s, workers [\d.]+ s\)\.$", line)
    assert result.bring_up is not None
    assert line == f"{result.bring_up}."
    assert list(result.bring_up.stages_s) == ["environment", "head", "workers"]
    start, *others = cluster.received()
    assert isinstance(start, Start)
    assert (start.nodes, start.min_nodes, start.job) == (NODES, 3, JOB)
    assert HeadAddress("10.0.0.1:5") in others


def test_a_driver_may_end_before_all_nodes_are_up(cluster: Cluster) -> None:
    assert cluster.run(*up("n1", "n2"), DriverEnded("n1", 1)) == LaunchResult(1, None)


def test_each_run_has_a_token_of_its_own_and_none_on_the_command_line(cluster: Cluster) -> None:
    tokens = set()
    for _ in range(2):
        cluster.run(*up("n1"), DONE, num_nodes=1)
        start = cluster.received()[0]
        assert isinstance(start, Start)
        assert len(start.token) == 64
        assert start.authority is None, "one node has no TLS"
        assert start.token not in (cluster.folder / "arguments").read_text()
        tokens.add(start.token)
    assert len(tokens) == 2


@pytest.mark.parametrize("num_nodes", [2, 1])
def test_with_tls_each_agent_gets_the_secrets_for_its_own_key_only(cluster: Cluster, num_nodes: int) -> None:
    recipients = {node.name: Recipient() for node in NODES[:num_nodes]}
    cluster.agents_do(*(AgentKey(name, each.public_key) for name, each in recipients.items()), *up(*recipients), DONE)
    allocation = replace(cluster.allocation, nodes=NODES[:num_nodes])
    request = LaunchRequest(allocation, cluster.folder, cluster.folder / "log", tls="on" if num_nodes == 1 else "auto")
    assert launcher.run(request, JOB).exit_code == 0
    start, *others = cluster.received()
    assert isinstance(start, Start)
    assert (start.token, start.authority) == ("", None)
    sealed = {message.node: message.text for message in others if isinstance(message, SealedSecrets)}
    assert sealed.keys() == recipients.keys()
    [secrets] = {from_json(Secrets, json.loads(recipients[name].open(text))) for name, text in sealed.items()}
    assert len(secrets.token) == 64
    assert secrets.authority is not None
    assert not [word for word in (secrets.token, "PRIVATE KEY") if word in (cluster.folder / "received").read_text()]


def test_tls_that_is_off_for_several_nodes(cluster: Cluster) -> None:
    cluster.agents_do(*up("n1", "n2", "n3"), DONE)
    launcher.run(LaunchRequest(cluster.allocation, cluster.folder, cluster.folder / "log", tls="off"), JOB)
    start = cluster.received()[0]
    assert isinstance(start, Start)
    assert (len(start.token), start.authority) == (64, None)


def test_a_node_that_fails_is_named_with_its_reason(cluster: Cluster) -> None:
    with pytest.raises(WorldError, match=r"^n2: no room on the disk$"):
        cluster.run(*up("n1"), NodeFailed("n2", "no room on the disk"))


def test_with_min_nodes_a_node_may_fail_and_another_node_may_come_late(cluster: Cluster, log: pytest.LogCaptureFixture) -> None:
    late = [EnvironmentReady("n3"), WorkerUp("n3")]
    assert cluster.run(*up("n1"), NodeFailed("n2", "broken"), *late, DONE, min_nodes=1).exit_code == 0
    assert log.messages[0].startswith("Ray is up on 1 of 3 nodes")
    assert log.messages[1] == "n2 is lost: broken. The sweep goes on without it."
    assert log.messages[2].startswith("n3 has joined after ")
    assert log.messages[2].endswith(": 2 of 3 nodes.")


def test_once_the_driver_runs_the_sweep_outlives_any_node_but_the_heads(cluster: Cluster) -> None:
    lost = [NodeFailed(name, "gone") for name in ("n3", "n2")]
    assert cluster.run(*up("n1", "n2", "n3"), *lost, DONE).exit_code == 0
    with pytest.raises(WorldError, match=r"^n1: gone$"):
        cluster.run(*up("n1", "n2", "n3"), NodeFailed("n1", "gone"))


def test_nodes_that_do_not_come_up_in_time_are_named_with_their_progress(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is up as soon as the launcher has read all messages: a fixed time would depend on this machine."""

    def end_the_time() -> None:
        while not (path := cluster.folder / "received").exists() or "10.0.0.1:5" not in path.read_text():
            time.sleep(0.01)
        monkeypatch.setattr(launcher, "BRING_UP_DEADLINE_S", 0)

    monkeypatch.setattr(launcher, "TICK_S", 0.1)
    watcher = threading.Thread(target=end_the_time)
    watcher.start()
    reason = r"^not up: n2 \(it waits for Ray's head\), n3 \(it has not answered\) within 0 s$"
    with pytest.raises(WorldError, match=reason):
        cluster.run(EnvironmentReady("n1"), EnvironmentReady("n2"), HEAD)
    watcher.join()


def test_agents_that_do_not_start_are_explained_by_sruns_last_errors(cluster: Cluster) -> None:
    exits = "print('srun: error: Unable to create step', file=sys.stderr); sys.exit(1)"
    with pytest.raises(WorldError, match=r"not up: n1 .* srun ended with exit code 1: srun: error: Unable to create step$"):
        cluster.run(exits)


@pytest.mark.parametrize(
    ("ends_in_s", "error", "reason"),
    [
        (-1, RaysweepError, r"^Slurm ended job 7 at its time limit\. .* run the same command again to go on"),
        (20, WorldError, r"srun: error: Unable to create step for job 7: Job/step already completing or completed$"),
    ],
)
def test_a_step_that_slurm_refuses_at_the_end_of_the_jobs_time_is_no_fault_of_a_node(
    cluster: Cluster, log: pytest.LogCaptureFixture, ends_in_s: float, error: type[Exception], reason: str
) -> None:
    cluster = replace(cluster, allocation=replace(cluster.allocation, ends=time.time() + ends_in_s))
    refusal = "srun: error: Unable to create step for job 7: Job/step already completing or completed"
    with pytest.raises(error, match=reason) as raised:
        cluster.run(f"print({refusal!r}, file=sys.stderr); sys.exit(1)")
    assert refusal in str(raised.value) or refusal in log.text


def test_a_program_that_cannot_be_run_is_one_line(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(cluster.folder))
    with pytest.raises(WorldError, match=r"^srun cannot be run: No such file or directory$"):
        launcher.run(LaunchRequest(cluster.allocation, cluster.folder, cluster.folder / "log"), JOB)


class FileForMessage(logging.Handler):
    """Makes a file when a message with a certain beginning is logged.

    The agents' messages and srun's errors come through two pipes, in no order.
    """

    def __init__(self, beginning: str, path: Path) -> None:
        super().__init__()
        self.beginning, self.path = beginning, path

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self.beginning):
            self.path.touch()


@pytest.mark.parametrize("rank", [0, 1])
def test_an_agent_that_was_killed_is_known_by_sruns_errors(cluster: Cluster, rank: int, log: pytest.LogCaptureFixture) -> None:
    for beginning, name in (("Ray is up", "up"), ("n2 is lost", "lost")):
        logging.getLogger("raysweep").addHandler(FileForMessage(beginning, cluster.folder / name))
    killed = f"wait_for('up'); print('srun: error: n{rank + 1}: task {rank}: Killed', file=sys.stderr, flush=True)"
    if rank == 0:
        with pytest.raises(WorldError, match=r"^n1: its agent ended: srun: error: n1: task 0: Killed$"):
            cluster.run(*up("n1", "n2", "n3"), killed)
    else:
        assert cluster.run(*up("n1", "n2", "n3"), killed, "wait_for('lost')", DONE).exit_code == 0
        assert log.messages[-1] == "n2 is lost: its agent ended: srun: error: n2: task 1: Killed. The sweep goes on without it."


@pytest.mark.parametrize("in_slurm", [True, False])
def test_a_program_that_ignores_sigterm_and_leaves_a_process_with_its_output_is_killed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture, in_slurm: bool
) -> None:
    """So `srun` behaves when the slurmstepd of a node has died."""
    monkeypatch.setattr(launcher, "END_DEADLINE_S", 0.2)
    monkeypatch.setattr(node_tasks, "GRACE_S", 0.2)
    ignores = "import signal, subprocess; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    leaves = "left = subprocess.Popen(['sleep', '600']); open(folder + '/pids', 'w').write(f'{os.getpid()} {left.pid}')"
    cluster.agents_do(ignores, leaves, *up("n1"), DONE, "time.sleep(600)")
    if not in_slurm:
        monkeypatch.setattr(sys, "executable", str(cluster.srun))  # only now, because the made-up program itself runs Python
    allocation = replace(cluster.allocation, nodes=NODES[:1], job_id="7" if in_slurm else None)
    try:
        assert launcher.run(LaunchRequest(allocation, cluster.folder, cluster.folder / "log"), JOB).exit_code == 0
    finally:
        program, left = map(int, (cluster.folder / "pids").read_text().split())
        os.kill(left, signal.SIGKILL)
    assert not psutil.pid_exists(program)
    name = "srun" if in_slurm else "the agent"
    assert log.messages[1:] == [f"{name} did not end within 0 s: ending it by force."] * 2


SILENCE = re.escape("its agent has not answered for 2 s")


@pytest.fixture
def quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "TICK_S", 0.05)
    monkeypatch.setattr(launcher, "UNANSWERED_TICKS", 40)
    monkeypatch.setattr(node_tasks, "GRACE_S", 0.2)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_ticks")
@pytest.mark.parametrize("num_silent_starts", [1, 2])
def test_where_the_agent_of_the_head_is_silent_the_agents_are_started_once_more(
    cluster: Cluster, log: pytest.LogCaptureFixture, num_silent_starts: int
) -> None:
    """The made-up `srun` does not end with its input, as a real one whose slurmstepd has died."""
    start = "starts = open(folder + '/starts', 'a'); print(os.getpid(), file=starts, flush=True)"
    silent = f"len(open(folder + '/starts').readlines()) > {num_silent_starts} or time.sleep(600)"
    steps = (start, "answering += ['n2', 'n3']", *up("n1", "n2", "n3"), silent, "answering += ['n1']", DONE)
    if num_silent_starts == 1:
        assert cluster.run(*steps).exit_code == 0
    else:
        with pytest.raises(WorldError, match=f"^n1: {SILENCE}$"):
            cluster.run(*steps)
    again = [message for message in log.messages if not message.startswith("Ray is up")]
    assert again == ["n1: its agent has not answered for 2 s. The agents are started once more, and the job goes on from its record."]
    programs = [int(line) for line in (cluster.folder / "starts").read_text().split()]
    assert len(programs) == 2
    assert not any(psutil.pid_exists(program) for program in programs)


@pytest.mark.usefixtures("quick_ticks")
def test_the_sweep_goes_on_without_a_node_whose_agent_is_silent(cluster: Cluster, log: pytest.LogCaptureFixture) -> None:
    logging.getLogger("raysweep").addHandler(FileForMessage("n2 is lost", cluster.folder / "lost"))
    steps = ("answering += ['n1', 'n3']", *up("n1", "n2", "n3"), "wait_for('lost')", DONE)
    assert cluster.run(*steps).exit_code == 0
    assert log.messages[1:] == ["n2 is lost: its agent has not answered for 2 s. The sweep goes on without it."]


@pytest.mark.usefixtures("quick_ticks")
def test_an_agent_that_has_never_answered_is_not_silent(cluster: Cluster) -> None:
    """The start of an agent may take minutes, and has the limit of the start of the cluster."""
    long = "while open(folder + '/received').read().count('alive') < 60: time.sleep(0.01)"
    assert cluster.run("answering += ['n1']", long, *up("n1", "n2"), DONE, num_nodes=2).exit_code == 0


@pytest.mark.slow
def test_the_time_in_which_the_launcher_is_suspended_does_not_count_as_silence(tmp_path: Path, cluster: Cluster) -> None:
    cluster.agents_do("answering += ['n1']", *up("n1"), "wait_for('go')", DONE)
    code = f"""
import sys; sys.path.insert(0, {str(SCRIPTS)!r})
from pathlib import Path
from raysweep.cluster import launcher
from raysweep.cluster.job import CheckJob
from raysweep.common.errors import set_up_logging
from raysweep.slurm.allocation import Allocation, Node
launcher.TICK_S, launcher.UNANSWERED_TICKS = 0.05, 40
set_up_logging(None)
folder = Path({str(cluster.folder)!r})
request = launcher.LaunchRequest(Allocation((Node("n1", 1, 0, 1000),), "7"), folder, folder / "log")
sys.exit(launcher.run(request, CheckJob(result=Path(), has_torch=False)).exit_code)
"""
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert process.stderr.readline().startswith("Ray is up")
        process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)  # longer than the limit of a silence
        process.send_signal(signal.SIGCONT)
        (tmp_path / "go").touch()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_a_message_to_a_program_that_does_not_read_does_not_hold_up_the_launcher(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe holds 64 KiB."""
    monkeypatch.setattr(launcher, "END_DEADLINE_S", 0.2)
    monkeypatch.setattr(launcher, "BRING_UP_DEADLINE_S", 0)
    monkeypatch.setattr(launcher, "TICK_S", 0.1)
    cluster.agents_do()
    cluster.srun.write_text("#!/bin/sh\nexec sleep 600\n")
    job = CheckJob(result=Path("/" + "x" * 2**20), has_torch=False)
    with pytest.raises(WorldError, match=r"^not up: n1 .* within 0 s$"):
        launcher.run(LaunchRequest(cluster.allocation, cluster.folder, cluster.folder / "log"), job)


def test_a_warning_of_an_agent_is_logged(cluster: Cluster, log: pytest.LogCaptureFixture) -> None:
    assert cluster.run(Notice("n1", "Ray is started again."), *up("n1"), DONE, num_nodes=1).exit_code == 0
    [record] = [record for record in log.records if record.levelno == logging.WARNING]
    assert record.getMessage() == "n1: Ray is started again."


def test_a_program_that_closes_its_output_and_does_not_end_is_not_waited_for(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "END_DEADLINE_S", 0.2)
    with pytest.raises(WorldError, match=r"not up: n2 .*: srun has closed its output and does not end: it printed no error$"):
        cluster.run(*up("n1"), "os.close(1); time.sleep(600)", num_nodes=2)


def test_lines_that_a_sites_prolog_prints_are_passed_over_in_any_encoding(cluster: Cluster) -> None:
    prolog = "sys.stdout.buffer.write(b'loading caf\\xe9\\n{}\\n'); sys.stdout.flush(); sys.stderr.buffer.write(b'caf\\xe9\\n'); sys.stderr.flush()"
    assert cluster.run(prolog, *up("n1"), DONE, num_nodes=1).exit_code == 0


def test_a_terminal_that_is_gone_does_not_hold_up_what_writes_to_it(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    more_than_a_pipe_holds = "print('x' * 2**20, file=sys.stderr, flush=True)"
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert cluster.run(more_than_a_pipe_holds, *up("n1"), DONE, num_nodes=1).exit_code == 0


def test_without_slurm_the_one_node_needs_no_name(cluster: Cluster, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.agents_do(*up("n1"), NodeFailed("n1", "Ray's head ended"))
    monkeypatch.setattr(sys, "executable", str(cluster.srun))  # there is no srun on one machine: Python itself runs the agent
    with pytest.raises(WorldError, match=r"^Ray's head ended$"):
        launcher.run(LaunchRequest(Allocation(NODES[:1]), cluster.folder, cluster.folder / "log"), JOB)
    assert json.loads((cluster.folder / "arguments").read_text()) == [str(SCRIPTS / "agent.py")]
    [line] = log.messages
    assert line.startswith("Ray is up after ")
    assert ": 4 CPUs, 1 GPUs (environment " in line


@pytest.mark.parametrize(
    ("ends_in_s", "reason"), [(20, "ended job 7 at its time limit"), (3600, "job 7 was cancelled or preempted"), (None, "cancelled")]
)
def test_a_run_that_slurm_ends_says_so_in_one_line(cluster: Cluster, ends_in_s: float | None, reason: str) -> None:
    ends = None if ends_in_s is None else time.time() + ends_in_s
    cluster.agents_do("print('started', file=sys.stderr, flush=True)")
    code = f"""
import sys; sys.path.insert(0, {str(SCRIPTS)!r})
from pathlib import Path
from raysweep.cluster import launcher
from raysweep.cluster.job import CheckJob
from raysweep.common.errors import run_entry_point, set_up_logging
from raysweep.slurm.allocation import Allocation, Node
set_up_logging(None)
allocation = Allocation((Node("n1", 1, 0, 1000),), "7", ends={ends!r})
request = launcher.LaunchRequest(allocation, Path(), Path({str(cluster.folder / "log")!r}))
run_entry_point(lambda: launcher.run(request, CheckJob(result=Path(), has_torch=False)))
"""
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        while "started" not in process.stderr.readline():
            assert process.poll() is None
        os.kill(process.pid, signal.SIGTERM)
        last = process.stderr.read().strip().splitlines()[-1]
        assert process.wait(30) == 1
    assert reason in last
    assert "run the same command again to go on" in last
