"""The messages between the launcher and the agents: read as they were written."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from raysweep.cluster import channel
from raysweep.cluster.channel import (
    AgentAlive,
    AgentKey,
    AgentMessage,
    Authority,
    DriverEnded,
    EnvironmentReady,
    HeadAddress,
    HeadUp,
    LauncherAlive,
    LauncherMessage,
    NodeFailed,
    Notice,
    SealedSecrets,
    Secrets,
    Start,
    WorkerUp,
)
from raysweep.cluster.job import CheckJob
from raysweep.slurm.allocation import Node
from typed import search_job, sweep_config

NODES = (Node("n1", 1, 0, 1000, "10.0.0.1"), Node("n2", 1, 1, 1000))
CHECK = CheckJob(result=Path("/result.json"), has_torch=True)
SEARCH = search_job(Path("/project"), sweep_config())
START = Start(True, NODES, Path("/env"), None, "secret", False, Path("/log"), 1, CHECK, Authority("certificate", "secret key"))


def line_of(message: object) -> str:
    stream = io.StringIO()
    channel.send(message, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    "message",
    [START, START.without_secrets(), replace(START, job=SEARCH), SealedSecrets("n1", "text"), HeadAddress("10.0.0.1:5"), LauncherAlive()],
    ids=lambda message: type(message).__name__,
)
def test_a_message_of_the_launcher_is_one_line_and_is_read_as_it_was_written(message: LauncherMessage) -> None:
    line = line_of(message)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert channel.read_launcher_message(line) == message


@pytest.mark.parametrize(
    "message",
    [
        AgentKey("n1", "key"),
        EnvironmentReady("n1"),
        HeadUp("n1", "10.0.0.1:5", None),
        HeadUp("n1", "10.0.0.1:5", "http://127.0.0.1:8000"),
        WorkerUp("n2"),
        DriverEnded("n1", -9),
        NodeFailed("n2", "no room\non the disk"),
        AgentAlive("n1"),
        Notice("n1", "Ray is started again"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_of_an_agent_is_one_line_and_is_read_as_it_was_written(message: AgentMessage) -> None:
    line = line_of(message)
    assert line.count("\n") == 1
    assert channel.read_agent_message(line) == message


@pytest.mark.parametrize(
    "line", ["", "loading modules", "{}", "7", "null", "[]", '{"event": "environment"}', '{"node": "n1", "event": "gone"}']
)
def test_any_other_line_is_no_message(line: str) -> None:
    assert channel.read_agent_message(line) is None


def test_the_secrets_do_not_appear_where_a_message_is_printed() -> None:
    assert "secret" not in repr(START)
    assert "secret" not in repr(START.secrets.authority)


def test_a_message_without_secrets_has_none_and_gets_them_back() -> None:
    assert "secret" not in line_of(START.without_secrets())
    assert START.without_secrets().with_secrets(Secrets(START.token, START.authority)) == START
