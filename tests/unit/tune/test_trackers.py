"""Optuna's journal is written where Optuna is installed, and the driver does not need Optuna. The other tools: tests/integration/test_trackers.py."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from raysweep.tune.trackers import trackers
from records import new_record
from sweeping import SCRIPTS
from typed import sweep_config


@pytest.mark.parametrize("is_installed", [True, False])
def test_the_journal_is_written_where_optuna_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_installed: bool) -> None:
    if not is_installed:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with new_record(tmp_path) as record:
        assert len(trackers(sweep_config(trainable="user.py:train"), "s", record, "identity")) == is_installed


def test_the_driver_is_imported_without_optuna() -> None:
    """A sweep that does not search with Optuna runs in an environment of the user's own that lacks Optuna."""
    program = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); sys.modules['optuna'] = None; import raysweep.tune.wiring"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
