"""The environment on the nodes of a real Slurm: from a folder of wheels without a network, after the modules, on each node's own disk."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from slurm.cluster import GUEST, IS_ROOT, REPOSITORY, SlurmCluster, wait_until
from slurm.conf import address
from slurm.sweeps import SlurmProject, listening, project_on, stranger_tries
from sweeping import sweep_of

WHEELS = REPOSITORY / "resources" / "test-wheels"
# A site's `module` is a shell function of login shells. This one is made up: it only says what it was told to load.
PROFILE = 'module() { [ "$1" = load ] && shift && export MODULE_LOADED="$*"; }\n'


@pytest.fixture(scope="module")
def wheelhouse() -> Path:
    """A folder with the wheels of Ray and its dashboard, in the versions of the lock: downloaded once, 200 MB."""
    done = WHEELS / "done"
    lock = (REPOSITORY / "workflow" / "envs" / "dashboard.txt").read_text()
    if not done.exists() or done.read_text() != lock:
        WHEELS.mkdir(parents=True, exist_ok=True)
        (WHEELS / "ray.in").write_text("ray[default,tune]\n")
        uv = [REPOSITORY / ".venv" / "bin" / "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-emit-index-url"]
        constraints = ["--constraints", REPOSITORY / "workflow" / "envs" / "dashboard.txt"]
        subprocess.run([*uv, "--universal", "ray.in", *constraints, "--output-file", "ray.txt"], cwd=WHEELS, check=True)
        pip = [REPOSITORY / ".venv" / "bin" / "python", "-m", "pip", "download", "--quiet", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*pip, "--requirement", "ray.txt", "--dest", "."], cwd=WHEELS, check=True)
        done.write_text(lock)
    return WHEELS


@pytest.fixture
def project(slurm: SlurmCluster, tmp_path: Path, wheelhouse: Path) -> Iterator[SlurmProject]:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".bash_profile").write_text(PROFILE)
    sweep = sweep_of("waits", allocation={"nodes": 2, "cpus_per_node": 2, "runtime": 60}, num_samples=2, trial_resources={"cpu": 2})
    env = {"python": os.path.realpath(sys.executable), "modules": ["made-up/1.0", "arrow"]}
    env |= {"requirements": str(wheelhouse / "ray.in"), "wheels": str(wheelhouse)}
    with project_on(slurm, tmp_path / "a project") as project:
        project.configure(env=env, ray={"dashboard": True}, sweeps={"s": sweep})
        yield project


def of_user(project: SlurmProject) -> dict[str, str]:
    """His environment: his home, and no cache in which uv could find what the wheelhouse lacks."""
    return {"HOME": str(project.folder.parent / "home"), "UV_NO_CACHE": "1"}


def test_wheels_without_a_network_on_each_nodes_own_disk_after_a_made_up_module_and_the_dashboard_on_request(project: SlurmProject) -> None:
    run = project.start(env=of_user(project))
    begun = project.folder / "begun"
    wait_until(lambda: begun.exists() or run.poll() is not None, "a trial begins", 400)
    assert begun.exists(), f"{run.communicate()[0]}\n{project.log()}"
    [told] = re.findall(
        r"Ray's dashboard: (ssh -J (\S+) -L (\d+):127\.0\.0\.1:\3 (node1)), then (http://\S+) \(it asks for the token: .*cat (\S+)\)",
        project.log(),
    )
    _, via, port, node, url, token_path = told
    assert via == "login"
    ask = "import sys, urllib.request as r; print(r.urlopen(r.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + open(sys.argv[2]).read()})).status)"
    assert project.cluster.run([sys.executable, "-c", ask, url, token_path], node=node).stdout.strip() == "200"
    own = address(node)
    refused = project.cluster.run([sys.executable, "-c", ask, f"http://{own}:{port}", token_path], node=node, check=False)
    assert "Connection refused" in refused.stderr, "only the loopback has it"
    no_server_of_figures_answers_a_stranger(project.cluster, project.cluster.node_path(node, token_path).read_text())
    (project.folder / "go").touch()
    assert run.wait(400) == 0
    for trial in project.trials("s"):
        facts = json.loads((project.folder / f"seen-{float(trial['config/x']):.6f}.json").read_text())
        assert facts["python"].startswith("/mnt/"), "on the node's own disk"
        assert facts["module"] == "made-up/1.0 arrow"
    [record] = (project.folder / "resources" / "env").glob("*/env.yaml")
    assert yaml.safe_load(record.read_text())["wheels"] == str(WHEELS)


def no_server_of_figures_answers_a_stranger(cluster: SlurmCluster, token: str) -> None:
    """Neither the dashboard, nor the servers of its agents, nor those that Ray has for Prometheus. The dashboard's first page is for everyone, and empty."""
    nodes = ("node1", "node2")
    running = [(node, pid) for node in nodes for pid, line in cluster.node_processes(node).items() if "/srun " not in line]
    ports = {(host, port) for node, pid in running for _, port in listening(pid) for host in (address(node), "127.0.0.1")}
    what = {"targets": sorted(ports), "methods": [], "requests": [("GET", path) for path in ("/metrics", "/logs", "/nodes?view=summary")]}

    def statuses(node: str, token: str | None) -> set[int]:
        answers = stranger_tries(cluster, "ports", node, GUEST if IS_ROOT else None, token=token, **what)
        return {status[0] for answer in answers.values() for status in answer["http"].values() if status}

    assert [statuses(node, None) for node in ("node1", "node3")] == [{401}, {401}]
    assert 200 in statuses("node1", token)


@pytest.mark.skipif(not IS_ROOT, reason="only root can make a node's disk small")
def test_a_node_without_room_for_the_environment_is_named_in_snakemakes_own_output(project: SlurmProject) -> None:
    project.cluster.run(["mount", "-t", "tmpfs", "-o", "mode=1777,size=20m", "none", "/mnt"], node="node2")
    try:
        run = project.best(check=False, env=of_user(project))
        [line] = [line for line in (run.stdout + run.stderr).splitlines() if line.startswith("Error") and "no room" in line]
        assert run.returncode == 1
        assert "node2" in line
        assert "GB are free" in line
    finally:
        project.cluster.run(["umount", "/mnt"], node="node2")
