"""What the Slurm plugin submits, and what is refused. Slurm's programs are fakes on PATH."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.persistence.file import FilePersistence

from fake_slurm import BIN, COMMENT, Fakes, call, submit_arguments
from raysweep.slurm import submission
from raysweep.slurm.notes import JobNote, RefusalNote, read_notes
from raysweep.slurm.status import exit_code
from raysweep.slurm.submission import incomplete_mark


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
    monkeypatch.setattr(submission, "SUBMIT_DEADLINE_S", 0.2)
    monkeypatch.setenv("RAYSWEEP_STATE_DIR", "/projects/state")
    monkeypatch.setattr(sys, "stdin", io.StringIO("#!/bin/sh\n"))
    assert submission.submit(str(fakes.folder / "sbatch"), submit_arguments(run_dir), run_dir) == 1
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
    monkeypatch.setattr(submission.time, "sleep", lambda _: fakes.answer("squeue"))  # Slurm completes the job meanwhile
    assert submission.refusal_of_second(COMMENT, f"{COMMENT} in /projects/state") is None
    assert len(fakes.calls("squeue")) == 2
    fakes.answer("squeue", out=line)
    monkeypatch.setattr(submission, "COMPLETING_S", 0)
    assert "its job 8 of an earlier run is still there (COMPLETING)" in (
        submission.refusal_of_second(COMMENT, f"{COMMENT} in /projects/state") or ""
    )


def test_a_job_of_a_workflow_that_has_us_as_a_module_may_have_its_like_with_a_fake_squeue(fakes: Fakes, run_dir: Path) -> None:
    (run_dir / "outputs.json").write_text("{}")
    fakes.answer("squeue", out=f"8|RUNNING|n1|n1|{COMMENT} in /projects/state\n")
    fakes.answer("sbatch", out="13\n")
    assert call("sbatch", *submit_arguments(run_dir), run_dir=run_dir).stdout == "13\n"
    assert read_notes(run_dir).jobs["13"].what == COMMENT
    # How it ended is known; its outputs are none of ours.
    script = f"true{submission.ending(run_dir, None)}"
    subprocess.run(["sh", "-c", script], env=os.environ | {"SLURM_JOB_ID": "13"}, check=True)
    assert exit_code(run_dir, "13") == "0"
    assert list((run_dir.parents[1] / "incomplete").iterdir()) == []


def test_nothing_is_submitted_while_a_fake_squeue_cannot_tell_of_a_first_job(fakes: Fakes, run_dir: Path) -> None:
    fakes.answer("squeue", code=1)
    fakes.answer("sbatch", out="13\n")
    done = call("sbatch", *submit_arguments(run_dir), run_dir=run_dir)
    assert done.returncode == 1
    assert done.stderr.startswith("sweep lenet: squeue does not answer")
    assert fakes.calls("sbatch") == []


@pytest.mark.parametrize("output", ["results/lenet/trials.csv", "results/" + "long/" * 150 + "trials.csv"])
def test_marks_are_where_snakemake_has_them(output: str, tmp_path: Path) -> None:
    persistence = SimpleNamespace(_fetch_max_len=lambda folder: os.pathconf(tmp_path, "PC_NAME_MAX"))
    assert str(incomplete_mark(output)) == FilePersistence._record_path(persistence, "incomplete", output)
