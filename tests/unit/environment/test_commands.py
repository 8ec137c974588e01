from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from environments import define_module
from raysweep.common.errors import WorldError
from raysweep.environment.commands import process_environment, run_captured, with_modules

HOSTILE = ["a b", "$HOME", "'", '"', "`id`", "x;y", "*", "", "ü"]


@pytest.mark.usefixtures("scene")
def test_modules_are_loaded_first_and_words_arrive_whole(tmp_path: Path) -> None:
    define_module(tmp_path, 'export LOADED="$*"')
    program = "import json, os, sys; print(json.dumps([os.environ['LOADED'], sys.argv[1:]]))"
    argv = with_modules(["python/3.11", "odd name"], [sys.executable, "-c", program, *HOSTILE])
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    assert json.loads(said[-1]) == ["load python/3.11 odd name", HOSTILE]


@pytest.mark.usefixtures("scene")
def test_nothing_runs_after_a_module_that_does_not_load(tmp_path: Path) -> None:
    define_module(tmp_path, "echo 'no such module: gc' >&2; return 1")
    run = subprocess.run(with_modules(["gc"], ["touch", "ran"]), capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert not Path("ran").exists()


def test_processes_do_not_inherit_the_controllers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "UV_TORCH_BACKEND", "UV_INDEX"):
        monkeypatch.setenv(name, "x")
    found = process_environment()
    assert {n for n in found if n.startswith(("PYTHON", "VIRTUAL", "UV_TORCH"))} <= {"PYTHONUNBUFFERED"}
    assert found["UV_INDEX"] == "x"


def test_a_program_that_does_not_end_is_killed_although_its_child_keeps_the_output_open() -> None:
    with pytest.raises(
        WorldError, match=r"^`sh -c 'sleep 4 & sleep 600'` did not end within 0 s, so it was killed\. Run the same command again\.$"
    ):
        run_captured(["sh", "-c", "sleep 4 & sleep 600"], 0.2)
