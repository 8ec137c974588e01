"""The files that the report reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raysweep.common.errors import RaysweepError
from raysweep.common.files import read_yaml, write_yaml
from raysweep.record.gpu_use import FOLDER
from recorded import write_outputs, write_record
from reporting import made_up, read_written


def test_files_of_another_sweep_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    outputs = write_outputs(tmp_path, write_record(path))
    with pytest.raises(RaysweepError, match="belongs to the sweep 'lenet', not to 'resnet'"):
        read_written(path, outputs | {"sweep_name": "resnet"})
    best = read_yaml(outputs["path_to_best"])
    write_yaml(outputs["path_to_best"], best | {"trial_id": "99999"})
    with pytest.raises(RaysweepError, match=r"trial 99999 is not in the record .* -R run_sweep"):
        read_written(path, outputs)


def test_gpus_that_an_agent_measured_before_or_after_a_session_do_not_count(tmp_path: Path) -> None:
    first, second = made_up(tmp_path, interruptions=1).sessions
    assert made_up(tmp_path, interruptions=1).gpu_use == ()
    times = [first.at.replace("2026", "2025"), first.at, first.last_at, second.at, second.last_at, second.at.replace("2026", "2027")]
    lines = [json.dumps({"at": at, "node": "n", "seconds": 10, "percent": [number]}) + "\n" for number, at in enumerate(times)]
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "7-n.jsonl").write_text("".join(lines))
    assert [use.percent for use in made_up(tmp_path, interruptions=1).gpu_use] == [(1,), (2,), (3,), (4,)]
