"""What is noted of the jobs of a run, and how messages name them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fake_slurm import COMMENT
from raysweep.slurm import notes


@pytest.mark.parametrize(
    ("rule", "sweep", "name"),
    [("run_sweep", "lenet", "sweep lenet"), ("confirm", "a_b", "sweep a_b, confirm"), ("check_cluster", "", "check_cluster")],
)
def test_jobs_are_called_what_users_call_them(rule: str, sweep: str, name: str) -> None:
    assert notes.name_of(rule, sweep) == name


def test_notes_are_lines_of_json(run_dir: Path) -> None:
    lines = (run_dir / "notes.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"job": "12", "what": COMMENT, "log": "12.log", "folder": str(run_dir)}]
