from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import project as checkouts
import sweeping


@pytest.hookimpl(tryfirst=True)  # before xdist looks for its marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker has all tests on Slurm, which would get in each other's way on two cores; the other has the rest, module by module (--dist loadgroup
    --no-loadscope-reorder). Those on Slurm come first, and then the long ones, so that no worker is left with one of them at the end."""
    long = ("test_faults", "test_going_on", "test_end_to_end", "test_run_sweep", "test_state", "test_report_page")
    for item in items:
        item.add_marker(pytest.mark.xdist_group("slurm" if item.path.parent.name == "slurm" else item.path.stem))
    items.sort(key=lambda item: (item.path.parent.name != "slurm", long.index(item.path.stem) if item.path.stem in long else len(long)))


@pytest.fixture
def checkout(tmp_path: Path) -> checkouts.Project:
    """A clean checkout, in a folder whose name holds spaces."""
    return checkouts.copy_to(tmp_path / "a clean checkout")


@pytest.fixture(autouse=True)
def _own_logger() -> Iterator[None]:
    """Give the package's logger back as it was: entry points send it to the terminal and to logs of their own."""
    logger = logging.getLogger("raysweep")
    before = logger.level, logger.propagate, list(logger.handlers)
    yield
    for handler in logger.handlers:
        if handler not in before[2]:
            handler.close()
    logger.level, logger.propagate, logger.handlers = before


@pytest.fixture
def project(tmp_path: Path) -> Iterator[sweeping.Project]:
    """A folder of a user with his trainables; at the end of the test no process of his may be left."""
    project = sweeping.Project(tmp_path / "a project")  # paths with spaces are part of every test
    project.write("user.py", sweeping.TRAINABLES)
    yield project
    assert sweeping.ours(project.folder) == [], "processes were left behind"
