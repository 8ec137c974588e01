from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from environments import build, fake, leftovers
from raysweep.common.errors import ConfigError, RaysweepError
from raysweep.environment.aside import host_of_pids
from raysweep.environment.build import check_import
from raysweep.environment.manifest import Environment
from raysweep.environment.requirements import ENVS_DIR, EnvironmentSpec, env_key
from raysweep.usercode.target import SCRIPTS_DIR
from wheels import make_wheel

pytestmark = pytest.mark.slow  # makes virtualenvs


def test_builds_from_a_folder_what_the_lock_says(spec: EnvironmentSpec) -> None:
    built = build(spec)
    assert built.packages == {"apple": "1.2", "pear": "1.0"}
    assert (built.torch_backend, built.key) == (None, env_key(spec))
    record = yaml.safe_load(Path("env/env.yaml").read_text())
    assert record["python"] == str(Path("env/venv/bin/python").absolute())
    assert record["python_version"] == sys.version.split()[0]
    subprocess.run(built.command(["-c", "import apple, pear"]), check=True)
    assert leftovers() == []


def test_hash_is_over_the_packages(spec: EnvironmentSpec) -> None:
    before = build(spec).environment_sha256
    Path("node.txt").write_text("apple==1.2\npear==2.0\n")
    after = build(spec)
    assert after.packages["pear"] == "2.0"
    assert len({before, after.environment_sha256}) == 2


def test_a_second_run_does_nothing(spec: EnvironmentSpec, tmp_path: Path) -> None:
    first = build(spec)
    before = [os.stat(path).st_mtime_ns for path in ("env/env.yaml", "env/venv")]
    shutil.rmtree(tmp_path / "uv cache")
    for wheel in Path("some wheels").glob("*.whl"):
        wheel.unlink()
    assert build(spec) == first
    assert [os.stat(path).st_mtime_ns for path in ("env/env.yaml", "env/venv")] == before


def test_env_yaml_that_snakemake_deleted_is_written_again(spec: EnvironmentSpec) -> None:
    first, inode = build(spec), Path("env/venv").stat().st_ino
    Path("env/env.yaml").unlink()
    with pytest.raises(RaysweepError, match=r"was not built\. Run the rule build_env"):
        Environment.load(Path("env"))
    assert build(spec) == first
    assert Path("env/venv").stat().st_ino == inode


def test_half_an_environment_is_built_anew(spec: EnvironmentSpec) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    alive = f"venv.{host_of_pids()}.{os.getppid()}"
    old = f"venv.another-host.{dead.pid}"
    for name in ("venv", f"venv.{host_of_pids()}.{dead.pid}", f"venv.{host_of_pids()}.{dead.pid}.old", alive, old):
        (Path("env") / name / "bin").mkdir(parents=True)
    os.utime(Path("env") / old, (0, 0))
    assert build(spec).packages == {"apple": "1.2", "pear": "1.0"}
    assert leftovers() == [alive]


@pytest.mark.parametrize("damage", ["python gone", "other version"])
def test_is_built_again_when_python_has_changed(spec: EnvironmentSpec, damage: str) -> None:
    build(spec)
    inode = Path("env/venv").stat().st_ino
    if damage == "python gone":
        Path("env/venv/bin/python").unlink()
        Path("env/venv/bin/python").symlink_to("/no/such/python")
    else:
        record = Path("env/venv/raysweep.yaml")
        record.write_text(record.read_text().replace(sys.version.split()[0], "3.11.0rc1"))
    subprocess.run(build(spec).command(["-c", "import apple"]), check=True)
    assert Path("env/venv").stat().st_ino != inode


def test_refuses_a_backend_that_wheels_would_ignore(spec: EnvironmentSpec) -> None:
    with pytest.raises(ConfigError, match=r"env\.torch_backend: 'cpu' is not allowed with wheels: some wheels"):
        build(replace(spec, torch_backend="cpu"))


def test_a_line_that_is_no_requirement(spec: EnvironmentSpec) -> None:
    Path("node.in").write_text("apple >> 2\n")
    with pytest.raises(ConfigError, match=r"^node\.in: 'apple >> 2' is not a requirement"):
        build(replace(spec, wheels="none"))


def test_an_outdated_virtualenv_gives_way_to_the_new_one(spec: EnvironmentSpec) -> None:
    build(spec)
    Path("node.txt").write_text("apple==1.2\npear==2.0\n")
    subprocess.run(build(spec).command(["-c", "import pear"]), check=True)
    assert leftovers() == []


def test_library_that_installs_but_does_not_import(spec: EnvironmentSpec) -> None:
    make_wheel(Path("some wheels"), "torch", "2.0", code="raise OSError('libcudart.so.13: cannot open\\nshared object file')")
    Path("node.in").write_text("torch\n")
    Path("node.txt").write_text("torch==2.0\n")
    with pytest.raises(
        RaysweepError, match=r"^torch cannot be imported .*: OSError: libcudart\.so\.13: cannot open shared object file\. Next: "
    ):
        build(spec)
    assert not Path("env/venv").exists()
    assert leftovers() == []


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import nothing_like_it", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import os; print('hello'); os._exit(7)", "exit code 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9"),
    ],
)
def test_target_that_does_not_import(spec: EnvironmentSpec, code: str, reason: str) -> None:
    Path("mine.py").write_text(f"def train(config): ...\n{code}\n")
    build(spec)
    with pytest.raises(RaysweepError) as caught:
        check_import(Path("env"), ["mine.py:train"], spec.requirements)
    assert str(caught.value).startswith("mine.py:train cannot be imported in the environment of the trials: ")
    assert reason in str(caught.value)
    assert "add what it needs to node.in" in str(caught.value)


