"""The stages run_sweep and confirm with a real Ray: what trials may do, what schedulers and searches do, what a run may use."""

from __future__ import annotations

import itertools
import os
import re
import sys

import pytest
import yaml

from raysweep.record.gpu_use import read_gpu_use
from sweeping import ENV, TRAINABLES, Project, sweep_of

CONFIRMABLE = """
from ray import tune

def train(config):
    for epoch in range(3):
        tune.report({"score": [1, 3, 2][epoch] * config["x"]})

def confirm(config, seed, epochs):
    return {"score": config["x"] + epochs}
"""


def test_trials_that_fail_are_recorded_with_their_reason_and_never_win(project: Project) -> None:
    kinds = ["raises", "exits", "task", "nan", "infinite", "text", "other", "silent", "returns", "fine"]
    project.configure(sweeps={"s": sweep_of("faulty", search_space={"kind": {"grid": kinds}}, max_failures=1)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    rows = {row["config/kind"]: row for row in project.trials("s")}
    assert {kind: row["status"] for kind, row in rows.items()} == {
        **dict.fromkeys(kinds[:8], "ERROR"),
        "returns": "TERMINATED",
        "fine": "TERMINATED",
    }
    assert rows["raises"]["error"] == "ValueError: no such thing as this"
    assert rows["exits"]["error"].startswith("its process died")
    said = r"the function starts the Ray task \S*at_once, but the trial reserves no such CPUs and GPUs beside those of the function\. Reserve them"
    assert re.match(said, rows["task"]["error"]), rows["task"]["error"]
    assert rows["nan"]["error"] == "FloatingPointError: reported score = nan, which is not finite"
    assert rows["infinite"]["error"] == "FloatingPointError: reported score = inf, which is not finite"
    assert rows["text"]["error"] == "reported score = 'good', which is not a number"
    assert rows["other"]["error"] == "reported no score (it reported loss)"
    assert rows["silent"]["error"] == "ended without reporting score"
    attempts = [len(trial.attempts) for trial in project.record("s").trials.values()]
    assert attempts == [2, 2, 2, 2, 2, 1, 1, 1, 1, 1]  # max_failures: 1; a report that can never be used is not asked for again
    best = project.result("s", "best.yaml")
    assert (best["config"], best["metric"]["value"], best["num_trials"], best["num_errors"]) == ({"kind": "returns"}, 0.9, 10, 8)
    assert "reported no checkpoint" in (project.folder / "results/s/model/README.txt").read_text()


def test_what_befalls_a_trial_once_costs_it_what_was_since_its_checkpoint(project: Project) -> None:
    kinds = {
        "segfault": ("its process died: Worker exits unexpectedly", "its process died: Worker unexpectedly exits"),
        "hang": "it reported nothing for 30s (trial_timeout), so it was ended",
        "nan": "FloatingPointError: reported score = nan, which is not finite",
    }
    sweep = sweep_of("stumbles", search_space={"kind": {"grid": list(kinds)}}, max_epochs=3, max_failures=1, trial_timeout="30s")
    project.configure(sweeps={"s": sweep})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    for trial in project.record("s").trials.values():
        assert trial.status == "TERMINATED"
        assert [result.epoch for result in trial.results] == [1, 2, 3]
        assert [attempt.from_epoch for attempt in trial.attempts] == [0, 1]
        [failure] = trial.failures
        assert failure.counted
        assert failure.error.startswith(kinds[trial.config["kind"]])


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
    assert run.returncode == 0, run.stderr
    assert "2 of the 2 confirmations failed: FileNotFoundError" in run.stderr.splitlines()[-1]
    failed = project.result("s", "confirmed.yaml")
    assert (failed["n"], failed["mean"]) == (0, None)
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


def test_a_users_function_runs_unchanged_and_is_told_seed_and_epochs(project: Project) -> None:
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
        ({"name": "asha", "grace_period": 1, "reduction_factor": 2}, 4, 5),
        ({"name": "median", "min_samples_required": 1}, 4, 5),
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


def test_a_trial_ends_when_it_has_come_far_enough(project: Project) -> None:
    far_enough = {"max_epochs": 10, "stop": {"score": {"at_least": 3}}}
    project.configure(sweeps={"s": sweep_of("climb", num_samples=2, search_space={"x": {"grid": [0.1, 1.5]}}, **far_enough)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert [(row["status"], row["epochs"]) for row in project.trials("s")[:2]] == [("TERMINATED", "10"), ("TERMINATED", "2")]
    assert project.result("s", "best.yaml")["epochs"] == 2


def test_a_time_budget_starts_no_new_trial_when_it_is_used_up(project: Project) -> None:
    project.configure(
        sweeps={"s": sweep_of("climb", num_samples=50, time_budget="2s", search_space={"x": {"uniform": [0, 1]}, "pause_s": 1.2})}
    )
    assert project.run("run_sweep", "s").returncode == 0
    assert 1 <= len(project.trials("s")) < 50
    assert project.record("s").sessions[-1].outcome == "complete"
    again = project.run("run_sweep", "s")
    assert again.returncode == 0
    assert "Ray is up" not in again.stderr


def test_trials_and_a_sweep_that_get_no_better_end_and_a_larger_number_goes_on(project: Project) -> None:
    points = [{"x": x} for x in (1, -1, 0.5, -0.5, 0.25, 0.125)]
    sweep = {
        "num_samples": 20,
        "max_epochs": 6,
        "max_concurrent": 1,
        "search_space": {"x": {"uniform": [-1, 1.5]}},
        "points_to_evaluate": points,
    }
    sweep |= {"stop": {"no_better_for": 2}, "search_algorithm": "optuna", "warm_start": "old.csv"}
    project.configure(sweeps={"s": sweep_of("climb", **sweep, end_when={"no_better_for": 3})})
    refused = project.run("run_sweep", "s")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("Error: sweeps.s.warm_start: old.csv does not exist")
    # The known values are better than all values of the sweep, and count neither as the best value nor as configurations of the sweep.
    project.write("old.csv", "config/x,score\n0.2,90\n0.3,91\n7,92\n")
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "the search algorithm gets 2 known trials of old.csv, best score 91. 1 other trial of the source is left out" in run.stderr
    known = project.record("s").header.warm_start
    assert known is not None
    assert (known.num_trials, known.best, known.num_left_out) == (2, 91, 1)
    assert project.result("s", "best.yaml")["metric"]["value"] == 6
    assert [(row["status"], row["epochs"]) for row in project.trials("s")] == [("TERMINATED", epochs) for epochs in ("6", "3", "6", "3")]
    assert [trial.reason for trial in project.record("s").trials.values()] == ["max_epochs", "stop", "max_epochs", "stop"]
    assert project.record("s").sessions[-1].outcome == "complete"
    again = project.run("run_sweep", "s")
    assert again.returncode == 0
    assert "Ray is up" not in again.stderr
    project.write("old.csv", "config/x,score\n0.2,90\n")
    project.configure(sweeps={"s": sweep_of("climb", **sweep, end_when={"no_better_for": {"configurations": 4}})})
    assert project.run("run_sweep", "s").returncode == 0
    assert len(project.trials("s")) == 5, "another content of the file does not start the sweep anew"
    assert project.record("s").sessions[-1].outcome == "complete"


def test_max_concurrent_is_a_limit(project: Project) -> None:
    project.configure(
        sweeps={"s": sweep_of("climb", num_samples=3, max_concurrent=1, search_space={"x": {"uniform": [0, 1]}, "pause_s": 0.2})}
    )
    assert project.run("run_sweep", "s").returncode == 0
    rows = sorted(project.trials("s"), key=lambda row: row["started"])
    assert all(earlier["ended"] <= later["started"] for earlier, later in itertools.pairwise(rows))


def test_parts_of_a_gpu_of_a_made_up_rocm_smi_limit_how_many_trials_share_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is made up (by its variable, as Slurm sets it); what is real is how Ray and Tune share it."""
    fake = project.folder / "bin" / "rocm-smi"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "3")
    project.write(
        "user.py",
        TRAINABLES
        + """
def meets(config):
    tune.report({"score": 1, "seen": company(2), "visible": int(os.environ["CUDA_VISIBLE_DEVICES"]), "rocr": int("ROCR_VISIBLE_DEVICES" in os.environ)})
""",
    )
    resources = {"trial_resources": {"cpu": 0.5, "gpu": 0.5}, "allocation": {"cpus_per_node": 2, "gpus_per_node": 1}}
    project.configure(sweeps={"s": sweep_of("meets", num_samples=5, **resources)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 CPUs, 1 GPUs" in run.stderr
    reports = [trial.results[0].metrics for trial in project.record("s").trials.values()]
    assert [(report["visible"], report["rocr"]) for report in reports] == [(3, 0)] * 5, "HIP obeys the variable of CUDA"
    assert max(report["seen"] for report in reports) == 2  # by its CPUs alone it would be four


@pytest.mark.parametrize("reuse_processes", [False, True])
def test_a_trial_of_a_function_has_a_process_of_its_own_unless_the_config_says_otherwise(project: Project, reuse_processes: bool) -> None:
    """What the user's files keep at their top level, and the working directory, is each trial's own in both cases."""
    project.write("helper.py", "import os\nSEED = int(os.environ['RAYSWEEP_SEED'])\nseen = []\n")
    project.write(
        "user.py",
        """
import os
import sys
import time
import helper
from helper import SEED
from ray import tune

def files():
    "Return whether this trial sees the user's files, and no file of another trial or of the workflow. Then leave a file."
    names = set(os.listdir())
    open("checkpoint.pt", "x").close()
    return {"helper.py", "user.py"} <= names and not names & {"checkpoint.pt", "state", ".hidden"}

def others_are_gone():
    "Wait until the working directories of the trials that have ended are removed. At most two trials run at the same time."
    end = time.monotonic() + 120
    while len(os.listdir("..")) > 2:
        assert time.monotonic() < end, os.listdir("..")
        time.sleep(0.1)

def keeps(config):
    has_own_files = files()
    if config["x"] == 5:
        others_are_gone()
    os.chdir("/")
    helper.seen.append(SEED)
    is_own = SEED == int(os.environ["RAYSWEEP_SEED"])
    is_touched = os.environ.get("LEFT") == "behind"
    os.environ["LEFT"] = "behind"
    if not config["is_reused"]:
        sys.stdout.close()
    tune.report({"score": 1, "seen": len(helper.seen), "is_own": int(is_own and has_own_files), "worker": os.getpid(), "is_touched": int(is_touched)})
""",
    )
    project.write(".hidden", "")
    space = {"is_reused": reuse_processes, "x": {"grid": list(range(6))}}
    project.configure(sweeps={"s": sweep_of("keeps", {"reuse_processes": reuse_processes}, search_space=space)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert {row["status"] for row in project.trials("s")} == {"TERMINATED"}
    reports = [trial.results[0].metrics for trial in project.record("s").trials.values()]
    assert [(report["seen"], report["is_own"]) for report in reports] == [(1, 1)] * 6
    workers = {report["worker"] for report in reports}
    touched = [report["is_touched"] for report in reports]
    if reuse_processes:
        assert len(workers) < 6
        assert 1 in touched
    else:
        assert len(workers) == 6
        assert touched == [0] * 6


def test_objects_of_a_trials_own_classes_reach_rays_tasks_data_loaders_and_saved_models(project: Project) -> None:
    project.write("helper.py", "VALUE = 1\n")
    project.write(
        "user.py",
        """
import os
import subprocess
import sys
import tempfile
import helper
import ray
import torch
from ray import tune

class Net(torch.nn.Linear):
    pass

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 1
    def __getitem__(self, index):
        return float(helper.VALUE), __file__

@ray.remote(num_cpus=0)
def remote(net):
    return type(net) is Net, helper.VALUE, __file__

@ray.remote(num_cpus=1)
class Worker:
    def own_ray(self):
        return os.environ["RAY_ADDRESS"] == ray.get_runtime_context().gcs_address

def shares(config):
    [[loaded, path]] = torch.utils.data.DataLoader(Rows(), num_workers=1, multiprocessing_context="spawn")
    with tempfile.NamedTemporaryFile() as file:
        torch.save(Net(1, 1), file.name)
        load = "import sys, torch; print(type(torch.load(sys.argv[1], weights_only=False)).__name__)"
        saved = subprocess.run([sys.executable, "-c", load, file.name], capture_output=True, text=True).stdout.strip()
    found = [ray.get(remote.remote(Net(1, 1))) == (True, 1, __file__), (loaded.item(), *path) == (1, __file__), saved == "Net"]
    found.append(ray.get(Worker.remote().own_ray.remote()))
    if not all(found):
        raise RuntimeError(f"{found}")
    open(__file__ + ".txt", "w").write(f"{__name__} {__file__}")
    tune.report({"score": 1})
""",
    )
    project.configure(sweeps={"s": sweep_of("shares", {"workers": {"num": 1}}, num_samples=1, max_failures=0)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert (project.folder / "user.py.txt").read_text() == f"user {project.folder / 'user.py'}"


def test_a_file_that_is_edited_while_the_sweep_runs_changes_it_not_and_is_not_confirmed(project: Project) -> None:
    project.write("helper.py", "SCORE = 1\n")
    project.write(
        "user.py",
        """
from helper import SCORE
from ray import tune

def edits(config):
    open("helper.py", "w").write("SCORE = 2\\n")
    open("user.py", "a").write("# edited\\n")
    tune.report({"score": SCORE})
""",
    )
    project.configure(sweeps={"s": sweep_of("edits", num_samples=4, max_concurrent=1, max_failures=0)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert [trial.results[0].metrics["score"] for trial in project.record("s").trials.values()] == [1] * 4
    confirmed = project.run("confirm", "s")
    assert confirmed.returncode == 1
    assert confirmed.stderr.splitlines()[-1].startswith("Error: s: what its trials depend on has changed since they ran")
    assert "Traceback" not in confirmed.stderr


def test_what_the_first_trial_takes_by_a_fake_nvidia_smi_says_how_many_share_a_made_up_gpu(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = project.folder / "bin" / "nvidia-smi"
    fake.parent.mkdir()
    waits = "    while not os.path.isdir(shared('state/s/gpu-use')):\n        time.sleep(0.1)\n"
    project.write("user.py", f"{TRAINABLES}\ndef meets(config):\n    tune.report({{'score': 1, 'seen': company(4)}})\n{waits}")
    of_use = 'case "$*" in *utilization*) echo "0, GPU-1, 42"; exit;; esac'
    fake.write_text(f"#!/bin/sh\n{of_use}\necho \"$@\" >> '{project.folder}/asked'\necho '2200, 10000'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    resources = {"trial_resources": {"cpu": 0.2, "gpu": "auto"}, "allocation": {"cpus_per_node": 2, "gpus_per_node": 1}}
    project.configure(sweeps={"s": sweep_of("meets", num_samples=8, **resources)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "The first trial takes 2200 of 10000 MB of its GPU: up to 4 share one (trial_resources.gpu: 0.25 would" in run.stderr
    assert (project.folder / "asked").read_text() == "--id=0 --query-gpu=memory.used,memory.total --format=csv,noheader,nounits\n", "once"
    record = project.record("s")
    assert (record.gpu_share, record.gpu_memory_mb, record.is_crowded) == (0.25, (2200, 10000), False)
    seen = [trial.results[0].metrics["seen"] for trial in record.trials.values()]
    assert seen[0] == 1, "until it is measured it is alone"
    assert max(seen) == 4
    assert all(not set(result.metrics) - {"score", "seen"} for trial in record.trials.values() for result in trial.results)
    assert {use.percent for use in read_gpu_use(project.folder / "state" / "s")} == {(42,)}


def test_a_share_that_was_recorded_on_a_made_up_gpu_can_be_set_lower_and_is_nothing_where_there_is_no_gpu(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    fake = project.folder / "bin" / "nvidia-smi"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho '9999, 10000'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    allocation = {"cpus_per_node": 2, "gpus_per_node": 1}

    project.write(
        "user.py",
        TRAINABLES
        + """
def returns(config):
    return {"score": 1, "seen": company(2)}  # its only report: it never calls tune.report
""",
    )

    def succeeds(num_samples: int, gpu: object) -> str:
        resources = {"trial_resources": {"cpu": 0.5, "gpu": gpu}, "allocation": allocation}
        project.configure(sweeps={"s": sweep_of("returns", num_samples=num_samples, **resources)})
        run = project.run("run_sweep", "s")
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stderr

    assert "The first trial takes 9999 of 10000 MB of its GPU: up to 1 share one" in succeeds(1, "auto")
    assert project.record("s").gpu_share == 1
    succeeds(3, 0.5)
    seen = [trial.results[0].metrics["seen"] for trial in project.record("s").trials.values()]
    assert (seen[0], max(seen[1:])) == (1, 2), "they share it, as the user has it"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "There is no GPU here: the trials run on the CPU." in succeeds(4, 0.5)
    assert [trial.status for trial in project.record("s").trials.values()] == ["TERMINATED"] * 4


def test_where_nobody_can_say_what_a_trial_takes_each_has_a_made_up_gpu_for_itself(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    resources = {"trial_resources": {"cpu": 0.5, "gpu": "auto"}, "allocation": {"cpus_per_node": 2, "gpus_per_node": 1}}
    project.configure(sweeps={"s": sweep_of("climb", num_samples=3, max_epochs=1, **resources)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Neither PyTorch nor a program such as nvidia-smi can say what a trial takes of its GPU: each has one for itself." in run.stderr
    rows = sorted(project.trials("s"), key=lambda row: row["started"])
    assert all(earlier["ended"] <= later["started"] for earlier, later in itertools.pairwise(rows))


def test_trials_that_find_no_room_on_a_made_up_gpu_get_more_of_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    resources = {"trial_resources": {"cpu": 0.5, "gpu": 0.25}, "allocation": {"cpus_per_node": 2, "gpus_per_node": 1}}
    sweep = sweep_of("stumbles", search_space={"kind": {"grid": ["full gpu", "nothing"]}}, max_epochs=3, max_failures=0, **resources)
    project.configure(sweeps={"s": sweep})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "A GPU was too full for the trials on it: each now takes 0.5 of one." in run.stderr
    record = project.record("s")
    assert record.gpu_share == 0.5
    [full, _] = record.trials.values()
    assert (full.status, [attempt.from_epoch for attempt in full.attempts]) == ("TERMINATED", [0, 1])
    [failure] = full.failures
    assert (failure.counted, "CUDA out of memory" in failure.error) == (False, True)


def test_on_one_machine_lines_say_that_there_is_no_gpu_and_no_job(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    resources = {"trial_resources": {"gpu": 0.5}, "allocation": {"cpus_per_node": 2, "gpus_per_node": 1, "jobs": 4}}
    project.configure(sweeps={"s": sweep_of("told", **resources)})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr.count("There is no GPU here: the trials run on the CPU.") == 1
    assert run.stderr.count("s: allocation.jobs is ignored on this machine, where the sweep has no job.") == 1


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
    sweep = sweep_of("train", trainable="own.py:train", search_space={"x": {"grid": [1, 10, 5]}}, max_epochs=3, confirm={"seeds": 1})
    project.configure(sweeps={"s": sweep})
    assert project.run("run_sweep", "s").returncode == 0
    best = project.result("s", "best.yaml")
    assert (best["trial_id"], best["epochs"], best["metric"]["value"]) == ("00001", 2, 30)
    assert project.run("confirm", "s").returncode == 0
    confirmed = project.result("s", "confirmed.yaml")
    assert (confirmed["evaluated_on"], confirmed["mean"], confirmed["standard_deviation"], confirmed["n"]) == ("test", 12, None, 1)
    project.configure(sweeps={"s": {**sweep, "confirm": {"seeds": 1, "top": 4}}})
    run = project.run("confirm", "s")
    assert run.returncode == 0, run.stderr
    assert "confirm.top is 4, but only 3 configurations have a value" in run.stderr
    assert run.stderr.count("Ray is up") == 2, "the winner is confirmed already"
    both = project.result("s", "confirmed.yaml")
    second, other = both.pop("others")
    assert both == confirmed
    assert (other["trial_id"], other["config"], other["validation"], other["epochs"], other["mean"]) == ("00000", {"x": 1}, 3, 2, 3)
    assert (second["trial_id"], second["mean"]) == ("00002", 7)
    assert [seed["seed"] for seed in other["seeds"]] == [seed["seed"] for seed in confirmed["seeds"]]
    assert other["difference"] == {"n": 1, "mean": -9, "low": None, "high": None}
