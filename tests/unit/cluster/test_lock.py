"""One run at a time works on a sweep; a dead run stops nobody, and a run of which nothing is known is taken for alive."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raysweep.cluster.lock import Lock, LockHolder, is_held
from raysweep.common.errors import RaysweepError
from raysweep.common.processes import this_process
from raysweep.slurm.allocation import SlurmJob
from sweeping import SCRIPTS

JOB = {"id": "17", "cluster": None, "restarts": 0}


def held_by(folder: Path, **who: Any) -> Path:
    """Write a lock as a run left it that has ended; `who` replaces some of its keys."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    path = folder / "lock"
    path.write_text(json.dumps({"token": "other", "uid": os.getuid(), "job": None, **this_process(), "pid": ended.pid, **who}))
    return path


def fake_scontrol(folder: Path, monkeypatch: pytest.MonkeyPatch, shown: str, code: int = 0) -> None:
    program = folder / "bin" / "scontrol"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\necho '{shown}' >&{2 if code else 1}\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return folder


def test_a_second_run_is_refused_with_the_holder_of_the_lock(state: Path) -> None:
    with Lock(state, "sweep s"):
        words = (
            rf"^sweep s: another run is at work on it: process {os.getpid()} on {re.escape(os.uname().nodename)}\. .* remove {state}/lock$"
        )
        with pytest.raises(RaysweepError, match=words), Lock(state, "sweep s"):
            pass
        assert [path.name for path in state.iterdir()] == ["lock"]
    assert list(state.iterdir()) == []


def test_the_folder_is_made_and_is_private(tmp_path: Path) -> None:
    with Lock(tmp_path / "new" / "state", "sweep s"):
        assert (tmp_path / "new" / "state").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("who", [{}, {"pid": os.getpid(), "started": "1"}], ids=["its process has ended", "another process has its id"])
def test_the_lock_of_a_dead_holder_is_removed(state: Path, who: dict[str, Any]) -> None:
    path = held_by(state, **who)
    assert not is_held(state)
    with Lock(state, "sweep s"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(state.iterdir()) == []


@pytest.mark.parametrize("who", [{"host": "login7"}, {"pids": "pid:[1]"}, {"uid": 12345}])
def test_a_holder_of_which_nothing_is_known_is_taken_for_alive(state: Path, who: dict[str, Any]) -> None:
    path = held_by(state, **who)
    assert is_held(state)
    before = path.read_text()
    with pytest.raises(RaysweepError, match="another run is at work"), Lock(state, "sweep s"):
        pass
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("shown", "code", "alive"),
    [
        ("JobId=17 JobState=RUNNING Restarts=0", 0, True),
        ("JobId=17 JobState=COMPLETING Restarts=0", 0, True),
        ("JobId=17 JobState=SUSPENDED Restarts=0", 0, True),
        ("JobId=17 JobState=RUNNING Restarts=1", 0, False),
        ("JobId=17 JobState=PENDING Restarts=1", 0, False),
        ("JobId=17 JobState=CANCELLED Restarts=0", 0, False),
        ("JobId=17 JobState=NODE_FAIL Restarts=0", 0, False),
        ("slurm_load_jobs error: Invalid job id specified", 1, False),
        ("slurm_load_jobs error: Protocol authentication error", 1, True),
    ],
)
def test_a_job_is_dead_when_a_fake_scontrol_says_so(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str, code: int, alive: bool
) -> None:
    held_by(state, job=JOB, host="node9")
    fake_scontrol(tmp_path, monkeypatch, shown, code)
    if alive:
        with pytest.raises(RaysweepError, match=r"job 17 \(process \d+ on node9\)"), Lock(state, "sweep s"):
            pass
    else:
        with Lock(state, "sweep s"):
            pass


def test_a_job_that_nobody_can_be_asked_about_is_taken_for_alive(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_by(state, job=JOB, host="node9")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RaysweepError, match="job 17"), Lock(state, "sweep s"):
        pass


