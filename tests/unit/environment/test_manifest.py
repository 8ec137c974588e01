from __future__ import annotations

import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from environments import build, define_module
from raysweep.common.errors import WorldError
from raysweep.environment.manifest import Environment
from raysweep.environment.requirements import EnvironmentSpec


def test_command_without_modules_is_the_interpreter(spec: EnvironmentSpec) -> None:
    built = build(spec)
    assert built.command(["a.py", "--x", "1"]) == [str(built.python), "a.py", "--x", "1"]
    assert built.python.parent == Path("env/venv/bin").absolute()


def test_works_after_the_project_was_moved(spec: EnvironmentSpec, tmp_path: Path) -> None:
    build(spec)
    Path("env").rename("a moved env")
    moved = Environment.load(Path("a moved env"))
    assert moved.python.is_relative_to(tmp_path / "a moved env")
    subprocess.run(moved.command(["-c", "import apple"]), check=True)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo 'no such module: gc' >&2; return 1", "does not run: no such module: gc. Next: env.python and env.modules have to lead to"),
        ("export PATH=$PATH", None),
    ],
)
def test_checks_its_python_after_the_modules(spec: EnvironmentSpec, tmp_path: Path, body: str, said: str | None) -> None:
    define_module(tmp_path, "export PATH=$PATH")
    built = build(replace(spec, modules=("gc",)))
    define_module(tmp_path, body)
    if said is None:
        built.check_python()
    else:
        with pytest.raises(WorldError, match=re.escape(f"{socket.gethostname()}: the environment's Python {said}")):
            built.check_python()


def test_a_node_that_lacks_the_python_under_it(spec: EnvironmentSpec) -> None:
    built = build(spec)
    built.python.unlink()
    built.python.symlink_to("/opt/python/bin/python3.11")
    with pytest.raises(WorldError, match=rf"^{socket.gethostname()} has no /opt/python/bin/python3\.11, the Python under the environment"):
        built.check_python()


def test_a_node_whose_python_does_not_run(spec: EnvironmentSpec) -> None:
    built = build(spec)
    built.python.unlink()
    built.python.write_bytes(b"a program of another machine")
    built.python.chmod(0o755)
    with pytest.raises(WorldError, match=r"the environment's Python does not run \(Exec format error\)"):
        built.check_python()


def test_a_node_on_which_python_is_another_one(spec: EnvironmentSpec) -> None:
    built = replace(build(spec), python_version="3.99.1")
    with pytest.raises(WorldError, match=r"the environment is for Python 3\.99\.1, but its Python on this node is 3\."):
        built.check_python()
    replace(built, python_version=sys.version.split()[0] + "rc1").check_python()  # what packages are compiled for is the same
