"""A real agent, with a made-up Ray. Ray itself is started in test_run_sweep.py."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest
import yaml
from cryptography import x509

from raysweep.cluster.certificates import new_authority
from raysweep.cluster.channel import (
    AgentAlive,
    AgentKey,
    AgentMessage,
    Authority,
    EndRay,
    EnvironmentReady,
    HeadAddress,
    HeadUp,
    LauncherAlive,
    NodeFailed,
    Notice,
    RayEnded,
    Start,
    WorkerUp,
    read_agent_message,
    send,
)
from raysweep.cluster.job import CheckJob
from raysweep.cluster.launcher import seal_secrets
from raysweep.cluster.private_folder import private_folder
from raysweep.cluster.sealing import Recipient
from raysweep.common.typed_json import to_json
from raysweep.slurm.allocation import Node
from sweeping import SCRIPTS
from typed import described_environment

PIPE = subprocess.PIPE


def start_without_environment(folder: Path) -> Start:
    return Start(
        False,
        (Node("n", 1, 0, 1),),
        folder,
        None,
        "token",
        False,
        folder / "log",
        1,
        CheckJob(result=folder / "result.json", has_torch=False),
    )


def assert_fails_for_want_of_an_environment(output: IO[str]) -> None:
    message = read_agent_message(output.readline())
    assert isinstance(message, NodeFailed)
    assert message.node == "n"
    assert "env.yaml is missing" in message.reason


def test_an_agent_says_why_its_node_does_not_come_up_and_ends_with_its_input(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, str(SCRIPTS / "agent.py")], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        send(start_without_environment(tmp_path), process.stdin)
        assert_fails_for_want_of_an_environment(process.stdout)
        assert process.poll() is None, "it waits for the end of its input"
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.mark.parametrize("is_answered", [False, True], ids=["no message", "another message than the first one"])
def test_an_agent_ends_that_was_never_told_what_to_do(is_answered: bool) -> None:
    with subprocess.Popen([sys.executable, str(SCRIPTS / "agent.py")], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdin
        if is_answered:
            send(HeadAddress("10.0.0.1:5"), process.stdin)
        printed, _ = process.communicate(timeout=20)
    assert (process.returncode, printed) == (0, "")


def test_an_agent_ends_when_the_launcher_is_silent_for_long_and_removes_its_private_folder(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(SCRIPTS)!r})
from raysweep.cluster import agent
agent.TICK_S = 0.05
agent.run_agent(sys.stdin, sys.stdout)
"""
    env = {"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, text=True, env=env) as process:
        assert process.stdin
        assert process.stdout
        send(start_without_environment(tmp_path), process.stdin)
        assert_fails_for_want_of_an_environment(process.stdout)
        assert process.wait(20) == 0, "though its input has not ended"
    with private_folder(tmp_path) as folder:
        assert list(tmp_path.glob("rs-*")) == [folder]


# ---------------------------------------------------------------------------------------------------------------- a made-up Ray

FIXED_LIMIT = "Exception: The current node timed out during startup. This could happen because some of the raylet failed to startup"
LIMIT_OF_GCS = "RuntimeError: Timed out waiting for file /tmp/gcs_server_1"
# The Python of the made-up environment. Each start of Ray does what the next line of the file `ends` says: the start prints this line and ends, or the start
# comes up where no line is left. A start that ends leaves a process and a file behind, and the file `starts` gets one line for each start.
PYTHON = """
import os, pathlib, subprocess, sys, time
folder = pathlib.Path({folder!r})
def write_line(name, *words):
    with (folder / name).open("a") as stream:
        print(*words, file=stream)
if sys.argv[1].endswith("drive.py"):
    write_line("drivers", os.getpid())
    job = pathlib.Path(sys.argv[sys.argv.index("--job") + 1])
    while not job.exists():
        time.sleep(0.02)
    (folder / "job").write_text(job.read_text())
    time.sleep(600)
if "start" not in sys.argv:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
[temp_dir] = [pathlib.Path(word.partition("=")[2]) for word in sys.argv if word.startswith("--temp-dir=")]
write_line("starts", "clean" if not temp_dir.exists() else "not clean")
write_line("token", pathlib.Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text())
if os.environ.get("RAY_USE_TLS") == "1":
    write_line("certificates", pathlib.Path(os.environ["RAY_TLS_SERVER_CERT"]).read_text())
write_line("limits", os.environ["RAY_gcs_server_port_wait_time_s"])
temp_dir.mkdir(exist_ok=True)
ends = (folder / "ends").read_text().splitlines()
if ends:
    (folder / "ends").write_text("\\n".join(ends[1:]))
    write_line("left", subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True).pid)
    (temp_dir / "session").touch()
    if ends[0].startswith("full"):
        with (temp_dir / "logs").open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
    sys.exit(ends[0])
(temp_dir / "ray_current_cluster").write_text("10.0.0.1:5")
time.sleep(600)
"""


class MadeUpRay:
    """A real agent whose environment has a made-up Ray, in a folder. `ends` are the last lines of the starts of Ray that do not come up."""

    def __init__(self, folder: Path, is_head: bool, ends: list[str], ray_deadline_s: float = 60) -> None:
        self.folder, self.is_head, self.ray_deadline_s = folder, is_head, ray_deadline_s
        self.scratch = folder / "scratch"
        self.node, self.ray_name = ("n1", "Ray's head") if is_head else ("n2", "Ray")
        (folder / "ends").write_text("\n".join(ends))
        python = folder / "python"
        (folder / "python.py").write_text(PYTHON.format(python=sys.executable, folder=str(folder)))
        python.write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(folder / "python.py"))} "$@"\n'
        )  # a path may have spaces
        python.chmod(0o755)
        environment = described_environment(python=python, python_version=platform.python_version())
        (folder / "env.yaml").write_text(yaml.safe_dump(to_json(environment)))

    @contextlib.contextmanager
    def agent(self, authority: Authority | None = None) -> Iterator[subprocess.Popen[str]]:
        """Start the agent, and send the first message to the agent. After the block the agent's input ends, and the agent has to end too.

        With an authority, the agent gets the secrets in an answer, after other messages and after the answer to another agent.
        """
        code = f"""
import sys; sys.path.insert(0, {str(SCRIPTS)!r})
from raysweep.cluster import agent
agent.RAY_DEADLINE_S = {self.ray_deadline_s}
agent.run_agent(sys.stdin, sys.stdout)
"""
        self.scratch.mkdir(exist_ok=True)
        env = os.environ | {"TMPDIR": str(self.scratch), "SLURM_PROCID": "0" if self.is_head else "1"}
        nodes = tuple(Node(name, 1, 0, 1000, "127.0.0.1") for name in ("n1", "n2"))
        job = CheckJob(result=self.folder / "result.json", has_torch=False)
        start = Start(True, nodes, self.folder, None, "token", False, self.folder / "log", 2, job, authority)
        with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, env=env) as process:
            assert process.stdin
            send(start.without_secrets() if authority else start, process.stdin)
            if not self.is_head:
                send(HeadAddress("10.0.0.1:5"), process.stdin)
            if authority:
                [request] = self.messages(process, 1)
                assert isinstance(request, AgentKey)
                send(seal_secrets(start, AgentKey("n3", Recipient().public_key)), process.stdin)
                send(seal_secrets(start, request), process.stdin)
            yield process
            process.stdin.close()
            assert process.wait(30) == 0
        assert not any(psutil.pid_exists(pid) for name in ("left", "drivers") for pid in self.pids(name))

    def messages(self, process: subprocess.Popen[str], number: int) -> list[AgentMessage | None]:
        """Return the next messages of the agent."""
        assert process.stdout
        return [read_agent_message(process.stdout.readline()) for _ in range(number)]

    def failure(self, process: subprocess.Popen[str]) -> NodeFailed:
        """Return the agent's message on its failure, which comes after other messages."""
        while not isinstance(message := self.messages(process, 1)[0], NodeFailed):
            assert message is not None
        return message

    def pids(self, name: str) -> list[int]:
        return [int(line) for line in self.lines(name)]

    def lines(self, name: str) -> list[str]:
        return (self.folder / name).read_text().splitlines() if (self.folder / name).exists() else []


