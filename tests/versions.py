"""Runs a part of the tests with the lowest and with the newest versions of the packages: `make test-versions` writes the table of docs/versions.md.

The locks lowest.txt and newest.txt in workflow/envs hold the versions. The workflow's own script builds an environment from each lock.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from raysweep.config.reference import with_table
from raysweep.environment.manifest import Environment

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("ray", "torch", "torchvision", "optuna", "safetensors", "numpy")
NAMES = ("lowest", "newest")
NOT_RUN = "not run"
# The words in the table → the tests.
PARTS = {
    "private names of Ray, Tune and torch": ["unit/tune/test_private.py", "unit/training/test_private.py"],
    "all schedulers, one trial in a process": [
        "integration/test_run_sweep.py::test_schedulers_stop_trials_early",
        "integration/test_pbt.py",
    ],
    "trials trained together": ["integration/test_trained_together.py"],
    "resumption": [
        "integration/test_going_on.py::test_a_killed_driver_costs_only_what_was_not_checkpointed",
        "integration/test_going_on.py::test_an_interrupted_run_leaves_no_process_and_goes_on",
        "integration/test_going_on.py::test_more_trials_and_a_wider_space_go_on_and_fewer_keep_what_there_is",
    ],
    "nobody is let in": ["slurm/test_no_one_let_in.py"],
    "neighbours on a node": ["slurm/test_neighbours.py"],
}


@dataclass(frozen=True)
class Column:
    """Contains what the table says about one environment: the versions of the packages, and the result of each part."""

    name: str
    versions: dict[str, str]
    results: dict[str, str]

    @property
    def has_passed(self) -> bool:
        return all(result == NOT_RUN or ("passed" in result and "failed" not in result) for result in self.results.values())


def build(name: str, resources_dir: Path) -> Environment:
    """Build the environment of the lock `name`, or return the environment where it is complete."""
    output_dir = resources_dir / f"env-{name}"
    argv = [".venv/bin/python", "workflow/scripts/build_env.py", "--python", ".venv/bin/python"]
    argv += ["--requirements", f"workflow/envs/{name}.in", "--output-dir", str(output_dir), "--log", f"logs/env-{name}.log"]
    subprocess.run(argv, cwd=REPOSITORY, check=True)
    return Environment.load(output_dir)


def run_part(python: Path, tests: list[str], report: Path) -> str:
    """Run tests with an environment's Python and return the counts, for instance `12 passed`. `report` is the file for pytest's results."""
    report.unlink(missing_ok=True)
    argv = [str(python), "-m", "pytest", "-p", "no:cacheprovider", "--quiet", f"--junitxml={report}"]
    subprocess.run([*argv, *(str(REPOSITORY / "tests" / test) for test in tests)], cwd=REPOSITORY, check=False)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    count = {key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    counts = {"failed": failed, "skipped": count["skipped"], "passed": count["tests"] - failed - count["skipped"]}
    return ", ".join(f"{number} {word}" for word, number in counts.items() if number) or "no test"


def table(columns: list[Column], date: str) -> str:
    """Return the table as Markdown."""
    rows = [["", *(column.name for column in columns)], ["---"] * (len(columns) + 1)]
    rows += [[package, *(column.versions[package] for column in columns)] for package in PACKAGES]
    rows += [[part, *(column.results[part] for column in columns)] for part in PARTS]
    lines = [f"Written by `make test-versions` on {date}, with Python {platform.python_version()}.", ""]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resources-dir", type=Path, default=REPOSITORY / "resources", help="folder for the environments")
    parser.add_argument("--only", default="", help="words in the name of a part; the other parts are not run")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "versions.md")
    args = parser.parse_args()
    columns = []
    for name in NAMES:
        environment = build(name, args.resources_dir)
        report = args.resources_dir / f"env-{name}" / "tests.xml"
        results = {part: run_part(environment.python, tests, report) if args.only in part else NOT_RUN for part, tests in PARTS.items()}
        columns.append(Column(name, environment.packages, results))
    text = table(columns, f"{datetime.now(UTC):%Y-%m-%d}")
    args.output.write_text(with_table(args.output.read_text(encoding="utf-8"), text, args.output), encoding="utf-8")
    print(text)
    if not all(column.has_passed for column in columns):
        sys.exit("Error: not all tests passed")


if __name__ == "__main__":
    main()
