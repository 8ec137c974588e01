from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from raysweep.common.errors import ConfigError, RaysweepError, WorldError
from raysweep.environment import build as environment
from raysweep.environment.build import (
    Environment,
    Recipe,
    build_environment,
    check_import,
    env_key,
    extras_of,
    lock_of,
    process_environment,
    with_modules,
)
from wheels import make_wheel, serve_index

NOWHERE = "http://127.0.0.1:9"  # nothing listens on the discard port


@pytest.fixture(autouse=True)
def _scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder, home and caches of the test's own, no network but loopback, no GPU, and none of the user's settings."""
    for name in [n for n in os.environ if n.startswith(("UV_", "PIP_")) or n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "home").mkdir()
    fake(tmp_path, "nvidia-smi", "exit 9")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv cache"))
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"{NOWHERE}/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, NOWHERE)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def fake(tmp_path: Path, name: str, script: str) -> None:
    """Put a shell script on PATH."""
    path = tmp_path / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A recipe for a folder of two wheels; `apple` needs `pear`, of which a newer one lies there as well."""
    folder = tmp_path / "some wheels"
    make_wheel(folder, "apple", "1.2", needs=("pear>=1",))
    make_wheel(folder, "pear", "1.0")
    make_wheel(folder, "pear", "2.0")
    (tmp_path / "node.in").write_text("apple>=1   # with a reason\n")
    (tmp_path / "node.txt").write_text("apple==1.2\npear==1.0\nnvidia-thing==9.9\n")
    return Recipe(sys.executable, (), Path("node.in"), "some wheels", "auto", gpu=False)


def build(recipe: Recipe) -> Environment:
    """Build into ./env; what comes back is what `load` finds there."""
    built = build_environment(recipe, Path("env"))
    assert Environment.load(Path("env")) == built
    return built


def leftovers() -> list[str]:
    return sorted(path.name for path in Path("env").glob("*") if path.name not in ("env.yaml", "venv"))


# ------------------------------------------------------------------------------------------------------------ the key


def key_of(recipe: Recipe) -> str:
    return env_key(recipe.python, recipe.modules, recipe.requirements, recipe.wheels, recipe.torch_backend, recipe.gpu)


