"""The lock files can be used on every platform that the workflow names, and name no package index, path or machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import uv
from packaging.version import Version

from raysweep.environment.manifest import LEAST_RAY
from versions import NAMES, NOT_RUN, PACKAGES, PARTS, Column, run_part, table

ROOT = Path(__file__).parents[2]
ENVS = ROOT / "workflow" / "envs"
LOCKS = ("controller", "node", "dashboard", "docs", "dev", *NAMES)
PLATFORMS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin")


def pins(name: str) -> dict[str, set[str]]:
    """Return the locked versions of each package of the lock file `name`."""
    versions: dict[str, set[str]] = {}
    for line in (ENVS / f"{name}.txt").read_text().splitlines():
        package, version = re.fullmatch(r"([a-z0-9-]+)==([^\s;]+)(?: ; .+)?", line).groups()  # type: ignore[union-attr]
        versions.setdefault(package, set()).add(version)
    return versions


@pytest.mark.parametrize("name", LOCKS)
def test_holds_names_versions_and_markers_only(name: str) -> None:
    # `pins` matches whole lines, so that the address of an index, a path, a hash or an option is an error.
    locked = pins(name)
    assert len(locked) > 30
    assert not [version for versions in locked.values() for version in versions if "+" in version], "only one index has a local version"


def test_holds_every_requirement() -> None:
    for name in LOCKS:
        requirements = re.findall(r"^([a-z][a-z0-9-]*)", (ENVS / f"{name}.in").read_text(), re.MULTILINE)
        assert set(requirements) <= set(pins(name)), name


def test_tests_run_on_the_versions_that_users_have() -> None:
    dev, node = pins("dev"), pins("node")
    for package in ("ray", "torch", "torchvision", "numpy", "optuna"):
        assert dev[package] == node[package], package
    assert pins("docs").items() <= dev.items()


def test_the_dashboard_changes_nothing_else() -> None:
    assert pins("node").items() <= pins("dashboard").items()


def test_the_lowest_lock_has_the_lowest_versions_and_the_newest_lock_is_newer_than_the_users() -> None:
    lowest, newest, node = (pins(name) for name in ("lowest", "newest", "node"))
    minimums = dict(re.findall(r"(?m)^([a-z]+)(?:\[[a-z]+\])?>=([\d.]+)", (ENVS / "node.in").read_text()))
    assert tuple(map(int, minimums["ray"].split("."))) == LEAST_RAY
    for package in ("ray", "torch", "torchvision", "torchmetrics", "optuna", "safetensors"):
        [version] = lowest[package]
        assert f"{version}.".startswith(f"{minimums[package]}."), package
        assert max(map(Version, newest[package])) >= max(map(Version, node[package]))


def test_the_table_of_versions_was_written_with_the_present_locks_and_nothing_failed() -> None:
    rows = re.findall(r"(?m)^\| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", (ROOT / "docs" / "versions.md").read_text())
    cells = {name: (low, new) for name, low, new in rows}
    for package in PACKAGES:
        for name, version in zip(NAMES, cells[package], strict=True):
            assert version in pins(name)[package], f"run `make test-versions`: {package}"
    results = [result for part in PARTS for result in cells[part]]
    assert [result for result in results if result != NOT_RUN and ("passed" not in result or "failed" in result)] == []


def test_a_part_that_fails_is_a_failure_in_the_table(tmp_path: Path) -> None:
    (tmp_path / "test_three.py").write_text(
        "import pytest\n\ndef test_one(): pass\n\ndef test_two(): pytest.skip('for a reason')\n\ndef test_three(): assert False\n"
    )
    counts = run_part(Path(sys.executable), [str(tmp_path / "test_three.py")], tmp_path / "tests.xml")
    assert counts == "1 failed, 1 skipped, 1 passed"
    versions = dict.fromkeys(PACKAGES, "1.0")
    failed, passed, skipped = (Column("lowest", versions, dict.fromkeys(PARTS, text)) for text in (counts, "3 passed", "3 skipped"))
    assert [column.has_passed for column in (failed, passed, skipped)] == [False, True, False]
    assert f"\n| neighbours on a node | {counts} | 3 passed |\n" in table([failed, passed], "2026-01-01")


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", LOCKS)
def test_has_a_wheel_of_everything(name: str, platform: str, tmp_path: Path) -> None:
    """Resolve the lock for a platform from wheels alone, without installing. A package that has no wheel for the platform is an error."""
    argv = [uv.find_uv_bin(), "pip", "compile", "--quiet", "--no-deps", "--python-version", "3.11", "--python-platform", platform]
    argv += ["--only-binary", ":all:", "--no-binary", "connection-pool"]  # Snakemake needs connection-pool: pure Python, but no wheel
    run = subprocess.run(
        [*argv, str(ENVS / f"{name}.txt"), "--output-file", str(tmp_path / "out.txt")],
        capture_output=True,
        text=True,
        env=os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"},  # torch's wheels ask for it
        check=False,
    )
    if "error sending request" in run.stderr:
        pytest.skip("no network: the package index is out of reach")
    assert run.returncode == 0, run.stderr


def test_a_list_of_ones_own_is_locked_as_the_documents_say(tmp_path: Path) -> None:
    command = ".venv/bin/uv pip compile --universal --python-version 3.11 sweeps/mine/requirements.in -o sweeps/mine/requirements.txt"
    assert f"```bash\n{command}\n" in (ROOT / "docs" / "own-models.md").read_text()
    begin = [sys.executable, str(ROOT / "workflow/scripts/new_sweep.py"), "--name", "mine", "--like", "tabular"]
    subprocess.run(begin, cwd=tmp_path, check=True, capture_output=True)
    shutil.copytree(ENVS, tmp_path / "workflow" / "envs")
    lock = tmp_path / "sweeps" / "mine" / "requirements.txt"
    lock.unlink()
    argv = [uv.find_uv_bin(), *command.split()[1:]]
    run = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    if "error sending request" in run.stderr:
        pytest.skip("no network: the package index is out of reach")
    assert run.returncode == 0, run.stderr
    locked = re.findall(r"(?m)^([a-z0-9-]+)==", lock.read_text())
    assert {"scikit-learn", "ray", "torch"} <= set(locked)
