"""A function of the user's own that returns arrays or a Dataset."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from raysweep.common.errors import RaysweepError
from raysweep.common.typed_json import to_json
from raysweep.data.manifest import read_manifest
from raysweep.data.split import load_split
from staging import files_under, stage_into
from typed import described_environment
from user_files import write_files

SCRIPT = Path(__file__).parents[3] / "workflow/scripts/stage_data.py"
HEAD = "import numpy as np\nX = np.arange(120.0).reshape(60, 2)\nY = np.arange(60) % 3\n"
DATASET = """
class Rows:
    reads = 0

    def __len__(self):
        return 60

    def __getitem__(self, row):
        assert row == Rows.reads, "each item is read once"
        Rows.reads += 1
        return X[row], Y[row]

def make():
    return Rows()
"""


def stage_function(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch, **values: Any) -> Any:
    """Stage what the function `make` returns. Each test has its own file, because a process imports a file only once."""
    write_files(folder, {f"{folder.name}.py": HEAD + body})
    monkeypatch.chdir(folder)
    return stage_into(folder, f"{folder.name}.py:make", **values)


@pytest.mark.parametrize("body", ["def make():\n    return X, Y\n", "def make():\n    return {'x': X, 'y': Y}\n", DATASET])
def test_a_pair_a_map_and_a_dataset_give_the_data_of_the_same_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    manifest = stage_function(tmp_path, body, monkeypatch)
    assert (manifest.kind, manifest.classes, manifest.image_shape) == ("arrays", ("0", "1", "2"), (2,))
    np.savez(tmp_path / "own.npz", x=np.arange(120.0).reshape(60, 2), y=np.arange(60) % 3)
    assert stage_into(tmp_path, tmp_path / "own.npz", output_dir=tmp_path / "other").data_sha256 == manifest.data_sha256


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("return None", r"\.py:make: the function returned NoneType\. Allowed: a map of arrays with the keys x and y"),
        ("return X", r"\.py:make: the function returned ndarray\. Allowed"),
        ("return [X, Y]", r"\.py:make: the function returned list\. Allowed"),
        ("return X, Y, Y", r"\.py:make: the function returned tuple\. Allowed"),
        ("return {'features': X, 'y': Y}", r"\.py:make: has the arrays features, y\. Allowed: x and y, or x_train"),
        ("return X, Y[1:]", r"\.py:make: x has 60 rows, but y has 59\."),
        ("return X, [None] * 60", r"\.py:make: y has rows of different shapes, or objects\. Allowed"),
        ("return X.astype(int), Y", r"\.py:make: x has the type int64\. Allowed: uint8"),
        ("return open('nothing.bin')", r"\.py:make: the function raised FileNotFoundError: .*nothing\.bin.*\. The log has the traceback\."),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, line: str) -> None:
    with pytest.raises(RaysweepError, match=line) as raised:
        stage_function(tmp_path, f"def make():\n    {body}\n", monkeypatch)
    assert len(str(raised.value).splitlines()) == 1
    assert [name for name in files_under(tmp_path) if name.endswith(".npy")] == []


def test_the_checksum_of_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RaysweepError, match=r"checksum: 'md5:0+' is for a file, but '.*:make' is none\. Allowed: upstream, none\."):
        stage_function(tmp_path, "def make():\n    return X, Y\n", monkeypatch, checksum=f"md5:{'0' * 32}")


@pytest.mark.slow
def test_the_program_runs_itself_in_the_environment_of_the_trials(tmp_path: Path) -> None:
    write_files(tmp_path, {"my data.py": HEAD + "import helper\ndef make():\n    print('made')\n    return helper.twice(X), Y\n"})
    write_files(tmp_path, {"helper.py": "def twice(x):\n    return 2 * x\n"})
    environment = described_environment(wheels="none", python=Path(sys.executable))
    write_files(tmp_path, {"env/env.yaml": yaml.safe_dump(to_json(environment))})
    argv = [
        sys.executable,
        str(SCRIPT),
        "--name",
        "own",
        "--source",
        "my data.py:make",
        "--env-dir=env",
        "--checksum",
        "none",
        "--seed",
        "0",
    ]
    argv += ["--validation-fraction", "0.1", "--downloads-dir", "downloads", "--output-dir", "out", "--log", "logs/own.log"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["own: 43 train, 5 validation, 12 test rows (from my data.py:make) in out"]
    assert read_manifest(tmp_path / "out").source == "my data.py:make"
    assert not (load_split(tmp_path / "out", "test")[0] % 2).any()
    refused = subprocess.run(
        [*argv, "--task=regression", "--test-fraction=2"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: datasets.own.test_fraction: 2.0 is not allowed")
