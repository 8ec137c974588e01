"""What the Slurm plugin submits, and what is refused. Slurm's programs are fakes on PATH."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake.persistence.file import FilePersistence

from fake_slurm import BIN, COMMENT, Fakes, call, submit_arguments
from raysweep.slurm import submission
from raysweep.slurm.earlier_jobs import digests_of
from raysweep.slurm.notes import JobNote, PlannedJob, RefusalNote, read_notes
from raysweep.slurm.status import exit_code, status
from raysweep.slurm.submission import Call, incomplete_mark


def run_job(script: str, job: str, run_dir: Path) -> int:
    """Run the script of a job as Slurm does, and return its exit code."""
    env = os.environ | {"SLURM_JOB_ID": job}
    done = subprocess.run(["sh", "-c", script], env=env, cwd=run_dir.parents[2], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "")
    return done.returncode


def submitted(fakes: Fakes, run_dir: Path, *, script: str = "#!/bin/sh\nsh -c 'exit 3'") -> tuple[str, str]:
    """Submit a job to a fake sbatch. Return the comment and the script that the fake got."""
    fakes.answer("squeue")
    fakes.answer("sbatch", out="13;a-cluster\n")
    done = call("sbatch", *submit_arguments(run_dir), run_dir=run_dir, script=script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "13;a-cluster\n", "")
    [comment] = re.findall(r"--comment (.*?\])", fakes.calls("sbatch")[-1])
    return comment, (fakes.folder / "sbatch.stdin").read_text()


def next_run(run_dir: Path, **changes: object) -> Path:
    """The folder of a later run of Snakemake, which will submit the same job. `changes` are those of the planned job."""
    folder = run_dir.with_name("a later run")
    folder.mkdir()
    planned = json.loads((run_dir / "jobs.json").read_text())
    planned[COMMENT] |= changes
    (folder / "jobs.json").write_text(json.dumps(planned))
    return folder


def test_a_fake_sbatch_gets_the_job_which_will_say_how_it_ended(fakes: Fakes, run_dir: Path, tmp_path: Path) -> None:
    comment, script = submitted(fakes, run_dir)
    folder = tmp_path / "state/.jobs" / COMMENT
    assert read_notes(run_dir).jobs["13"] == JobNote("13", COMMENT, f"{run_dir}/13.log", str(folder))
    assert comment.startswith(f"{COMMENT} in {tmp_path}/state [config=")
    assert "--job-name raysweep-lenet " in fakes.calls("sbatch")[-1]
    shutil.rmtree(run_dir)  # the job outlives the folder of its run
    assert run_job(script, "13", run_dir) == 3
    assert (folder / "13.exit").read_text() == "3\n"
    assert (run_dir.parents[1] / incomplete_mark("results/lenet/trials.csv")).exists()
    seen = fakes.environment_of("sbatch")
    assert str(BIN) not in seen["PATH"].split(":")
    assert not [name for name in seen if name.startswith("RAYSWEEP")]


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("rule_run_sweep_wildcards_lenet", "raysweep-lenet"),
        ("rule_tuning_run_sweep_wildcards_a_b", "raysweep-a_b"),
        ("rule_confirm_wildcards_lenet", "raysweep-lenet-confirm"),
        ("rule_check_nodes", "raysweep-check_nodes"),
    ],
)
def test_a_job_has_the_name_of_its_sweep(run_dir: Path, what: str, name: str) -> None:
    assert Call(run_dir, [], "", what, None).job_name == name


def test_a_job_reads_its_own_copy_of_the_config_with_a_fake_sbatch(fakes: Fakes, run_dir: Path, tmp_path: Path) -> None:
    _, script = submitted(
        fakes, run_dir, script='#!/bin/sh\ncp "$RAYSWEEP_JOB_CONFIG" seen; mkdir -p results/lenet; : > results/lenet/trials.csv'
    )
    assert run_job(script, "13", run_dir) == 0
    assert (tmp_path / "seen").read_text() == "a: config\n"


def test_a_job_that_slurm_starts_again_forgets_its_former_end_with_a_fake_sbatch(fakes: Fakes, run_dir: Path, tmp_path: Path) -> None:
    ended = tmp_path / "state/.jobs" / COMMENT / "13.exit"
    _, script = submitted(fakes, run_dir, script=f"#!/bin/sh\n[ ! -e '{ended}' ] || exit 5\nexit 4")
    ended.write_text("143\n")
    assert run_job(script, "13", run_dir) == 4


def test_a_job_whose_rule_did_not_run_has_failed_with_a_fake_sbatch(fakes: Fakes, run_dir: Path, tmp_path: Path) -> None:
    """Snakemake returns 0 where inputs do not become visible. The output is of an earlier run."""
    output = tmp_path / "results/lenet/trials.csv"
    output.parent.mkdir(parents=True)
    output.touch()
    _, script = submitted(fakes, run_dir, script="#!/bin/sh\ntrue")
    assert run_job(script, "13", run_dir) == 1
    assert (tmp_path / "state/.jobs" / COMMENT / "13.exit").read_text() == "1\n"


def test_a_running_job_of_an_earlier_run_is_taken_up_with_a_fake_squeue(fakes: Fakes, run_dir: Path, tmp_path: Path) -> None:
    comment, script = submitted(fakes, run_dir)
    for state in ("PENDING", "RUNNING", "COMPLETING"):
        fakes.answer("squeue", out=f"7|7|RUNNING|n1|n1|None|{COMMENT} in /another/state\n13|13|{state}|n1|n1|None|{comment}\n")
        later = next_run(run_dir)
        done = call("sbatch", *submit_arguments(later, "a-later-run"), run_dir=later)
        assert (done.returncode, done.stdout, done.stderr) == (0, "13\n", "")
        note = read_notes(later).jobs["13"]
        assert (note.what, note.log, note.state, note.taken_up) == (COMMENT, f"{later}/13.log", state, True)
        assert status(later) == {"13": state}
        shutil.rmtree(later)
    later = next_run(run_dir)
    call("sbatch", *submit_arguments(later, "a-later-run"), run_dir=later)
    run_job(script, "13", run_dir)
    fakes.answer("squeue")
    assert status(later) == {"13": "FAILED"}
    assert len(fakes.calls("sbatch")) == 1


@pytest.mark.parametrize(
    ("arguments", "planned", "script", "what"),
    [
        ({"mem_mb": 200}, {}, "", "other options of sbatch"),
        ({}, {"config": "another: config\n"}, "", "another config"),
        ({}, {"inputs": ["train.py", "helpers.py"]}, "", "other input files"),
        ({}, {}, " --attempt 2", "another command of Snakemake"),
        ({"runtime": 6}, {"config": None}, "", "another config and other options of sbatch"),
    ],
)
def test_a_job_that_was_submitted_otherwise_is_named_with_a_fake_squeue(
    fakes: Fakes, run_dir: Path, arguments: dict[str, Any], planned: dict[str, Any], script: str, what: str
) -> None:
    comment, _ = submitted(fakes, run_dir)
    fakes.answer("squeue", out=f"13|13|PENDING||||{comment}\n")
    later = next_run(run_dir, **planned)
    done = call("sbatch", *submit_arguments(later, **arguments), run_dir=later, script=f"#!/bin/sh\nsh -c 'exit 3'{script}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"sweep lenet: its job 13 of an earlier run is still there (PENDING) and was submitted with {what}, so no second one is started."
        " Wait for its end (`make watch` follows it) and run the same command again, or end it with `scancel 13`\n"
    )
    assert len(fakes.calls("sbatch")) == 1
    assert read_notes(later).refusals[COMMENT].by_us


def test_a_job_whose_input_has_changed_is_named_with_a_fake_squeue(fakes: Fakes, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("a = 1")
    comment, _ = submitted(fakes, run_dir)
    (tmp_path / "train.py").write_text("a = 12")
    fakes.answer("squeue", out=f"13|13|RUNNING|n1|n1|None|{comment}\n")
    later = next_run(run_dir)
    assert "was submitted with other input files" in call("sbatch", *submit_arguments(later), run_dir=later).stderr


def test_a_job_of_an_older_version_is_named_with_a_fake_squeue(fakes: Fakes, run_dir: Path, tmp_path: Path) -> None:
    fakes.answer("sbatch", out="13\n")
    comment = f"{COMMENT} in {tmp_path}/state"
    for older in (comment, f"{comment} [config=1 version=0.1]"):
        fakes.answer("squeue", out=f"8|8|RUNNING|n1|n1|None|{older}\n")
        done = call("sbatch", *submit_arguments(run_dir), run_dir=run_dir)
        assert (
            "its job 8 of an earlier run is still there (RUNNING) and was submitted with another version of this workflow, so"
            in done.stderr
        )


def test_what_differs_between_two_runs_is_no_change(run_dir: Path) -> None:
    planned = PlannedJob(["trials.csv"], [], None)
    script = "#!/bin/sh\npython --runtime-source-cache-path '/a {}/x' --rerun-triggers {} --mode remote"
    first, second = (
        digests_of(planned, [*submit_arguments(Path(run), run), *more], script.format(run, triggers))
        for run, more, triggers in (("a", [], "mtime code"), ("b", ["--exclude=node7"], "code mtime"))
    )
    assert first == second


def test_a_job_that_ended_well_with_no_snakemake_is_taken_for_what_it_is(fakes: Fakes, run_dir: Path, tmp_path: Path) -> None:
    """With fakes of squeue and sbatch: the job is submitted again where its outputs are not certainly its own."""
    _, script = submitted(fakes, run_dir, script="#!/bin/sh\nmkdir -p results/lenet; : > results/lenet/trials.csv")
    run_job(script, "13", run_dir)
    later = next_run(run_dir)
    again = {"run_dir": later, "script": "#!/bin/sh\nmkdir -p results/lenet; : > results/lenet/trials.csv"}
    done = call("sbatch", *submit_arguments(later), **again)  # type: ignore[arg-type]
    assert (done.returncode, done.stdout) == (0, "13\n")
    assert status(later) == {"13": "COMPLETED"}
    assert len(fakes.calls("sbatch")) == 1

    fakes.answer("sbatch", out="14\n")
    output = tmp_path / "results/lenet/trials.csv"
    mark = run_dir.parents[1] / incomplete_mark("results/lenet/trials.csv")
    newer = time.time() + 10
    os.utime(output, (newer, newer))
    assert call("sbatch", *submit_arguments(later), **again).stdout == "14\n"  # type: ignore[arg-type]
    for spoil in (output.unlink, mark.unlink):
        run_job(script, "13", run_dir)
        spoil()
        assert call("sbatch", *submit_arguments(later), **again).stdout == "14\n"  # type: ignore[arg-type]
    assert not (tmp_path / "state/.jobs" / COMMENT / "13.exit").exists()  # the folder is empty when a job is submitted


def test_several_jobs_are_an_array_that_a_later_run_takes_up_with_a_fake_sbatch(fakes: Fakes, run_dir: Path, tmp_path: Path) -> None:
    planned = {COMMENT: PlannedJob(["trials.csv"], [], "a: config\n", 4, "run it --config other")._asdict()}
    (run_dir / "jobs.json").write_text(json.dumps(planned))
    (tmp_path / ".snakemake/incomplete" / incomplete_mark("trials.csv").name).touch()  # as Snakemake does when a job is submitted
    comment, script = submitted(fakes, run_dir)
    folder = tmp_path / "state/.jobs" / COMMENT
    assert script == (
        f"#!/bin/bash\ntrap '' USR1\nexec run it --config other --allocation slurm --end {folder}/\"$SLURM_ARRAY_JOB_ID\".exit --config {folder}/config.yaml\n"
    )
    assert fakes.calls("sbatch")[-1].startswith("--array=0-3 ")
    log = f"{run_dir}/13_0.log"
    assert read_notes(run_dir).jobs["13"].log == log
    waiting, running = f"13_[2-3]|13|PENDING|||Priority|{comment}\n", f"13_0|13|RUNNING|n1|n1|None|{comment}\n"
    fakes.answer("squeue", out=waiting + running)
    later = next_run(run_dir)
    arguments = submit_arguments(later, "a-later-run")
    assert call("sbatch", *arguments, run_dir=later).stdout == "13\n"
    note = read_notes(later).jobs["13"]
    assert (note.state, note.log, note.taken_up) == ("RUNNING", f"{later}/13_0.log", True)
    assert status(later) == {"13": "RUNNING"}
    assert len(fakes.calls("sbatch")) == 1


def test_a_fake_sbatch_that_refuses_an_array_gets_a_smaller_one(fakes: Fakes, run_dir: Path) -> None:
    planned = {COMMENT: PlannedJob(["trials.csv"], [], None, 5, "run it")._asdict()}
    (run_dir / "jobs.json").write_text(json.dumps(planned))
    fakes.answer("squeue")
    fakes.answer("sbatch", err="sbatch: error: no\n", code=1)
    assert call("sbatch", *submit_arguments(run_dir), run_dir=run_dir).returncode == 1
    assert [line.split()[0] for line in fakes.calls("sbatch")] == ["--array=0-4", "--array=0-1", "--array=0-0"]
    assert "Slurm refuses 2 jobs: sbatch: error: no" in (fakes.folder / "sbatch.stdin").read_text()


def test_a_job_that_cannot_be_followed_is_not_left_by_a_fake_sbatch(fakes: Fakes, run_dir: Path) -> None:
    (run_dir / "notes.jsonl").unlink()
    (run_dir / "notes.jsonl").mkdir()  # as a full disk
    fakes.answer("squeue")
    fakes.answer("sbatch", out="13\n")
    done = call("sbatch", *submit_arguments(run_dir), run_dir=run_dir)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"sweep lenet: its job 13 is cancelled, because {run_dir} cannot be written to\n"
    assert fakes.calls("scancel") == ["13"]


def test_a_state_folder_that_cannot_be_written_to_is_named_before_a_fake_sbatch_is_called(
    fakes: Fakes, run_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "state").touch()
    fakes.answer("squeue")
    fakes.answer("sbatch", out="13\n")
    done = call("sbatch", *submit_arguments(run_dir), run_dir=run_dir)
    assert done.returncode == 1
    assert done.stderr == f"sweep lenet: {tmp_path}/state/.jobs/{COMMENT} cannot be written to: Not a directory\n"
    assert fakes.calls("sbatch") == []


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
    monkeypatch.setenv("RAYSWEEP_STATE_DIR", str(run_dir / "state"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("#!/bin/sh\n"))
    assert submission.submit(str(fakes.folder / "sbatch"), submit_arguments(run_dir), run_dir) == submission.TIMED_OUT
    assert read_notes(run_dir).refusals[COMMENT].refused == "sbatch: error: sbatch did not end within 0.2 s\n"


def test_a_job_of_a_workflow_that_has_us_as_a_module_may_have_its_like_with_a_fake_squeue(
    fakes: Fakes, run_dir: Path, tmp_path: Path
) -> None:
    (run_dir / "jobs.json").write_text("{}")
    fakes.answer("squeue", out=f"8|8|RUNNING|n1|n1|None|{COMMENT} in {tmp_path}/state\n")
    fakes.answer("sbatch", out="13\n")
    assert call("sbatch", *submit_arguments(run_dir), run_dir=run_dir, script="#!/bin/sh\ntrue").stdout == "13\n"
    # How it ended is known; its outputs are none of ours.
    assert run_job((fakes.folder / "sbatch.stdin").read_text(), "13", run_dir) == 0
    assert exit_code(read_notes(run_dir).jobs["13"]) == "0"
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
