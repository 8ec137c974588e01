"""What Snakemake would run: on a clean checkout, after a change, for several sweeps. Outputs are stand-ins that `--touch` declares made."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import project
from project import Project

ALL_RULES = {"stage_data", "install_env", "build_env", "run_sweep", "confirm", "report"}
SWEEP_AND_AFTER = {"run_sweep", "confirm", "report"}
TRAINABLE = "def train(config):\n    pass\n"

Change = Callable[[dict[str, Any]], Any]


def jobs(checkout: Project, *arguments: str) -> list[tuple[str, str]]:
    """The jobs that a dry run names, but `all`: (rule, its wildcards), sorted."""
    done = checkout.snakemake("-n", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    found = []
    for block in re.split(r"(?m)^(?=(?:local)?rule )", done.stdout + done.stderr)[1:]:
        rule, wildcards = re.match(r"(?:local)?rule (\w+)", block), re.search(r"(?m)^    wildcards: (.*)$", block)
        assert rule is not None
        found.append((rule[1], wildcards[1] if wildcards else ""))
    return sorted(job for job in found if job[0] != "all")


def rules(checkout: Project, *arguments: str) -> set[str]:
    return {rule for rule, _ in jobs(checkout, *arguments)}


def finish(checkout: Project, *sweeps: str, dataset: str = "cifar10") -> None:
    """Put stand-ins where the outputs would be, and have Snakemake take them for made by the present rules and config."""
    dry = checkout.snakemake("-n")
    env = re.search(r"resources/env/\w+/", dry.stdout + dry.stderr)
    assert env is not None
    environment = [f"{env[0]}env.yaml", *(f"{env[0]}ready/{sweep}" for sweep in sweeps)]
    arrays = [f"resources/data/{dataset}/{split}/{kind}.npy" for split in ("train", "validation", "test") for kind in ("images", "labels")]
    outputs = (
        "trials.csv",
        "best.yaml",
        "model/weights",
        "config.yaml",
        "confirmed.yaml",
        "report.html",
        "figures/key0_lr.svg",
        "optuna.journal",
    )
    for path in (
        *environment,
        f"resources/data/{dataset}/manifest.yaml",
        *arrays,
        *(f"results/{s}/{name}" for s in sweeps for name in outputs),
        *(["results/comparison.html"] if len(sweeps) > 1 else []),
    ):
        checkout.write(path, "")
    done = checkout.snakemake("--touch", "--forceall", "--cores", "1")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A checkout in which the reference job, on synthetic data, has run to its end."""
    checkout = project.copy_to(tmp_path_factory.mktemp("finished") / "checkout")
    config = checkout.read_config()
    config["sweeps"]["lenet"] |= {"num_samples": 4, "max_epochs": 3}
    checkout.write_config(config)
    finish(checkout, "lenet")
    return checkout


def test_a_clean_checkout_runs_every_rule_once_and_a_dry_run_makes_no_file(checkout: Project) -> None:
    before = checkout.files()
    assert jobs(checkout) == [
        ("build_env", "sweep=lenet"),
        ("confirm", "sweep=lenet"),
        ("install_env", ""),
        ("report", "sweep=lenet"),
        ("run_sweep", "sweep=lenet"),
        ("stage_data", "dataset=cifar10"),
    ]
    assert checkout.files() == before


def test_the_snakefile_in_the_folder_workflow_is_the_same_workflow(checkout: Project) -> None:
    assert jobs(checkout, "--snakefile", "workflow/Snakefile") == jobs(checkout)


def test_the_workflow_runs_in_another_folder_with_the_requirements_of_its_own(checkout: Project) -> None:
    elsewhere = Project(checkout.root / "elsewhere")
    elsewhere.write_config(checkout.read_config("config/demo.yaml"), "config.yaml")
    assert rules(checkout, "--directory", "elsewhere", "--configfile", "elsewhere/config.yaml") == ALL_RULES
    assert rules(elsewhere, "--snakefile", "../Snakefile", "--configfile", "config.yaml") == ALL_RULES


