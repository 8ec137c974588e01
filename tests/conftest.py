from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import project


@pytest.fixture
def checkout(tmp_path: Path) -> project.Project:
    """A clean checkout, in a folder whose name holds spaces."""
    return project.copy_to(tmp_path / "a clean checkout")


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
