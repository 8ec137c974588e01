"""What the Slurm plugin is told in each case in which it would else wait for ever. Slurm's programs are fakes on PATH."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path

import pytest
from snakemake_executor_plugin_slurm.job_status_query import query_job_status_sacct, query_job_status_squeue

from fake_slurm import Fakes, call
from raysweep.slurm import status as states
from raysweep.slurm.notes import append, read_notes
from raysweep.slurm.status import HOPELESS, status


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("PENDING", "PENDING"),
        ("RUNNING", "RUNNING"),
        ("COMPLETING", "COMPLETING"),
        ("REQUEUED", "REQUEUED"),
        ("COMPLETED", "COMPLETED"),
        ("TIMEOUT", "TIMEOUT"),
        ("OUT_OF_MEMORY", "OUT_OF_MEMORY"),
        ("PREEMPTED", "CANCELLED"),
        ("NODE_FAIL", "FAILED"),
        ("REVOKED", "FAILED"),
    ],
)
def test_states_of_a_fake_squeue_in_words_that_the_plugin_knows(fakes: Fakes, run_dir: Path, state: str, told: str) -> None:
    fakes.answer("squeue", out=f"12|12|{state}|n1|n1|None|\n")
    for query in (query_job_status_squeue("a-run"), query_job_status_sacct("a-run")):  # there is no sacct, and it is not needed
        program, *arguments = shlex.split(query)
        done = call(program, *arguments, run_dir=run_dir)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"12|{told}\n", "")


def test_while_a_fake_squeue_fails_the_answer_is_what_was_known(fakes: Fakes, run_dir: Path) -> None:
    fakes.answer("squeue", err="slurm_load_jobs error: Unable to contact slurm controller", code=1)
    assert status(run_dir) == {"12": "PENDING"}
    fakes.answer("squeue", out="12|12|RUNNING|n1|n1|None|\n")
    assert status(run_dir) == {"12": "RUNNING"}
    fakes.answer("squeue", code=1)
    assert status(run_dir) == {"12": "RUNNING"}


def test_what_a_site_lets_a_fake_squeue_say_besides_is_not_a_job(fakes: Fakes, run_dir: Path) -> None:
    fakes.answer("squeue", out="Maintenance on Monday!\n12|12|RUNNING|n1|n1|None|\n")
    assert status(run_dir) == {"12": "RUNNING"}


def test_defaults_of_the_users_hide_no_job_from_a_fake_squeue(fakes: Fakes, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    fakes.answer("squeue", out="12|12|RUNNING|n1|n1|None|\n")
    assert status(run_dir) == {"12": "RUNNING"}
    assert "SQUEUE_PARTITION" not in fakes.environment_of("squeue")


def test_a_job_that_a_fake_squeue_never_showed_is_complete_when_it_said_so_itself(fakes: Fakes, run_dir: Path) -> None:
    fakes.answer("squeue")
    (run_dir / "12.exit").write_text("0\n")
    assert status(run_dir) == {"12": "COMPLETED"}
    fakes.answer("squeue", code=1)
    assert status(run_dir) == {"12": "COMPLETED"}


def test_a_job_that_a_fake_squeue_forgot_has_failed_when_it_said_so_itself(fakes: Fakes, run_dir: Path) -> None:
    fakes.answer("squeue")
    (run_dir / "12.exit").write_text("1\n")
    assert status(run_dir) == {"12": "FAILED"}


def test_a_fake_squeue_is_asked_once_in_the_interval_and_a_job_that_said_it_is_complete_needs_no_answer(
    fakes: Fakes, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYSWEEP_SQUEUE_INTERVAL_S")
    append(run_dir, job="13", what="rule_confirm_wildcards_lenet", log="13.log")
    fakes.answer("squeue", out="12|12|RUNNING|n1|n1|None|\n13|13|RUNNING|n1|n1|None|\n")
    for _ in range(3):
        assert status(run_dir) == {"12": "RUNNING", "13": "RUNNING"}
    assert len(fakes.calls("squeue")) == 1
    (run_dir / "12.exit").write_text("0\n")
    assert status(run_dir) == {"12": "COMPLETED", "13": "RUNNING"}
    assert len(fakes.calls("squeue")) == 1
    os.utime(run_dir / "asked", (0, time.time() - states.INTERVAL_S))
    assert status(run_dir) == {"12": "COMPLETED", "13": "RUNNING"}  # squeue has not yet been told of the end of 12
    assert len(fakes.calls("squeue")) == 2
    for no_number in ("", "half a minute", "-1", "1e3", "nan"):
        monkeypatch.setenv("RAYSWEEP_SQUEUE_INTERVAL_S", no_number)
        assert status(run_dir) == {"12": "COMPLETED", "13": "RUNNING"}
    assert len(fakes.calls("squeue")) == 2


def test_a_fake_squeue_is_asked_at_once_why_a_job_failed(fakes: Fakes, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYSWEEP_SQUEUE_INTERVAL_S")
    fakes.answer("squeue", out="12|12|RUNNING|n1|n1|None|\n")
    assert status(run_dir) == {"12": "RUNNING"}
    (run_dir / "12.exit").write_text("143\n")
    fakes.answer("squeue", out="12|12|COMPLETING|n1|n1|None|\n")
    assert status(run_dir) == {"12": "COMPLETING"}
    fakes.answer("squeue", out="")  # is not asked at once again
    assert status(run_dir) == {"12": "COMPLETING"}
    asked = time.time() - states.ENDED_INTERVAL_S
    os.utime(run_dir / "asked", (asked, asked))
    fakes.answer("squeue", out="12|12|PENDING|n1|n1|BeginTime|\n")
    assert status(run_dir) == {"12": "PENDING"}  # Slurm starts the job again
    os.utime(run_dir / "12.exit", (0, time.time() - states.ENDED_S))
    fakes.answer("squeue", out="12|12|RUNNING|n1|n1|None|\n")
    assert status(run_dir) == {"12": "PENDING"}
    os.utime(run_dir / "asked", (0, time.time() + 3600))  # a clock was changed
    assert status(run_dir) == {"12": "RUNNING"}
    assert len(fakes.calls("squeue")) == 4


@pytest.mark.parametrize(
    ("accounted", "told"),
    [
        ("CANCELLED by 1001", "CANCELLED"),
        ("COMPLETED", "COMPLETED"),
        ("TIMEOUT", "TIMEOUT"),
        ("NODE_FAIL", "FAILED"),
        ("PREEMPTED", "CANCELLED"),
    ],
)
def test_a_fake_sacct_says_how_a_forgotten_job_ended(fakes: Fakes, run_dir: Path, accounted: str, told: str) -> None:
    fakes.answer("squeue")
    fakes.answer("sacct", out=f"12|{accounted}\n")
    assert status(run_dir) == {"12": told}
    assert fakes.calls("sacct") == ["--allocations --noheader --parsable2 --jobs=12 --format=JobIDRaw,State"]
    status(run_dir)
    assert len(fakes.calls("sacct")) == 1  # what has ended is not asked about again


@pytest.mark.parametrize("accounted", ["", "12|RUNNING\n"])
def test_a_job_that_nobody_knows_is_not_taken_for_complete_and_fails_after_a_while(fakes: Fakes, run_dir: Path, accounted: str) -> None:
    """With fakes of squeue and sacct. Snakemake would find the outputs of an earlier run. RUNNING: accounting was not told of the end."""
    fakes.answer("squeue", out="12|12|RUNNING|n1|n1|None|\n")
    status(run_dir)
    fakes.answer("squeue")
    fakes.answer("sacct", out=accounted)
    assert status(run_dir) == {"12": "RUNNING"}
    since = read_notes(run_dir).jobs["12"].missing_since
    assert status(run_dir) == {"12": "RUNNING"}
    assert read_notes(run_dir).jobs["12"].missing_since == since
    append(run_dir, job="12", missing_since=time.time() - states.FORGOTTEN_S - 1)
    assert status(run_dir) == {"12": "FAILED"}


def test_a_job_that_a_fake_squeue_shows_again_was_not_lost(fakes: Fakes, run_dir: Path) -> None:
    append(run_dir, job="12", state="RUNNING", missing_since=time.time() - states.FORGOTTEN_S - 1)
    fakes.answer("squeue", out="12|12|RUNNING|n1|n1|None|\n")
    status(run_dir)
    fakes.answer("squeue")
    assert status(run_dir) == {"12": "RUNNING"}


@pytest.mark.parametrize(
    "reason",
    [
        "PartitionNodeLimit",
        "PartitionTimeLimit",
        "PartitionConfig",
        "BadConstraints",
        "InvalidAccount",
        "InvalidQOS",
        "QOSNotAllowed",
        "AssocMaxWallDurationPerJobLimit",
        "AssocMaxGRESPerJob",
        "QOSMaxCpuMinutesPerJobLimit",
        "QOSMaxNodePerJobLimit",
        "QOSMinCpuNotSatisfied",
        "JobHeldAdmin",
        "JobHoldMaxRequeue",
        "launch failed requeued held",
        "DependencyNeverSatisfied",
    ],
)
def test_a_job_that_waits_for_what_will_not_come_is_cancelled_by_a_fake_scancel(fakes: Fakes, run_dir: Path, reason: str) -> None:
    fakes.answer("squeue", out=f"12|12|PENDING|n1|n1|{reason}|\n")
    assert status(run_dir) == {"12": "PENDING"}
    assert fakes.calls("scancel") == []  # once may be a moment of Slurm's
    status(run_dir)
    assert fakes.calls("scancel") == ["--state=PENDING 12"]
    assert read_notes(run_dir).jobs["12"].hopeless == reason


@pytest.mark.parametrize("state", ["REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"])
def test_a_held_job_is_cancelled_by_a_fake_scancel(fakes: Fakes, run_dir: Path, state: str) -> None:
    fakes.answer("squeue", out=f"12|12|{state}|n1|n1|None|\n")
    status(run_dir)
    status(run_dir)
    assert fakes.calls("scancel") == ["--state=PENDING 12"]


@pytest.mark.parametrize(
    "reason",
    [
        "None",
        "Priority",
        "Resources",
        "Dependency",
        "BeginTime",
        "JobHeldUser",
        "PartitionDown",
        "AssocGrpCpuLimit",
        "QOSMaxJobsPerUserLimit",
        "ReqNodeNotAvail, UnavailableNodes:node3",
        "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
    ],
)
def test_what_may_pass_is_waited_for(reason: str) -> None:
    assert not HOPELESS.fullmatch(reason)


@pytest.mark.parametrize(
    ("nodes", "names", "requeue_code", "state"),
    [
        ("n1", "", 0, "RUNNING"),
        ("n[1-2]", "n1\nn2", 0, "RUNNING"),
        ("n[2-3]", "n2\nn3", 0, "PENDING"),
        ("n2", "n2", 0, "PENDING"),
        ("n2", "n2", 1, "RUNNING"),  # a scontrol that does not answer tells nothing of the nodes either
    ],
)
def test_a_job_that_lost_its_first_node_is_started_again_by_a_fake_scontrol(
    fakes: Fakes, run_dir: Path, nodes: str, names: str, requeue_code: int, state: str
) -> None:
    fakes.answer("squeue", out=f"12|12|RUNNING|n1|{nodes}|None|\n")
    fakes.answer("scontrol", out=names, code=requeue_code)
    assert status(run_dir) == {"12": state}
    assert ("requeue 12" in fakes.calls("scontrol")) == (state == "PENDING")


def test_a_full_disk_or_a_torn_note_costs_no_answer_of_a_fake_squeue(fakes: Fakes, run_dir: Path, tmp_path: Path) -> None:
    fakes.answer("squeue", out="12|12|RUNNING|n1|n1|None|\n")
    assert append(tmp_path / "cannot be written", job="12") is False
    with (run_dir / "notes.jsonl").open("a") as stream:
        stream.write('{"job": "12", "sta\n')
    assert status(run_dir) == {"12": "RUNNING"}


@pytest.mark.parametrize(
    ("states", "told"),
    [
        (["PENDING", "RUNNING", "FAILED"], "RUNNING"),
        (["COMPLETED", "PENDING"], "PENDING"),
        (["FAILED", "TIMEOUT"], "FAILED"),
        (["TIMEOUT"], "TIMEOUT"),
        (["COMPLETED", "FAILED"], "PENDING"),  # as before, because the exit code of the sweep becomes visible soon
    ],
)
def test_a_job_array_of_a_fake_squeue_is_one_job(fakes: Fakes, run_dir: Path, states: list[str], told: str) -> None:
    fakes.answer("squeue", out="".join(f"12_{number}|12|{state}|n1|n1|None|\n" for number, state in enumerate(states)))
    assert status(run_dir) == {"12": told}
    (run_dir / "12.exit").write_text("0\n")
    assert status(run_dir) == {"12": "COMPLETED"}


def test_accounting_of_a_fake_sacct_says_nothing_about_an_array(fakes: Fakes, run_dir: Path) -> None:
    """Accounting has the state of the jobs that the job which finished the sweep has cancelled. The exit code is not visible here yet."""
    append(run_dir, job="12", is_array=True, state="RUNNING")
    fakes.answer("squeue", out="12_0|12|COMPLETED|n1|n1|None|\n12_1|12|CANCELLED|n1|n1|None|\n")
    fakes.answer("sacct", out="12|CANCELLED by 1001\n")
    assert status(run_dir) == {"12": "RUNNING"}
    (run_dir / "12.exit").write_text("0\n")
    assert status(run_dir) == {"12": "COMPLETED"}


def test_slurm_is_asked_at_most_six_questions_in_a_minute_for_64_jobs_with_fakes_of_squeue_sacct_scontrol_and_scancel(
    fakes: Fakes, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The life of a sweep: Snakemake asks each 10 s. The clock is moved, and `scontrol show hostnames` asks nobody."""
    monkeypatch.delenv("RAYSWEEP_SQUEUE_INTERVAL_S")
    now, jobs = time.time(), range(64)
    asked: list[int] = []
    exit_file = run_dir / "12.exit"
    for name in ("sacct", "scancel", "squeue"):
        fakes.answer(name)
    fakes.answer("scontrol", out="n1\n")
    monkeypatch.setattr(time, "time", lambda: now)

    def questions() -> int:
        calls = [line for name in ("squeue", "sacct", "scontrol", "scancel") for line in fakes.calls(name)]
        return len([line for line in calls if not line.startswith("show hostnames")])

    def live(steps: int, *states: str, num_lost: int = 0) -> str:
        """Let the jobs have these states while Snakemake asks so often, and return the last answer."""
        nonlocal now
        first = ["n2" if job < num_lost else "n1" for job in jobs]
        lines = [f"12_{job}|12|{states[job % len(states)]}|{first[job]}|n1|None|\n" for job in jobs] if states else []
        fakes.answer("squeue", out="".join(lines))
        for _ in range(steps):
            now += 10
            before, began = questions(), time.clock_gettime(time.CLOCK_REALTIME) - 1
            told = status(run_dir)["12"]
            asked.append(questions() - before)
            for path in run_dir.iterdir():
                if began < path.stat().st_mtime < began + 60:  # the file was written in this step
                    os.utime(path, (now, now))
        return told

    now += 10_000  # so that the moved clock is never near to the real one
    assert live(12, "PENDING") == "PENDING"
    assert live(12, "PENDING", "RUNNING", "COMPLETED") == "RUNNING"
    assert live(6, "RUNNING", num_lost=1) == "RUNNING"  # the job that has lost its first node is started again
    assert "requeue 12_0" in fakes.calls("scontrol")
    exit_file.write_text("143\n")
    os.utime(exit_file, (now, now))
    assert live(12, "COMPLETING") == "COMPLETING"
    exit_file.unlink()
    assert live(12, "REQUEUE_HOLD") == "REQUEUE_HOLD"
    assert live(12, "RUNNING") == "RUNNING"
    assert live(15) == "FAILED"  # Slurm has forgotten the jobs
    assert live(6) == "FAILED"
    minutes = [sum(asked[start : start + 6]) for start in range(len(asked) - 5)]
    assert max(minutes) <= 6, minutes
    assert min(minutes[:40]) > 0