@pytest.mark.parametrize("is_head", [True, False], ids=["head", "worker"])
def test_a_ray_that_ends_because_of_its_own_time_limit_is_started_again_in_a_clean_folder(tmp_path: Path, is_head: bool) -> None:
    ray = MadeUpRay(tmp_path, is_head, [FIXED_LIMIT, LIMIT_OF_GCS])
    with ray.agent() as process:
        up = HeadUp("n1", "10.0.0.1:5", None) if is_head else WorkerUp("n2")
        line = f"{ray.ray_name} was not up within Ray's own time limit, as happens on a busy node. Ray is started again."
        notices = [Notice(ray.node, f"{line} Ray's last lines: {end}") for end in (FIXED_LIMIT, LIMIT_OF_GCS)]
        assert ray.messages(process, 4) == [EnvironmentReady(ray.node), *notices, up]
        assert ray.lines("starts") == ["clean"] * 3
        assert ray.lines("limits") == ["60", "120", "240"]
        assert not any(psutil.pid_exists(pid) for pid in ray.pids("left")), "before the next start, the agent ends what a start left behind"
        if is_head:
            while not ray.lines("job"):
                assert process.poll() is None
            assert json.loads((tmp_path / "job").read_text())["ray"]["address"] == "10.0.0.1:5"
        assert len(ray.pids("drivers")) == (1 if is_head else 0), "the driver waits on"
        assert all(psutil.pid_exists(pid) for pid in ray.pids("drivers"))


