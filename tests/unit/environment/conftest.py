from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from environments import fake
from raysweep.environment.requirements import EnvironmentSpec
from wheels import make_wheel

NOWHERE = "http://127.0.0.1:9"  # nothing listens on the discard port


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.fixture
def spec(scene: None, tmp_path: Path) -> EnvironmentSpec:
    """The section `env` of a config for a folder of two wheels; `apple` needs `pear`, of which a newer one lies there as well."""
    folder = tmp_path / "some wheels"
    make_wheel(folder, "apple", "1.2", needs=("pear>=1",))
    make_wheel(folder, "pear", "1.0")
    make_wheel(folder, "pear", "2.0")
    (tmp_path / "node.in").write_text("apple>=1   # with a reason\n")
    (tmp_path / "node.txt").write_text("apple==1.2\npear==1.0\nnvidia-thing==9.9\n")
    return EnvironmentSpec(sys.executable, (), Path("node.in"), "some wheels", "auto", gpu=False)


@pytest.fixture(scope="session")
def site_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with a pip of its own, as a site's module brings it."""
    folder = tmp_path_factory.mktemp("site python")
    made = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"this Python cannot make a virtualenv with pip: {made.stdout.strip()[:100]}")
    return str(folder / "bin" / "python")
