from __future__ import annotations

from pathlib import Path

import pytest

import cifar_layout


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A small archive in CIFAR-10's layout."""
    return cifar_layout.write_archive(tmp_path / "own.tar.gz", cifar_layout.files())
