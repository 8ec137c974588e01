"""What check_cluster makes of what Slurm's commands print: edges first. A real Slurm: tests/slurm/test_check_cluster.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raysweep.cluster.check import slurm_checks as checks
from raysweep.cluster.check.slurm_checks import ProgramOutput, SlurmFacts
from raysweep.cluster.check.table import CheckResult
from raysweep.common.errors import RaysweepError
from typed import sweep_config

ACCOUNTED = "AccountingStorageEnforce = associations,limits\nAccountingStorageType   = accounting_storage/slurmdbd\n"
NOTHING = ProgramOutput(0, "")
FAILS = ProgramOutput(1, "sacct: error: no slurmdbd")
FACTS = SlurmFacts(version=NOTHING, config="", sacct=NOTHING, sacctmgr=NOTHING, quota=NOTHING, wanted_account="", project_dir=Path("/"))
ALLOCATION = replace(sweep_config().allocation, nodes=2, cpus_per_node=4, gpus_per_node=0, mem_mb_per_node=8000, runtime="1h")


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("slurm-wlm 22.05.8", "ok"),
        ("slurm 25.11.0-0rc1", "ok"),
        ("slurm 22.04.9", "warning"),
        ("slurm 21.08.8-2", "warning"),
        ("", "warning"),
    ],
)
def test_slurms_version(text: str, state: str) -> None:
    assert checks.check_version(replace(FACTS, version=ProgramOutput(0, text))).state == state


@pytest.mark.parametrize(
    ("config", "state"), [("", "warning"), ("KillWait = 19 sec", "warning"), ("KillWait                = 20 sec", "ok")]
)
def test_kill_wait(config: str, state: str) -> None:
    assert checks.check_kill_wait(replace(FACTS, config=config)).state == state


def test_a_job_is_remembered_until_snakemake_asks_for_it_or_is_accounted() -> None:
    assert checks.check_min_job_age(replace(FACTS, config="MinJobAge = 300 sec")).state == "ok"
    assert checks.check_min_job_age(replace(FACTS, config="MinJobAge = 180 sec")).state == "warning"
    assert checks.check_min_job_age(FACTS).state == "warning"
    accounted = replace(FACTS, config=f"MinJobAge = 2 sec\n{ACCOUNTED}")
    assert checks.check_min_job_age(accounted) == CheckResult(
        "MinJobAge", "ok", "Slurm forgets jobs 2 s after their end, accounting does not"
    )
    assert checks.check_min_job_age(replace(accounted, sacct=FAILS)).state == "warning"


def test_accounting() -> None:
    assert checks.check_accounting(replace(FACTS, config="AccountingStorageType = accounting_storage/none\n", sacct=FAILS)).state == "ok"
    assert checks.check_accounting(replace(FACTS, config="AccountingStorageType = (null)\n", sacct=FAILS)).state == "ok"
    assert checks.check_accounting(replace(FACTS, config=ACCOUNTED)) == CheckResult("accounting", "ok", "sacct answers")
    broken = checks.check_accounting(replace(FACTS, config=ACCOUNTED, sacct=FAILS))
    assert broken.state == "warning"
    assert "no slurmdbd" in broken.finding


@pytest.mark.parametrize(
    ("config", "sacctmgr", "wanted", "state", "finding"),
    [
        ("", ProgramOutput(1, "sacctmgr: error: off"), "", "ok", "keeps no accounts"),
        ("", ProgramOutput(1, "sacctmgr: error: off"), "def-a", "FAILED", "slurm_account is def-a"),
        (ACCOUNTED, ProgramOutput(None, "sacctmgr does not answer within 30 s"), "def-a", "warning", "does not answer"),
        (ACCOUNTED, ProgramOutput(0, ""), "", "FAILED", "you have none"),
        (ACCOUNTED, ProgramOutput(0, "def-a"), "", "ok", "def-a"),
        (ACCOUNTED, ProgramOutput(0, "def-a\ndef-a\ndef-b"), "", "warning", "def-a, def-b"),
        (ACCOUNTED, ProgramOutput(0, "def-a\ndef-b"), "DEF-B", "ok", "DEF-B"),
        (ACCOUNTED, ProgramOutput(0, "def-a"), "def-c", "FAILED", "none of yours (def-a)"),
        (ACCOUNTED.replace("associations,limits", "none"), ProgramOutput(0, "def-a"), "def-c", "warning", "none of yours"),
        (ACCOUNTED.replace("associations,limits", "none"), ProgramOutput(0, ""), "", "ok", "none needed"),
    ],
)
def test_account(config: str, sacctmgr: ProgramOutput, wanted: str, state: str, finding: str) -> None:
    result = checks.check_account(replace(FACTS, config=config, sacctmgr=sacctmgr, wanted_account=wanted))
    assert result.state == state
    assert finding in result.finding


def test_a_sweep_that_slurm_would_take_says_when_and_a_sweep_that_it_refuses_says_what_to_change() -> None:
    text = "sbatch: Job 7 to start at 2026-01-02T03:04:05 using 8 processors on nodes n[1-2] in partition main"
    assert checks.check_sweep("s", ALLOCATION, {}, ProgramOutput(0, text), NOTHING) == CheckResult(
        "sweep s", "ok", "2 × (4 CPUs, 8000 MB), 60 minutes: could start at 2026-01-02T03:04:05"
    )
    refusal = ProgramOutput(1, "a banner\nallocation failure: Requested time limit is invalid")
    refused = checks.check_sweep("s", ALLOCATION, {"slurm_partition": "short"}, refusal, NOTHING)
    assert refused.state == "FAILED"
    assert "Slurm says 'Requested time limit is invalid'" in refused.finding
    assert "sweeps.s.allocation.runtime (now 60 minutes)" in refused.remedy
    assert "slurm_partition (now short)" in refused.remedy
    busy = ProgramOutput(1, "allocation failure: busy")
    out = checks.check_sweep("s", ALLOCATION, {}, busy, ProgramOutput(0, "n2 (down*, no power)"))
    assert "out of service: n2 (down*, no power)" in out.finding
    hangs = ProgramOutput(None, "sbatch does not answer within 30 s")
    assert checks.check_sweep("s", ALLOCATION, {}, hangs, NOTHING).state == "FAILED"


def test_slurm_is_asked_for_the_same_as_the_plugin_asks_for() -> None:
    resources = {"slurm_account": "def-a", "slurm_partition": "", "qos": "high"}
    argv = checks.dry_run_command(replace(ALLOCATION, gpus_per_node=2, gpu_type="a100-sxm4"), resources)
    assert argv[:2] == ["sbatch", "--test-only"]
    assert {"--nodes=2", "--ntasks=2", "--cpus-per-task=4", "--mem=8000", "--time=60", "--account=def-a", "--qos=high"} <= set(argv)
    assert "--gpus-per-node=a100-sxm4:2" in argv
    assert not [word for word in argv if "partition" in word]
    argv = checks.dry_run_command(replace(ALLOCATION, partitions=("gpu", "gpu-preempt"), runtime_min=30), {"slurm_partition": "main"})
    assert [word for word in argv if "partition" in word] == ["--partition=gpu,gpu-preempt"]
    assert "--time-min=30" in argv


@pytest.mark.parametrize(
    ("quota", "state", "finding"),
    [
        (ProgramOutput(None, "quota cannot be run"), None, "free on the disk"),
        (ProgramOutput(0, "Disk quotas for user a (uid 1): none"), None, "free on the disk"),
        (
            ProgramOutput(0, "     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace\n /d  5 0 0 0 7 0 0 0"),
            None,
            "free on the disk",
        ),
        (ProgramOutput(0, "     Filesystem  blocks ...\n host:/home 1000000* 900000 1000000 6days 10 0 0 0"), "warning", "-0.1 GB"),
        (
            ProgramOutput(0, "/lustre/with/a/long/path\n     1000 2000 2000 - 99000 100000 110000 -"),
            "warning",
            "and 1000 files free by quota",
        ),
    ],
)
def test_the_room_on_the_projects_disk_is_by_the_quota_where_a_program_tells_it(
    quota: ProgramOutput, state: str | None, finding: str, tmp_path: Path
) -> None:
    result = checks.check_project_disk(replace(FACTS, project_dir=tmp_path, quota=quota))
    assert finding in result.finding
    assert state in (None, result.state)


# ---------------------------------------------------------------------------------------------------------------- made-up programs


def make_programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Put programs on PATH that run lines of a shell script."""
    folder.mkdir(exist_ok=True)
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_program_that_hangs_or_does_not_exist_has_no_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_programs(tmp_path / "bin", monkeypatch, quota="exec sleep 60")
    monkeypatch.setattr(checks, "PROGRAM_DEADLINE_S", 0.2)
    assert checks.run_program("quota") == ProgramOutput(None, "quota does not answer within 0.2 s")
    assert checks.run_program("no-such-program").exit_code is None


