"""A real agent, up to the start of Ray. Ray itself is started in test_run_sweep.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from raysweep.cluster.channel import HeadAddress, NodeFailed, Start, read_agent_message, send
from raysweep.cluster.job import CheckJob
from raysweep.cluster.private_folder import private_folder
from raysweep.slurm.allocation import Node
from sweeping import SCRIPTS

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
