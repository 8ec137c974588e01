from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm.cluster import SlurmCluster
from slurm.packages import reason_to_skip

Factory = Callable[..., SlurmCluster]


@pytest.fixture(scope="session")
def _start_cluster(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., contextlib.AbstractContextManager[SlurmCluster]]:
    """Makes clusters whose nodes see the tests' folders. Skips where this machine cannot run any."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        owners = tmp_path_factory.getbasetemp().parent / "slurm-workers"
        owners.mkdir(exist_ok=True)
        (owners / worker).touch()
        assert len(list(owners.iterdir())) <= 2, "all tests on Slurm are for two workers: see ByModule"

    def start(**options: Any) -> contextlib.AbstractContextManager[SlurmCluster]:
        base = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # not below pytest's folder: that path is too long for a socket
        return SlurmCluster(base, shared=[tmp_path_factory.getbasetemp()], **options)

    return start


@pytest.fixture(scope="session")
def slurm(_start_cluster: Factory) -> Iterator[SlurmCluster]:
    """Three nodes with 12 CPUs, 2 GPUs and 16,000 MB each, without accounting. All tests share it: they leave it idle and whole."""
    with _start_cluster() as cluster:
        yield cluster


@pytest.fixture
def start_slurm(_start_cluster: Factory) -> Iterator[Factory]:
    """Starts a cluster of a test's own, with options of SlurmCluster."""
    with contextlib.ExitStack() as clusters:
        yield lambda **options: clusters.enter_context(_start_cluster(**options))
