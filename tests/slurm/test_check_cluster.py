"""`snakemake check_cluster` on a real Slurm: a cluster on which all is well, and faults that it names before a sweep meets them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import IS_ROOT, SlurmCluster
from slurm.conftest import Factory
from slurm.sweeps import SlurmProject, wait_until_idle

NVIDIA_SMI = '#!/bin/sh\necho "GPU 0: made up (UUID: GPU-0)"\necho "GPU 1: made up (UUID: GPU-1)"\n'
Found = dict[str, tuple[str, str]]  # of each check its state, and what the table says


@pytest.fixture
def project(slurm: SlurmCluster, tmp_path: Path) -> Iterator[SlurmProject]:
    yield SlurmProject(slurm, tmp_path / "a project")
    wait_until_idle(slurm)


def check(project: SlurmProject, *arguments: str) -> tuple[int, str, Found]:
    """Exit code, all that was printed, and what the tables say."""
    run = project.cluster.run(project.command("check_cluster", *arguments), cwd=project.folder, check=False, stderr=subprocess.STDOUT)
    assert "Traceback" not in run.stdout, run.stdout
    rows = re.findall(r"^(ok|warning|FAILED) +(\S.{17}) (.*(?:\n {28}.*)*)", run.stdout, re.MULTILINE)
    return run.returncode, run.stdout, {name.strip(): (state, " ".join(text.split())) for state, name, text in rows}


def asked_again(project: SlurmProject) -> set[str]:
    """The rules of check_cluster that the same command would run now."""
    run = project.cluster.run(project.command("check_cluster", "--dry-run"), cwd=project.folder)
    return set(re.findall(r"^(?:local)?rule (check_\w+):", run.stdout + run.stderr, re.MULTILINE))


def test_all_is_well_on_two_nodes_and_asked_again_it_looks_again(project: SlurmProject) -> None:
    project.sweep(nodes=2, cpus=2)
    shutil.rmtree(project.folder / "resources")  # the command installs the environment
    code, printed, found = check(project)
    assert code == 0, printed
    assert {state for state, _ in found.values()} <= {"ok", "warning"}, printed  # a warning where this machine's disk is nearly full
    assert found["nodes"] == ("ok", "srun runs the controller's Python on node1, node2")
    assert found["TCP"] == ("ok", "each node reaches each other")
    # Of nodes whose free space is the same, it is written once. Other tests write to the disk between the two looks.
    assert re.fullmatch(r"(?:(?:node1: |node2: )?/mnt/[^;]+ GB free(?:; )?){1,2}", found["node-local disk"][1])
    assert re.search(r"Ray is up on 2 of 2 nodes after .* 4 CPUs, 0 GPUs .*; a task ran on each node", found["Ray cluster"][1])
    assert re.search(r"2 × \(2 CPUs, 4000 MB\), 60 minutes: could start at", found["sweep s"][1])
    assert "torch" not in found, "no GPUs were asked for"
    assert max(map(len, printed[printed.index("Slurm, 20") :].split("check_cluster: ")[0].splitlines())) <= 100
    assert list((project.folder / "state").glob(".check/*")) == []
    assert asked_again(project) == {"check_login", "check_nodes", "check_cluster"}


def test_a_gpu_that_torch_cannot_use_is_told_from_one_that_is_not_there_with_a_made_up_nvidia_smi(
    project: SlurmProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = project.folder.parent / "bin"
    programs.mkdir()
    (programs / "nvidia-smi").write_text(NVIDIA_SMI)
    (programs / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    project.sweep(gpus=1, trial_resources={"cpu": 1, "gpu": 1})
    code, printed, found = check(project)
    assert code == 1
    assert found["GPUs"] == ("ok", "1 given, nvidia-smi lists 2")
    assert found["Ray cluster"][0] == "ok"
    assert re.search(r"computes on 0 of 1 GPUs → Choose a torch_backend", found["torch"][1])
    assert re.search(r"^Error: check_cluster: 1 of \d+ checks FAILED \(torch\)", printed, re.MULTILINE)
    assert asked_again(project) == {"check_login", "check_nodes", "check_cluster"}, "what was found is not taken for new"


@pytest.mark.skipif(not IS_ROOT, reason="only root can hide a folder from a node")
def test_a_node_that_does_not_share_the_folder_of_the_controllers_python_is_named(project: SlurmProject) -> None:
    project.cluster.run(["mount", "-t", "tmpfs", "none", sys.prefix], node="node2")
    try:
        project.sweep(nodes=2, cpus=2)
        code, _, found = check(project)
    finally:
        project.cluster.run(["umount", sys.prefix], node="node2")
    assert code == 1
    state, text = found["nodes"]
    assert state == "FAILED"
    assert text.startswith("node2: no answer: ")
    assert "No such file or directory" in text
    assert "share" in text
    assert found["shared folder"][0] == "ok", "of the node that answered"
    assert found["Ray cluster"][1].startswith("not tried, since this has failed: nodes")


def test_a_node_that_is_out_of_service_is_named_and_no_job_waits_for_it(project: SlurmProject) -> None:
    project.cluster.run(["scontrol", "update", "nodename=node2", "state=drain", "reason=a bad disk"])
    try:
        project.sweep(nodes=3)
        code, printed, found = check(project)
    finally:
        project.cluster.run(["scontrol", "update", "nodename=node2", "state=resume"])
    assert code == 1
    assert "Requested node configuration is not available" in found["sweep s"][1]
    assert "node2 (drained, a bad disk)" in found["sweep s"][1]
    assert "has been submitted" not in printed
    assert re.search(r"^Error: check_cluster: 1 of \d+ checks FAILED \(sweep s\): .* No job was submitted", printed, re.MULTILINE)


def test_accounts_and_what_slurm_refuses(start_slurm: Factory, tmp_path: Path) -> None:
    project = SlurmProject(start_slurm(nodes=1, accounting=True), tmp_path / "a project")
    project.sweep(runtime=30)
    code, _, found = check(project, "--default-resources", "slurm_account=nobodys", "slurm_partition=short")
    assert code == 1
    assert found["accounting"] == ("ok", "sacct answers")
    assert found["account"][0] == "FAILED"
    assert re.search(r"slurm_account is nobodys, which is none of yours \(.*def-tests.*\)", found["account"][1])
    state, text = found["sweep s"]
    assert state == "FAILED"
    assert re.search(r"Slurm says '.*(account|time limit).*' → Change ", text)
