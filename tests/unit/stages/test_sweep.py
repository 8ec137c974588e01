"""What a sweep's trials depend on, and what becomes of a state that does not count any more. The stages themselves run in test_run_sweep.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raysweep.common.typed_json import to_json
from raysweep.config.load import validated
from raysweep.config.model import Config
from raysweep.record.events import Provenance, Session, SessionHeader
from raysweep.record.trials import Sweep, Trial
from raysweep.stages.sweep import Stage, provenance_of, reason_to_start_anew, set_aside

REQUIREMENTS = Path(__file__).resolve().parents[3] / "workflow" / "envs" / "node.in"


def sessions(*environments: str) -> list[Session]:
    headers = (SessionHeader(identity="i", provenance=Provenance("0.1.0", "i", environment)) for environment in environments)
    return [Session(header=header, at="", last_at="") for header in headers]


def recorded(*statuses: str) -> Sweep:
    trials = {f"{n:05d}": Trial(f"{n:05d}", n, 0, n, {}, status) for n, status in enumerate(statuses)}  # type: ignore[arg-type]
    return Sweep(sessions=sessions("e"), trials=trials)


@pytest.mark.parametrize(
    ("sweep", "identity", "resume", "why"),
    [
        (Sweep(), "other", False, None),
        (recorded(), "i", True, None),
        (recorded("TERMINATED", "ERROR"), "i", True, None),
        (recorded("ERROR", "PENDING"), "i", True, None),
        (recorded("TERMINATED"), "i", False, "resume is false"),
        (recorded("TERMINATED"), "other", True, "what its trials depend on has changed"),
        (recorded("ERROR", "ERROR"), "i", True, "all its trials failed"),
    ],
)
def test_when_a_sweep_starts_anew(sweep: Sweep, identity: str, resume: bool, why: str | None) -> None:
    assert reason_to_start_anew(sweep, identity, resume) == why


def test_a_state_is_set_aside_under_a_name_that_nothing_has_yet(tmp_path: Path) -> None:
    names = []
    for content in ("first", "second", "third"):
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "record.jsonl").write_text(content)
        names.append(set_aside(tmp_path / "s", "0123456789abcdef").name)
    assert names == ["s.before-01234567", "s.before-01234567-2", "s.before-01234567-3"]
    assert [(tmp_path / name / "record.jsonl").read_text() for name in names] == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("environments", "expected"),
    [
        (("a",), {"environment_sha256": "a"}),
        (("a", "a"), {"environment_sha256": "a"}),
        (("a", "b", "a", "c"), {"environment_sha256": "c", "earlier_environments": ["a", "b"]}),
    ],
)
def test_provenance_names_every_environment_in_which_trials_ran(environments: tuple[str, ...], expected: dict[str, Any]) -> None:
    provenance = to_json(provenance_of(Sweep(sessions=sessions(*environments))))
    assert provenance == {"workflow_version": "0.1.0", "identity": "i", "data_sha256": None, **expected}


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
    return Stage(Config.of(validated(config, [folder / "c.yaml"], folder)), "s", folder, folder, folder / "log").identity()


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
