"""The entry point as Snakemake calls it: its words, its exit code, and what it leaves behind when it is ended or is not alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from wheels import make_wheel

pytestmark = pytest.mark.slow  # makes virtualenvs

SCRIPT = Path(__file__).parents[3] / "workflow" / "scripts" / "build_env.py"


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project folder with a space in its name; its `torch` takes long to import as long as a file `slow` is there."""
    project = tmp_path / "my project"
    slow = "import time, pathlib\nwhile pathlib.Path('slow').exists():\n    pathlib.Path('importing').touch(); time.sleep(0.02)\n"
    make_wheel(project / "wheels", "torch", "2.0+cpu", code=slow)
    (project / "node.in").write_text("torch>=2\n")
    (project / "node.txt").write_text("torch==2.0\n")
    monkeypatch.chdir(project)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes in groups of their own, of which nothing is left at the end."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def command(*options: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--requirements", "node.in", "--wheels", "wheels", "--output-dir", "env dir", *options]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*options), capture_output=True, text=True, check=False)


def start(processes: list[subprocess.Popen[str]], *options: str) -> subprocess.Popen[str]:
    processes.append(subprocess.Popen(command(*options), stderr=subprocess.PIPE, text=True, start_new_session=True))
    return processes[-1]


def wait_for(path: str) -> None:
    deadline = time.monotonic() + 120
    while not Path(path).exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.02)


def content() -> list[str]:
    return sorted(path.name for path in Path("env dir").iterdir())


def test_says_what_it_does_and_logs_the_details() -> None:
    done = run("--log", "logs/env.log", "--modules")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["Building", "Importing", "Environment:"]
    assert " DEBUG uv " in Path("logs/env.log").read_text()
    assert yaml.safe_load(Path("env dir/env.yaml").read_text())["torch_backend"] == "cpu"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--requirements", "none.in"], "Error: none.in is missing, the requirements file (env.requirements)"),
        (["--wheels", "/no/such/folder"], "Error: env.wheels: '/no/such/folder' is not allowed: download, site, none, or a folder"),
        (["--python", "python9"], "Error: env.python: 'python9' cannot be run"),
        (["--torch-backend", "cpu"], "Error: env.torch_backend: 'cpu' is not allowed with wheels: wheels"),
    ],
)
def test_a_mistake_is_one_line(options: list[str], said: str) -> None:
    done = run(*options)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if not line.startswith("Building the environment")]
    assert len(errors) == 1
    assert errors[0].startswith(said)
    assert not Path("env dir/env.yaml").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_builds_anew_after_it_was_ended_in_the_middle(how: signal.Signals, started: list[subprocess.Popen[str]]) -> None:
    Path("slow").touch()
    process = start(started)
    wait_for("importing")
    os.killpg(process.pid, how)
    assert process.wait(120) != 0
    assert "env.yaml" not in content()
    assert "venv" not in content()
    Path("slow").unlink()
    done = run()
    assert done.returncode == 0, done.stderr
    assert content() == ["env.yaml", "venv"]


@pytest.mark.slow
def test_two_that_build_and_pack_at_once_both_end_well(started: list[subprocess.Popen[str]]) -> None:
    Path("slow").touch()
    builders = [start(started, "--pack", "yes") for _ in range(2)]
    deadline = time.monotonic() + 120
    while len(list(Path("env dir").glob("venv.*/bin/python"))) < 2:
        assert time.monotonic() < deadline, "they do not build at the same time"
        time.sleep(0.02)
    Path("slow").unlink()
    for builder in builders:
        assert builder.wait(120) == 0
    assert content() == ["env.tar", "env.yaml", "venv"]
    python = yaml.safe_load(Path("env dir/env.yaml").read_text())["python"]
    subprocess.run([python, "-c", "import torch"], check=True)


def test_packs_what_was_built_before() -> None:
    assert run().returncode == 0
    assert content() == ["env.yaml", "venv"]
    packed, again = run("--pack", "yes"), run("--pack", "yes")
    assert (packed.returncode, again.returncode) == (0, 0)
    doing, done = packed.stderr.splitlines()
    assert doing == "Packing the environment for the nodes"
    assert done.startswith("Environment packed for the nodes: ")
    assert again.stderr == ""
    assert content() == ["env.tar", "env.yaml", "venv"]
