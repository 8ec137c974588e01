"""The identity of a stage: what the trials of its sweep depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raysweep.config.load import validated
from raysweep.config.model import Config
from raysweep.stages.stage import Call, Stage

REQUIREMENTS = Path(__file__).resolve().parents[3] / "workflow" / "envs" / "node.in"


def identity(folder: Path, environment_sha256: str = "e", wheels: str = "download", **sweep: Any) -> str:
    """The identity of a sweep whose environment is described by these."""
    (folder / "user.py").touch()
    if "train" not in (folder / "user.py").read_text():
        (folder / "user.py").write_text("def train(config): ...\n")
    section = {"trainable": "user.py:train", "metric": "score", "search_space": {"x": 1}} | sweep
    config = {"env": {"requirements": str(REQUIREMENTS), "wheels": wheels}, "sweeps": {"s": section}}
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    described = {
        "key": "k",
        "python": "/usr/bin/python3",
        "python_version": "3.11.7",
        "torch_backend": None,
        "wheels": wheels,
        "modules": [],
    }
    (folder / "env.yaml").write_text(yaml.safe_dump(described | {"packages": {}, "environment_sha256": environment_sha256}))
    return Stage(Config.of(validated(config, [folder / "c.yaml"], folder)), "s", Call(folder, folder, folder / "log")).identity()


@pytest.mark.parametrize("change", [{"metric": "other"}, {"mode": "min"}, {"seed": 1}, {"max_epochs": 2}, {"scheduler": "median"}])
def test_a_key_that_trials_depend_on_changes_the_identity(tmp_path: Path, change: dict[str, Any]) -> None:
    assert identity(tmp_path, **change) != identity(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"num_samples": 9}, {"search_space": {"x": 2}}, {"max_failures": 0}, {"time_budget": "1h"}, {"allocation": {"cpus_per_node": 2}}],
)
def test_a_key_that_extends_a_sweep_or_says_how_it_is_run_leaves_it(tmp_path: Path, change: dict[str, Any]) -> None:
    assert identity(tmp_path, **change) == identity(tmp_path)


def test_the_trainables_source_counts(tmp_path: Path) -> None:
    before = identity(tmp_path)
    (tmp_path / "user.py").write_text("def train(config): return {}\n")
    assert identity(tmp_path) != before


@pytest.mark.parametrize(("wheels", "counts"), [("download", False), ("site", True), ("none", True)])
def test_what_is_installed_counts_where_the_lock_does_not_say_it(tmp_path: Path, wheels: str, counts: bool) -> None:
    assert (identity(tmp_path, "a", wheels) != identity(tmp_path, "b", wheels)) == counts
