"""Trials in an Apptainer image. Apptainer cannot be had on every machine, so a stand-in on PATH takes its command line and runs the command as it is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raysweep.environment.commands import in_container
from sweeping import ENV, Project, sweep_of

STAND_IN = """#!/bin/sh
# apptainer exec [--nv] --env NAME=VALUE --bind FOLDER IMAGE COMMAND…
echo "$@" >> "{log}"
[ "$1" = exec ] && shift
[ "$1" = --nv ] && shift
[ "$1" = --env ] && export "$2" && shift 2
[ "$1" = --bind ] && shift 2
IFS=,
for folder in $APPTAINER_BIND; do [ -e "$folder" ] || {{ echo "FATAL: mount source $folder doesn't exist" >&2; exit 255; }}; done
unset IFS
[ -e "$1" ] || {{ echo "FATAL: could not open image $1" >&2; exit 255; }}
export APPTAINER_CONTAINER="$1"
shift
exec "$@"
"""
USER = """
import os
from ray import tune

def shows(config):
    assert os.environ["APPTAINER_CONTAINER"] == "images/my image.sif"
    assert os.environ["PYTHONNOUSERSITE"] == "1"
    tune.report({"score": config["x"]})
"""


@pytest.fixture
def apptainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the stand-in on PATH; the file in which it notes its calls."""
    folder, log = tmp_path / "programs", tmp_path / "calls"
    folder.mkdir()
    (folder / "apptainer").write_text(STAND_IN.format(log=log))
    (folder / "apptainer").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return log


@pytest.fixture
def contained(project: Project) -> Project:
    (project.folder / "images").mkdir()
    (project.folder / "images/my image.sif").touch()
    project.write("user.py", USER)
    project.configure(
        env={"container": "images/my image.sif", "python": sys.executable, "requirements": ENV["requirements"]},
        sweeps={"s": sweep_of("shows", num_samples=2, confirm={"seeds": 1})},
    )
    return project


def test_a_sweep_runs_in_a_stand_in_for_apptainer(contained: Project, apptainer: Path) -> None:
    run = contained.snakemake("results/s/confirmed.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    assert [row["status"] for row in contained.trials("s")] == ["TERMINATED"] * 2
    calls = apptainer.read_text().splitlines()
    for part in ("ray.scripts", "drive.py --job", "from importlib.metadata"):
        found = [call for call in calls if part in call]
        assert found, part
        assert all("--env PYTHONNOUSERSITE=1 --bind" in call and " images/my image.sif " in call for call in found)
    (described,) = contained.folder.glob("resources/env/*/env.yaml")
    assert yaml.safe_load(described.read_text())["container"] == "images/my image.sif"
    assert not list(contained.folder.glob("resources/env/*/venv"))


def test_another_image_is_another_environment(contained: Project, apptainer: Path) -> None:
    def key() -> str:
        run = contained.snakemake("--dry-run")
        assert run.returncode == 0, run.stdout + run.stderr
        return next(word for word in run.stdout.split() if "resources/env/" in word)

    before = key()
    (contained.folder / "images/my image.sif").write_text("newer")
    assert key() != before


@pytest.mark.parametrize(
    ("env", "line"),
    [
        (
            {"container": "none.sif"},
            "env.container: 'none.sif' is not allowed: there is no such image. Make one from workflow/envs/image.def",
        ),
        (
            {"container": "images/my image.sif", "wheels": "site"},
            "env.wheels: 'site' is not allowed with container, whose environment is taken as it is: leave it out",
        ),
        (
            {"container": "images/my image.sif", "cache_dir": "/a"},
            "env.cache_dir: '/a' is not allowed with wheels: none, where there is nothing to keep: leave it out",
        ),
    ],
)
def test_mistakes_are_one_line(contained: Project, env: dict[str, Any], line: str) -> None:
    config = contained.config()
    contained.configure(env=env | {"requirements": ENV["requirements"]}, sweeps=config["sweeps"])
    run = contained.snakemake("--dry-run")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == f"Error: c.yaml: {line}"


def test_a_path_that_apptainer_would_cut_is_named_at_once(contained: Project) -> None:
    contained.configure(**contained.config() | {"state_dir": "one, two"})
    run = contained.snakemake("--dry-run")
    assert run.returncode == 1
    told = "an image is not allowed here: Apptainer takes a comma or colon for the end of a path, as in"
    assert run.stderr.splitlines()[-1] == f"Error: c.yaml: env.container: {told} {contained.folder}/one, two"


def test_without_apptainer_it_is_one_line(contained: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = contained.folder / "programs"
    programs.mkdir()
    for name in ("bash", "sh", "env", "which"):
        (programs / name).symlink_to(f"/bin/{name}" if Path(f"/bin/{name}").exists() else f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(programs))
    run = contained.snakemake("--until", "build_env")
    assert run.returncode == 1
    assert (
        "Error: env.container: apptainer cannot be run (No such file or directory): load its module (env.modules)"
        in run.stdout + run.stderr
    )


def test_gpus_are_passed_in_where_made_up_programs_of_the_vendors_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert in_container("a.sif", ["python3"])[:3] == ["apptainer", "exec", "--env"]
    for name, options in (("nvidia-smi", ["--nv"]), ("rocm-smi", ["--nv", "--rocm"]), ("amd-smi", ["--nv", "--rocm"])):
        (tmp_path / name).touch(mode=0o755)
        assert in_container("a.sif", ["python3"])[: 3 + len(options)] == ["apptainer", "exec", *options, "--env"]
    assert in_container(None, ["python3"]) == ["python3"]
