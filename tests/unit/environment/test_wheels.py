from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from environments import build, define_module, fake, leftovers
from raysweep.common.errors import ConfigError, WorldError
from raysweep.environment import wheels
from raysweep.environment.commands import process_environment
from raysweep.environment.requirements import EnvironmentSpec
from wheels import make_wheel, serve_index


@pytest.mark.usefixtures("scene")
def test_uv_runs_after_the_modules(tmp_path: Path) -> None:
    define_module(tmp_path, "export UV_CACHE_DIR=/from/a/module")
    assert wheels._run_uv(["cache", "dir"], ("python/3",)).stdout.splitlines()[-1] == "/from/a/module"


def test_names_the_wheel_and_the_folder_that_lacks_it(spec: EnvironmentSpec) -> None:
    for wheel in Path("some wheels").glob("pear-1*"):
        wheel.unlink()
    with pytest.raises(ConfigError, match=r"the folder some wheels lacks .* pear==1\.0"):
        build(spec)
    assert not Path("env/env.yaml").exists()
    assert not Path("env/venv").exists()
    assert leftovers() == []


def test_names_a_folder_that_does_not_exist(spec: EnvironmentSpec) -> None:
    with pytest.raises(ConfigError, match=r"env\.wheels: 'sight' is not allowed: download, site, none, or a folder"):
        build(replace(spec, wheels="sight"))


