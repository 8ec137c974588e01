"""What a Snakemake leaves behind when it is killed, and what it prints last when jobs have failed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from raysweep.common.processes import started, this_process
from raysweep.slurm import notes, runs
from raysweep.slurm.runs import PreviousRun, Run
from sweeping import user_environment, wait_until

COMMENT = "rule_run_sweep_wildcards_lenet"


def leave(root: Path, name: str, **who: Any) -> Path:
    """What a Snakemake leaves that was killed here a moment ago, or where and when `who` says: locks, then its own folder."""
    locks = root / ".snakemake/locks"
    locks.mkdir(parents=True, exist_ok=True)
    (locks / "0.input.lock").touch()
    ended = subprocess.Popen(["true"])
    ended.wait()
    folder = root / ".snakemake/raysweep" / name
    folder.mkdir(parents=True)
    (folder / "controller.json").write_text(json.dumps(this_process() | {"pid": ended.pid} | who))
    return folder


def is_locked(root: Path) -> bool:
    return any((root / ".snakemake/locks").glob("*.lock"))


def test_the_locks_of_a_dead_snakemake_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = leave(tmp_path, "dead")
    Run(tmp_path, tmp_path / "logs").clear_up()
    assert not is_locked(tmp_path)
    assert not folder.exists()
    assert capsys.readouterr().err == ""


def test_another_process_that_has_its_id_now_is_not_taken_for_it(tmp_path: Path) -> None:
    leave(tmp_path, "dead", pid=os.getpid(), started="1")
    Run(tmp_path, tmp_path / "logs").clear_up()
    assert not is_locked(tmp_path)


def test_one_that_nobody_has_waited_for_yet_is_dead(tmp_path: Path) -> None:
    zombie = subprocess.Popen(["true"])
    wait_until(lambda: started(zombie.pid) is None, "it is a zombie")
    leave(tmp_path, "dead", pid=zombie.pid, started="1")
    Run(tmp_path, tmp_path / "logs").clear_up()
    assert not is_locked(tmp_path)
    zombie.wait()


@pytest.mark.parametrize("who", [this_process(), {"host": "login7", "pid": 1}, {"pids": "pid:[1]", "pid": 1}])
def test_one_that_may_be_at_work_keeps_its_locks_and_is_named(
    tmp_path: Path, who: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """On this machine, on another one, in another container."""
    leave(tmp_path, "dead")
    alive = leave(tmp_path, "alive", **who)
    Run(tmp_path, tmp_path / "logs").clear_up()
    assert is_locked(tmp_path)
    assert alive.exists()
    assert capsys.readouterr().err == (
        f"A Snakemake is at work in this folder: process {who['pid']} on {who.get('host', socket.gethostname())}. If it is not there any more:"
        " `snakemake --unlock`, then the same command again.\n"
    )


@pytest.mark.parametrize("host", [socket.gethostname(), "login7"])
def test_locks_that_are_younger_than_what_a_snakemake_left_are_not_its_own(
    tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = leave(tmp_path, "unlocked since", host=host)
    earlier = time.time() - 60
    os.utime(folder / "controller.json", (earlier, earlier))
    Run(tmp_path, tmp_path / "logs").clear_up()
    assert is_locked(tmp_path)  # they are of one that has just begun
    assert capsys.readouterr().err == ""


def test_of_several_that_start_at_a_time_one_removes_locks(tmp_path: Path) -> None:
    previous = PreviousRun.read(leave(tmp_path, "dead") / "controller.json")
    assert previous is not None
    assert [previous.remove_folder(), previous.remove_folder()] == [True, False]
    assert PreviousRun.read(previous.folder / "controller.json") is None


def test_a_run_names_itself_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from raysweep.slurm.runs import Run; run = Run(Path(sys.argv[1]), Path('logs')); run.begin()"
    )
    code += "; print((run.begin() / 'controller.json').read_text())"
    env = user_environment() | {"PYTHONPATH": str(Path(runs.__file__).parents[2])}
    done = subprocess.Popen([sys.executable, "-c", code, tmp_path], env=env, stdout=subprocess.PIPE, text=True)
    out, _ = done.communicate(timeout=60)
    assert json.loads(out)["pid"] == done.pid
    assert json.loads(out)["host"] == socket.gethostname()
    assert list((tmp_path / ".snakemake/raysweep").iterdir()) == []


def test_the_run_of_several_modules_is_one_that_begins_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSWEEP_RUN_DIR", "")
    run = runs.the_run(tmp_path)
    assert runs.the_run(tmp_path) is run
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.log").write_text("old")
        run.logs_dirs.append(tmp_path / name)
    folder = run.begin()
    (tmp_path / "a" / "x.log").write_text("older, and new")
    assert run.begin() == folder
    assert run.log_sizes == {tmp_path / "a" / "x.log": 3, tmp_path / "b" / "x.log": 3}
    assert [path.name for path in (tmp_path / ".snakemake/raysweep").iterdir()] == [folder.name]


def test_slurm_is_reached_through_our_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in notes.OWN_VARIABLES:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PATH", "/usr/bin")
    run = Run(tmp_path, tmp_path / "logs")
    run.begin()
    planned = notes.PlannedJob(["trials.csv"], ["env.yaml"], None)
    run.use_slurm(Path("/project/cluster/bin"), tmp_path / "state/../state", {COMMENT: planned})
    assert json.loads((run.begin() / "jobs.json").read_text()) == {COMMENT: planned._asdict()}
    assert os.environ["PATH"] == "/project/cluster/bin:/usr/bin"
    assert os.environ["RAYSWEEP_RUN_DIR"] == str(run.begin())
    assert os.environ["RAYSWEEP_STATE_DIR"] == str(tmp_path / "state")
    assert os.environ["RAYSWEEP_PYTHON"] == sys.executable


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The log of a rule, with an error of an earlier run."""
    log = tmp_path / "logs/run_sweep/lenet.log"
    log.parent.mkdir(parents=True)
    log.write_text("2025-01-01 00:00:00,000 ERROR Error: lenet: an old one\n")
    return log


