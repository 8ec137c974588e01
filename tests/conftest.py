from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import project as checkouts
import sweeping


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long modules first, so that no worker is left with one of them at the end (with --dist loadfile --no-loadscope-reorder)."""
    long = (
        *(
            "test_clean_end",
            "test_lost_nodes",
            "test_sweep",
            "test_neighbours",
            "test_walltime",
            "test_faults",
            "test_environment_on_slurm",
        ),
        *("test_no_one_let_in", "test_status", "test_going_on", "test_end_to_end", "test_run_sweep", "test_state", "test_report_page"),
    )
    items.sort(key=lambda item: long.index(item.path.stem) if item.path.stem in long else len(long))


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
