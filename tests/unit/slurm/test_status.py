"""What the Slurm plugin is told in each case in which it would else wait for ever, and what it submits. Slurm's programs are fakes on PATH."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake.persistence.file import FilePersistence
from snakemake_executor_plugin_slurm.job_status_query import query_job_status_sacct, query_job_status_squeue
from snakemake_executor_plugin_slurm.submit_string import get_submit_command

from raysweep.slurm import status as slurm_client
from raysweep.slurm.status import (
    HOPELESS,
    JobNote,
    RefusalNote,
    append,
    incomplete_mark,
    is_status_query,
    is_submission,
    read_notes,
    status,
)

BIN = Path(__file__).parents[3] / "cluster" / "bin"
FAKE = """#!/bin/sh
printf '%s\\n' "$*" >> '{folder}/{name}.calls'
env > '{folder}/{name}.env'
[ -p /dev/stdin ] && cat > '{folder}/{name}.stdin'
cat '{folder}/{name}.out'
cat '{folder}/{name}.err' >&2
exit "$(cat '{folder}/{name}.code')"
"""
COMMENT = "rule_run_sweep_wildcards_lenet"


class Fakes:
    """Programs of Slurm that answer what they are told to, and remember how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def answer(self, name: str, out: str = "", err: str = "", code: int = 0) -> None:
        for suffix, text in (("out", out), ("err", err), ("code", str(code))):
            (self.folder / f"{name}.{suffix}").write_text(text)
        program = self.folder / name
        program.write_text(FAKE.format(folder=self.folder, name=name))
        program.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def environment_of(self, name: str) -> dict[str, str]:
        lines = (self.folder / f"{name}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    fakes = Fakes(tmp_path / "fakes")
    fakes.answer("scancel")
    monkeypatch.setenv("PATH", f"{fakes.folder}:/usr/bin:/bin")  # which hold no Slurm
    monkeypatch.setenv("RAYSWEEP_SQUEUE_INTERVAL_S", "0")
    monkeypatch.setattr(slurm_client, "STARTED", time.monotonic())
    return fakes


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The folder of a run that has submitted job 12."""
    folder = tmp_path / ".snakemake/raysweep/a run"
    folder.mkdir(parents=True)
    (tmp_path / ".snakemake/incomplete").mkdir()
    (folder / "outputs.json").write_text(json.dumps({COMMENT: "results/lenet/trials.csv"}))
    append(folder, job="12", what=COMMENT, log="12.log")
    return folder


def call(program: str, *arguments: str, run_dir: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Call one of cluster/bin as the plugin does: it is first on PATH."""
    env = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "RAYSWEEP_PYTHON": sys.executable}
    if run_dir:
        env |= {"RAYSWEEP_RUN_DIR": str(run_dir), "RAYSWEEP_STATE_DIR": "/projects/state"}
    return subprocess.run(
        [program, *arguments], env=env, input="#!/bin/sh\nsh -c 'exit 3'", capture_output=True, text=True, check=False, timeout=60
    )


def submit_arguments(run_dir: Path) -> list[str]:
    """How the plugin calls sbatch."""
    resources = {"mem_mb": 100, "nodes": 1, "tasks": 1, "mpi": "", "runtime": 5, "slurm_extra": "--ntasks-per-node=1"}
    job: Any = SimpleNamespace(resources=_Resources(resources), threads=2)
    params = {"run_uuid": "a-run", "slurm_logfile": f"{run_dir}/%j.log", "comment_str": COMMENT, "account": " -A def-x", "partition": ""}
    line = get_submit_command(job, params | {"workdir": "/projects"}) + " /dev/stdin"
    return shlex.split(line)[1:]


class _Resources(dict[str, Any]):
    __getattr__ = dict.__getitem__


def test_the_plugins_own_calls_are_known(run_dir: Path) -> None:
    for program, query in (("squeue", query_job_status_squeue("a-run")), ("sacct", query_job_status_sacct("a-run"))):
        name, *arguments = shlex.split(query)
        assert name == program
        assert is_status_query(program, arguments)
        assert slurm_client.option(arguments, "--name") == "a-run"
    assert is_submission("sbatch", submit_arguments(run_dir))


