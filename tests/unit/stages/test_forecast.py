"""What a dry run says of the finished trials of a sweep that has a record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs import check, own
from raysweep.common.typed_json import to_json
from raysweep.config.model import Config
from raysweep.record.identity import sweep_identity
from raysweep.stages.forecast import forecast
from raysweep.stages.project import Project
from raysweep.usercode.freeze import Code
from raysweep.usercode.target import find_target
from recorded import write_record

SWEEP = {"num_samples": 4, "max_epochs": 2}
ASIDE = "will not count, and will be kept in {root}/state/s.before-3f3f3f3f."


def project_of(root: Path, **changes: Any) -> Project:
    """A project with a sweep `s` of a function, in an environment for which no lock says what is installed."""
    checked = check(root, own(**SWEEP | changes) | {"env": {"wheels": "none"}})
    return Project(checked, Config.of(checked), root, is_module=False, placed=lambda folder: root / folder)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project folder in which the sweep has run."""
    (tmp_path / "train.py").write_text("def train(config): ...\n")
    run(tmp_path)
    return tmp_path


def run(root: Path, **record: Any) -> None:
    """Write the record that a run of the sweep leaves; arguments as in `write_record`."""
    sweep = project_of(root).typed.sweeps["s"]
    sources = Code.read(find_target(sweep.target, root)).sha256()
    parts = sweep_identity(to_json(sweep), sources=sources, data=None, lock="recorded").parts
    (root / "state/s/record.jsonl").unlink(missing_ok=True)
    write_record(root / "state/s/record.jsonl", **{"num_trials": 4, "max_epochs": 2, "depends_on": parts} | record)


def lines(root: Path, **changes: Any) -> list[str]:
    return [line.replace(str(root), "{root}") for line in forecast(project_of(root, **changes))]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"allocation": {"cpus_per_node": 4}}, []),
        ({"num_samples": 3}, []),
        (
            {"max_epochs": 3},
            [
                "s: the next run goes on: 4 of 4 trials are finished. 4 finished trials go on to epoch 3, with at most 12 epochs of training."
                " 4 of them begin at the first epoch, because their checkpoints were deleted (keep_checkpoints) or never written."
            ],
        ),
        ({"max_epochs": 1, "scheduler": "median"}, []),
        (
            {"max_epochs": 3, "scheduler": "pbt"},
            [f"s: the next run starts anew, since max_epochs and scheduler changed. 4 finished trials {ASIDE}"],
        ),
        ({"max_epochs": 1, "seed": 5}, [f"s: the next run starts anew, since seed changed. 4 finished trials {ASIDE}"]),
        ({"resume": False}, [f"s: the next run starts anew, since resume is false. 4 finished trials {ASIDE}"]),
        ({"num_samples": 9}, ["s: the next run goes on, because 4 of 9 trials are finished and stay valid."]),
    ],
)
def test_what_a_change_of_the_config_does_to_the_finished_trials(root: Path, changes: dict[str, Any], expected: list[str]) -> None:
    assert lines(root, **changes) == expected


def test_a_sweep_that_no_longer_became_better_is_complete_until_the_number_is_raised(root: Path) -> None:
    run(root, constant=0.5)
    assert lines(root, num_samples=9, end_when={"no_better_for": 3}) == []
    assert lines(root, num_samples=9, end_when={"no_better_for": 4}) == [
        "s: the next run goes on, because 4 of 9 trials are finished and stay valid."
    ]


def changed_code(root: Path) -> None:
    (root / "train.py").write_text("def train(config): pass\n")


@pytest.mark.parametrize(
    ("befalls", "expected"),
    [
        (changed_code, [f"s: the next run starts anew, since the code changed. 4 finished trials {ASIDE}"]),
        (lambda root: run(root, running=3, outcome=None), ["s: the next run goes on, because 1 of 4 trials are finished and stay valid."]),
        (
            lambda root: run(root, failed=dict.fromkeys(range(4), "x")),
            [f"s: the next run starts anew, since all its trials failed. 4 finished trials {ASIDE}"],
        ),
        (lambda root: run(root, depends_on={}), []),  # as version 0.1 recorded
        (lambda root: (root / "state/s/record.jsonl").unlink(), []),
        (
            lambda root: (root / "state/s/record.jsonl").write_text("no record\n" * 2),
            ["s: {root}/state/s/record.jsonl: line 1 was altered, or one before it was removed (its checksum does not fit)."],
        ),
    ],
)
def test_what_befell_the_record_or_the_code(root: Path, befalls: Callable[[Path], Any], expected: list[str]) -> None:
    befalls(root)
    found = lines(root)
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True)), found
