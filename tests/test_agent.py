"""What the agent starts, and how it ends it. Ray itself is started in test_run_sweep.py."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from raysweep import agent
from raysweep.allocation import Node
from raysweep.errors import WorldError


def test_the_private_folder_is_private_short_and_gone_at_the_end() -> None:
    with agent.private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(os.fsencode(folder / "ray")) <= agent.LONGEST_TEMP_DIR
    assert not folder.exists()


def test_a_long_tmpdir_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("long" * 12)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with agent.private_folder() as folder:
        assert folder.parent == Path("/tmp")


def test_the_token_is_fresh_and_for_this_user_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        agent.write_token(tmp_path / name)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert len((tmp_path / "a").read_text()) == 64
    assert (tmp_path / "a").read_text() != (tmp_path / "b").read_text()


def test_the_users_settings_of_ray_and_python_do_not_reach_our_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("MY_SETTING", "kept")
    env = agent.ray_environment(tmp_path)
    assert "RAY_ADDRESS" not in env
    assert (env["RAY_AUTH_MODE"], env["RAY_AUTH_TOKEN_PATH"]) == ("token", str(tmp_path / "token"))
    assert "elsewhere" not in env["PYTHONPATH"]
    assert env["MY_SETTING"] == "kept"


def test_the_head_gets_what_was_given_and_its_ports_from_the_kernel(tmp_path: Path) -> None:
    class Plain:
        def command(self, argv: list[str]) -> list[str]:
            return ["python", *argv]

    argv = agent.head_command(Plain(), Node("n", cpus=3, gpus=2, mem_mb=4000), tmp_path)  # type: ignore[arg-type]
    assert {"--num-cpus=3", "--num-gpus=2", "--port=0", "--min-worker-port=0", "--max-worker-port=0", "--include-dashboard=false"} <= set(
        argv
    )
    store, memory = (int(next(a for a in argv if a.startswith(f"--{name}=")).split("=")[1]) for name in ("object-store-memory", "memory"))
    assert store + memory == 4000 * 2**20
    assert not any("token" in a for a in argv)


def test_all_that_a_child_started_ends_with_it(tmp_path: Path) -> None:
    """The child ignores SIGTERM and starts a grandchild in a session of its own, as Ray does."""
    code = "import signal, subprocess, sys, time; signal.signal(15, signal.SIG_IGN);"
    code += "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); print(p.pid, flush=True); time.sleep(600)"
    script = f"""
import sys; sys.path.insert(0, {str(agent.SCRIPTS_DIR)!r})
import os, pathlib, time
from raysweep import agent
agent.GRACE_S = 0.5
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
from raysweep import agent
print(agent.Children().start([sys.executable, "-c", "import time; time.sleep(600)"], dict(os.environ), pathlib.Path({str(tmp_path / "log")!r})).pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
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
    with pytest.raises(WorldError, match="set TMPDIR to one"), agent.private_folder():
        logging.error("not reached")
