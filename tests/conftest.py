from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

import project as checkouts
import sweeping

ON_SLURM = Path(__file__).parent / "slurm"
LONG = ("test_faults", "test_going_on", "test_end_to_end", "test_run_sweep", "test_state", "test_page", "test_module")


class ByModule(LoadScopeScheduling):
    """One worker has all tests on Slurm, which would get in each other's way on two cores; the other has the rest, module by module.

    (xdist_group is no way to say so: with pytest 9.2 xdist 3.8 takes no notice of it, pytest-xdist#1386.)
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return "slurm" if module.startswith("tests/slurm/") else module


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByModule:
    return ByModule(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on Slurm come first, and then the long ones, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: (item.path.parent != ON_SLURM, LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG)))


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
