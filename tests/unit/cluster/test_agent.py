"""What the agent starts, and how it ends it. Ray itself is started in test_run_sweep.py."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from raysweep.cluster import agent
from raysweep.common.errors import WorldError
from raysweep.slurm.allocation import Node


def test_the_private_folder_is_private_and_gone_at_the_end(tmp_path: Path) -> None:
    with agent.private_folder(tmp_path) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


def test_a_signal_while_the_private_folder_is_being_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = os.mkdir

    def mkdir_and_signal(path: Path, mode: int = 0o777) -> None:
        mkdir(path, mode)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(os, "mkdir", mkdir_and_signal)
    with pytest.raises(KeyboardInterrupt), agent.ended_by_signals(), agent.private_folder(tmp_path):
        pytest.fail("the signal has come before")
    assert list(tmp_path.iterdir()) == []


def unpack_into(folder: Path) -> None:
    (folder / "venv").mkdir()
    (folder / "venv/file").write_text("large")


def test_a_signal_while_the_private_folder_is_being_removed_does_not_stop_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = shutil.rmtree

    def signal_and_remove(path: Path, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", signal_and_remove)
    with pytest.raises(KeyboardInterrupt), agent.ended_by_signals(), agent.private_folder(tmp_path) as folder:
        unpack_into(folder)
    assert list(tmp_path.iterdir()) == []


def test_what_an_agent_was_killed_in_removing_is_found_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove_one_and_die(path: Path, **options: Any) -> None:
        path.rename(tmp_path / "removed")
        raise SystemExit

    monkeypatch.setattr(shutil, "rmtree", remove_one_and_die)
    with pytest.raises(SystemExit), agent.private_folder(tmp_path) as folder:
        unpack_into(folder)
    monkeypatch.undo()
    assert (folder / "lock").exists()
    agent.remove_left_behind(tmp_path)
    assert not folder.exists()


def test_a_signal_that_is_ignored_does_not_swallow_the_one_that_waits_behind_it() -> None:
    def both_come() -> None:
        with agent.uninterrupted():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), agent.ended_by_signals():
            both_come()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_nohup_has_a_process_ignore_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with agent.ended_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("whose", ["of another node", "of another user"])
def test_only_folders_of_this_node_and_user_are_removed(tmp_path: Path, whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "rs-other"
    other.mkdir()
    (other / "lock").write_text(socket.gethostname() if "user" in whose else "node7")
    if "user" in whose:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    agent.remove_left_behind(tmp_path)
    assert (other / "lock").read_text() != ""
    assert other.exists()


def test_what_a_killed_agent_left_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, sys; sys.path.insert(0, {str(agent.SCRIPTS_DIR)!r})
from raysweep.cluster import agent
with agent.private_folder(pathlib.Path({str(tmp_path)!r})) as folder:
    print(folder, flush=True)
    os.kill(os.getpid(), 9)
"""
    left = Path(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout.strip())
    assert left.is_dir()
    (tmp_path / "rs-of-no-agent").mkdir()
    with agent.private_folder(tmp_path) as mine, agent.private_folder(tmp_path) as other:
        assert {path.name for path in tmp_path.iterdir()} == {mine.name, other.name, "rs-of-no-agent"}


def test_ray_keeps_its_sockets_in_tmp_where_the_nodes_disk_has_a_long_path(tmp_path: Path) -> None:
    long = tmp_path / ("long" * 12)
    long.mkdir()
    assert agent.short_base(long) == Path("/tmp")
    assert agent.short_base(Path("/tmp")) == Path("/tmp")


def test_the_token_is_for_this_user_alone(tmp_path: Path) -> None:
    agent.write_token(tmp_path / "token", "secret")
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert (tmp_path / "token").read_text() == "secret"


def test_the_users_settings_of_ray_and_python_do_not_reach_our_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("MY_SETTING", "kept")
    env = agent.ray_environment(tmp_path, 2)
    assert "RAY_ADDRESS" not in env
    assert (env["RAY_AUTH_MODE"], env["RAY_AUTH_TOKEN_PATH"]) == ("token", str(tmp_path / "token"))
    assert "elsewhere" not in env["PYTHONPATH"]
    assert env["MY_SETTING"] == "kept"


