"""The same texts as in tests/integration/test_metacharacters.py on their way through `sbatch`, with a real Slurm."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from test_metacharacters import FREE, HARMLESS, config_with, value_of

import project
from metacharacters import given, stand_in
from slurm.cluster import REPOSITORY, SlurmCluster
from slurm.sweeps import IMPATIENT

NASTY = " ".join(HARMLESS.values())


@pytest.fixture
def checkout(slurm: SlurmCluster, tmp_path: Path) -> project.Project:
    """A copy of the project whose scripts only write down their arguments, in a folder whose own name is no better."""
    checkout = project.copy_to(tmp_path / "a $(touch pwned) `touch pwned` '$(touch pwned)' project")
    (checkout.root / "cluster").symlink_to(REPOSITORY / "cluster")
    stand_in(checkout.root)
    return checkout


def run(slurm: SlurmCluster, checkout: project.Project, *arguments: str) -> list[str]:
    """Run a sweep and its confirmation as jobs; all words that the stages got."""
    argv = [sys.executable, IMPATIENT, "--executor", "slurm", "--profile", "cluster", *arguments]
    slurm.run(argv, cwd=checkout.root)
    assert not list(checkout.root.parent.rglob("pwned"))
    calls = given(checkout.root)
    assert len(calls) == 6
    return [word for call in calls for word in call]


def test_texts_of_the_config_reach_the_jobs_as_they_are(slurm: SlurmCluster, checkout: project.Project) -> None:
    checkout.write_config(config_with(checkout.root, NASTY, *FREE))
    words = run(slurm, checkout)
    assert all(value_of(key, NASTY) in words for key in FREE if key[-1] in ("python", "requirements", "wheels", "source", "trainable"))


def test_so_do_texts_of_the_command_line(slurm: SlurmCluster, checkout: project.Project) -> None:
    name = f"{NASTY} my.yaml"
    checkout.write(name, yaml.safe_dump(config_with(checkout.root, NASTY)))
    text = NASTY.replace("#", "")  # which begins a comment in what Snakemake takes for YAML
    words = run(slurm, checkout, "--configfile", name, "--config", f"state_dir={text}")
    for rule in ("run_sweep", "confirm"):
        assert words.count(f"{checkout.root}/{text}/.jobs/rule_{rule}_wildcards_s/config.yaml") == 1, (
            "each job has its own copy of the config"
        )