@pytest.mark.parametrize("target", ["mine.py:train", "mine:train", "raysweep.common.bounds:Bounds"])
def test_target_that_imports(spec: EnvironmentSpec, target: str) -> None:
    Path("helper.py").write_text("import apple\n")
    Path("mine.py").write_text("import helper\ndef train(config): ...\n")
    build(spec)
    check_import(Path("env"), ["json", target], spec.requirements)


def test_library_that_is_missing(spec: EnvironmentSpec) -> None:
    build(spec)
    with pytest.raises(RaysweepError, match=r"^optuna cannot be imported in the environment of the trials: ModuleNotFoundError"):
        check_import(Path("env"), ["apple", "optuna"], spec.requirements)


def test_target_that_is_not_there(spec: EnvironmentSpec) -> None:
    with pytest.raises(ConfigError, match=r"there is no file mine\.py"):
        check_import(Path("env"), ["mine.py:train"], spec.requirements)


def test_none_takes_pythons_environment_as_it_is(spec: EnvironmentSpec, site_python: str) -> None:
    Path("node.in").write_text("pip>=1\nwinonly ; sys_platform == 'win32'\n")
    built = build(replace(spec, python=site_python, wheels="none"))
    assert (str(built.python), "pip" in built.packages) == (site_python, True)
    assert [path.name for path in Path("env").iterdir()] == ["env.yaml"]
    before = Path("env/env.yaml").stat().st_mtime_ns
    build(replace(spec, python=site_python, wheels="none"))
    assert Path("env/env.yaml").stat().st_mtime_ns == before


def test_none_names_all_that_is_lacking(spec: EnvironmentSpec, site_python: str) -> None:
    Path("node.in").write_text("pip>=999\nplum\n")
    with pytest.raises(ConfigError, match=r"lacks pip>=999 \(it has [\d.]+\), plum of node\.in"):
        build(replace(spec, python=site_python, wheels="none"))


def spec_with_ray(spec: EnvironmentSpec, tmp_path: Path, version: str) -> EnvironmentSpec:
    """Return the section `env` of a config whose folder of wheels and whose lock have a Ray of this version."""
    make_wheel(tmp_path / "some wheels", "ray", version)
    (tmp_path / "node.in").write_text("ray\n")
    (tmp_path / "node.txt").write_text(f"ray=={version}\n")
    return spec


@pytest.mark.parametrize("version", ["2.49.2", "2.52.9"])
def test_a_ray_that_does_not_ask_for_the_token_is_refused(spec: EnvironmentSpec, tmp_path: Path, version: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(spec_with_ray(spec, tmp_path, version))
    text = f"env.wheels: some wheels gives Ray {version}, which does not check which programs connect. The least version is 2.53. Ask for"
    assert str(caught.value).startswith(text)
    assert leftovers() == []
    assert not Path("env/venv").exists()
    assert not Path("env/env.yaml").exists()


@pytest.mark.parametrize("version", ["2.53.0", "2.60.1", "10.0"])
def test_a_ray_that_asks_for_the_token_is_built(spec: EnvironmentSpec, tmp_path: Path, version: str) -> None:
    assert build(spec_with_ray(spec, tmp_path, version)).packages == {"ray": version}


@pytest.mark.parametrize(
    ("container", "begin"),
    [(None, "env.wheels: none gives Ray 2.49.2, which"), ("image.sif", "env.container: the image 'image.sif' gives Ray 2.49.2")],
)
def test_an_environment_that_is_taken_as_it_is_is_refused_too(
    spec: EnvironmentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str | None, begin: str
) -> None:
    (tmp_path / "image.sif").touch()
    fake(tmp_path, "apptainer", 'while [ "$1" != image.sif ]; do shift; done; shift; exec "$@"')
    given = replace(spec_with_ray(spec, tmp_path, "2.49.2"), wheels="none", container=container)
    monkeypatch.setattr("raysweep.environment.interpreter.installed_packages", lambda command: {"ray": "2.49.2"})
    with pytest.raises(ConfigError, match=f"^{begin}"):
        build(given)
    assert not Path("env/env.yaml").exists()


def test_a_version_that_is_newer_than_any_that_was_tried_is_a_warning(
    spec: EnvironmentSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [tried] = re.findall(r"(?m)^ray==(.+)", (ENVS_DIR / "newest.txt").read_text())
    build(spec_with_ray(spec, tmp_path, f"{tried}+site"))
    assert "newer than any" not in caplog.text
    build(spec_with_ray(spec, tmp_path, "99.0"))
    assert f"env.wheels: some wheels gives versions that are newer than any that was tried: ray 99.0 (tried: up to {tried})" in caplog.text


def test_a_library_that_is_missing_names_the_list_and_the_command_that_locks_the_list(spec: EnvironmentSpec, tmp_path: Path) -> None:
    build(spec)
    (tmp_path / "mine.py").write_text("import no_such_library\ndef train(config): ...\n")
    for requirements, text in (
        (Path("node.in"), "to node.in, and lock the list: `uv pip compile --universal node.in -o node.txt`"),
        (
            SCRIPTS_DIR.parent / "envs/node.in",
            "to a list of your own, such as sweeps/mine/requirements.in (docs/own-models.md, Libraries of your own), name",
        ),
    ):
        with pytest.raises(RaysweepError) as caught:
            check_import(Path("env"), ["mine.py:train"], requirements)
        assert "No module named 'no_such_library'. Next: mend the file, or add what it needs " + text in str(caught.value)