def test_key_depends_on_contents_and_not_on_places(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # nothing is asked
    (tmp_path / "elsewhere").mkdir()
    for name in ("node.in", "node.txt"):
        shutil.copy(name, tmp_path / "elsewhere" / name)
    key = key_of(recipe)
    assert len(key) == 12
    assert int(key, 16) >= 0
    assert key == key_of(replace(recipe, requirements=tmp_path / "elsewhere" / "node.in"))


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
def test_key_changes_with_everything_that_is_said(recipe: Recipe, change: Callable[[Recipe], Recipe]) -> None:
    assert key_of(recipe) != key_of(change(recipe))


def test_key_changes_with_an_included_file(recipe: Recipe) -> None:
    Path("node.in").write_text("-r more.in\n")
    Path("more.in").write_text("apple\n")
    before = key_of(recipe)
    Path("more.in").write_text("apple>=1.2\n")
    assert key_of(recipe) != before


@pytest.mark.parametrize("missing", ["node.in", "node.txt"])
def test_key_names_a_file_that_is_missing(recipe: Recipe, missing: str) -> None:
    Path(missing).unlink()
    with pytest.raises(ConfigError, match=rf"^{missing} is missing.*env\.requirements"):
        key_of(recipe)
    assert lock_of(Path("a/node.in")) == Path("a/node.txt")


# ------------------------------------------------------------------------------------------------------------ commands


def test_command_without_modules_is_the_interpreter(recipe: Recipe) -> None:
    built = build(recipe)
    assert built.command(["a.py", "--x", "1"]) == [str(built.python), "a.py", "--x", "1"]
    assert built.python.parent == Path("env/venv/bin").absolute()


HOSTILE = ["a b", "$HOME", "'", '"', "`id`", "x;y", "*", "", "ü"]


def define_module(tmp_path: Path, body: str) -> None:
    """Define `module` as sites do: for login shells only, here with a greeting as well."""
    (tmp_path / "home" / ".bash_profile").write_text(f"echo Welcome to the cluster\nmodule() {{ {body}\n}}\n")


def test_modules_are_loaded_first_and_words_arrive_whole(tmp_path: Path) -> None:
    define_module(tmp_path, 'export LOADED="$*"')
    program = "import json, os, sys; print(json.dumps([os.environ['LOADED'], sys.argv[1:]]))"
    argv = with_modules(["python/3.11", "odd name"], [sys.executable, "-c", program, *HOSTILE])
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    assert json.loads(said[-1]) == ["load python/3.11 odd name", HOSTILE]


def test_uv_runs_after_the_modules(tmp_path: Path) -> None:
    define_module(tmp_path, "export UV_CACHE_DIR=/from/a/module")
    assert environment._uv(["cache", "dir"], ("python/3",)).stdout.splitlines()[-1] == "/from/a/module"


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


# ------------------------------------------------------------------------------------------------------------ building, from a folder


def test_builds_from_a_folder_what_the_lock_says(recipe: Recipe) -> None:
    built = build(recipe)
    assert built.packages == {"apple": "1.2", "pear": "1.0"}
    assert (built.torch_backend, built.key) == (None, key_of(recipe))
    record = yaml.safe_load(Path("env/env.yaml").read_text())
    assert record["python"] == str(Path("env/venv/bin/python").absolute())
    assert record["python_version"] == sys.version.split()[0]
    subprocess.run(built.command(["-c", "import apple, pear"]), check=True)
    assert leftovers() == []


def test_hash_is_over_the_packages(recipe: Recipe) -> None:
    before = build(recipe).environment_sha256
    Path("node.txt").write_text("apple==1.2\npear==2.0\n")
    after = build(recipe)
    assert after.packages["pear"] == "2.0"
    assert len({before, after.environment_sha256}) == 2


def test_a_second_run_does_nothing(recipe: Recipe, tmp_path: Path) -> None:
    first = build(recipe)
    before = [os.stat(path).st_mtime_ns for path in ("env/env.yaml", "env/venv")]
    shutil.rmtree(tmp_path / "uv cache")
    for wheel in Path("some wheels").glob("*.whl"):
        wheel.unlink()
    assert build(recipe) == first
    assert [os.stat(path).st_mtime_ns for path in ("env/env.yaml", "env/venv")] == before


def test_env_yaml_that_snakemake_deleted_is_written_again(recipe: Recipe) -> None:
    first, inode = build(recipe), Path("env/venv").stat().st_ino
    Path("env/env.yaml").unlink()
    with pytest.raises(RaysweepError, match=r"was not built\. Run the rule build_env"):
        Environment.load(Path("env"))
    assert build(recipe) == first
    assert Path("env/venv").stat().st_ino == inode


def test_works_after_the_project_was_moved(recipe: Recipe, tmp_path: Path) -> None:
    build(recipe)
    Path("env").rename("a moved env")
    moved = Environment.load(Path("a moved env"))
    assert moved.python.is_relative_to(tmp_path / "a moved env")
    subprocess.run(moved.command(["-c", "import apple"]), check=True)


def test_half_an_environment_is_built_anew(recipe: Recipe) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    alive = f"venv.{socket.gethostname()}.{os.getppid()}"
    old = f"venv.another-host.{dead.pid}"
    for name in ("venv", f"venv.{socket.gethostname()}.{dead.pid}", f"venv.{socket.gethostname()}.{dead.pid}.old", alive, old):
        (Path("env") / name / "bin").mkdir(parents=True)
    os.utime(Path("env") / old, (0, 0))
    assert build(recipe).packages == {"apple": "1.2", "pear": "1.0"}
    assert leftovers() == [alive]


@pytest.mark.parametrize("damage", ["python gone", "other version"])
def test_is_built_again_when_python_has_changed(recipe: Recipe, damage: str) -> None:
    build(recipe)
    inode = Path("env/venv").stat().st_ino
    if damage == "python gone":
        Path("env/venv/bin/python").unlink()
        Path("env/venv/bin/python").symlink_to("/no/such/python")
    else:
        record = Path("env/venv/raysweep.yaml")
        record.write_text(record.read_text().replace(sys.version.split()[0], "3.11.0rc1"))
    subprocess.run(build(recipe).command(["-c", "import apple"]), check=True)
    assert Path("env/venv").stat().st_ino != inode


def test_names_the_wheel_and_the_folder_that_lacks_it(recipe: Recipe) -> None:
    for wheel in Path("some wheels").glob("pear-1*"):
        wheel.unlink()
    with pytest.raises(ConfigError, match=r"the folder some wheels lacks .* pear==1\.0"):
        build(recipe)
    assert not Path("env/env.yaml").exists()
    assert not Path("env/venv").exists()
    assert leftovers() == []


def test_names_a_folder_that_does_not_exist(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"env\.wheels: 'sight' is not allowed: download, site, none, or a folder"):
        build(replace(recipe, wheels="sight"))


def test_refuses_a_backend_that_wheels_would_ignore(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"env\.torch_backend: 'cpu' is not allowed with wheels: some wheels"):
        build(replace(recipe, torch_backend="cpu"))


def test_a_line_that_is_no_requirement(recipe: Recipe) -> None:
    Path("node.in").write_text("apple >> 2\n")
    with pytest.raises(ConfigError, match=r"^node\.in: 'apple >> 2' is not a requirement"):
        build(replace(recipe, wheels="none"))


# ------------------------------------------------------------------------------------------------------------ Python


def test_python_that_does_not_exist(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"env\.python: 'python4' cannot be run \(No such file or directory\)"):
        build(replace(recipe, python="python4"))


def test_python_that_is_too_old(recipe: Recipe, tmp_path: Path) -> None:
    fake(tmp_path, "python3.8", """echo '{"python": "/usr/bin/python3.8", "version": "3.8.18"}'""")
    with pytest.raises(ConfigError, match=r"env\.python: 'python3.8' is Python 3\.8\.18: name a Python 3\.11 or newer"):
        build(replace(recipe, python="python3.8"))


def test_module_that_does_not_exist(recipe: Recipe, tmp_path: Path) -> None:
    define_module(tmp_path, "echo 'no such module: gc' >&2; return 1")
    with pytest.raises(ConfigError, match=r"env\.modules: \['gc'\] does not lead to a Python that runs: no such module: gc"):
        build(replace(recipe, modules=("gc",)))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo 'no such module: gc' >&2; return 1", "does not run: no such module: gc. Next: env.python and env.modules have to lead to"),
        ("export PATH=$PATH", None),
    ],
)
def test_checks_its_python_after_the_modules(recipe: Recipe, tmp_path: Path, body: str, said: str | None) -> None:
    define_module(tmp_path, "export PATH=$PATH")
    built = build(replace(recipe, modules=("gc",)))
    define_module(tmp_path, body)
    if said is None:
        built.check_python()
    else:
        with pytest.raises(WorldError, match=re.escape(f"{socket.gethostname()}: the environment's Python {said}")):
            built.check_python()


