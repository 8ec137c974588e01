"""The contracts of pyproject.toml on the rooms of the package: `make lint` fails on an import against any of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "workflow/scripts/raysweep"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Return a copy of the package and of the contracts."""
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command of the Makefile's rule `lint` in `folder`, on a wide terminal, with the Python of the tests."""
    [line] = [line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if "/lint-imports" in line]
    options = line.partition("/lint-imports ")[2].split()
    program = Path(sys.executable).with_name("lint-imports")
    environ = os.environ | {"PYTHONPATH": "workflow/scripts", "COLUMNS": "300"}
    return subprocess.run([sys.executable, str(program), *options], cwd=folder, env=environ, capture_output=True, text=True, check=False)


def test_a_room_that_no_layer_names_is_an_error(sources: Path) -> None:
    (sources / PACKAGE / "attic").mkdir()
    (sources / PACKAGE / "attic" / "__init__.py").touch()
    run = lint_imports(sources)
    assert run.returncode != 0
    assert "raysweep.attic" in run.stdout


def test_an_import_against_each_contract_is_an_error(sources: Path) -> None:
    forbidden_imports = [
        ("common/late.py", "import raysweep.stages", "raysweep.common is not allowed to import raysweep.stages"),
        ("record/late.py", "import raysweep.slurm", "raysweep.record is not allowed to import raysweep.slurm"),
        ("models/late.py", "import raysweep.common", "raysweep.models is not allowed to import raysweep.common"),
        ("report/late.py", "import raysweep.environment", "raysweep.report is not allowed to import raysweep.environment"),
        ("training/late.py", "def load() -> None:\n    import jsonschema", "raysweep.training is not allowed to import jsonschema"),
        ("tune/late.py", "import rich", "raysweep.tune is not allowed to import rich"),
        ("stages/late.py", "import torch", "raysweep.stages is not allowed to import torch"),
        ("stages/later.py", "import snakemake", "raysweep.stages is not allowed to import snakemake"),
        ("slurm/notes.py", "import yaml", "raysweep.slurm.notes is not allowed to import yaml"),
    ]
    for module, line, _ in forbidden_imports:
        with (sources / PACKAGE / module).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    run = lint_imports(sources)
    assert run.returncode != 0
    assert [message for _, _, message in forbidden_imports if message not in run.stdout] == []
    contracts = (sources / "pyproject.toml").read_text(encoding="utf-8").count("[[tool.importlinter.contracts]]")
    assert f"Contracts: 0 kept, {contracts} broken." in run.stdout
