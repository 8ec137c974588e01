"""The stages run_sweep and confirm with a real Ray: what trials may do, how sweeps end, go on and start anew."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from sweeping import ENV, Project, ours

TRAINABLES = '''
import os, tempfile, time
from ray import tune

def faulty(config):
    kind = config["kind"]
    if kind == "raises":
        raise ValueError("no such thing\\nas this")
    if kind == "exits":
        os._exit(3)
    if kind == "silent":
        return None
    if kind == "returns":
        return {"score": 0.9}
    values = {"nan": {"score": float("nan")}, "infinite": {"score": float("inf")}, "text": {"score": "good"}, "other": {"loss": 1.0}}
    tune.report(values.get(kind, {"score": 0.5}))

def climb(config):
    """Reports x·epoch, checkpoints, and goes on from a checkpoint."""
    epoch = 0
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as folder:
            epoch = int(open(os.path.join(folder, "epoch")).read())
    while True:
        epoch += 1
        time.sleep(config.get("pause_s", 0))
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "epoch"), "w") as stream:
                stream.write(str(epoch))
            tune.report({"score": config["x"] * epoch}, checkpoint=tune.Checkpoint.from_directory(folder))

def told(config):
    with open("told.txt", "a") as stream:  # relative: the folder in which the user started
        print(os.environ["RAYSWEEP_SEED"], os.environ["RAYSWEEP_MAX_EPOCHS"], os.environ.get("RAYSWEEP_DATA_DIR"), sorted(config), file=stream)
    tune.report({"score": 1})

def heavy(config):
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "weights"), "wb") as stream:
            stream.write(bytes(900_000))
        tune.report({"score": config["x"]}, checkpoint=tune.Checkpoint.from_directory(folder))

def nested(config):
    tune.report({"val": {"score": config["x"]}})

def failing(config):
    if not os.path.exists("ideas"):
        raise RuntimeError("out of ideas")
    tune.report({"score": 1})
'''
CONFIRMABLE = """
from ray import tune

def train(config):
    for epoch in range(3):
        tune.report({"score": [1, 3, 2][epoch] * config["x"]})

def confirm(config, seed, epochs):
    return {"score": config["x"] + epochs}
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path / "a project")  # paths with spaces are part of every test
    project.write("user.py", TRAINABLES)
    yield project
    assert ours(project.folder) == [], "processes were left behind"


def sweep_of(function: str, **values: object) -> dict[str, object]:
    return {
        "trainable": f"user.py:{function}",
        "metric": "score",
        "search_space": {"x": {"uniform": [0, 1]}},
        "allocation": {"cpus_per_node": 2},
        **values,
    }


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = 60) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.05)