def test_all_other_calls_reach_a_fake_squeue_as_they_are(fakes: Fakes, run_dir: Path) -> None:
    fakes.answer("squeue", out="some jobs\n", err="a warning\n", code=3)
    for folder in (None, run_dir):
        done = call("squeue", "--name", "a name", run_dir=folder)
        assert (done.stdout, done.stderr, done.returncode) == ("some jobs\n", "a warning\n", 3)
    assert fakes.calls("squeue") == ["--name a name"] * 2


def test_a_program_that_is_not_there_is_named(fakes: Fakes) -> None:
    done = call("sacct", "--brief")
    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr == "sacct: command not found: run this where Slurm's commands are, on a login node\n"


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
    fakes.answer("squeue", out=f"12|{state}|n1|n1|None\n")
    for query in (query_job_status_squeue("a-run"), query_job_status_sacct("a-run")):  # there is no sacct, and it is not needed
        program, *arguments = shlex.split(query)
        done = call(program, *arguments, run_dir=run_dir)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"12|{told}\n", "")


def test_while_a_fake_squeue_fails_the_answer_is_what_was_known(fakes: Fakes, run_dir: Path) -> None:
    fakes.answer("squeue", err="slurm_load_jobs error: Unable to contact slurm controller", code=1)
    assert status(run_dir, "a-run") == {"12": "PENDING"}
    fakes.answer("squeue", out="12|RUNNING|n1|n1|None\n")
    assert status(run_dir, "a-run") == {"12": "RUNNING"}
    fakes.answer("squeue", code=1)
    assert status(run_dir, "a-run") == {"12": "RUNNING"}


def test_what_a_site_lets_a_fake_squeue_say_besides_is_not_a_job(fakes: Fakes, run_dir: Path) -> None:
    fakes.answer("squeue", out="Maintenance on Monday!\n12|RUNNING|n1|n1|None\n")
    assert status(run_dir, "a-run") == {"12": "RUNNING"}


