"""The program on the page runs."""

from __future__ import annotations

import html
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysweep.data.manifest import Validation
from raysweep.report.report import figures_of, render
from raysweep.report.snippet import snippet
from reporting import made_up
from staging import stage_into

LOADER = """
def predict(rows):
    return [f"{rows.dtype} {len(rows)}"]
model = "a model"
"""


@pytest.mark.slow
def test_the_snippet_for_a_model_loads_the_model_and_predicts_rows_of_the_validation_split(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", x=generator.normal(50, 20, (90, 3)), y=generator.normal(1000, 100, 90))
    made_up_sweep = made_up(tmp_path, model="net.py:Net", search_space={"lr": 0.1, "batch_size": 4})
    data_dir = tmp_path / "resources/data/cifar10"
    inputs = replace(
        made_up_sweep, data=stage_into(tmp_path, tmp_path / "own.npz", output_dir=data_dir, validation=Validation(3)), data_dir=data_dir
    )
    inputs.model_dir.mkdir(parents=True)
    (inputs.model_dir / "load.py").write_text(LOADER)  # stands in for the program of a published model, which test_published_model.py runs
    text = snippet(inputs, tmp_path)
    assert str(tmp_path) not in text, "paths start at the workflow's folder"
    assert text.endswith("# in the unit of the target")
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "float64 8\n"), done.stderr
    page = render(inputs, figures_of(inputs), tmp_path)
    assert f">{html.escape('import runpy')}" in page
    assert "standardised with the mean and the standard deviation of the training part" in page
    assert "3 folds, drawn with seed 0<" in page.replace("\n", "")
    assert "0.2 of all rows, set aside with the same seed before that split<" in page.replace("\n", "")


def test_the_snippet_for_a_trainable_names_the_checkpoint_and_runs(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, {"on": "validation"}, dataset=None, model=None, optimizer=None, loss=None, trainable="train.py:train")
    inputs.model_dir.mkdir(parents=True)
    (inputs.model_dir / "weights.pt").write_text("")
    done = subprocess.run([sys.executable, "-c", snippet(inputs, tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["results/lenet/model/weights.pt"]
    assert done.stdout.splitlines()[0] == str(inputs.winner.config)


@pytest.mark.slow
def test_numbers_without_a_literal_stand_in_the_snippet_as_python(tmp_path: Path) -> None:
    trainable = {"dataset": None, "model": None, "optimizer": None, "loss": None, "trainable": "train.py:train"}
    space = {"a": math.inf, "b": {"c": -math.inf}, "d": {"choice": [[1, math.nan]]}, "e": "inf"}
    inputs = made_up(tmp_path, {"on": "validation"}, search_space=space, **trainable)
    known: dict[str, Any] = {}
    exec(snippet(inputs, tmp_path), known)
    assert repr(known["config"]) == repr({"a": math.inf, "b": {"c": -math.inf}, "d": [1, math.nan], "e": "inf"})
    assert f">{html.escape('from pathlib')}" in render(inputs, figures_of(inputs), tmp_path)