def test_the_only_node_is_told_so_and_no_server_of_figures_runs_that_asks_nobody_for_a_token(tmp_path: Path) -> None:
    """tests/integration/test_going_on.py and tests/slurm/ look at the ports themselves."""
    one, two = agent.ray_environment(tmp_path, 1), agent.ray_environment(tmp_path, 2)
    assert one.items() - two.items() == agent.ONE_NODE.items()
    assert two["RAY_enable_metrics_collection"] == "0"
    assert {int(two[key]) for key in ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")} == {65536}, "the first that there is not"


class Plain:
    def command(self, argv: list[str]) -> list[str]:
        return ["python", *argv]


def started(head: str | None = None, dashboard_port: int | None = None) -> set[str]:
    node = Node("n", cpus=3, gpus=2, mem_mb=4000)
    return set(agent.start_command(Plain(), node, Path("/tmp/x"), "10.0.0.2", head, dashboard_port))  # type: ignore[arg-type]


def test_ray_gets_what_was_given_and_its_ports_from_the_kernel() -> None:
    from_kernel = {"--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"}
    assert {"--head", "--port=0", "--include-dashboard=false", "--num-cpus=3", "--num-gpus=2", "--node-name=n"} | from_kernel <= started()
    assert {"--address=10.0.0.1:5", "--num-cpus=3", "--node-ip-address=10.0.0.2"} | from_kernel <= started(head="10.0.0.1:5")
    assert not any(word.startswith(("--head", "--port", "--include-dashboard")) for word in started(head="10.0.0.1:5"))
    assert {"--include-dashboard=true", "--dashboard-host=127.0.0.1", "--dashboard-port=8000"} <= started(dashboard_port=8000)
    store, memory = (
        int(next(a for a in started() if a.startswith(f"--{name}=")).split("=")[1]) for name in ("object-store-memory", "memory")
    )
    assert store + memory == 4000 * 2**20
    assert not any("token" in word for word in started())


def test_the_only_node_keeps_to_the_loopback_and_others_to_the_way_between_them() -> None:
    one, other = Node("a", 1, 0, 1, "127.0.0.1"), Node("b", 1, 0, 1, "127.0.0.1")
    assert agent.own_address([one], 0) == agent.LOOPBACK
    assert agent.own_address([one, other], 1) == "127.0.0.1"
    with pytest.raises(WorldError, match=r"a finds no way to b \(no such host\.invalid\)"):
        agent.own_address([one, dataclasses.replace(other, address="no such host.invalid")], 0)


def test_all_that_a_child_started_ends_with_it(tmp_path: Path) -> None:
    """The child ignores SIGTERM and starts a grandchild in a session of its own, as Ray does."""
    code = "import signal, subprocess, sys, time; signal.signal(15, signal.SIG_IGN);"
    code += "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); print(p.pid, flush=True); time.sleep(600)"
    script = f"""
import sys; sys.path.insert(0, {str(agent.SCRIPTS_DIR)!r})
import os, pathlib, time
from raysweep.cluster import agent
agent.GRACE_S = 3
log = pathlib.Path({str(tmp_path / "log")!r})
children = agent.Children()
child = children.start([sys.executable, "-c", {code!r}], dict(os.environ), log)
while not log.exists() or not log.read_text().strip():
    time.sleep(0.05)
children.end()
print(child.pid, log.read_text().strip())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    child, grandchild = map(int, run.stdout.split())
    assert not psutil.pid_exists(child)
    assert not psutil.pid_exists(grandchild)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_child_ends_when_its_agent_is_killed(tmp_path: Path) -> None:
    script = f"""
import sys; sys.path.insert(0, {str(agent.SCRIPTS_DIR)!r})
import os, pathlib, time
from raysweep.cluster import agent
print(agent.Children().start([sys.executable, "-c", "import time; time.sleep(600)"], dict(os.environ), pathlib.Path({str(tmp_path / "log")!r})).pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    assert child.is_running()
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    with contextlib.suppress(psutil.NoSuchProcess):
        while child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("code", "deadline_s", "why"),
    [
        ("print('no such option'); exit(2)", 20, "ended with exit code 2: no such option"),
        ("import time; time.sleep(60)", 0.3, "is not up after 0 s: it wrote nothing"),
    ],
)
def test_what_does_not_come_up_is_one_line_with_the_tail_of_its_log(tmp_path: Path, code: str, deadline_s: float, why: str) -> None:
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=stream)
    try:
        with pytest.raises(WorldError, match=f"Ray's head {why}"):
            agent.wait_for(lambda: None, process, "Ray's head", log, deadline_s)
    finally:
        process.kill()
        process.wait()


def test_no_folder_with_a_short_path_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "LONGEST_TEMP_DIR", 5)
    with pytest.raises(WorldError, match="set TMPDIR to one"):
        agent.short_base(Path("/tmp"))


def test_a_node_without_the_gpus_that_slurm_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node("n", cpus=1, gpus=2, mem_mb=1)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(WorldError, match="Slurm gave 2 GPUs, but CUDA_VISIBLE_DEVICES names 1"):
        agent.check_gpus(node)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(WorldError, match="Slurm gave 2 GPUs, but there is no nvidia-smi"):
        agent.check_gpus(node)


def test_an_agent_says_why_its_node_does_not_come_and_ends_with_its_input(tmp_path: Path) -> None:
    node = {"name": "n", "cpus": 1, "gpus": 0, "mem_mb": 1}
    start = {"in_slurm": False, "nodes": [node], "env_dir": str(tmp_path), "token": "t", "dashboard": False}
    argv = [sys.executable, str(agent.SCRIPTS_DIR / "agent.py")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps({"start": start}) + "\n")
        process.stdin.flush()
        said = json.loads(process.stdout.readline())
        assert (said["node"], said["event"]) == ("n", "failed")
        assert "env.yaml is missing" in said["why"]
        assert process.poll() is None, "it waits for the word to go"
        process.stdin.close()
        assert process.wait(20) == 0