def test_a_node_that_lacks_the_python_under_it(recipe: Recipe) -> None:
    built = build(recipe)
    built.python.unlink()
    built.python.symlink_to("/opt/python/bin/python3.11")
    with pytest.raises(WorldError, match=rf"^{socket.gethostname()} has no /opt/python/bin/python3\.11, the Python under the environment"):
        built.check_python()


def test_a_node_whose_python_does_not_run(recipe: Recipe) -> None:
    built = build(recipe)
    built.python.unlink()
    built.python.write_bytes(b"a program of another machine")
    built.python.chmod(0o755)
    with pytest.raises(WorldError, match=r"the environment's Python does not run \(Exec format error\)"):
        built.check_python()


def test_a_node_on_which_python_is_another_one(recipe: Recipe) -> None:
    built = replace(build(recipe), python_version="3.99.1")
    with pytest.raises(WorldError, match=r"the environment is for Python 3\.99\.1, and its Python here is 3\."):
        built.check_python()
    replace(built, python_version=sys.version.split()[0] + "rc1").check_python()  # what packages are compiled for is the same


# ------------------------------------------------------------------------------------------------------------ imports


def test_extras_that_files_ask_for(tmp_path: Path) -> None:
    (tmp_path / "all.in").write_text("-r some.in\nRay[default]>=2\napple\nray[x] ; sys_platform == 'win32'\n")
    (tmp_path / "some.in").write_text("ray[tune]\n")
    assert extras_of(tmp_path / "all.in", "ray") == {"default", "tune"}
    assert environment._libraries(tmp_path / "all.in") == ["ray", "ray.tune", "ray.dashboard.optional_deps"]


