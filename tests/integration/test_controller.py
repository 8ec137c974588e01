"""What a killed Snakemake leaves to the next one, and how much is printed. Slurm's part of it: tests/slurm/test_controller.py."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import project as checkouts
from raysweep.common.processes import started, this_process
from sweeping import Project, user_environment, wait_until


def is_locked(root: Path) -> bool:
    return any((root / ".snakemake/locks").glob("*.lock"))


def test_unlock_removes_the_locks_of_one_that_is_not_there_any_more(checkout: checkouts.Project) -> None:
    checkout.write(".snakemake/locks/0.output.lock", "resources/data/cifar10/manifest.yaml\n")
    process = json.dumps(this_process() | {"host": "login7"})
    checkout.write(".snakemake/raysweep/elsewhere/controller.json", process)
    refused = checkout.snakemake("--cores", "1", "--touch")
    assert refused.returncode == 1
    assert "A Snakemake is at work in this folder: process" in refused.stderr
    assert is_locked(checkout.root)
    done = checkout.snakemake("--unlock")
    assert done.returncode == 0, done.stderr
    assert not is_locked(checkout.root)
    assert "A Snakemake is at work" not in checkout.snakemake("-n").stderr


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
