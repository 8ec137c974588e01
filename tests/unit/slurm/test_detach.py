"""How the Snakemake of a folder is ended without its jobs. The Snakemake is a process that ends on the same signal."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raysweep.common.errors import WorldError
from raysweep.common.processes import started, this_process
from raysweep.slurm.detach import SIGNAL, detach, left_jobs_message
from raysweep.slurm.notes import append
from sweeping import wait_until


def snakemake_in(root: Path, *, has_slurm: bool = True, **process: Any) -> Path:
    """The folder of a run of Snakemake with these processes."""
    folder = root / ".snakemake/raysweep/a run"
    folder.mkdir(parents=True)
    (folder / "controller.json").write_text(json.dumps(this_process() | process))
    if has_slurm:
        (folder / "jobs.json").write_text("{}")
    return folder


def test_the_snakemake_of_a_folder_is_ended_and_its_jobs_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = f"import pathlib, signal; signal.signal({int(SIGNAL)}, lambda *_: 1 / 0); pathlib.Path('ready').touch(); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        wait_until((tmp_path / "ready").exists, "it waits")
        folder = snakemake_in(tmp_path, pid=process.pid, started=started(process.pid))
        append(folder, job="7", what="rule_run_sweep_wildcards_a", state="RUNNING")
        append(folder, job="8", what="rule_confirm_wildcards_b", state="COMPLETED")
        append(folder, job="9", what="rule_confirm_wildcards_c")
        message = "Snakemake has left to Slurm: job 7 (sweep a), 9 (sweep c, confirm). The same command follows them again."
        assert left_jobs_message(folder) == message
        logging.getLogger("raysweep").propagate = True
        with caplog.at_level(logging.INFO, "raysweep"):
            detach(tmp_path)
    assert process.returncode == 1
    assert caplog.messages == [message]


def test_a_run_without_jobs_says_so(tmp_path: Path) -> None:
    assert left_jobs_message(snakemake_in(tmp_path)) == "Snakemake has left no job in Slurm. The same command goes on."


@pytest.mark.parametrize(
    ("of_run", "message"),
    [
        (
            {"host": "login7"},
            r"a Snakemake of this folder is process PID on login7: type the same there, as the user who started it",
        ),
        ({"has_slurm": False}, r"process PID\) has no jobs in Slurm, so that its jobs would end with it: use Ctrl-C"),
        ({"started": "1"}, "no Snakemake is at work in "),
    ],
    ids=["on another machine", "without jobs in Slurm", "ended"],
)
def test_a_snakemake_that_must_not_be_ended_is_named(tmp_path: Path, of_run: dict[str, Any], message: str) -> None:
    """On another machine; with jobs on this machine; ended, while another process has its id."""
    snakemake_in(tmp_path, **of_run)
    with pytest.raises(WorldError, match=message.replace("PID", str(os.getpid()))):
        detach(tmp_path)


def test_a_folder_without_a_snakemake_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=rf"^no Snakemake is at work in {tmp_path}\. Jobs that a killed Snakemake left go on"):
        detach(tmp_path)
