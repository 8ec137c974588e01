"""Sweeps that are interrupted, killed, out of disk, extended or changed, with a real Ray: what goes on, what starts anew, what is left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from faults import part_of
from raysweep.cluster.private_folder import remove_left_behind
from raysweep.cluster.ray_node import ONE_NODE
from raysweep.data.manifest import DatasetSpec
from raysweep.data.stage import stage
from sweeping import NET, TRAINABLES, Project, ours, sweep_of, wait_until


def test_a_sweep_whose_trials_all_failed_fails_and_says_why(project: Project) -> None:
    project.configure(sweeps={"s": sweep_of("failing", num_samples=2, max_failures=0)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("Error: s: all 2 trials failed, 2 of them so: RuntimeError: out of ideas. ")
    assert not (project.folder / "results/s/best.yaml").exists()
    reasons = (project.folder / "state/s/trials.csv").read_text()  # where Snakemake does not delete it
    assert reasons.count("RuntimeError: out of ideas") == 2
    project.write("ideas", "")
    run = project.run("run_sweep", "s")
    assert run.returncode == 0
    assert "s starts anew, since all its trials failed" in run.stderr
    assert [row["status"] for row in project.trials("s")] == ["TERMINATED", "TERMINATED"]


def test_optuna_learns_from_the_record_and_repeats_nothing_when_the_sweep_grows(project: Project) -> None:
    space = {"x": {"uniform": [0, 1]}, "n": {"normal": [0, 1]}, "c": {"choice": [[1, 2], "b"]}, "q": {"quniform": [0, 1, 0.25]}}
    sweep = sweep_of("climb", max_epochs=1, search_space=space, search_algorithm={"name": "optuna", "n_startup_trials": 1})
    project.configure(sweeps={"s": {**sweep, "num_samples": 2}})
    assert project.run("run_sweep", "s").returncode == 0
    before = {trial_id: trial.config for trial_id, trial in project.record("s").trials.items()}
    project.configure(sweeps={"s": {**sweep, "num_samples": 4}})
    assert project.run("run_sweep", "s").returncode == 0
    after = {trial_id: trial.config for trial_id, trial in project.record("s").trials.items()}
    assert len(after) == 4
    assert {trial_id: after[trial_id] for trial_id in before} == before
    assert len({str(config) for config in after.values()}) == 4
    assert all(config["q"] in (0, 0.25, 0.5, 0.75, 1) for config in after.values())


def test_a_killed_driver_costs_only_what_was_not_checkpointed(project: Project) -> None:
    project.configure(sweeps={"s": sweep_of("rests", max_epochs=4, num_samples=3, search_space={"x": {"uniform": [0, 1]}, "pause_s": 0.4})})
    process = project.start("run_sweep", "s")
    record = project.folder / "state/s/record.jsonl"
    wait_until(lambda: record.exists() and '"path": "tune' in record.read_text(), "a checkpoint")
    (driver,) = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _is_driver(p, project.folder)]
    os.kill(driver, signal.SIGKILL)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 1
    assert "the driver was killed (signal 9)" in output
    assert ours(project.folder) == []
    broken_off = project.record("s")
    epochs = {trial.trial_id: max(trial.checkpoints, default=0) for trial in broken_off.trials.values()}
    project.write("go", "")
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    whole = project.record("s")
    assert [trial.config for trial in list(whole.trials.values())[: len(broken_off.trials)]] == [
        t.config for t in broken_off.trials.values()
    ]
    for trial in whole.trials.values():
        assert [result.epoch for result in trial.results] == [1, 2, 3, 4]
        assert trial.results[-1].metrics["score"] == pytest.approx(4 * trial.config["x"])  # it went on where it was, and did not start over
        if trial.trial_id in epochs:
            assert trial.attempts[-1].from_epoch >= epochs[trial.trial_id] > 0 or epochs[trial.trial_id] == 0
    assert len(whole.sessions) == 2


def _is_driver(process: Path, folder: Path) -> bool:
    try:
        return b"drive.py" in (process / "cmdline").read_bytes() and (process / "cwd").resolve() == folder
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process_and_goes_on(
    project: Project, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.configure(sweeps={"s": sweep_of("rests", max_epochs=3, num_samples=2, search_space={"x": {"uniform": [0, 1]}, "pause_s": 0.5})})
    project.build_env()  # else the first test of all does so below, and torch makes a folder in its TMPDIR
    folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    process = project.start("run_sweep", "s")
    record = project.folder / "state/s/record.jsonl"
    wait_until(lambda: record.exists() and '"result"' in record.read_text(), "a result")
    os.killpg(process.pid, number)  # as the terminal does to the foreground process group
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 130
    assert output.splitlines()[-1] == "Interrupted."
    assert "*** SIG" not in (project.folder / "logs/run_sweep-s.log").read_text(), "a stack of C++"
    assert ours(project.folder) == []
    folder.rmdir()  # the private folder, with the token in it, is gone
    monkeypatch.delenv("TMPDIR")
    project.write("go", "")
    assert project.run("run_sweep", "s").returncode == 0
    assert [row["status"] for row in project.trials("s")] == ["TERMINATED", "TERMINATED"]


def private_folders(project: Project, base: Path) -> list[Path]:
    """Of the runs of a project."""
    found = []
    for job in base.glob("rs-*/job.json"):
        with contextlib.suppress(FileNotFoundError):  # another test's, which has ended just now
            if str(project.folder) in job.read_text():
                found.append(job.parent)
    return found


@pytest.mark.parametrize("victim", ["launcher", "agent"])
def test_what_is_killed_takes_ray_and_the_driver_with_it(project: Project, victim: str) -> None:
    project.configure(sweeps={"s": sweep_of("climb", max_epochs=10**4, search_space={"x": 1, "pause_s": 0.5})})
    process = project.start("run_sweep", "s")
    record = project.folder / "state/s/record.jsonl"
    wait_until(lambda: record.exists() and '"result"' in record.read_text(), "a result")
    assert len(private_folders(project, Path("/tmp"))) == 1
    [agent] = psutil.Process(process.pid).children()
    (process if victim == "launcher" else agent).kill()
    process.communicate()
    wait_until(lambda: ours(project.folder) == [], "the end of the agent's children")
    if victim == "agent":  # nobody was left to do it, until the next agent comes by
        remove_left_behind(Path("/tmp"))
    wait_until(lambda: private_folders(project, Path("/tmp")) == [], "nothing is left on the disk")


@pytest.mark.parametrize("tls", ["auto", "on"])
def test_on_one_node_only_the_loopback_leads_to_ray_and_there_it_asks_for_the_token(project: Project, tls: str) -> None:
    project.configure(ray={"tls": tls}, sweeps={"s": sweep_of("climb", max_epochs=10**4, search_space={"x": 1, "pause_s": 0.5})})
    process = project.start("run_sweep", "s")
    record = project.folder / "state/s/record.jsonl"
    wait_until(lambda: record.exists() and '"result"' in record.read_text(), "a result")
    running = {one.pid: one.name() for one in psutil.Process(process.pid).children(recursive=True)}
    listening = [(c.laddr, running[c.pid]) for c in psutil.net_connections("tcp") if c.pid in running and c.status == psutil.CONN_LISTEN]
    assert {name for _, name in listening} >= {"gcs_server", "raylet"}
    assert {address.ip for address, _ in listening} <= {"127.0.0.1", "::ffff:127.0.0.1"}
    [gcs] = [f"127.0.0.1:{address.port}" for address, name in listening if name == "gcs_server"]
    [folder] = private_folders(project, Path(tempfile.gettempdir()))
    # TLS needs a certificate of the run. A client without one is never answered: it gives up after one attempt.
    files = {f"RAY_TLS_{name}": str(folder / f"tls_{name.lower()}.pem") for name in ("CA_CERT", "SERVER_CERT", "SERVER_KEY")}
    assert all(Path(path).exists() == (tls == "on") for path in files.values())
    certificate = {"RAY_USE_TLS": "1"} | files if tls == "on" else {}
    impatience = {"RAY_gcs_server_port_wait_time_s": "1", "RAY_py_gcs_connect_timeout_s": "5"}

    def join(**credentials: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", "import ray, sys; ray.init(address=sys.argv[1]); print('i' + 'n:', ray.nodes())", gcs]
        env = os.environ | ONE_NODE | credentials
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)

    owner = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    allowed = join(**owner, **certificate)
    without_certificate = [(join(**owner, **impatience), "Failed to connect")] if tls == "on" else []
    without_token = [join(RAY_AUTH_MODE="disabled", **certificate), join(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64, **certificate)]
    for attempt, word in [*without_certificate, *((each, "token") for each in without_token)]:
        said, _ = attempt.communicate(timeout=120)
        assert attempt.returncode != 0
        assert "in:" not in said  # Python 3.13 shows the line of the program in the traceback, so that the program must not hold this text
        assert word in said  # refused for want of it, and not because nobody listens
    assert "in:" in allowed.communicate(timeout=120)[0]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=180)


def test_a_trial_that_was_cut_off_after_its_last_report_trains_no_more(project: Project) -> None:
    project.configure(sweeps={"s": sweep_of("climb", max_epochs=2, num_samples=1)})
    assert project.run("run_sweep", "s").returncode == 0
    path = project.folder / "state" / "s" / "record.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    (last,) = [number for number, line in enumerate(lines) if b'"finish"' in line]
    path.write_bytes(b"".join(lines[:last]))
    assert project.run("run_sweep", "s").returncode == 0
    (trial,) = project.record("s").trials.values()
    assert ([result.epoch for result in trial.results], len(trial.attempts), trial.status) == ([1, 2], 1, "TERMINATED")


def test_more_trials_and_a_wider_space_go_on_and_fewer_keep_what_there_is(project: Project) -> None:
    def run(**values: object) -> tuple[list[dict[str, str]], str]:
        project.configure(sweeps={"s": sweep_of("climb", **values)})
        run = project.run("run_sweep", "s")
        assert run.returncode == 0, run.stdout + run.stderr
        return project.trials("s"), run.stderr

    first, _ = run(num_samples=2)
    second, _ = run(num_samples=4, search_space={"x": {"uniform": [0, 2]}})
    assert second[:2] == first
    assert len(second) == 4
    third, said = run(num_samples=1)
    assert third == second
    assert "the record holds 4 trials, more than the 1 asked for" in said
    assert "Ray is up" not in said  # there was nothing to run


def test_hyperband_stops_the_same_trials_after_a_kill_while_trials_wait(project: Project) -> None:
    hyperband = {"name": "hyperband", "reduction_factor": 3}
    options = {"max_epochs": 9, "num_samples": 9, "scheduler": hyperband, "search_space": {"x": {"uniform": [0, 1]}, "pause_s": 0.05}}
    project.configure(sweeps={name: sweep_of("climb", **options) for name in ("killed", "whole")})
    process = project.start("run_sweep", "killed")
    path = project.folder / "state/killed/record.jsonl"
    wait_until(lambda: path.exists() and path.read_text().count('"verdict": "PAUSE"') > 1, "trials of a bracket wait for the others")
    driver = part_of(process, "driver")
    assert driver
    driver.kill()
    process.communicate()
    ends = {}
    for name in ("killed", "whole"):
        run = project.run("run_sweep", name)
        assert run.returncode == 0, run.stdout + run.stderr
        ends[name] = {row["trial_id"]: (row["status"], row["epochs"]) for row in project.trials(name)}
    assert ends["killed"] == ends["whole"]
    assert {status for status, _ in ends["whole"].values()} == {"STOPPED", "TERMINATED"}
    assert all(epochs == "9" for status, epochs in ends["whole"].values() if status == "TERMINATED")


def test_more_epochs_give_the_trials_of_a_sweep_that_had_them_from_the_start(project: Project) -> None:
    generated = DatasetSpec("generated", "synthetic", "none", validation_fraction=0.1, seed=0)
    stage(generated, project.folder, project.folder / "resources/data/generated")
    project.write("net.py", NET)
    sweep = {
        **{"dataset": "generated", "model": "net.py:Net", "metric": "accuracy", "num_samples": 2, "keep_checkpoints": "all", "fuse": "off"},
        "search_space": {"lr": {"loguniform": [1e-3, 1e-1]}, "batch_size": 64},
    }
    ends = {}
    for name, lengths in (("grown", (2, 4)), ("whole", (4,))):
        for max_epochs in lengths:
            project.configure(datasets={"generated": {"source": "synthetic"}}, sweeps={name: {**sweep, "max_epochs": max_epochs}})
            run = project.run("run_sweep", name)
            assert run.returncode == 0, run.stdout + run.stderr
        trained = [entry for entry in project.record(name).history if entry.event == "result"]
        columns = ("trial_id", "status", "config/lr", "seed", "accuracy", "epoch_of_metric", "epochs")
        ends[name] = [{column: row[column] for column in columns} for row in project.trials(name)]
        assert len(trained) == 8, "each epoch of each trial is trained once"
        if name == "grown":
            assert "2 finished trials go on to epoch 4, with at most 4 epochs of training." in run.stdout + run.stderr
    assert ends["grown"] == ends["whole"]


def test_a_changed_trainable_sets_the_old_state_aside_by_name(project: Project) -> None:
    project.configure(sweeps={"s": sweep_of("climb")})
    assert project.run("run_sweep", "s").returncode == 0
    identity = project.record("s").header.identity
    project.write("user.py", TRAINABLES + "\n# another version\n")
    run = project.run("run_sweep", "s")
    assert run.returncode == 0
    aside = project.folder / "state" / f"s.before-{identity[:8]}"
    assert f"s starts anew, since the code changed; the old state is kept in {aside}." in run.stderr
    assert (aside / "record.jsonl").exists()
    assert project.record("s").header.identity != identity
    # The change is undone, and the old state has its name again.
    project.write("user.py", TRAINABLES)
    (project.folder / "state" / "s").rename(project.folder / "state" / "away")
    aside.rename(project.folder / "state" / "s")
    run = project.run("run_sweep", "s")
    assert (run.returncode, "starts anew" in run.stderr, "Ray is up" in run.stderr) == (0, False, False), run.stderr
    assert project.record("s").header.identity == identity


def test_resume_false_starts_anew(project: Project) -> None:
    project.configure(sweeps={"s": sweep_of("climb", resume=False)})
    assert project.run("run_sweep", "s").returncode == 0
    run = project.run("run_sweep", "s")
    assert run.returncode == 0
    assert "since resume is false" in run.stderr
    assert len(list((project.folder / "state").glob("s.before-*"))) == 1


def test_when_the_time_is_used_up_what_was_begun_is_still_brought_to_its_end(project: Project) -> None:
    space = {"x": {"uniform": [0, 1]}, "pause_s": 0.7}
    project.configure(sweeps={"s": sweep_of("climb", num_samples=50, max_epochs=6, time_budget="1s", search_space=space)})
    process = project.start("run_sweep", "s")
    wait_until(lambda: '"epoch": 2' in _text(project.folder / "state/s/record.jsonl"), "a second epoch")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=180)
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert {(row["status"], row["epochs"]) for row in project.trials("s")} == {("TERMINATED", "6")}


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(("function", "num_samples", "free_kb"), [("climb", 4, 28), ("heavy", 4, 1024)])
def test_a_full_disk_is_one_line_and_the_sweep_goes_on_once_there_is_space(
    project: Project, function: str, num_samples: int, free_kb: int
) -> None:
    """The record, or Tune's own files, or a trial's checkpoint meets the end of the disk first."""
    state = project.folder / "state"
    state.mkdir()
    mounted = (
        os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(state)], check=False).returncode == 0
    )
    if not mounted:
        pytest.skip("a small file system cannot be mounted here")
    try:
        (state / "filler").write_bytes(bytes((2048 - free_kb) * 1024))
        project.configure(sweeps={"s": sweep_of(function, num_samples=num_samples, max_epochs=4, max_failures=0)})
        run = project.run("run_sweep", "s")
        assert run.returncode == 1, run.stdout + run.stderr
        (line,) = [line for line in run.stderr.splitlines() if line.startswith("Error")]
        assert line.startswith(f"Error: No space left on the device ({state}")
        done = {trial.trial_id for trial in project.record("s").trials.values() if trial.status == "TERMINATED"}
        subprocess.run(["mount", "-o", "remount,size=64m", str(state)], check=True)
        run = project.run("run_sweep", "s")
        assert run.returncode == 0, run.stdout + run.stderr
        rows = project.trials("s")
        assert [row["status"] for row in rows] == ["TERMINATED"] * num_samples
        assert done <= {row["trial_id"] for row in rows}
    finally:
        subprocess.run(["umount", str(state)], check=True)
        shutil.rmtree(state)