def test_defaults_of_the_users_hide_no_job_from_a_fake_squeue(fakes: Fakes, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    fakes.answer("squeue", out="12|RUNNING|n1|n1|None\n")
    assert status(run_dir, "a-run") == {"12": "RUNNING"}
    assert "SQUEUE_PARTITION" not in fakes.environment_of("squeue")


def test_a_job_that_a_fake_squeue_never_showed_is_complete_when_it_said_so_itself(fakes: Fakes, run_dir: Path) -> None:
    fakes.answer("squeue")
    (run_dir / "12.exit").write_text("0\n")
    assert status(run_dir, "a-run") == {"12": "COMPLETED"}
    fakes.answer("squeue", code=1)
    assert status(run_dir, "a-run") == {"12": "COMPLETED"}


def test_a_job_that_a_fake_squeue_forgot_has_failed_when_it_said_so_itself(fakes: Fakes, run_dir: Path) -> None:
    fakes.answer("squeue")
    (run_dir / "12.exit").write_text("1\n")
    assert status(run_dir, "a-run") == {"12": "FAILED"}


def test_a_fake_squeue_is_asked_once_in_the_interval_and_a_job_that_said_it_is_complete_needs_no_answer(
    fakes: Fakes, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYSWEEP_SQUEUE_INTERVAL_S")
    append(run_dir, job="13", what="rule_confirm_wildcards_lenet", log="13.log")
    fakes.answer("squeue", out="12|RUNNING|n1|n1|None\n13|RUNNING|n1|n1|None\n")
    for _ in range(3):
        assert status(run_dir, "a-run") == {"12": "RUNNING", "13": "RUNNING"}
    assert len(fakes.calls("squeue")) == 1
    (run_dir / "12.exit").write_text("0\n")
    assert status(run_dir, "a-run") == {"12": "COMPLETED", "13": "RUNNING"}
    assert len(fakes.calls("squeue")) == 1
    os.utime(run_dir / "asked", (0, time.time() - slurm_client.INTERVAL_S))
    assert status(run_dir, "a-run") == {"12": "COMPLETED", "13": "RUNNING"}  # squeue has not yet been told of the end of 12
    assert len(fakes.calls("squeue")) == 2
    for no_number in ("", "half a minute", "-1", "1e3", "nan"):
        monkeypatch.setenv("RAYSWEEP_SQUEUE_INTERVAL_S", no_number)
        assert status(run_dir, "a-run") == {"12": "COMPLETED", "13": "RUNNING"}
    assert len(fakes.calls("squeue")) == 2


def test_a_fake_squeue_is_asked_at_once_why_a_job_failed(fakes: Fakes, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYSWEEP_SQUEUE_INTERVAL_S")
    fakes.answer("squeue", out="12|RUNNING|n1|n1|None\n")
    assert status(run_dir, "a-run") == {"12": "RUNNING"}
    (run_dir / "12.exit").write_text("143\n")
    fakes.answer("squeue", out="12|COMPLETING|n1|n1|None\n")
    assert status(run_dir, "a-run") == {"12": "COMPLETING"}
    fakes.answer("squeue", out="12|PENDING|n1|n1|BeginTime\n")
    assert status(run_dir, "a-run") == {"12": "PENDING"}  # Slurm starts the job again
    os.utime(run_dir / "12.exit", (0, time.time() - slurm_client.ENDED_S))
    fakes.answer("squeue", out="12|RUNNING|n1|n1|None\n")
    assert status(run_dir, "a-run") == {"12": "PENDING"}
    os.utime(run_dir / "asked", (0, time.time() + 3600))  # a clock was changed
    assert status(run_dir, "a-run") == {"12": "RUNNING"}
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
    assert status(run_dir, "a-run") == {"12": told}
    assert fakes.calls("sacct") == ["--allocations --noheader --parsable2 --jobs=12 --format=JobIDRaw,State"]
    status(run_dir, "a-run")
    assert len(fakes.calls("sacct")) == 1  # what has ended is not asked about again


@pytest.mark.parametrize("accounted", ["", "12|RUNNING\n"])
def test_a_job_that_nobody_knows_is_not_taken_for_complete_and_fails_after_a_while(fakes: Fakes, run_dir: Path, accounted: str) -> None:
    """With fakes of squeue and sacct. Snakemake would find the outputs of an earlier run. RUNNING: accounting was not told of the end."""
    fakes.answer("squeue", out="12|RUNNING|n1|n1|None\n")
    status(run_dir, "a-run")
    fakes.answer("squeue")
    fakes.answer("sacct", out=accounted)
    assert status(run_dir, "a-run") == {"12": "RUNNING"}
    since = read_notes(run_dir).jobs["12"].missing_since
    assert status(run_dir, "a-run") == {"12": "RUNNING"}
    assert read_notes(run_dir).jobs["12"].missing_since == since
    append(run_dir, job="12", missing_since=time.time() - slurm_client.FORGOTTEN_S - 1)
    assert status(run_dir, "a-run") == {"12": "FAILED"}


def test_a_job_that_a_fake_squeue_shows_again_was_not_lost(fakes: Fakes, run_dir: Path) -> None:
    append(run_dir, job="12", state="RUNNING", missing_since=time.time() - slurm_client.FORGOTTEN_S - 1)
    fakes.answer("squeue", out="12|RUNNING|n1|n1|None\n")
    status(run_dir, "a-run")
    fakes.answer("squeue")
    assert status(run_dir, "a-run") == {"12": "RUNNING"}


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
    fakes.answer("squeue", out=f"12|PENDING|n1|n1|{reason}\n")
    assert status(run_dir, "a-run") == {"12": "PENDING"}
    assert fakes.calls("scancel") == []  # once may be a moment of Slurm's
    status(run_dir, "a-run")
    assert fakes.calls("scancel") == ["--state=PENDING 12"]
    assert read_notes(run_dir).jobs["12"].hopeless == reason


@pytest.mark.parametrize("state", ["REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"])
def test_a_held_job_is_cancelled_by_a_fake_scancel(fakes: Fakes, run_dir: Path, state: str) -> None:
    fakes.answer("squeue", out=f"12|{state}|n1|n1|None\n")
    status(run_dir, "a-run")
    status(run_dir, "a-run")
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
    fakes.answer("squeue", out=f"12|RUNNING|n1|{nodes}|None\n")
    fakes.answer("scontrol", out=names, code=requeue_code)
    assert status(run_dir, "a-run") == {"12": state}
    assert ("requeue 12" in fakes.calls("scontrol")) == (state == "PENDING")


def test_a_full_disk_or_a_torn_note_costs_no_answer_of_a_fake_squeue(fakes: Fakes, run_dir: Path, tmp_path: Path) -> None:
    fakes.answer("squeue", out="12|RUNNING|n1|n1|None\n")
    assert status(tmp_path / "cannot be written", "a-run") == {"12": "RUNNING"}
    with (run_dir / "notes.jsonl").open("a") as stream:
        stream.write('{"job": "12", "sta\n')
    assert status(run_dir, "a-run") == {"12": "RUNNING"}


def test_a_fake_sbatch_gets_the_job_which_will_say_how_it_ended(fakes: Fakes, run_dir: Path) -> None:
    fakes.answer("squeue")
    fakes.answer("sbatch", out="13;a-cluster\n")
    done = call("sbatch", *submit_arguments(run_dir), run_dir=run_dir)
    assert (done.returncode, done.stdout, done.stderr) == (0, "13;a-cluster\n", "")
    assert read_notes(run_dir).jobs["13"] == JobNote("13", COMMENT, f"{run_dir}/13.log")
    text = "\n".join(fakes.calls("sbatch"))
    assert "--comment rule_run_sweep_wildcards_lenet in /projects/state " in text
    script = (fakes.folder / "sbatch.stdin").read_text()
    ended = subprocess.run(["sh", "-c", script], env=os.environ | {"SLURM_JOB_ID": "13"}, capture_output=True, check=False)
    assert ended.returncode == 3
    assert (run_dir / "13.exit").read_text() == "3\n"
    assert (run_dir.parents[1] / incomplete_mark("results/lenet/trials.csv")).exists()
    seen = fakes.environment_of("sbatch")
    assert str(BIN) not in seen["PATH"].split(":")
    assert not [name for name in seen if name.startswith("RAYSWEEP")]


def test_a_job_outlives_the_folder_of_its_run_with_a_fake_sbatch(fakes: Fakes, run_dir: Path) -> None:
    fakes.answer("squeue")
    fakes.answer("sbatch", out="13\n")
    call("sbatch", *submit_arguments(run_dir), run_dir=run_dir)
    script = (fakes.folder / "sbatch.stdin").read_text().replace(str(run_dir), str(run_dir / "gone"))
    ended = subprocess.run(["sh", "-c", script], env=os.environ | {"SLURM_JOB_ID": "13"}, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "", "")


def test_a_job_whose_command_a_shell_has_read_is_not_submitted_to_a_fake_sbatch(fakes: Fakes, run_dir: Path) -> None:
    fakes.answer("squeue")
    fakes.answer("sbatch", out="13\n")
    done = call("sbatch", *submit_arguments(run_dir)[:-1], "--wrap=true", run_dir=run_dir)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("cluster/config.yaml lacks slurm-pass-command-as-script: true")
    assert fakes.calls("sbatch") == []


def test_what_a_fake_sbatch_refuses_is_passed_on_and_noted(fakes: Fakes, run_dir: Path) -> None:
    fakes.answer("squeue")
    fakes.answer("sbatch", err="sbatch: error: no\n", code=1)
    done = call("sbatch", *submit_arguments(run_dir), run_dir=run_dir)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "sbatch: error: no\n")
    assert read_notes(run_dir).refusals == {COMMENT: RefusalNote(COMMENT, "sbatch: error: no\n")}


def test_a_fake_sbatch_that_does_not_end_is_ended_and_noted(fakes: Fakes, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.answer("squeue")
    (fakes.folder / "sbatch").write_text("#!/bin/sh\nexec sleep 600\n")
    (fakes.folder / "sbatch").chmod(0o755)
    monkeypatch.setattr(slurm_client, "SUBMIT_DEADLINE_S", 0.2)
    monkeypatch.setenv("RAYSWEEP_STATE_DIR", "/projects/state")
    monkeypatch.setattr(sys, "stdin", io.StringIO("#!/bin/sh\n"))
    assert slurm_client.submit(str(fakes.folder / "sbatch"), submit_arguments(run_dir), run_dir) == 1
    assert read_notes(run_dir).refusals[COMMENT].refused == "sbatch: error: sbatch did not end within 0.2 s\n"


def test_a_second_job_of_a_sweep_is_not_submitted_while_a_fake_squeue_shows_the_first(fakes: Fakes, run_dir: Path) -> None:
    fakes.answer("squeue", out=f"7|RUNNING|n1|n1|{COMMENT} in /another/state\n8|PENDING|||{COMMENT} in /projects/state\n")
    fakes.answer("sbatch", out="13\n")
    done = call("sbatch", *submit_arguments(run_dir), run_dir=run_dir)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "sweep lenet: its job 8 of an earlier run is still there (PENDING), so no second one is started. Wait for its end"
        " (`make watch` follows it) and run the same command again, or end it with `scancel 8`\n"
    )
    assert fakes.calls("sbatch") == []
    assert read_notes(run_dir).refusals[COMMENT].by_us


def test_a_job_that_a_fake_squeue_shows_as_completing_is_waited_for(fakes: Fakes, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"8|COMPLETING|n1|n1|{COMMENT} in /projects/state\n"
    fakes.answer("squeue", out=line)
    monkeypatch.setattr(slurm_client.time, "sleep", lambda _: fakes.answer("squeue"))  # Slurm completes the job meanwhile
    assert slurm_client.refusal_of_second(COMMENT, f"{COMMENT} in /projects/state") is None
    assert len(fakes.calls("squeue")) == 2
    fakes.answer("squeue", out=line)
    monkeypatch.setattr(slurm_client, "COMPLETING_S", 0)
    assert "its job 8 of an earlier run is still there (COMPLETING)" in (
        slurm_client.refusal_of_second(COMMENT, f"{COMMENT} in /projects/state") or ""
    )


def test_a_job_of_a_workflow_that_has_us_as_a_module_may_have_its_like_with_a_fake_squeue(fakes: Fakes, run_dir: Path) -> None:
    (run_dir / "outputs.json").write_text("{}")
    fakes.answer("squeue", out=f"8|RUNNING|n1|n1|{COMMENT} in /projects/state\n")
    fakes.answer("sbatch", out="13\n")
    assert call("sbatch", *submit_arguments(run_dir), run_dir=run_dir).stdout == "13\n"
    assert read_notes(run_dir).jobs["13"].what == COMMENT
    # How it ended is known; its outputs are none of ours.
    script = f"true{slurm_client.ending(run_dir, None)}"
    subprocess.run(["sh", "-c", script], env=os.environ | {"SLURM_JOB_ID": "13"}, check=True)
    assert slurm_client.exit_code(run_dir, "13") == "0"
    assert list((run_dir.parents[1] / "incomplete").iterdir()) == []


def test_nothing_is_submitted_while_a_fake_squeue_cannot_tell_of_a_first_job(fakes: Fakes, run_dir: Path) -> None:
    fakes.answer("squeue", code=1)
    fakes.answer("sbatch", out="13\n")
    done = call("sbatch", *submit_arguments(run_dir), run_dir=run_dir)
    assert done.returncode == 1
    assert done.stderr.startswith("sweep lenet: squeue does not answer")
    assert fakes.calls("sbatch") == []


def test_a_fake_sbatch_of_somebody_elses_job_is_called_as_it_is(fakes: Fakes, run_dir: Path) -> None:
    fakes.answer("sbatch", out="13\n")
    assert call("sbatch", "--parsable", "--wrap=true", run_dir=run_dir).stdout == "13\n"
    assert fakes.calls("sbatch") == ["--parsable --wrap=true"]


@pytest.mark.parametrize("output", ["results/lenet/trials.csv", "results/" + "long/" * 150 + "trials.csv"])
def test_marks_are_where_snakemake_has_them(output: str, tmp_path: Path) -> None:
    persistence = SimpleNamespace(_fetch_max_len=lambda folder: os.pathconf(tmp_path, "PC_NAME_MAX"))
    assert str(incomplete_mark(output)) == FilePersistence._record_path(persistence, "incomplete", output)


@pytest.mark.parametrize(
    ("rule", "sweep", "name"),
    [("run_sweep", "lenet", "sweep lenet"), ("confirm", "a_b", "sweep a_b, confirm"), ("check_cluster", "", "check_cluster")],
)
def test_jobs_are_called_what_users_call_them(rule: str, sweep: str, name: str) -> None:
    assert slurm_client.name_of(rule, sweep) == name


def test_notes_are_lines_of_json(run_dir: Path) -> None:
    lines = (run_dir / "notes.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"job": "12", "what": COMMENT, "log": "12.log"}]
