"""Environments that tests build in their own folder: helpers for the fixture `spec`."""

from __future__ import annotations

from pathlib import Path

from raysweep.environment.build import build_environment
from raysweep.environment.manifest import Environment
from raysweep.environment.requirements import EnvironmentSpec


def fake(tmp_path: Path, name: str, script: str) -> None:
    """Put a shell script on PATH."""
    path = tmp_path / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def define_module(tmp_path: Path, body: str) -> None:
    """Define `module` as sites do: for login shells only, here with a greeting as well."""
    (tmp_path / "home" / ".bash_profile").write_text(f"echo Welcome to the cluster\nmodule() {{ {body}\n}}\n")


def build(spec: EnvironmentSpec) -> Environment:
    """Build into ./env; what comes back is what `load` finds there."""
    built = build_environment(spec, Path("env"))
    assert Environment.load(Path("env")) == built
    return built


def leftovers() -> list[str]:
    return sorted(path.name for path in Path("env").glob("*") if path.name not in ("env.yaml", "venv"))