def test_all_checks_run_on_what_the_programs_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_programs(
        tmp_path / "bin",
        monkeypatch,
        scontrol='[ "$1" = --version ] && echo slurm 24.05.1 || echo "KillWait = 30 sec"',
        sbatch='echo "sbatch: Job 7 to start at 2026-01-02T03:04:05" >&2',
        sacct="exit 1",
        sacctmgr="exit 1",
        sinfo="exit 0",
        quota="exit 1",
    )
    results = checks.check_slurm({"a": ALLOCATION, "b": ALLOCATION}, {}, tmp_path)
    names = ["Slurm", "accounting", "account", "KillWait", "MinJobAge", "project's disk", "sweep a", "sweep b"]
    assert [result.name for result in results] == names
    assert (results[0].finding, results[3].state) == ("24.05.1", "ok")
    assert results[-1].finding.endswith("could start at 2026-01-02T03:04:05")


def test_without_slurm_or_its_answer_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RaysweepError, match="there is no sbatch here"):
        checks.check_slurm({}, {}, tmp_path)
    make_programs(
        tmp_path / "bin", monkeypatch, sbatch="exit 0", scontrol="echo a banner; echo Unable to contact slurm controller >&2; exit 1"
    )
    with pytest.raises(RaysweepError, match="Slurm does not answer: Unable to contact slurm controller"):
        checks.check_slurm({}, {}, tmp_path)