@pytest.mark.parametrize("is_head", [True, False], ids=["head", "worker"])
def test_an_agent_asks_for_secrets_that_are_not_in_the_first_message(tmp_path: Path, is_head: bool) -> None:
    ray, authority = MadeUpRay(tmp_path, is_head, []), new_authority()
    with ray.agent(authority) as process:
        up = HeadUp("n1", "10.0.0.1:5", None) if is_head else WorkerUp("n2")
        assert ray.messages(process, 2) == [EnvironmentReady(ray.node), up], "though the address of the head came first"
    assert ray.lines("token") == ["token"]
    certificate = x509.load_pem_x509_certificate((tmp_path / "certificates").read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate.encode()))


def test_an_agent_ends_whose_launcher_ends_before_it_sends_the_secrets(tmp_path: Path) -> None:
    start = start_without_environment(tmp_path).without_secrets()
    with subprocess.Popen([sys.executable, str(SCRIPTS / "agent.py")], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        send(start, process.stdin)
        assert isinstance(read_agent_message(process.stdout.readline()), AgentKey)
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.mark.parametrize("early", [LauncherAlive(), EndRay(), HeadAddress("10.0.0.1:5")], ids=["alive", "end", "head"])
def test_messages_before_the_start_have_no_effect(tmp_path: Path, early: LauncherAlive | EndRay | HeadAddress) -> None:
    """In a job of several, the launcher first finds out which job leads."""
    with subprocess.Popen([sys.executable, str(SCRIPTS / "agent.py")], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        for message in (early, start_without_environment(tmp_path)):
            send(message, process.stdin)
        assert_fails_for_want_of_an_environment(process.stdout)
        for _ in range(2):  # also where no Ray runs any more
            send(EndRay(), process.stdin)
            assert read_agent_message(process.stdout.readline()) == RayEnded("n")
        send(start_without_environment(tmp_path), process.stdin)
        assert_fails_for_want_of_an_environment(process.stdout)
        process.stdin.close()
        assert process.wait(20) == 0


def test_an_agent_answers_each_tick(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, str(SCRIPTS / "agent.py")], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        send(start_without_environment(tmp_path), process.stdin)
        assert_fails_for_want_of_an_environment(process.stdout)
        for _ in range(2):
            send(LauncherAlive(), process.stdin)
            assert read_agent_message(process.stdout.readline()) == AgentAlive("n")
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.mark.slow
@pytest.mark.parametrize("is_head", [True, False], ids=["head", "worker"])
def test_ray_is_started_again_only_until_the_agents_deadline(tmp_path: Path, is_head: bool) -> None:
    ray = MadeUpRay(tmp_path, is_head, [FIXED_LIMIT] * 1000, ray_deadline_s=5)
    with ray.agent() as process:
        failed = ray.failure(process)
        # At the deadline, either a start has just ended, or the next start runs.
        assert re.fullmatch(
            f"{ray.ray_name} (ended with exit code 1: {FIXED_LIMIT}|is not up after 5 s: (it wrote nothing|{FIXED_LIMIT}))", failed.reason
        )
        assert len(ray.lines("starts")) > 1


@pytest.mark.parametrize("is_head", [True, False], ids=["head", "worker"])
@pytest.mark.parametrize("num_time_limits", [0, 1])
def test_a_ray_that_ends_for_another_reason_is_not_started_again(tmp_path: Path, is_head: bool, num_time_limits: int) -> None:
    ray = MadeUpRay(tmp_path, is_head, [FIXED_LIMIT] * num_time_limits + ["no such option"])
    with ray.agent() as process:
        failed = ray.failure(process)
        assert failed.reason == f"{ray.ray_name} ended with exit code 1: no such option"
        assert len(ray.lines("starts")) == num_time_limits + 1


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system with little room, at a path that is short enough for Ray."""
    disk = Path(tempfile.mkdtemp(prefix="d-", dir="/tmp"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        disk.rmdir()
        pytest.skip("a full disk needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
    disk.rmdir()


@pytest.mark.parametrize("is_full_before", [True, False])
def test_a_full_disk_of_the_node_is_one_line_and_a_made_up_ray_is_not_started_again(
    tmp_path: Path, small_disk: Path, is_full_before: bool
) -> None:
    ray = MadeUpRay(tmp_path, True, [f"full: {FIXED_LIMIT}"])
    ray.scratch = small_disk
    if is_full_before:
        (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - 2**12))
    with ray.agent() as process:
        reason = ray.failure(process).reason
    assert re.fullmatch(
        rf"\S+: no room at {small_disk} for temporary files, which Ray needs: 0 of 3 MB are free\. Next: remove files there, .* set TMPDIR .*",
        reason,
    )
    assert len(ray.lines("starts")) == (0 if is_full_before else 1)
    assert list(small_disk.glob("rs-*")) == []