def test_trials_that_fail_are_recorded_with_their_reason_and_never_win(project: Project) -> None:
    kinds = ["raises", "exits", "nan", "infinite", "text", "other", "silent", "returns", "fine"]
    project.configure(sweeps={"s": sweep_of("faulty", search_space={"kind": {"grid": kinds}}, max_failures=1)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    rows = {row["config/kind"]: row for row in project.trials("s")}
    assert {kind: row["status"] for kind, row in rows.items()} == {
        **dict.fromkeys(kinds[:7], "ERROR"),
        "returns": "TERMINATED",
        "fine": "TERMINATED",
    }
    assert rows["raises"]["error"] == "ValueError: no such thing as this"
    assert rows["exits"]["error"].startswith("its process died")
    assert rows["nan"]["error"] == "reported score = nan, which is not finite"
    assert rows["infinite"]["error"] == "reported score = inf, which is not finite"
    assert rows["text"]["error"] == "reported score = 'good', which is not a number"
    assert rows["other"]["error"] == "reported no score (it reported loss)"
    assert rows["silent"]["error"] == "ended without reporting score"
    assert [len(trial.attempts) for trial in project.record("s").trials.values()][:2] == [2, 2]  # max_failures: 1
    best = project.result("s", "best.yaml")
    assert (best["config"], best["metric"]["value"], best["num_trials"], best["num_errors"]) == ({"kind": "returns"}, 0.9, 9, 7)
    assert "reported no checkpoint" in (project.folder / "results/s/model/README.txt").read_text()


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


def test_a_nested_metric_is_named_with_a_slash(project: Project) -> None:
    project.configure(sweeps={"s": sweep_of("nested", metric="val/score", num_samples=2)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert all(row["val/score"] == row["config/x"] for row in project.trials("s"))


def test_a_confirmation_that_failed_is_tried_again(project: Project) -> None:
    project.write("own.py", CONFIRMABLE.replace('    return {"score"', '    open("needed").close()\n    return {"score"'))
    sweep = sweep_of("train", trainable="own.py:train", search_space={"x": 1}, max_epochs=3, max_failures=0, confirm={"seeds": 2})
    project.configure(sweeps={"s": sweep})
    assert project.run("run_sweep", "s").returncode == 0
    run = project.run("confirm", "s")
    assert run.returncode == 1
    assert "none of the 2 confirmations succeeded: FileNotFoundError" in run.stderr.splitlines()[-1]
    project.write("needed", "")
    assert project.run("confirm", "s").returncode == 0
    assert project.result("s", "confirmed.yaml")["n"] == 2


def test_the_environment_may_lie_in_a_folder_with_spaces(project: Project) -> None:
    link = project.folder / "an environment"
    link.symlink_to(sys.prefix)
    project.configure(env={**ENV, "python": str(link / "bin" / "python")}, sweeps={"s": sweep_of("climb")})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert " " in yaml.safe_load((project.folder / "env" / "env.yaml").read_text())["python"]
    assert [row["status"] for row in project.trials("s")] == ["TERMINATED"]


def test_a_users_function_runs_unchanged_where_he_started_and_is_told_seed_and_epochs(project: Project) -> None:
    project.configure(sweeps={"s": sweep_of("told", max_epochs=7, search_space={"a": {"b": {"randint": [0, 9]}}, "c": "text"})})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    (trial,) = project.record("s").trials.values()
    assert (project.folder / "told.txt").read_text() == f"{trial.seed} 7 None ['a', 'c']\n"
    assert trial.config["c"] == "text"
    assert trial.config["a"]["b"] in range(9)


@pytest.mark.parametrize(
    ("scheduler", "max_epochs", "num_samples"),
    [
        ({"name": "asha", "grace_period": 1, "reduction_factor": 2}, 8, 8),
        ({"name": "hyperband", "reduction_factor": 3}, 9, 9),
        ({"name": "median", "min_samples_required": 2}, 6, 8),
    ],
)
def test_schedulers_stop_trials_early(project: Project, scheduler: dict[str, object], max_epochs: int, num_samples: int) -> None:
    project.configure(sweeps={"s": sweep_of("climb", max_epochs=max_epochs, num_samples=num_samples, scheduler=scheduler)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    rows = project.trials("s")
    stopped = [row for row in rows if row["status"] == "STOPPED"]
    assert len(rows) == num_samples
    assert stopped
    assert all(int(row["epochs"]) < max_epochs for row in stopped)
    assert all(int(row["epochs"]) == max_epochs for row in rows if row["status"] == "TERMINATED")
    assert project.result("s", "best.yaml")["epochs"] == max_epochs


def test_optuna_learns_from_the_record_and_repeats_nothing_when_the_sweep_grows(project: Project) -> None:
    space = {"x": {"uniform": [0, 1]}, "n": {"normal": [0, 1]}, "c": {"choice": [[1, 2], "b"]}, "q": {"quniform": [0, 1, 0.25]}}
    sweep = sweep_of("climb", max_epochs=1, search_space=space, search_algorithm={"name": "optuna", "n_startup_trials": 2})
    project.configure(sweeps={"s": {**sweep, "num_samples": 4}})
    assert project.run("run_sweep", "s").returncode == 0
    before = {trial_id: trial.config for trial_id, trial in project.record("s").trials.items()}
    project.configure(sweeps={"s": {**sweep, "num_samples": 7}})
    assert project.run("run_sweep", "s").returncode == 0
    after = {trial_id: trial.config for trial_id, trial in project.record("s").trials.items()}
    assert len(after) == 7
    assert {trial_id: after[trial_id] for trial_id in before} == before
    assert len({str(config) for config in after.values()}) == 7
    assert all(config["q"] in (0, 0.25, 0.5, 0.75, 1) for config in after.values())


def test_a_killed_driver_costs_only_what_was_not_checkpointed(project: Project) -> None:
    project.configure(sweeps={"s": sweep_of("climb", max_epochs=4, num_samples=3, search_space={"x": {"uniform": [0, 1]}, "pause_s": 0.4})})
    process = project.start("run_sweep", "s")
    record = project.folder / "state/s/record.jsonl"
    wait_until(lambda: record.exists() and '"path": "tune' in record.read_text(), "a checkpoint")
    (driver,) = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _is_driver(p, project.folder)]
    os.kill(driver, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the driver was killed (signal 9)" in output
    assert ours(project.folder) == []
    broken_off = project.record("s")
    epochs = {trial.trial_id: max(trial.checkpoints, default=0) for trial in broken_off.trials.values()}
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
            assert trial.attempts[-1]["from_epoch"] >= epochs[trial.trial_id] > 0 or epochs[trial.trial_id] == 0
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
    project.configure(sweeps={"s": sweep_of("climb", max_epochs=3, num_samples=2, search_space={"x": {"uniform": [0, 1]}, "pause_s": 0.5})})
    folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    process = project.start("run_sweep", "s")
    record = project.folder / "state/s/record.jsonl"
    wait_until(lambda: record.exists() and '"result"' in record.read_text(), "a result")
    os.killpg(process.pid, number)  # as the terminal does to the foreground process group
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.splitlines()[-1] == "Interrupted."
    assert ours(project.folder) == []
    folder.rmdir()  # the private folder, with the token in it, is gone
    monkeypatch.delenv("TMPDIR")
    assert project.run("run_sweep", "s").returncode == 0
    assert [row["status"] for row in project.trials("s")] == ["TERMINATED", "TERMINATED"]


def test_a_killed_agent_takes_ray_and_the_driver_with_it(project: Project) -> None:
    project.configure(sweeps={"s": sweep_of("climb", max_epochs=50, search_space={"x": 1, "pause_s": 0.5})})
    process = project.start("run_sweep", "s")
    record = project.folder / "state/s/record.jsonl"
    wait_until(lambda: record.exists() and '"result"' in record.read_text(), "a result")
    before = set(Path("/tmp").glob("rs-*"))
    process.kill()
    process.communicate()
    wait_until(lambda: ours(project.folder) == [], "the end of the agent's children", 30)
    for folder in before:
        if str(project.folder) in (folder / "job.json").read_text():
            shutil.rmtree(folder)  # nobody was left to do it


def test_a_neighbour_without_the_token_is_refused(project: Project) -> None:
    project.configure(sweeps={"s": sweep_of("climb", max_epochs=200, search_space={"x": 1, "pause_s": 0.5})})
    process = project.start("run_sweep", "s")
    record = project.folder / "state/s/record.jsonl"
    wait_until(lambda: record.exists() and '"result"' in record.read_text(), "a result")
    gcs = next(p for p in psutil.Process(process.pid).children(recursive=True) if p.name() == "gcs_server")
    ports = [c.laddr.port for c in gcs.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN]
    code = "import ray, sys; ray.init(address=sys.argv[1]); print('in:', ray.nodes())"
    for port in ports:
        attempt = subprocess.run(
            [sys.executable, "-c", code, f"127.0.0.2:{port}"], capture_output=True, text=True, check=False, timeout=120
        )
        assert attempt.returncode != 0
        assert "in:" not in attempt.stdout
        assert "oken" in attempt.stderr  # refused for want of the token, and not because nobody listens
    assert ports
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


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


def test_a_changed_trainable_sets_the_old_state_aside_by_name(project: Project) -> None:
    project.configure(sweeps={"s": sweep_of("climb")})
    assert project.run("run_sweep", "s").returncode == 0
    identity = project.record("s").header["identity"]
    project.write("user.py", TRAINABLES + "\n# another version\n")
    run = project.run("run_sweep", "s")
    assert run.returncode == 0
    aside = project.folder / "state" / f"s.before-{identity[:8]}"
    assert f"s starts anew, since what its trials depend on has changed; the old state is kept in {aside}." in run.stderr
    assert (aside / "record.jsonl").exists()
    assert project.record("s").header["identity"] != identity


def test_resume_false_starts_anew(project: Project) -> None:
    project.configure(sweeps={"s": sweep_of("climb", resume=False)})
    assert project.run("run_sweep", "s").returncode == 0
    run = project.run("run_sweep", "s")
    assert run.returncode == 0
    assert "since resume is false" in run.stderr
    assert len(list((project.folder / "state").glob("s.before-*"))) == 1


def test_a_time_budget_starts_no_new_trial_when_it_is_used_up(project: Project) -> None:
    project.configure(
        sweeps={"s": sweep_of("climb", num_samples=50, time_budget="2s", search_space={"x": {"uniform": [0, 1]}, "pause_s": 1.2})}
    )
    assert project.run("run_sweep", "s").returncode == 0
    assert 1 <= len(project.trials("s")) < 50
    assert project.record("s").sessions[-1]["outcome"] == "complete"
    again = project.run("run_sweep", "s")
    assert again.returncode == 0
    assert "Ray is up" not in again.stderr


def test_when_the_time_is_used_up_what_was_begun_is_still_brought_to_its_end(project: Project) -> None:
    space = {"x": {"uniform": [0, 1]}, "pause_s": 0.7}
    project.configure(sweeps={"s": sweep_of("climb", num_samples=50, max_epochs=6, time_budget="1s", search_space=space)})
    process = project.start("run_sweep", "s")
    wait_until(lambda: '"epoch": 2' in _text(project.folder / "state/s/record.jsonl"), "a second epoch")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert {(row["status"], row["epochs"]) for row in project.trials("s")} == {("TERMINATED", "6")}


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_max_concurrent_is_a_limit(project: Project) -> None:
    project.configure(
        sweeps={"s": sweep_of("climb", num_samples=3, max_concurrent=1, search_space={"x": {"uniform": [0, 1]}, "pause_s": 0.2})}
    )
    assert project.run("run_sweep", "s").returncode == 0
    rows = sorted(project.trials("s"), key=lambda row: row["started"])
    assert all(earlier["ended"] <= later["started"] for earlier, later in itertools.pairwise(rows))


def test_parts_of_a_gpu_that_torch_cannot_see_limit_how_many_trials_share_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is made up (by its variable, which Ray passes on); what is real is how Ray and Tune share it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    project.write(
        "user.py",
        TRAINABLES
        + """
def alone(config):
    visible = os.environ["CUDA_VISIBLE_DEVICES"]
    start = time.time()
    time.sleep(1.5)
    tune.report({"score": 1, "start": start, "end": time.time(), "visible": int(visible)})
""",
    )
    resources = {"trial_resources": {"cpu": 0.5, "gpu": 0.5}, "allocation": {"cpus_per_node": 2, "gpus_per_node": 1}}
    project.configure(sweeps={"s": sweep_of("alone", num_samples=4, **resources)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 CPUs, 1 GPUs" in run.stderr
    times = [trial.results[0].metrics for trial in project.record("s").trials.values()]
    assert [t["visible"] for t in times] == [0] * 4
    at_a_time = [sum(t["start"] <= other["start"] < t["end"] for other in times) for t in times]
    assert max(at_a_time) == 2  # by its CPUs alone it would be four


def test_without_a_gpu_the_trials_run_on_the_cpu_and_a_line_says_so(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    resources = {"trial_resources": {"gpu": 0.5}, "allocation": {"cpus_per_node": 2, "gpus_per_node": 1}}
    project.configure(sweeps={"s": sweep_of("told", **resources)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr.count("There is no GPU here: the trials run on the CPU.") == 1


def test_a_trial_that_asks_for_more_than_this_run_has_is_one_line(project: Project) -> None:
    project.configure(sweeps={"s": sweep_of("climb", trial_resources={"cpu": 3}, allocation={"cpus_per_node": 4})})
    run = project.run("run_sweep", "s")  # Snakemake grants 2 threads
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("Error: trial_resources.cpu is 3, but this run has 2 CPUs")


def test_confirm_repeats_a_function_and_calls_that_no_test_result(project: Project) -> None:
    project.configure(sweeps={"s": sweep_of("told", confirm={"seeds": 2})})
    assert project.run("run_sweep", "s").returncode == 0
    assert project.run("confirm", "s").returncode == 0
    confirmed = project.result("s", "confirmed.yaml")
    assert confirmed["evaluated_on"] == "validation"
    assert "repeated on validation, not a test result" in confirmed["note"]
    seeds = [int(line.split()[0]) for line in (project.folder / "told.txt").read_text().splitlines()]
    assert len(set(seeds)) == 3
    assert {entry["seed"] for entry in confirmed["seeds"]} == set(seeds[1:])
    assert (confirmed["n"], confirmed["mean"], confirmed["standard_deviation"], confirmed["published_model"]) == (2, 1, 0, None)


def test_confirm_calls_the_users_own_with_the_epochs_of_the_best_value(project: Project) -> None:
    project.write("own.py", CONFIRMABLE)
    sweep = sweep_of("train", trainable="own.py:train", search_space={"x": {"grid": [1, 10]}}, max_epochs=3, confirm={"seeds": 1})
    project.configure(sweeps={"s": sweep})
    assert project.run("run_sweep", "s").returncode == 0
    best = project.result("s", "best.yaml")
    assert (best["trial_id"], best["epochs"], best["metric"]["value"]) == ("00001", 2, 30)
    assert project.run("confirm", "s").returncode == 0
    confirmed = project.result("s", "confirmed.yaml")
    assert (confirmed["evaluated_on"], confirmed["mean"], confirmed["standard_deviation"], confirmed["n"]) == ("test", 12, None, 1)


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
        assert line.startswith("Error: No space left on the device")
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
