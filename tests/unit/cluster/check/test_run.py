"""The rules of check_cluster, up to the job. A real cluster: tests/slurm/test_check_cluster.py."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import project
from raysweep.cluster.check import run
from raysweep.cluster.check.table import CheckResult, Section
from raysweep.common.errors import RaysweepError

FINE = CheckResult("a", "ok", "fine")
SUSPECT = CheckResult("b", "warning", "slow", "Wait")
BROKEN = CheckResult("c", "FAILED", "broken", "Mend it")


def test_a_failed_check_ends_the_run_with_one_line_and_a_warning_does_not() -> None:
    run.raise_if_failed([Section("", (FINE, SUSPECT))], "next")
    with pytest.raises(RaysweepError, match=r"1 of 2 checks FAILED \(c\): the table above says what to do. next"):
        run.raise_if_failed([Section("", (FINE,)), Section("", (BROKEN,))], "next")


def test_the_table_is_printed_and_its_inputs_are_gone_whatever_they_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("raysweep").propagate = True
    caplog.set_level(logging.INFO, "raysweep")
    paths = [tmp_path / "login.json", tmp_path / "nodes.json"]
    for path in paths:
        run.write_section(path, Section(path.stem, (FINE, SUSPECT)))
    run.run_table(paths)
    assert caplog.messages[0].splitlines()[1:3] == ["login", "ok       a                  fine"]
    assert caplog.messages[-1] == "check_cluster: 4 checks, 2 warnings, nothing FAILED."
    run.write_section(paths[0], Section("login", (BROKEN,)))
    with pytest.raises(RaysweepError, match=r"1 of 1 checks FAILED \(c\)"):
        run.run_table(paths[:1])
    assert list(tmp_path.iterdir()) == []


def test_outside_of_slurm_one_line_says_what_it_takes_and_nothing_is_built(checkout: project.Project) -> None:
    done = checkout.snakemake("check_cluster", "--cores", "1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Error: check_cluster looks at a cluster: run it with --executor slurm --profile cluster"
    assert "Traceback" not in done.stderr
    assert not (checkout.root / "resources").exists()


def test_a_dry_run_names_the_job_in_the_shape_of_the_sweep_with_the_most_nodes(checkout: project.Project) -> None:
    config = checkout.read_config()
    small = config["sweeps"]["lenet"]
    config["sweeps"]["large"] = small | {
        "allocation": {"nodes": 3, "cpus_per_node": 2, "gpus_per_node": 1, "mem_mb_per_node": 5000, "runtime": "2h"}
    }
    checkout.write_config(config)
    done = checkout.snakemake("check_cluster", "--dry-run")
    assert done.returncode == 0, done.stderr
    printed = done.stdout + done.stderr
    job = printed[printed.index("rule check_nodes:") :]
    assert "nodes=3" in job
    assert "mem_mb=5000" in job
    assert "runtime=20" in job
    assert "rule run_sweep" not in printed
