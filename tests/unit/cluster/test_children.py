"""How an agent starts its child processes and ends them, and which signals end the agent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from raysweep.cluster import children
from raysweep.common.errors import WorldError
from sweeping import SCRIPTS

SLEEP = "import time; time.sleep(600)"


def run_python(code: str) -> subprocess.Popen[str]:
    """Start Python with the package on its path."""
    return subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SCRIPTS)!r})\n{code}"], stdout=subprocess.PIPE, text=True
    )


def test_a_signal_that_is_ignored_does_not_swallow_the_signal_that_waits_behind_it() -> None:
    def send_both() -> None:
        with children.uninterrupted():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), children.ended_by_signals():
            send_both()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_nohup_has_a_process_ignore_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with children.ended_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_all_that_a_child_started_ends_with_the_child(tmp_path: Path) -> None:
    """The child ignores SIGTERM and starts a grandchild in a session of its own, as Ray does."""
    code = (
        f"import signal, subprocess, sys, time; signal.signal(15, signal.SIG_IGN); p = subprocess.Popen([sys.executable, '-c', {SLEEP!r}],"
    )
    code += " start_new_session=True); print(p.pid, flush=True); time.sleep(600)"
    script = f"""
import os, pathlib, time
from raysweep.cluster import children
children.GRACE_S = 3
log = pathlib.Path({str(tmp_path / "log")!r})
started = children.Children()
child = started.start([sys.executable, "-c", {code!r}], dict(os.environ), log)
while not log.exists() or not log.read_text().strip():
    time.sleep(0.05)
started.end()
print(child.pid, log.read_text().strip())
"""
    with run_python(script) as process:
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    child, grandchild = map(int, printed.split())
    assert not psutil.pid_exists(child)
    assert not psutil.pid_exists(grandchild)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives the processes of an ended child to the agent")
def test_only_the_processes_of_ended_children_are_killed_and_the_first_child_ends_first(tmp_path: Path) -> None:
    starts_a_grandchild = (
        f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True).pid, flush=True)"
    )
    reports_its_end = (
        "import signal, time; signal.signal(15, lambda *_: exit(print({name!r}, flush=True))); print('ready', flush=True); time.sleep(600)"
    )
    first, second = (reports_its_end.format(name=name) for name in ("first", "second"))
    script = f"""
import os, pathlib, psutil, time
from raysweep.cluster.children import Children
folder, started = pathlib.Path({str(tmp_path)!r}), Children()
def start(name, code):
    (folder / name).touch()
    before = (folder / name).read_text()
    child = started.start([sys.executable, "-c", code], dict(os.environ), folder / name)
    while not (folder / name).read_text().removeprefix(before).endswith("\\n"):
        time.sleep(0.05)
    return child
start("ends", {first!r})
start("runs", {starts_a_grandchild + "; import time; time.sleep(600)"!r})
ended = start("ended", {starts_a_grandchild!r})
ended.wait()
start("ends", {second!r})
kept, killed = (int((folder / name).read_text()) for name in ("runs", "ended"))
started.kill_orphans()
print(psutil.pid_exists(kept), psutil.pid_exists(killed))
started.end()
print(psutil.pid_exists(kept), *(folder / "ends").read_text().split())
"""
    with run_python(script) as process:
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert printed.splitlines() == ["True False", "False ready ready first second"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_child_ends_when_its_agent_is_killed(tmp_path: Path) -> None:
    script = f"""
import os, pathlib, time
from raysweep.cluster.children import Children
print(Children().start([sys.executable, "-c", {SLEEP!r}], dict(os.environ), pathlib.Path({str(tmp_path / "log")!r})).pid, flush=True)
time.sleep(600)
"""
    with run_python(script) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
    deadline = time.monotonic() + 20
    with contextlib.suppress(psutil.NoSuchProcess):
        while child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("code", "deadline_s", "reason"),
    [
        ("print('no such option'); exit(2)", 20, "ended with exit code 2: no such option"),
        (SLEEP, 0.3, "is not up after 0 s: it wrote nothing"),
    ],
)
def test_a_child_that_does_not_come_up_is_one_line_with_the_tail_of_its_log(
    tmp_path: Path, code: str, deadline_s: float, reason: str
) -> None:
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=stream)
    try:
        with pytest.raises(WorldError, match=f"Ray's head {reason}"):
            children.wait_until_up(lambda: None, process, "Ray's head", log, time.monotonic(), deadline_s)
    finally:
        process.kill()
        process.wait()
