from __future__ import annotations

from pathlib import Path

import pytest

from configs import ROOT


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with the requirements of the environment and a trainable."""
    for path in (f"workflow/envs/{name}{kind}" for name in ("node", "dashboard", "samplers") for kind in (".in", ".txt")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    (tmp_path / "train.py").write_text("def train(config): ...\n")
    return tmp_path
