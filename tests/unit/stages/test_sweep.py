"""What becomes of a state that does not count any more. The stage itself runs in test_run_sweep.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysweep.common.typed_json import to_json
from raysweep.record.events import Provenance, Session, SessionHeader
from raysweep.record.identity import Identity
from raysweep.record.sweep import Sweep
from raysweep.record.trials import Trial
from raysweep.stages.sweep import name_aside, provenance_of, reason_to_start_anew


def sessions(*environments: str) -> list[Session]:
    headers = (
        SessionHeader(identity="i", depends_on={"seed": 0}, provenance=Provenance("0.1.0", "i", environment))
        for environment in environments
    )
    return [Session(header=header, at="", last_at="") for header in headers]


def recorded(*statuses: str) -> Sweep:
    trials = {f"{n:05d}": Trial(f"{n:05d}", n, 0, n, {}, status) for n, status in enumerate(statuses)}  # type: ignore[arg-type]
    return Sweep(sessions=sessions("e"), trials=trials)


@pytest.mark.parametrize(
    ("sweep", "seed", "resume", "why"),
    [
        (Sweep(), 1, False, None),
        (recorded(), 0, True, None),
        (recorded("TERMINATED", "ERROR"), 0, True, None),
        (recorded("ERROR", "PENDING"), 0, True, None),
        (recorded("TERMINATED"), 0, False, "resume is false"),
        (recorded("TERMINATED"), 1, True, "seed changed"),
        (recorded("ERROR", "ERROR"), 0, True, "all its trials failed"),
    ],
)
def test_when_a_sweep_starts_anew(sweep: Sweep, seed: int, resume: bool, why: str | None) -> None:
    assert reason_to_start_anew(sweep, Identity({"seed": seed}), resume) == why


def test_a_state_is_set_aside_under_a_name_that_nothing_has_yet(tmp_path: Path) -> None:
    names = []
    for content in ("first", "second", "third"):
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "record.jsonl").write_text(content)
        names.append((tmp_path / "s").rename(name_aside(tmp_path / "s", "0123456789abcdef")).name)
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
    identity = Identity({})
    header = replace(sessions(*environments)[0].header, provenance=Provenance("0.1.0", identity.sha256))
    assert provenance_of(Sweep(sessions=[Session(header=header, at="", last_at="")]), identity).identity == identity.sha256
    provenance = to_json(provenance_of(Sweep(sessions=sessions(*environments)), identity))
    assert provenance == {"workflow_version": "0.1.0", "identity": identity.sha256, "data_sha256": None, **expected}
