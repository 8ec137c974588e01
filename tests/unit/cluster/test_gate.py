"""The way from one job to another, with a real socket and a real relay. A fake `srun` on PATH starts the relay on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.cluster import gate as gate_module
from raysweep.cluster.channel import HeadAddress, LauncherAlive, LauncherMessage, Start
from raysweep.cluster.gate import Gate, Relay
from raysweep.cluster.job import CheckJob
from raysweep.cluster.lock import GateAddress
from raysweep.slurm.allocation import Node

HEAD = HeadAddress("10.0.0.1:5")


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GateAddress:
    """The address of a gate in a job 13, with the fake srun."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(
        f'#!/bin/sh\necho "$@" > "{tmp_path}/arguments"\nenv > "{tmp_path}/env"\nwhile [ "${{1#-}}" != "$1" ]; do shift; done\n"$@" | tee "{tmp_path}/output"\n'
    )
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(srun.parent), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "14")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    return GateAddress("12", "13", str(tmp_path / "gate"))


def next_message(relay: Relay) -> LauncherMessage | None:
    """The next message that is no sign of life."""
    while (message := relay.messages.get(timeout=20)) == LauncherAlive():
        pass
    return message


def start(folder: Path) -> Start:
    nodes = (Node("n1", 1, 0, 1, "10.0.0.1"),)
    return Start(
        True, nodes, folder, None, "the token", False, folder / "log", 1, CheckJob(result=folder, has_torch=False), is_joinable=True
    )


def test_another_job_gets_all_messages_whenever_it_comes_and_signs_of_life(
    tmp_path: Path, address: GateAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "TICK_S", 0.1)
    with Gate(Path(address.path)) as gate:
        gate.send(start(tmp_path))
        with Relay(address, "12_3") as early:
            assert next_message(early) == start(tmp_path)
            gate.send(HEAD)
            with Relay(address, "12_3") as late:
                assert [next_message(late) for _ in range(2)] == [start(tmp_path), HEAD]
                assert late.messages.get(timeout=20) == LauncherAlive()
            assert next_message(early) == HEAD
        assert "--jobid=13" in (tmp_path / "arguments").read_text().split()
        assert "the token" not in (tmp_path / "arguments").read_text()
        assert "the token" not in (tmp_path / "output").read_text(), "Slurm does not encrypt what a step prints"
        env = (tmp_path / "env").read_text()
        assert "SLURM_CONF=" in env
        assert "SLURM_JOB_ID" not in env, "srun would run in the wrong job"


def test_a_relay_ends_with_the_gate_and_without_one(tmp_path: Path, address: GateAddress) -> None:
    with Gate(Path(address.path)) as gate:
        gate.send(start(tmp_path))
        relay = Relay(address, "12_3")
        with relay:
            assert next_message(relay) == start(tmp_path)
            gate.__exit__()
            while (message := relay.messages.get(timeout=20)) is not None:
                assert message == LauncherAlive()
    with Relay(address, "12_3") as relay:
        assert relay.messages.get(timeout=20) is None
    assert not Path(address.path).exists()


def test_a_relay_whose_job_has_ended_does_not_hold_up_the_others(tmp_path: Path, address: GateAddress) -> None:
    with Gate(Path(address.path)) as gate:
        gate.send(start(tmp_path))
        with Relay(address, "12_3") as killed, Relay(address, "12_3") as other:
            for relay in (killed, other):
                assert next_message(relay) == start(tmp_path)
            killed.process.kill()
            killed.process.wait()
            for _ in range(100):
                gate.send(HEAD)
            received = 0
            while received < 100:
                received += other.messages.get(timeout=20) == HEAD


def test_only_this_user_can_reach_a_gate(tmp_path: Path) -> None:
    """The gate itself asks nobody: the folder of the socket has mode 0700 (see private_folder)."""
    from raysweep.cluster.private_folder import private_folder

    with private_folder(tmp_path) as folder, Gate(folder / "gate") as gate:
        assert folder.stat().st_mode & 0o077 == 0
        assert gate.path.parent == folder