def test_an_outdated_virtualenv_gives_way_to_the_new_one(recipe: Recipe) -> None:
    build(recipe)
    Path("node.txt").write_text("apple==1.2\npear==2.0\n")
    subprocess.run(build(recipe).command(["-c", "import pear"]), check=True)
    assert leftovers() == []


def test_library_that_installs_but_does_not_import(recipe: Recipe) -> None:
    make_wheel(Path("some wheels"), "torch", "2.0", code="raise OSError('libcudart.so.13: cannot open\\nshared object file')")
    Path("node.in").write_text("torch\n")
    Path("node.txt").write_text("torch==2.0\n")
    with pytest.raises(
        RaysweepError, match=r"^torch cannot be imported .*: OSError: libcudart\.so\.13: cannot open shared object file\. Next: "
    ):
        build(recipe)
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
def test_target_that_does_not_import(recipe: Recipe, code: str, reason: str) -> None:
    Path("mine.py").write_text(f"def train(config): ...\n{code}\n")
    build(recipe)
    with pytest.raises(RaysweepError) as caught:
        check_import(Path("env"), ["mine.py:train"], recipe.requirements)
    assert str(caught.value).startswith("mine.py:train cannot be imported in the environment of the trials: ")
    assert reason in str(caught.value)
    assert "add what it needs to node.in" in str(caught.value)


@pytest.mark.parametrize("target", ["mine.py:train", "mine:train", "raysweep.common.bounds:Bounds"])
def test_target_that_imports(recipe: Recipe, target: str) -> None:
    Path("helper.py").write_text("import apple\n")
    Path("mine.py").write_text("import helper\ndef train(config): ...\n")
    build(recipe)
    check_import(Path("env"), ["json", target], recipe.requirements)


def test_library_that_is_missing(recipe: Recipe) -> None:
    build(recipe)
    with pytest.raises(RaysweepError, match=r"^optuna cannot be imported in the environment of the trials: ModuleNotFoundError"):
        check_import(Path("env"), ["apple", "optuna"], recipe.requirements)


def test_target_that_is_not_there(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"there is no file mine\.py"):
        check_import(Path("env"), ["mine.py:train"], recipe.requirements)


# ------------------------------------------------------------------------------------------------------------ download