def test_a_configfile_takes_the_place_of_the_default_one(checkout: Project) -> None:
    assert jobs(checkout, "--configfile", "config/demo.yaml") == [
        ("build_env", "sweep=demo"),
        ("confirm", "sweep=demo"),
        ("install_env", ""),
        ("report", "sweep=demo"),
        ("run_sweep", "sweep=demo"),
        ("stage_data", "dataset=synthetic"),
    ]


def test_of_several_configfiles_the_later_is_the_stronger(checkout: Project) -> None:
    checkout.write("more.yaml", "sweeps: {demo: {num_samples: 0}}")
    done = checkout.snakemake("-n", "--configfile", "config/demo.yaml", "more.yaml")
    assert done.returncode == 1
    assert done.stderr == "Error: more.yaml: sweeps.demo.num_samples: 0 is not allowed: a whole number, at least 1\n"


@pytest.mark.parametrize("settings", ["alliance", "lumi", "no-network", "plain-slurm"])
def test_ready_made_settings_complete_a_users_own_file(checkout: Project, settings: str) -> None:
    checkout.write_config({"datasets": {"cifar10": {}}, "sweeps": {"mine": checkout.read_config()["sweeps"]["lenet"]}}, "my.yaml")
    assert rules(checkout, "--configfile", "my.yaml", f"config/{settings}.yaml") == ALL_RULES


def test_a_dry_run_needs_none_of_torch_ray_and_matplotlib(checkout: Project) -> None:
    code = "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'ray', 'optuna', 'matplotlib']))\n"
    code += "from snakemake.cli import main; main(['-n', '--quiet', 'all'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout.root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


LIKE_MACOS = """
import importlib, os, pkgutil, resource, select, signal, socket, sys, urllib.request
import psutil, snakemake.cli
os.process_cpu_count = os.cpu_count  # the function of Linux, from Python 3.13 on, needs a name that goes
for module, names in {
    os: "sched_ ST_NO pidfd_ posix_fall memfd_ MFD_ eventfd EFD_ splice SPLICE_ copy_file_range O_PATH O_TMPFILE setns unshare getxattr listxattr setxattr",
    signal: "SIGRT pidfd_ sigtimedwait sigwaitinfo SIGPOLL SIGPWR SIGSTKFLT", select: "epoll EPOLL",
    socket: "AF_NETLINK AF_PACKET AF_VSOCK SO_PEERCRED SO_BINDTODEVICE SOCK_CLOEXEC SOCK_NONBLOCK",
    resource: "prlimit RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_RT RLIMIT_SIGPENDING",
}.items():
    for name in [name for name in dir(module) if name.startswith(tuple(names.split()))]:
        delattr(module, name)
sys.platform = "darwin"
sys.path.insert(0, "workflow/scripts")
import raysweep
modules = [module.name for module in pkgutil.walk_packages(raysweep.__path__, "raysweep.")]
in_node_environment = ("raysweep.models", "raysweep.training", "raysweep.tune")
for name in modules:
    if not name.startswith(in_node_environment):
        importlib.import_module(name)
print(len(modules))
snakemake.cli.main(["-n", "--quiet", "all", "--cores", "all", "plan"])
"""


