from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from raysweep.allocation import Allocation, Node, available_mem_mb, trial_resources, usable_cpus, usable_gpus
from raysweep.errors import RaysweepError

WANTED = {"cpus_per_node": 10, "gpus_per_node": 1, "mem_mb_per_node": 500}


def node(**changes: Any) -> Allocation:
    return Allocation((dataclasses.replace(Node("n1", cpus=4, gpus=0, mem_mb=1000), **changes),))


def sweep(cpu: float, gpu: float) -> dict[str, Any]:
    return {"trial_resources": {"cpu": cpu, "gpu": gpu}}


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that lists two GPUs, one of them split; on a PATH with nothing else."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "nvidia-smi"
    lines = ["GPU 0: NVIDIA A100 (UUID: GPU-1)", "  MIG 1g.5gb Device 0: (UUID: MIG-1)", "GPU 1: NVIDIA A100 (UUID: GPU-2)"]
    says = "".join(f"echo '{line}'\n" for line in lines)
    program.write_text(f'#!/bin/sh\n[ "$*" = --list-gpus ] || exit 2\n{says}')
    program.chmod(0o755)
    return program


def test_gpus_are_those_that_the_driver_lists(nvidia_smi: Path) -> None:
    assert usable_gpus() == 2


def test_without_the_driver_there_is_none(nvidia_smi: Path) -> None:
    nvidia_smi.unlink()
    assert usable_gpus() == 0


def test_a_driver_that_does_not_run_has_none(nvidia_smi: Path) -> None:
    nvidia_smi.write_text("#!/bin/sh\necho 'GPU 0: seen before the driver failed'\nexit 9\n")
    assert usable_gpus() == 0


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("0,3", 2), (" 1 , 2 ", 2), ("MIG-1,MIG-2", 2), ("0,", 1)])
def test_what_cuda_may_see_counts_before_what_there_is(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, visible: str, count: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert usable_gpus() == count


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to a CPU")
def test_cpus_are_those_that_this_process_may_run_on() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cpus() == 1
        assert Allocation.local(WANTED, threads=8).nodes[0].cpus == 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_local_allocation_is_the_smallest_of_config_threads_and_machine(nvidia_smi: Path) -> None:
    [here] = Allocation.local(WANTED, threads=1).nodes
    assert (here.cpus, here.gpus, here.mem_mb) == (1, 1, 500)
    [here] = Allocation.local(WANTED | {"cpus_per_node": 1, "gpus_per_node": 0, "mem_mb_per_node": 10**9}, threads=10**4).nodes
    assert (here.cpus, here.gpus) == (1, 0)
    assert 0 < here.mem_mb < 10**9


def test_free_memory_is_no_more_than_the_machine_has() -> None:
    assert 0 < available_mem_mb() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def test_a_trial_takes_what_the_config_says() -> None:
    assert trial_resources(sweep(2, 0.5), node(gpus=1)) == {"cpu": 2, "gpu": 0.5}
    assert trial_resources(sweep(4, 0), node()) == {"cpu": 4, "gpu": 0}


def test_without_a_gpu_trials_run_on_the_cpu_and_a_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    wanted = sweep(1, 0.1)
    logging.getLogger("raysweep").propagate = True
    with caplog.at_level(logging.INFO, "raysweep"):
        assert trial_resources(wanted, node()) == {"cpu": 1, "gpu": 0}
        assert trial_resources(sweep(1, 0), node()) == {"cpu": 1, "gpu": 0}
    assert caplog.messages == ["There is no GPU here: the trials run on the CPU."]
    assert wanted == sweep(1, 0.1), "the config stays as it is"


def test_a_trial_that_no_node_can_hold() -> None:
    with pytest.raises(RaysweepError, match=r"trial_resources\.cpu is 5, but this run has 4 CPUs .* run with more --cores"):
        trial_resources(sweep(5, 0), node())
    with pytest.raises(RaysweepError, match=r"trial_resources\.gpu is 2, but this run has 1 GPUs"):
        trial_resources(sweep(1, 2), node(gpus=1))


def test_the_largest_node_decides() -> None:
    both = Allocation((Node("a", 2, 0, 1000), Node("b", 8, 1, 1000)))
    assert trial_resources(sweep(8, 1), both) == {"cpu": 8, "gpu": 1}


def test_what_a_record_says_of_a_node() -> None:
    assert Node("a", 2, 1, 1000).as_dict() == {"name": "a", "cpus": 2, "gpus": 1}