@pytest.fixture
def index(spec: EnvironmentSpec, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An index on loopback with the spec's wheels, and one of torch as PyPI has it."""
    make_wheel(Path("some wheels"), "torch", "2.0")
    with serve_index(Path("some wheels").absolute()) as address:
        monkeypatch.setenv("UV_DEFAULT_INDEX", address)
        yield address


def with_torch(spec: EnvironmentSpec, version: str = "2.0", backend: str = "auto") -> EnvironmentSpec:
    Path("node.in").write_text("torch\n")
    Path("node.txt").write_text(f"torch=={version}\n")
    return replace(spec, wheels="download", torch_backend=backend)


@pytest.mark.usefixtures("index")
def test_downloads_what_the_lock_says(spec: EnvironmentSpec) -> None:
    assert build(replace(spec, wheels="download")).packages == {"apple": "1.2", "pear": "1.0"}


def test_without_network_says_so_in_one_line(spec: EnvironmentSpec) -> None:
    with pytest.raises(WorldError, match=r"^A download failed: .*run `--until build_env` on a login node first\.") as caught:
        build(replace(spec, wheels="download"))
    assert "\n" not in str(caught.value)
    assert not Path("env/env.yaml").exists()
    assert not Path("env/venv").exists()
    assert leftovers() == []


def test_goes_on_when_the_network_is_back(spec: EnvironmentSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(spec, wheels="download")
    with pytest.raises(WorldError):
        build(spec)
    with serve_index(Path("some wheels").absolute()) as address:
        monkeypatch.setenv("UV_DEFAULT_INDEX", address)
        build(spec)


@pytest.mark.usefixtures("index")
def test_a_package_that_the_index_does_not_have(spec: EnvironmentSpec) -> None:
    Path("node.in").write_text("plum>=3\n")
    Path("node.txt").write_text("plum==3.1\n")
    with pytest.raises(ConfigError, match=r"The environment cannot be resolved: .*plum"):
        build(replace(spec, wheels="download"))


GPU = "echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'"


@pytest.mark.skipif(sys.platform == "darwin", reason="PyPI's build of torch is the CPU build on macOS")
@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    ("asked", "nvidia_smi", "tried"),
    [(False, "exit 9", ["cpu"]), (False, GPU, ["cpu"]), (True, GPU, ["auto"]), (True, "exit 9", [])],
    ids=["no GPU", "a GPU here that no sweep asks for", "a GPU here", "GPUs on the nodes alone"],
)
def test_auto_with_a_fake_nvidia_smi(
    spec: EnvironmentSpec, tmp_path: Path, asked: bool, nvidia_smi: str, tried: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """What torch's own index is asked for, which is out of reach here, so that PyPI's build it is at last."""
    fake(tmp_path, "nvidia-smi", nvidia_smi)
    caplog.set_level("DEBUG", "raysweep")
    assert build(replace(with_torch(spec), gpu=asked)).torch_backend == "pypi"
    assert re.findall(r"--torch-backend (\w+)", caplog.text) == tried
    assert "PyPI's build: 2.5 GB to download, 5 GB on disk" in caplog.text


@pytest.mark.skipif(sys.platform == "darwin", reason="PyPI's build of torch is the CPU build on macOS")
@pytest.mark.usefixtures("index")
def test_cpu_build_that_cannot_be_had_is_an_error(spec: EnvironmentSpec) -> None:
    with pytest.raises(WorldError, match=r"^env\.torch_backend: 'cpu' cannot be had; use auto, .*login node first\.$"):
        build(with_torch(spec, backend="cpu"))


@pytest.mark.usefixtures("index")
def test_an_unknown_backend(spec: EnvironmentSpec) -> None:
    with pytest.raises(ConfigError, match=r"^env\.torch_backend: 'cud' cannot be had.*invalid value 'cud'"):
        build(with_torch(spec, backend="cud"))


@pytest.mark.usefixtures("index")
def test_pypi_asks_for_no_other_index(spec: EnvironmentSpec, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "raysweep")
    assert build(with_torch(spec, backend="pypi")).torch_backend == "pypi"
    assert "--torch-backend" not in caplog.text


@pytest.mark.usefixtures("index")
def test_too_little_space_is_found_before_the_download(spec: EnvironmentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CPU_BUILD_GB", "CUDA_BUILD_GB"):
        monkeypatch.setattr(wheels, name, 1e9)
    spec = with_torch(spec)
    with pytest.raises(WorldError, match=r"^Not enough disk space at .*uv's cache.*1000000000\.0 GB are needed"):
        build(spec)
    assert not list((tmp_path / "uv cache").rglob("torch.py"))


@pytest.mark.usefixtures("index")
def test_what_is_cached_needs_no_space(spec: EnvironmentSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = with_torch(spec, backend="pypi")
    build(asked)
    shutil.rmtree("env")
    for name in ("CPU_BUILD_GB", "CUDA_BUILD_GB"):
        monkeypatch.setattr(wheels, name, 1e9)
    Path("node.in").write_text("torch\napple\n")  # which is small, and not cached
    assert "apple" in build(asked).packages


@pytest.fixture
def site(spec: EnvironmentSpec, site_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EnvironmentSpec:
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
    return replace(spec, python="python", modules=("python/3", "pear"), wheels="site")


@pytest.mark.slow
def test_site_installs_what_its_pip_chooses_after_the_modules(site: EnvironmentSpec) -> None:
    built = build(site)
    assert built.packages == {"apple": "1.5+site", "pear": "7.0+module", "plum": "0.3"}
    assert built.modules == ("python/3", "pear")
    assert not list(Path("env/venv").rglob("pear*")), "what a module brings is not installed again"
    subprocess.run(built.command(["-c", "import apple, pear, plum"]), check=True, env=process_environment())


@pytest.mark.slow
def test_site_that_lacks_a_wheel(site: EnvironmentSpec) -> None:
    Path("node.in").write_text("apple\ncherry\n")
    with pytest.raises(ConfigError, match=r"the site's wheelhouse lacks what node\.in asks for: No matching distribution found for cherry"):
        build(site)
    assert leftovers() == []


@pytest.mark.slow
def test_site_whose_versions_are_too_old_names_all_of_them(site: EnvironmentSpec, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheelhouse", "apple", "1.0")
    Path("node.in").write_text("plum>=0.2\napple[core]>=2\npear>=7\nPlum>=0.9\n")
    with pytest.raises(
        ConfigError, match=r"lacks what node\.in asks for: apple\[core\]>=2 \(it has 1\.5\+site\), Plum>=0\.9 \(it has 0\.3\)\. "
    ):
        build(site)


def test_site_without_pip(spec: EnvironmentSpec) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "bare"], check=True)
    with pytest.raises(ConfigError, match=r"env\.wheels: site needs pip 22\.3 or newer for .*bare/bin/python"):
        build(replace(spec, python="bare/bin/python", wheels="site"))


@pytest.mark.parametrize("cause", ["No space left on device (os error 28)", "Disk quota exceeded (os error 122)"])
def test_a_full_disk_is_one_line(cause: str) -> None:
    said = f"Resolved 3 packages in 5ms\nerror: Failed to install: torch-2.0-py3-none-any.whl (torch==2.0)\n  cause: {cause}\n"
    with pytest.raises(WorldError, match=r"^The disk is full: Failed to install: torch.*Free some space"):
        wheels._check(subprocess.CompletedProcess(["uv"], 2, "", said), "It failed")
