"""Which calls of Slurm's programs are ours to answer. Slurm's programs are fakes on PATH."""

from __future__ import annotations

import shlex
from pathlib import Path

from snakemake_executor_plugin_slurm.job_status_query import query_job_status_sacct, query_job_status_squeue

from fake_slurm import Fakes, call, submit_arguments
from raysweep.slurm.programs import is_status_query, is_submission
from raysweep.slurm.submission import option


def test_the_plugins_own_calls_are_known(run_dir: Path) -> None:
    for program, query in (("squeue", query_job_status_squeue("a-run")), ("sacct", query_job_status_sacct("a-run"))):
        name, *arguments = shlex.split(query)
        assert name == program
        assert is_status_query(program, arguments)
        assert option(arguments, "--name") == "a-run"
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


def test_a_fake_sbatch_of_somebody_elses_job_is_called_as_it_is(fakes: Fakes, run_dir: Path) -> None:
    fakes.answer("sbatch", out="13\n")
    assert call("sbatch", "--parsable", "--wrap=true", run_dir=run_dir).stdout == "13\n"
    assert fakes.calls("sbatch") == ["--parsable --wrap=true"]