@pytest.mark.parametrize(("ours", "alive"), [("north", True), ("south", False)])
def test_a_job_of_another_cluster_is_taken_for_alive_with_a_fake_scontrol(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: str, alive: bool
) -> None:
    held_by(state, job=JOB | {"cluster": "south"}, host="node9")
    fake_scontrol(tmp_path, monkeypatch, f"ClusterName             = {ours}\nJobId=17 JobState=CANCELLED Restarts=0")
    for name in (None, ours):  # on a login node, and in a job
        if name is not None:
            monkeypatch.setenv("SLURM_CLUSTER_NAME", name)
            held_by(state, job=JOB | {"cluster": "south"}, host="node9")
        if alive:
            with pytest.raises(RaysweepError, match="job 17"), Lock(state, "sweep s"):
                pass
        else:
            with Lock(state, "sweep s"):
                pass


def test_a_lock_of_this_job_names_it_with_a_fake_scontrol(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_scontrol(tmp_path, monkeypatch, "JobId=17 JobState=RUNNING Restarts=2")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "ours")
    with Lock(state, "sweep s", job=SlurmJob.current()):
        assert json.loads((state / "lock").read_text())["job"] == {"id": "17", "cluster": "ours", "restarts": 2}


@pytest.mark.slow
def test_of_many_runs_that_start_at_a_time_one_gets_the_lock(state: Path) -> None:
    held_by(state)  # a dead run's, which all of them read
    code = f"""
import sys; sys.path.insert(0, {str(SCRIPTS)!r})
import pathlib
from raysweep.common.errors import RaysweepError
from raysweep.cluster.lock import Lock
sys.stdin.readline()
try:
    with Lock(pathlib.Path({str(state)!r}), "s"):
        print("mine", flush=True)
        sys.stdin.readline()
except RaysweepError:
    print("refused", flush=True)
    sys.stdin.readline()
"""
    pipe = subprocess.PIPE
    many = [subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) for _ in range(6)]
    for process in many:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = []
    for process in many:
        assert process.stdout
        answers.append(process.stdout.readline().strip())
    for process in many:
        process.communicate("end\n")
    assert sorted(answers) == ["mine", *["refused"] * 5]
    assert list(state.iterdir()) == []


def test_the_new_lock_of_another_process_is_put_back(state: Path) -> None:
    """Two processes read the same dead lock, and the other process was faster."""
    path = held_by(state, token="dead")
    dead = LockHolder.read(path)
    assert dead is not None
    held_by(state, host="login7", token="new")
    Lock(state, "sweep s")._remove_dead(dead)
    assert json.loads(path.read_text())["token"] == "new"
    assert [entry.name for entry in state.iterdir()] == ["lock"]


def test_a_lock_follows_when_its_folder_is_set_aside(state: Path) -> None:
    with Lock(state, "sweep s") as mine:
        aside = state.rename(state.with_name("state.before"))
        mine.follow(aside)
        assert list(aside.iterdir()) == []
        with pytest.raises(RaysweepError, match="another run"), Lock(state, "sweep s"):
            pass
    assert list(state.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", '{"token": "half"}'])
def test_a_lock_that_names_no_holder_is_named_and_counts_as_held(state: Path, text: str) -> None:
    (state / "lock").write_text(text)
    assert is_held(state)
    with pytest.raises(RaysweepError, match=rf"{state}/lock does not say who holds it"), Lock(state, "sweep s"):
        pass


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(state: Path, mode: int) -> None:
    state.chmod(mode)
    with (
        pytest.raises(RaysweepError, match=rf"{state} can be written to by others \(mode {mode:o}\).*chmod go-w {state}"),
        Lock(state, "sweep s"),
    ):
        pass
    state.chmod(0o755)
    with Lock(state, "sweep s"):
        pass


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_refused(state: Path) -> None:
    os.chown(state, 60001, 60001)
    with pytest.raises(RaysweepError, match="belongs to another user"), Lock(state, "sweep s"):
        pass


def test_a_lock_file_holds_the_keys_of_all_versions_and_is_read_by_others(state: Path) -> None:
    assert LockHolder.read(state / "lock") is None
    with Lock(state, "sweep s"):
        written = json.loads((state / "lock").read_text())
        holder = LockHolder.read(state / "lock")
    assert list(written) == ["token", "host", "pids", "pid", "started", "uid", "job"]
    assert holder is not None
    assert not holder.is_dead()
