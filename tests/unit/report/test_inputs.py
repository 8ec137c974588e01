"""The files that the report reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.common.errors import RaysweepError
from raysweep.common.files import read_yaml, write_yaml
from recorded import write_outputs, write_record
from reporting import read_written


def test_files_of_another_sweep_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    outputs = write_outputs(tmp_path, write_record(path))
    with pytest.raises(RaysweepError, match="belongs to the sweep 'lenet', not to 'resnet'"):
        read_written(path, outputs | {"sweep_name": "resnet"})
    best = read_yaml(outputs["path_to_best"])
    write_yaml(outputs["path_to_best"], best | {"trial_id": "99999"})
    with pytest.raises(RaysweepError, match=r"trial 99999 is not in the record .* -R run_sweep"):
        read_written(path, outputs)
