from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from raysweep.common.errors import ConfigError
from raysweep.environment.requirements import EnvironmentSpec, env_key, extras_of, lists, lock_of, missing_requirements, modules_to_try


def test_key_depends_on_contents_and_not_on_places(spec: EnvironmentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # nothing is asked
    (tmp_path / "elsewhere").mkdir()
    for name in ("node.in", "node.txt"):
        shutil.copy(name, tmp_path / "elsewhere" / name)
    key = env_key(spec)
    assert len(key) == 12
    assert int(key, 16) >= 0
    assert key == env_key(replace(spec, requirements=tmp_path / "elsewhere" / "node.in"))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: replace(r, python="python3.12"),
        lambda r: replace(r, modules=("gcc",)),
        lambda r: replace(r, wheels="site"),
        lambda r: replace(r, torch_backend="cpu"),
        lambda r: replace(r, gpu=True),
        lambda r: Path("node.in").write_text("apple>=1.1\n") and r,
        lambda r: Path("node.txt").write_text("apple==1.1\n") and r,
    ],
)
def test_key_changes_with_everything_that_is_said(spec: EnvironmentSpec, change: Callable[[EnvironmentSpec], EnvironmentSpec]) -> None:
    assert env_key(spec) != env_key(change(spec))


def test_key_changes_with_an_included_file(spec: EnvironmentSpec) -> None:
    Path("node.in").write_text("-r more.in\n")
    Path("more.in").write_text("apple\n")
    before = env_key(spec)
    Path("more.in").write_text("apple>=1.2\n")
    assert env_key(spec) != before


@pytest.mark.parametrize("missing", ["node.in", "node.txt"])
def test_key_names_a_file_that_is_missing(spec: EnvironmentSpec, missing: str) -> None:
    Path(missing).unlink()
    with pytest.raises(ConfigError, match=rf"^{missing} is missing.*env\.requirements"):
        env_key(spec)
    assert lock_of(Path("a/node.in")) == Path("a/node.txt")


def test_extras_that_files_ask_for(tmp_path: Path) -> None:
    (tmp_path / "all.in").write_text("-r some.in\nRay[default]>=2\napple\nray[x] ; sys_platform == 'win32'\n")
    (tmp_path / "some.in").write_text("ray[tune]\n")
    assert extras_of(tmp_path / "all.in", "ray") == {"default", "tune"}
    assert modules_to_try(tmp_path / "all.in") == ["ray", "ray.tune", "ray.dashboard.optional_deps"]


def test_a_file_lists_its_packages_and_those_of_included_files(tmp_path: Path) -> None:
    (tmp_path / "all.in").write_text("-r some.in\nOptuna>=4\n")
    (tmp_path / "some.in").write_text("ray[tune]\n")
    assert [lists(tmp_path / "all.in", name) for name in ("ray", "optuna", "torch")] == [True, True, False]


def test_missing_requirements_name_the_version_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "all.in").write_text("apple>=1\nPear<2\nplum\n")
    assert missing_requirements(tmp_path / "all.in", {"apple": "1.0rc1", "pear": "2.0"}) == [
        "apple>=1 (it has 1.0rc1)",
        "Pear<2 (it has 2.0)",
        "plum",
    ]
    assert missing_requirements(tmp_path / "all.in", {"apple": "1.1rc1", "pear": "1.0", "plum": "0"}) == []