def test_all_modules_of_the_controller_and_a_dry_run_do_without_the_names_that_only_linux_has(checkout: Project) -> None:
    """As on macOS: this system is a made-up one. CI loads the workflow on a real Mac."""
    done = subprocess.run([sys.executable, "-c", LIKE_MACOS], cwd=checkout.root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 100


def test_single_stages_and_targets(checkout: Project) -> None:
    assert rules(checkout, "--until", "build_env") == {"stage_data", "install_env", "build_env"}, "all that takes a network"
    assert rules(checkout, "results/lenet/best.yaml") == {"stage_data", "install_env", "build_env", "run_sweep"}
    assert rules(checkout, "results/lenet/confirmed.yaml") == ALL_RULES - {"report"}
    assert rules(checkout, "resources/data/cifar10/manifest.yaml") == {"stage_data"}


def test_a_name_that_no_sweep_has_is_no_target(checkout: Project) -> None:
    done = checkout.snakemake("-n", "results/lenet2/best.yaml")
    assert done.returncode == 1
    assert "results/lenet2/best.yaml" in done.stdout + done.stderr


def test_several_sweeps_run_side_by_side_and_share_data_and_environment(checkout: Project) -> None:
    config = checkout.read_config()
    config["sweeps"]["lenet.adam-2"] = config["sweeps"]["lenet"] | {"optimizer": "adam"}
    config["sweeps"]["own"] = {"trainable": "train.py:train", "search_space": {"x": 1}, "metric": "score"}
    checkout.write("train.py", TRAINABLE)
    checkout.write_config(config)
    assert jobs(checkout) == [
        *(("build_env", f"sweep={sweep}") for sweep in ("lenet", "lenet.adam-2", "own")),
        ("compare", ""),
        *(("confirm", f"sweep={sweep}") for sweep in ("lenet", "lenet.adam-2", "own")),
        ("install_env", ""),
        *((rule, f"sweep={sweep}") for rule in ("report", "run_sweep") for sweep in ("lenet", "lenet.adam-2", "own")),
        ("stage_data", "dataset=cifar10"),
    ]
    assert rules(checkout, "results/own/best.yaml") == {"install_env", "build_env", "run_sweep"}, (
        "a sweep without a data set waits for none"
    )


def test_a_sweep_takes_the_cores_that_its_allocation_names_at_most(checkout: Project) -> None:
    def threads(cores: str) -> list[str]:
        done = checkout.snakemake("-n", "--cores", cores, "--until", "run_sweep")
        return re.findall(r"(?m)^    threads: (\d+)$", done.stdout + done.stderr)

    assert threads("2") == ["2"]
    assert threads("64") == ["10"]


def test_a_second_run_does_nothing(finished: Project) -> None:
    assert rules(finished) == set()


def test_a_forced_sweep_brings_its_confirmation_and_report(finished: Project) -> None:
    assert rules(finished, "-R", "run_sweep") == SWEEP_AND_AFTER


def test_data_that_are_staged_again_bring_the_sweep(finished: Project) -> None:
    assert rules(finished, "-R", "stage_data", "--configfile", "config/config.yaml") == {"stage_data", *SWEEP_AND_AFTER}


def test_a_project_that_was_moved_has_nothing_to_do(finished: Project, tmp_path: Path) -> None:
    moved = tmp_path / "moved here"
    shutil.copytree(finished.root, moved, symlinks=True)  # keeps the files' times, as mv does
    assert rules(Project(moved)) == set()


def lenet(**changes: Any) -> Change:
    return lambda config: config["sweeps"]["lenet"].update(changes)


def of_lenet(section: str, **changes: Any) -> Change:
    return lambda config: config["sweeps"]["lenet"].setdefault(section, {}).update(changes)


RERUN: dict[str, tuple[Change, set[str]]] = {
    # What the result depends on.
    "num_samples": (lenet(num_samples=5), SWEEP_AND_AFTER),
    "search_space": (lenet(search_space={"lr": {"loguniform": [1e-5, 1e-1]}, "batch_size": 4}), SWEEP_AND_AFTER),
    "metric and mode": (lenet(metric="loss", mode="min"), SWEEP_AND_AFTER),
    "max_epochs": (lenet(max_epochs=4), SWEEP_AND_AFTER),
    "scheduler": (of_lenet("scheduler", reduction_factor=3), SWEEP_AND_AFTER),
    "search_algorithm": (lenet(search_algorithm="optuna"), {"build_env", *SWEEP_AND_AFTER}),  # is there an Optuna?
    "seed": (lenet(seed=1), SWEEP_AND_AFTER),
    "loss and optimizer": (lenet(loss="multi_margin_loss", optimizer="adam"), SWEEP_AND_AFTER),
    "confirm.seeds": (of_lenet("confirm", seeds=4), {"confirm", "report"}),
    "the split": (lambda config: config["datasets"]["cifar10"].update(validation_fraction=0.2), ALL_RULES - {"install_env", "build_env"}),
    "the environment": (lambda config: config.update(env={"torch_backend": "cpu"}), ALL_RULES - {"stage_data"}),
}


@pytest.mark.parametrize(("change", "expected"), RERUN.values(), ids=RERUN.keys())
def test_what_a_change_of_the_config_runs_again(finished: Project, change: Change, expected: set[str]) -> None:
    config = finished.read_config()
    change(config)
    finished.write_config(config, "changed.yaml")
    assert rules(finished, "--configfile", "changed.yaml") == expected


def test_what_only_says_how_a_sweep_is_run_runs_nothing_again(finished: Project) -> None:
    config = finished.read_config()
    for change in (
        of_lenet("allocation", cpus_per_node=4, mem_mb_per_node=8000, runtime="2h"),
        of_lenet("trial_resources", cpu=2, gpu=0),
        of_lenet("confirm", runtime="1h"),
        lenet(max_failures=0, max_concurrent=2, resume=False),
        lenet(mode="max", seed=0, search_algorithm="random"),  # defaults, written out
        lambda config: config["datasets"].update(other={"source": "synthetic"}),
    ):
        change(config)
    finished.write_config(config, "changed.yaml")
    assert rules(finished, "--configfile", "changed.yaml") == set()


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["workflow/scripts/raysweep/models/lenet.py"], {"build_env", *SWEEP_AND_AFTER}),
        (["workflow/envs/node.txt"], {"install_env", "build_env", *SWEEP_AND_AFTER}),
        (
            [
                f"workflow/scripts/{name}.py"
                for name in ("raysweep/tune/driver", "raysweep/report/report", "raysweep/data/stage", "run_sweep", "stage_data")
            ],
            set(),
        ),
    ],
    ids=["the model", "the lock", "the workflow's own code"],
)
def test_what_a_change_of_a_file_runs_again(finished: Project, paths: list[str], expected: set[str]) -> None:
    before = {path: (finished.root / path).read_text() for path in paths}
    for path, text in before.items():
        finished.write(path, text + "\n# changed\n")
    try:
        assert rules(finished) == expected
    finally:
        for path, text in before.items():
            finished.write(path, text)


