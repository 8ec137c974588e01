"""`make setup` in a fresh clone whose path holds a space and a quote, the commands that follow, and the other rules of the Makefile."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import project as checkouts

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"  # nothing listens on the discard port


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "it's a clone"
    checkouts.copy_to(folder)
    shutil.copy(ROOT / "Makefile", folder)
    (tmp_path / "bin").mkdir()
    return folder


def make(clone: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    # `make test` may have started this test, and sets variables MAKE… that would change the make below.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    path = f"{clone.parent / 'bin'}:{environ['PATH']}"
    return subprocess.run(
        ["make", *arguments], cwd=clone, env=environ | {"PATH": path} | variables, capture_output=True, text=True, check=False
    )


def errors(run: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines on stderr without the closing line of make."""
    return [line for line in run.stderr.splitlines() if not line.startswith("make: ***")]


def fake_python(clone: Path, name: str, script: str) -> None:
    path = clone.parent / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def installed(run: subprocess.CompletedProcess[str]) -> None:
    """Skip the test where the set-up had no network, and otherwise assert that the set-up succeeded."""
    if "error sending request" in run.stderr or "No matching distribution" in run.stderr:
        pytest.skip("no network: the package index is out of reach")
    assert run.returncode == 0, run.stderr
    assert "Setting up .venv" in run.stdout


def test_sets_up_and_then_does_nothing_until_the_folder_is_moved(clone: Path) -> None:
    (clone / ".venv" / "bin").mkdir(parents=True)  # an interrupted set-up leaves such a folder
    (clone / ".venv" / "bin" / "python").touch()
    installed(make(clone, "setup"))
    assert make(clone, "new-sweep", "NAME=mine").stdout.startswith("sweeps/mine/ is yours to change")
    typed = "source .venv/bin/activate; snakemake --cores all --configfile sweeps/mine/config.yaml --dry-run"
    dry = subprocess.run(["bash", "-c", typed], cwd=clone, capture_output=True, text=True, check=False)
    assert "results/mine/report.html" in dry.stdout + dry.stderr
    assert errors(make(clone, "watch", "SWEEP=mine"))[0].startswith("Error: There is no record of")
    again = make(clone, "setup")
    assert (again.returncode, again.stdout) == (0, "make: Nothing to be done for 'setup'.\n")
    # The programs of a virtualenv begin with the path of its Python, and do not start after a move.
    clone = clone.rename(clone.with_name("it's, moved (here)"))
    snakemake = [clone / ".venv" / "bin" / "snakemake", "--version"]
    assert subprocess.run(snakemake, capture_output=True, check=False).returncode != 0
    installed(make(clone, "setup"))
    assert subprocess.run(snakemake, capture_output=True, text=True, check=True).stdout.startswith("9.")
    assert make(clone, "setup").stdout == again.stdout
    (clone / ".venv" / ".complete").unlink()
    assert "Setting up .venv" in make(clone, "--dry-run", "setup").stdout


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo 3.8", "Error: mypython is Python 3.8. Name a Python 3.11 or newer: make setup PYTHON=python3.12"),
        ("echo 3.10", "Error: mypython is Python 3.10. Name a Python 3.11 or newer: make setup PYTHON=python3.12"),
        ("exit 127", "Error: mypython does not run. Name a Python 3.11 or newer: make setup PYTHON=python3.12"),
        (
            "[ $1 = -c ] && echo 3.13",
            "Error: mypython cannot make a virtualenv. On Debian and Ubuntu install python3.13-venv, or name another PYTHON.",
        ),
    ],
)
def test_an_unusable_python_is_one_line(clone: Path, script: str, error: str) -> None:
    fake_python(clone, "mypython", script)
    run = make(clone, "setup", PYTHON="mypython")
    assert run.returncode != 0
    assert errors(run) == [error]
    assert not (clone / ".venv" / ".complete").exists()


def test_without_network_says_so_in_one_line(clone: Path) -> None:
    nowhere = {
        "PIP_INDEX_URL": f"{NOWHERE}/simple",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_RETRIES": "0",
        "PIP_FIND_LINKS": "",
    }
    run = make(clone, "setup", PIP_CONFIG_FILE=os.devnull, **nowhere)
    assert run.returncode != 0
    (line,) = errors(run)
    assert line.startswith("Error: the set-up could not install its packages; with the network at hand run it again.")
    assert not (clone / ".venv" / ".complete").exists()


def test_clean_leaves_results_and_records(clone: Path) -> None:
    for folder in ("results/a", "state/a", "resources/data", "resources/env/k", "resources/env-test", "resources/docs", ".venv"):
        (clone / folder).mkdir(parents=True)
    assert make(clone, "clean").returncode == 0
    assert sorted(path.name for path in clone.iterdir()) == [
        "Makefile",
        "Snakefile",
        "config",
        "examples",
        "resources",
        "results",
        "state",
        "workflow",
    ]
    assert [path.name for path in (clone / "resources").iterdir()] == ["data"]


def test_watch_passes_config_and_sweep_to_the_script(clone: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".complete").write_text(f"{clone}\n")
    commands = make(clone, "--dry-run", "watch", "CONFIG=my config.yaml", "SWEEP=demo").stdout
    assert commands.strip() == '.venv/bin/python workflow/scripts/watch.py --configfile "my config.yaml" --sweep "demo"'


def test_check_is_lint_and_the_fast_unit_tests_and_test_is_lint_and_all_tests(clone: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".complete").write_text(f"{clone}\n")
    lint, check, test = (make(clone, "--dry-run", target).stdout for target in ("lint", "check", "test"))
    programs = re.findall(r"(?m)(ruff format --check|ruff check|snakefmt --check|mypy$|lint-imports)", lint)
    assert programs == ["ruff format --check", "ruff check", "snakefmt --check", "mypy", "lint-imports"]
    assert check.startswith(lint)
    assert test.startswith(lint)
    assert check.removeprefix(lint).strip().endswith('-m "not slow" tests/unit')
    all_tests = test.removeprefix(lint).strip().replace("--numprocesses 3", "--numprocesses 2")  # the tests on Slurm mostly wait
    assert f'{all_tests} -m "not slow" tests/unit' == check.removeprefix(lint).strip(), "all tests, in the same way"


def test_the_modules_that_run_first_exist() -> None:
    lists = re.findall(r"(?m)^(?:LONG|FIRST_ON_SLURM) = (.+)$", (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"))
    assert len(lists) == 2
    for names in lists:
        assert set(ast.literal_eval(names)) <= {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
