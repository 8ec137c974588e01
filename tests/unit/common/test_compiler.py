"""Whether C++ code that extends this Python can be compiled."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from raysweep.common.compiler import NO_COMPILER, default_compiler, reason_not_to_compile


def make_compiler(path: Path, exit_code: int) -> Path:
    """Write a compiler that reads its input and writes its arguments beside itself."""
    path.write_text(f'#!/bin/sh\necho "$@" > {path}.arguments\ncat > {path}.input\nexit {exit_code}\n')
    path.chmod(0o755)
    return path


def test_no_compiler(tmp_path: Path) -> None:
    for compiler in (None, str(tmp_path / "none")):
        assert reason_not_to_compile(compiler) == NO_COMPILER
    (tmp_path / "not executable").touch()
    assert reason_not_to_compile(str(tmp_path / "not executable")) == NO_COMPILER


@pytest.mark.parametrize("exit_code", [0, 1])
def test_the_compiler_says_whether_it_finds_the_headers(tmp_path: Path, exit_code: int) -> None:
    compiler = make_compiler(tmp_path / "c++", exit_code)
    include = sysconfig.get_path("include")
    reason = f"the C++ compiler does not find Python's headers (Python.h), which belong into {include}" if exit_code else None
    assert reason_not_to_compile(str(compiler)) == reason
    assert include in (tmp_path / "c++.arguments").read_text()
    assert (tmp_path / "c++.input").read_text() == "#include <Python.h>\n"


def test_a_python_without_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = default_compiler()
    if compiler is None:
        pytest.skip("this machine has no C++ compiler")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert str(reason_not_to_compile(compiler)).endswith(f"belong into {tmp_path}")
    (tmp_path / "Python.h").touch()
    assert reason_not_to_compile(compiler) is None
    (tmp_path / "Python.h").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/Python.h").touch()
    monkeypatch.setenv("CPATH", str(tmp_path / "elsewhere"))
    assert reason_not_to_compile(compiler) is None


def test_the_default_compiler_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert default_compiler() is None
    gcc, own = make_compiler(tmp_path / "g++", 0), make_compiler(tmp_path / "own", 0)
    assert default_compiler() == str(gcc)
    monkeypatch.setenv("CXX", str(own))
    assert default_compiler() == str(own)


def test_a_compiler_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = make_compiler(tmp_path / "c++", 0)
    compiler.write_text("#!/bin/sh\nexec sleep 600\n")  # `exec`, so that the end of the waiting ends this process
    monkeypatch.setattr("raysweep.common.compiler.COMPILER_DEADLINE_S", 1)
    assert reason_not_to_compile(str(compiler)) == "the C++ compiler did not answer within 1 s"