def test_the_last_error_of_a_log_is_of_this_run(tmp_path: Path, log: Path) -> None:
    run = Run(tmp_path, tmp_path / "logs")
    run.begin()
    assert run.last_error(log) is None
    with log.open("a") as stream:
        stream.write("2025-01-02 00:00:00,000 INFO Error: not this\n2025-01-02 00:00:01,000 ERROR Error: lenet: all 20 trials failed.\n")
    assert run.last_error(log) == "lenet: all 20 trials failed."
    assert run.last_error(tmp_path / "no.log") is None


def test_a_log_that_was_written_anew_is_read_from_its_beginning(tmp_path: Path, log: Path) -> None:
    run = Run(tmp_path, tmp_path / "logs")
    run.begin()
    log.write_text("1 2 ERROR Error: new\n")
    assert run.last_error(log) == "new"


def test_the_lines_come_last_once_each_and_only_for_what_failed(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from raysweep.slurm import notes
from raysweep.slurm.explanations import RuleJob
from raysweep.slurm.runs import Run
run = Run(Path(sys.argv[1]), Path(sys.argv[1]) / "logs")
folder = run.begin()
for sweep in ("a", "b", "fine"):
    notes.append(folder, job=sweep, what=f"rule_run_sweep_wildcards_{sweep}", log="x.log", state="CANCELLED")
notes.append(folder, what="rule_run_sweep_wildcards_c", refused="sweep c: still there. Wait", by_us=True)
jobs = [RuleJob("run_sweep", sweep, f"rule_run_sweep_wildcards_{sweep}", Path("x.log")) for sweep in "caab"]
run.explain(jobs, [])
run.explain(jobs, [])  # as by two modules
print("Snakemake's last words", file=sys.stderr)
"""
    env = user_environment() | {"PYTHONPATH": str(Path(runs.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code, tmp_path], env=env, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [
        "Snakemake's last words",
        "Error: sweep a: job a was cancelled. Run the same command again to go on.",
        "Error: sweep b: job b was cancelled. Run the same command again to go on.",
        "Error: sweep c: still there. Wait.",
    ]
