from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

import project as checkouts
import sweeping

ON_SLURM = Path(__file__).parent / "slurm"
# The modules on Slurm that run on the first of two clusters. They take about as long as all others on Slurm.
FIRST_ON_SLURM = ("test_sweep", "test_lost_nodes", "test_controller", "test_walltime", "test_status", "test_metacharacters_on_slurm")
# The modules that take longest, in the order in which they run.
LONG = ("test_faults", "test_going_on", "test_end_to_end", "test_run_sweep", "test_state", "test_page", "test_module")

# On a busy machine Hypothesis draws slowly, and examples take long. Neither is a fault.
settings.register_profile("without timings", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("without timings")


class ByModule(LoadScopeScheduling):
    """A scheduler that gives the tests on Slurm to two workers, and the other tests to the other workers, module by module.

    All tests on Slurm of one worker share one cluster. The mark `xdist_group` cannot be used, because xdist 3.8 ignores the mark with pytest 9.2
    (pytest-xdist#1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        if not module.startswith("tests/slurm/"):
            return module
        return "slurm 1" if Path(module).stem in FIRST_ON_SLURM else "slurm 2"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByModule:
    return ByModule(config, log)


def pytest_configure() -> None:
    """Let the processes that tests start receive SIGINT and SIGHUP, although a background job or `nohup` ignores both.

    A child inherits an ignored signal, and not a handler.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests: tests on Slurm first, then the long modules, so that no worker runs a long module alone at the end."""
    items.sort(key=lambda item: (item.path.parent != ON_SLURM, LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG)))


@pytest.fixture
def checkout(tmp_path: Path) -> checkouts.Project:
    """Return a clean checkout, in a folder whose name holds spaces."""
    return checkouts.copy_to(tmp_path / "a clean checkout")


@pytest.fixture(autouse=True)
def _own_logger() -> Iterator[None]:
    """Restore the package's logger after each test, because entry points add a terminal and log files to the logger."""
    logger = logging.getLogger("raysweep")
    before = logger.level, logger.propagate, list(logger.handlers)
    yield
    for handler in logger.handlers:
        if handler not in before[2]:
            handler.close()
    logger.level, logger.propagate, logger.handlers = before


@pytest.fixture
def project(tmp_path: Path) -> Iterator[sweeping.Project]:
    """Return a user's folder with trainables, and fail if a process of the user is left at the end of the test."""
    project = sweeping.Project(tmp_path / "a project")  # paths with spaces are part of every test
    project.write("user.py", sweeping.TRAINABLES)
    yield project
    left = sweeping.ours(project.folder)
    sweeping.end_processes_of(project.folder)
    assert left == [], "processes were left behind"
