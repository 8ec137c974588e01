"""What a killed Snakemake leaves to the next one, and the last lines on failed jobs. Slurm's part of it: tests/slurm/test_controller.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import project as checkouts
from raysweep.common.processes import started, this_process
from raysweep.slurm import executor as controller
from raysweep.slurm import status as slurm_client
from raysweep.slurm.executor import Failed, Run
from sweeping import Project, user_environment, wait_until

WHAT = "rule_run_sweep_wildcards_lenet"


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


def test_unlock_removes_the_locks_of_one_that_is_not_there_any_more(checkout: checkouts.Project) -> None:
    checkout.write(".snakemake/locks/0.output.lock", "resources/data/cifar10/manifest.yaml\n")
    leave(checkout.root, "elsewhere", host="login7")
    refused = checkout.snakemake("--cores", "1", "--touch")
    assert refused.returncode == 1
    assert "A Snakemake is at work in this folder: process" in refused.stderr
    assert is_locked(checkout.root)
    done = checkout.snakemake("--unlock")
    assert done.returncode == 0, done.stderr
    assert not is_locked(checkout.root)
    assert "A Snakemake is at work" not in checkout.snakemake("-n").stderr


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
    other = controller.Other.read(leave(tmp_path, "dead") / "controller.json")
    assert other is not None
    assert [other.take_away(), other.take_away()] == [True, False]
    assert controller.Other.read(other.folder / "controller.json") is None


def test_a_run_names_itself_and_leaves_nothing(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from raysweep.slurm.executor import Run; run = Run(Path(sys.argv[1]), Path('logs')); run.begin()"
    code += "; print((run.dir / 'controller.json').read_text())"
    env = user_environment() | {"PYTHONPATH": str(Path(controller.__file__).parents[2])}
    done = subprocess.Popen([sys.executable, "-c", code, tmp_path], env=env, stdout=subprocess.PIPE, text=True)
    out, _ = done.communicate(timeout=60)
    assert json.loads(out)["pid"] == done.pid
    assert json.loads(out)["host"] == socket.gethostname()
    assert list((tmp_path / ".snakemake/raysweep").iterdir()) == []


def test_the_run_of_several_modules_is_one_that_begins_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSWEEP_RUN_DIR", "")
    run = controller.the_run(tmp_path)
    assert controller.the_run(tmp_path) is run
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.log").write_text("old")
        run.logs_dirs.append(tmp_path / name)
    run.begin()
    folder = run.dir
    (tmp_path / "a" / "x.log").write_text("older, and new")
    run.begin()
    assert run.dir == folder
    assert run.log_sizes == {tmp_path / "a" / "x.log": 3, tmp_path / "b" / "x.log": 3}
    assert [path.name for path in (tmp_path / ".snakemake/raysweep").iterdir()] == [folder.name]


def test_slurm_is_reached_through_our_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in slurm_client.OWN_VARIABLES:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PATH", "/usr/bin")
    run = Run(tmp_path, tmp_path / "logs")
    run.begin()
    job = SimpleNamespace(rule=SimpleNamespace(name="run_sweep"), wildcards=["lenet"], output=["trials.csv", "best.yaml"])
    run.use_slurm(Path("/project/cluster/bin"), tmp_path / "state/../state", [job])
    assert json.loads((run.dir / "outputs.json").read_text()) == {WHAT: "trials.csv"}
    assert os.environ["PATH"] == "/project/cluster/bin:/usr/bin"
    assert os.environ["RAYSWEEP_RUN_DIR"] == str(run.dir)
    assert os.environ["RAYSWEEP_STATE_DIR"] == str(tmp_path / "state")
    assert os.environ["RAYSWEEP_PYTHON"] == sys.executable


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path, tmp_path / "logs")
    log = tmp_path / "logs/run_sweep/lenet.log"
    log.parent.mkdir(parents=True)
    log.write_text("2025-01-01 00:00:00,000 ERROR Error: lenet: an old one\n")
    run.begin()
    return run


def failed(run: Run, rule: str = "run_sweep", **resources: Any) -> Failed:
    resources = {"slurm_account": "def-x", "slurm_partition": "", "runtime": 90, "nodes": 2, "mem_mb": 4000, "_cores": 6} | resources
    return Failed(rule, "lenet", run.logs_dirs[0] / rule / "lenet.log", resources)


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("sbatch: error: invalid partition specified: x", "Change slurm_partition (now empty) in cluster/config.yaml; `sinfo --summarize`"),
        (
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
            "Change slurm_account (now def-x) or slurm_partition (now empty) in cluster/config.yaml",
        ),
        (
            "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
            "Change sweeps.lenet.allocation.runtime (now 90 minutes), or slurm_partition (now empty) in cluster/config.yaml",
        ),
        (
            "sbatch: error: Batch job submission failed: Node count specification invalid",
            "Change sweeps.lenet.allocation.nodes (now 2) or cpus_per_node (now 6)",
        ),
        (
            "sbatch: error: Batch job submission failed: Invalid generic resource (gres) specification",
            "Change sweeps.lenet.allocation.gpus_per_node or gpu_type",
        ),
        ("sbatch: error: Memory specification can not be satisfied", "Change sweeps.lenet.allocation.mem_mb_per_node (now 4000)"),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", "Change qos (now not set) in cluster/config.yaml"),
        (
            "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            "Ask for less in sweeps.lenet.allocation (nodes, cpus_per_node, gpus_per_node, gpu_type, mem_mb_per_node) or sweeps.lenet.allocation.runtime",
        ),
        (
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
            "Run the same command again when Slurm answers",
        ),
        (
            "sbatch: error: Batch job submission failed: Requested node configuration is not available",
            "Change sweeps.lenet.allocation (nodes, cpus_per_node, gpus_per_node, gpu_type, mem_mb_per_node), or slurm_partition",
        ),
    ],
)
def test_a_refusal_says_what_to_change(run: Run, said: str, advice: str) -> None:
    text = run.why(failed(run), {"what": WHAT, "refused": f"{said}\n"}, "")
    assert text.startswith(f"sweep lenet: Slurm refused the job: {re.sub('^.*(error|failed): ', '', said)}. {advice}")


@pytest.mark.parametrize("rule", ["confirm", "tuning_confirm"])  # the latter in a module
def test_the_runtime_of_a_confirmation_is_a_key_of_its_own(run: Run, rule: str) -> None:
    text = run.why(failed(run, rule), {"what": f"rule_{rule}_wildcards_lenet", "refused": "Requested time limit is invalid"}, "")
    assert text.startswith(f"sweep lenet, {rule}: Slurm refused the job: ")
    assert "Change sweeps.lenet.confirm.runtime (now 90 minutes)" in text


@pytest.mark.parametrize(
    ("note", "line"),
    [
        ({"state": "CANCELLED"}, "job 7 was cancelled. Run the same command again to go on"),
        ({"state": "PREEMPTED"}, "Slurm took the nodes of job 7 for another, of higher priority. Run the same command again to go on"),
        ({"state": "NODE_FAIL"}, "job 7 lost its node. Run the same command again to go on"),
        (
            {"state": "TIMEOUT"},
            "job 7 reached its time limit. Run the same command again to go on. Change sweeps.lenet.allocation.runtime (now 90 minutes), or"
            " slurm_partition (now empty) in cluster/config.yaml, to need fewer jobs",
        ),
        (
            {"state": "OUT_OF_MEMORY"},
            "job 7 needed more memory than it was given. Change sweeps.lenet.allocation.mem_mb_per_node (now 4000)",
        ),
        (
            {"state": "CANCELLED", "hopeless": "QOSMaxNodePerJobLimit"},
            "job 7 could never start (QOSMaxNodePerJobLimit), so it was cancelled. Ask for less in sweeps.lenet.allocation (nodes, cpus_per_node,"
            " gpus_per_node, gpu_type, mem_mb_per_node) or sweeps.lenet.allocation.runtime, or name another account or partition in"
            " cluster/config.yaml",
        ),
        (
            {"state": "DEADLINE"},
            "no nodes were free for job 7 within allocation.max_wait. Change sweeps.lenet.allocation (nodes, cpus_per_node, gpus_per_node,"
            " gpu_type, mem_mb_per_node), or slurm_partition (now empty) in cluster/config.yaml, or wait longer",
        ),
        ({"state": "FAILED"}, "job 7 failed: see {logs}/run_sweep/lenet.log and 7.log"),
    ],
)
def test_what_slurm_did_to_a_job_says_what_to_do(run: Run, note: dict[str, Any], line: str) -> None:
    text = run.why(failed(run), {"job": "7", "what": WHAT, "log": "7.log"} | note, "")
    assert text == f"sweep lenet: {line.format(logs=run.logs_dirs[0])}"


def test_a_job_that_failed_by_itself_has_said_why_in_its_log(run: Run) -> None:
    with (run.logs_dirs[0] / "run_sweep/lenet.log").open("a") as stream:
        stream.write("2025-01-02 00:00:00,000 INFO Error: not this\n2025-01-02 00:00:01,000 ERROR Error: lenet: all 20 trials failed.\n")
    note = {"job": "7", "what": WHAT, "log": "7.log", "state": "FAILED"}
    assert run.why(failed(run), note, "") == "sweep lenet: all 20 trials failed"


def test_what_the_plugin_has_against_a_job_is_one_line(run: Run) -> None:
    said = "Exception in run_job for rule run_sweep: The given account def-x appears to be invalid. Available accounts:\ndef-y, def-z\n[Wed]\nError"
    assert run.why(failed(run), None, said) == (
        "sweep lenet: the job was not submitted: The given account def-x appears to be invalid. Available accounts: def-y, def-z."
        " Change slurm_account (now def-x) or slurm_partition (now empty) in cluster/config.yaml"
    )
    said = "Exception in run_job for rule run_sweep: [Errno 2] No such file or directory: 'sinfo'\nTraceback (most recent call last):\n"
    assert run.why(failed(run), None, said).endswith(": 'sinfo'. Run it where Slurm's commands are, on a login node")


def test_the_lines_come_last_once_each_and_only_for_what_failed(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from types import SimpleNamespace as Job
from raysweep.slurm import status as slurm_client
from raysweep.slurm.executor import Run
run = Run(Path(sys.argv[1]), Path(sys.argv[1]) / "logs")
run.begin()
for sweep in ("a", "b", "fine"):
    slurm_client.append(run.dir, job=sweep, what=f"rule_run_sweep_wildcards_{sweep}", log="x.log", state="CANCELLED")
slurm_client.append(run.dir, what="rule_run_sweep_wildcards_c", refused="sweep c: still there. Wait", by_us=True)
rule = Job(name="run_sweep")
jobs = [Job(rule=rule, wildcards=[sweep], log=["x.log"], resources={}) for sweep in "caab"]
run.explain(jobs, [])
run.explain(jobs, [])  # as by two modules
print("Snakemake's last words", file=sys.stderr)
"""
    env = user_environment() | {"PYTHONPATH": str(Path(controller.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code, tmp_path], env=env, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [
        "Snakemake's last words",
        "Error: sweep a: job a was cancelled. Run the same command again to go on.",
        "Error: sweep b: job b was cancelled. Run the same command again to go on.",
        "Error: sweep c: still there. Wait.",
    ]


def test_a_killed_local_run_does_not_stop_the_next_one_once_its_jobs_have_ended(tmp_path: Path) -> None:
    """The project itself, with a fake of `env.python` that takes its time until it may go on."""
    checkout = checkouts.copy_to(tmp_path / "a clean checkout")
    shutil.copytree(checkouts.CHECKOUT / "profiles", checkout.root / "profiles", dirs_exist_ok=True)
    slow = checkout.write("slow", f'#!/bin/sh\ntouch began\nwhile [ ! -e go ]; do sleep 0.05; done\nexec "{sys.executable}" "$@"\n')
    slow.chmod(0o755)
    config = checkout.read_config() | {"env": {"python": str(slow), "wheels": "none"}}
    checkout.write_config(config)
    argv = [sys.executable, "-m", "snakemake", "--cores", "1", "--until", "install_env"]
    options: dict[str, Any] = {"cwd": checkout.root, "env": user_environment(), "text": True}
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, **options)
    wait_until((checkout.root / "began").exists, "the rule is at work")
    second = subprocess.run(argv, capture_output=True, check=False, **options)
    assert second.returncode == 1
    assert f"A Snakemake is at work in this folder: process {process.pid} on {socket.gethostname()}." in second.stderr
    assert "Directory cannot be locked" in second.stdout + second.stderr
    process.kill()
    third = subprocess.run(argv, capture_output=True, check=False, **options)
    assert third.returncode == 1
    left = re.search(r"A Snakemake that was killed has left processes at work in this folder: ([\d ]+)\. ", third.stderr)
    assert left
    checkout.write("go", "")
    process.communicate()  # when they have ended
    wait_until(lambda: not any(started(int(pid)) for pid in left[1].split()), "what it left has ended")
    assert is_locked(checkout.root)
    again = subprocess.run(argv, capture_output=True, check=False, **options)
    assert again.returncode == 0, again.stdout + again.stderr
    assert list(checkout.root.glob("resources/env/*/env.yaml"))
    assert list((checkout.root / ".snakemake/raysweep").iterdir()) == []


def test_a_signal_does_not_wait_for_the_code_that_it_interrupts() -> None:
    code = """
import signal, sys, threading
from snakemake.scheduling.job_scheduler import JobScheduler
from raysweep.slurm.executor import answer_signals_in_a_thread
answer_signals_in_a_thread()
scheduler = object.__new__(JobScheduler)
scheduler._lock, scheduler._open_jobs, scheduler._user_kill = threading.Lock(), threading.Semaphore(0), None
signal.signal(signal.SIGTERM, scheduler.exit_gracefully)
with scheduler._lock:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
scheduler._open_jobs.acquire()
print(scheduler._user_kill)
"""
    env = user_environment() | {"PYTHONPATH": str(Path(controller.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "graceful\n"


@pytest.mark.parametrize(("arguments", "is_said"), [([], True), (["--quiet"], False), (["--quiet", "rules"], True), (["--verbose"], True)])
def test_our_lines_follow_snakemakes_quiet(tmp_path: Path, arguments: list[str], is_said: bool) -> None:
    project = Project(tmp_path / "a project")
    function = {"dataset": "generated", "trainable": "user.py:f", "search_space": {"x": 1}, "metric": "m"}
    project.write("user.py", "def f(config):\n    return {'m': 1}\n")
    project.configure(datasets={"generated": {"source": "synthetic"}}, sweeps={"s": function})
    run = project.snakemake("resources/data/generated/manifest.yaml", *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    line = (project.folder / "logs/stage_data/generated.log").read_text().splitlines()[-1].split(" ", 3)[3]
    assert (line in run.stdout + run.stderr) == is_said