@pytest.fixture
def index(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An index on loopback with the recipe's wheels, and one of torch as PyPI has it."""
    make_wheel(Path("some wheels"), "torch", "2.0")
    with serve_index(Path("some wheels").absolute()) as address:
        monkeypatch.setenv("UV_DEFAULT_INDEX", address)
        yield address


def with_torch(recipe: Recipe, version: str = "2.0", backend: str = "auto") -> Recipe:
    Path("node.in").write_text("torch\n")
    Path("node.txt").write_text(f"torch=={version}\n")
    return replace(recipe, wheels="download", torch_backend=backend)


@pytest.mark.usefixtures("index")
def test_downloads_what_the_lock_says(recipe: Recipe) -> None:
    assert build(replace(recipe, wheels="download")).packages == {"apple": "1.2", "pear": "1.0"}


def test_without_network_says_so_in_one_line(recipe: Recipe) -> None:
    with pytest.raises(WorldError, match=r"^A download failed: .*run `--until build_env` on a login node first\.") as caught:
        build(replace(recipe, wheels="download"))
    assert "\n" not in str(caught.value)
    assert not Path("env/env.yaml").exists()
    assert not Path("env/venv").exists()
    assert leftovers() == []


def test_goes_on_when_the_network_is_back(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(recipe, wheels="download")
    with pytest.raises(WorldError):
        build(recipe)
    with serve_index(Path("some wheels").absolute()) as address:
        monkeypatch.setenv("UV_DEFAULT_INDEX", address)
        build(recipe)


@pytest.mark.usefixtures("index")
def test_a_package_that_the_index_does_not_have(recipe: Recipe) -> None:
    Path("node.in").write_text("plum>=3\n")
    Path("node.txt").write_text("plum==3.1\n")
    with pytest.raises(ConfigError, match=r"The environment cannot be resolved: .*plum"):
        build(replace(recipe, wheels="download"))


GPU = "echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'"


@pytest.mark.skipif(sys.platform == "darwin", reason="PyPI's build of torch is the CPU build on macOS")
@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    ("asked", "nvidia_smi", "tried"),
    [(False, "exit 9", ["cpu"]), (False, GPU, ["cpu"]), (True, GPU, ["auto"]), (True, "exit 9", [])],
    ids=["no GPU", "a GPU here that no sweep asks for", "a GPU here", "GPUs on the nodes alone"],
)
def test_auto_with_a_fake_nvidia_smi(
    recipe: Recipe, tmp_path: Path, asked: bool, nvidia_smi: str, tried: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """What torch's own index is asked for, which is out of reach here, so that PyPI's build it is at last."""
    fake(tmp_path, "nvidia-smi", nvidia_smi)
    caplog.set_level("DEBUG", "raysweep")
    assert build(replace(with_torch(recipe), gpu=asked)).torch_backend == "pypi"
    assert re.findall(r"--torch-backend (\w+)", caplog.text) == tried
    assert "PyPI's build: 2.5 GB to download, 5 GB on disk" in caplog.text


@pytest.mark.skipif(sys.platform == "darwin", reason="PyPI's build of torch is the CPU build on macOS")
@pytest.mark.usefixtures("index")
def test_cpu_build_that_cannot_be_had_is_an_error(recipe: Recipe) -> None:
    with pytest.raises(WorldError, match=r"^env\.torch_backend: 'cpu' cannot be had; use auto, .*login node first\.$"):
        build(with_torch(recipe, backend="cpu"))


@pytest.mark.usefixtures("index")
def test_an_unknown_backend(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"^env\.torch_backend: 'cud' cannot be had.*invalid value 'cud'"):
        build(with_torch(recipe, backend="cud"))


@pytest.mark.usefixtures("index")
def test_pypi_asks_for_no_other_index(recipe: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "raysweep")
    assert build(with_torch(recipe, backend="pypi")).torch_backend == "pypi"
    assert "--torch-backend" not in caplog.text


@pytest.mark.usefixtures("index")
def test_too_little_space_is_found_before_the_download(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CPU_BUILD_GB", "CUDA_BUILD_GB"):
        monkeypatch.setattr(environment, name, 1e9)
    recipe = with_torch(recipe)
    with pytest.raises(WorldError, match=r"^Not enough disk space at .*uv's cache.*1000000000\.0 GB are needed"):
        build(recipe)
    assert not list((tmp_path / "uv cache").rglob("torch.py"))


@pytest.mark.usefixtures("index")
def test_what_is_cached_needs_no_space(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = with_torch(recipe, backend="pypi")
    build(asked)
    shutil.rmtree("env")
    for name in ("CPU_BUILD_GB", "CUDA_BUILD_GB"):
        monkeypatch.setattr(environment, name, 1e9)
    Path("node.in").write_text("torch\napple\n")  # which is small, and not cached
    assert "apple" in build(asked).packages


# ------------------------------------------------------------------------------------------------------------ the site's wheels


@pytest.fixture(scope="module")
def site_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with a pip of its own, as a site's module brings it."""
    folder = tmp_path_factory.mktemp("site python")
    made = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"this Python cannot make a virtualenv with pip: {made.stdout.strip()[:100]}")
    return str(folder / "bin" / "python")


@pytest.fixture
def site(recipe: Recipe, site_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A site: a wheelhouse that pip's configuration names, with versions of its own, and `module`, which brings `pear` and the Python."""
    house = tmp_path / "wheelhouse"
    make_wheel(house, "apple", "1.5+site", needs=("pear>=1", "plum"))
    make_wheel(house, "plum", "0.3")
    (tmp_path / "pip.conf").write_text(f"[global]\nfind-links = {house}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    make_wheel(tmp_path, "pear", "7.0+module")
    shutil.unpack_archive(tmp_path / "pear-7.0+module-py3-none-any.whl", tmp_path / "opt" / "pear", "zip")
    define_module(
        tmp_path,
        f'[ "$*" = "load python/3 pear" ] || return 1\nexport PATH={Path(site_python).parent.as_posix()!r}:"$PATH"\nexport PYTHONPATH={tmp_path}/opt/pear',
    )
    return replace(recipe, python="python", modules=("python/3", "pear"), wheels="site")


def test_site_installs_what_its_pip_chooses_after_the_modules(site: Recipe) -> None:
    built = build(site)
    assert built.packages == {"apple": "1.5+site", "pear": "7.0+module", "plum": "0.3"}
    assert built.modules == ("python/3", "pear")
    assert not list(Path("env/venv").rglob("pear*")), "what a module brings is not installed again"
    subprocess.run(built.command(["-c", "import apple, pear, plum"]), check=True, env=process_environment())


def test_site_that_lacks_a_wheel(site: Recipe) -> None:
    Path("node.in").write_text("apple>=2\n")
    with pytest.raises(
        ConfigError, match=r"the site's wheelhouse lacks what node\.in asks for: No matching distribution found for apple>=2"
    ):
        build(site)
    assert leftovers() == []


def test_site_without_pip(recipe: Recipe) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "bare"], check=True)
    with pytest.raises(ConfigError, match=r"env\.wheels: site needs pip 22\.3 or newer for .*bare/bin/python"):
        build(replace(recipe, python="bare/bin/python", wheels="site"))


# ------------------------------------------------------------------------------------------------------------ an environment as it is


def test_none_takes_pythons_environment_as_it_is(recipe: Recipe, site_python: str) -> None:
    Path("node.in").write_text("pip>=1\nwinonly ; sys_platform == 'win32'\n")
    built = build(replace(recipe, python=site_python, wheels="none"))
    assert (str(built.python), "pip" in built.packages) == (site_python, True)
    assert [path.name for path in Path("env").iterdir()] == ["env.yaml"]
    before = Path("env/env.yaml").stat().st_mtime_ns
    build(replace(recipe, python=site_python, wheels="none"))
    assert Path("env/env.yaml").stat().st_mtime_ns == before


def test_none_names_all_that_is_lacking(recipe: Recipe, site_python: str) -> None:
    Path("node.in").write_text("pip>=999\nplum\n")
    with pytest.raises(ConfigError, match=r"lacks pip>=999 \(it has [\d.]+\), plum of node\.in"):
        build(replace(recipe, python=site_python, wheels="none"))


# ------------------------------------------------------------------------------------------------------------ uv's words


@pytest.mark.parametrize("cause", ["No space left on device (os error 28)", "Disk quota exceeded (os error 122)"])
def test_a_full_disk_is_one_line(cause: str) -> None:
    said = f"Resolved 3 packages in 5ms\nerror: Failed to install: torch-2.0-py3-none-any.whl (torch==2.0)\n  cause: {cause}\n"
    with pytest.raises(WorldError, match=r"^The disk is full: Failed to install: torch.*Free some space"):
        environment._must(subprocess.CompletedProcess(["uv"], 2, "", said), "It failed")