def test_another_sweep_leaves_a_finished_one_alone(checkout: Project) -> None:
    config = checkout.read_config()
    config["sweeps"]["other"] = config["sweeps"]["lenet"] | {"optimizer": "adam"}
    checkout.write_config(config)
    finish(checkout, "lenet", "other")
    config["sweeps"]["other"]["num_samples"] = 21
    config["sweeps"]["third"] = config["sweeps"]["lenet"] | {"seed": 1}
    checkout.write_config(config)
    again = [(rule, f"sweep={sweep}") for rule in ("confirm", "report", "run_sweep") for sweep in ("other", "third")]
    assert jobs(checkout) == [("build_env", "sweep=third"), ("compare", ""), *again]


def test_another_sweeps_file_leaves_a_finished_one_alone(checkout: Project) -> None:
    config = checkout.read_config()
    config["sweeps"]["own"] = {"trainable": "train.py:train", "search_space": {"x": 1}, "metric": "score"}
    checkout.write("train.py", TRAINABLE)
    checkout.write_config(config)
    finish(checkout, "lenet", "own")
    checkout.write("train.py", TRAINABLE + "# changed\n")
    assert ("run_sweep", "sweep=lenet") not in jobs(checkout)


def test_lint_finds_only_what_a_virtualenv_workflow_cannot_meet(checkout: Project) -> None:
    done = checkout.snakemake("--lint")
    findings = re.findall(r"(?m)^    \* (.*)$", done.stdout + done.stderr)
    assert set(findings) == {"Specify a conda environment or container for each rule.:"}
