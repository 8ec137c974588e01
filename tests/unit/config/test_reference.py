from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from configs import ROOT, check, config, num_trials, own
from raysweep.config.reference import PATH_TO_README, reference, with_table


def test_the_table_of_the_readme_fits_the_schema() -> None:
    text = PATH_TO_README.read_text(encoding="utf-8")
    assert with_table(text, reference(), PATH_TO_README) == text, "run workflow/scripts/config_reference.py"


def test_a_table_that_is_out_of_date_is_told_and_mended(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    text = (ROOT / "config/README.md").read_text()
    readme.write_text(text.replace("| `results_dir` |", "| `result_dir` |"))
    command = [sys.executable, str(ROOT / "workflow/scripts/config_reference.py"), "--readme", str(readme)]
    done = subprocess.run([*command, "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "run workflow/scripts/config_reference.py" in done.stderr
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    assert readme.read_text() == text


def test_the_example_of_the_readme_is_valid(root: Path) -> None:
    """A sweep, one example of each distribution, and a recipe."""
    blocks = (ROOT / "config/README.md").read_text().split("```yaml\n")[1:]
    example, space, recipe = (yaml.safe_load(block.partition("```")[0]) for block in blocks)
    assert num_trials(check(root, example)) == 20
    assert num_trials(check(root, own(**space))) == 2
    assert check(root, config(**recipe, max_epochs=3))["sweeps"]["s"]["training"]["schedule"] == {"name": "cosine", "epochs": None}
