"""A sweep that was interrupted under version 0.1 goes on under the present one, with a real Ray. See tests/fixtures/version-0.1/README.md."""

from __future__ import annotations

import csv
import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from sweeping import REPOSITORY, SCRIPTS, Project

WRITTEN = REPOSITORY / "tests" / "fixtures" / "version-0.1"
SAME = ("trial_id", "status", "config/x", "config/kind", "seed", "repeat", "score", "epoch_of_metric", "epochs", "error")


def events(lines: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a `trials.csv`, without times and nodes."""
    with path.open(newline="", encoding="utf-8") as stream:
        return [{column: row[column] for column in SAME} for row in csv.DictReader(stream)]


def test_an_interrupted_sweep_goes_on_where_version_0_1_left_it(project: Project) -> None:
    shutil.copytree(WRITTEN, project.folder, dirs_exist_ok=True)
    shutil.rmtree(project.folder / "results")
    state_dir = project.folder / "state" / "interrupted"
    state_dir.chmod(0o700)
    [env_file] = (project.folder / "resources" / "env").glob("*/env.yaml")
    text = env_file.read_text(encoding="utf-8")
    text = text.replace("/tmp/project/venv/bin/python", sys.executable)
    env_file.write_text(text.replace("python_version: 3.11.7", f"python_version: {platform.python_version()}"), encoding="utf-8")
    before = (state_dir / "record.jsonl").read_bytes()
    recorded = events(before.splitlines())
    finished = {event["trial"] for event in recorded if event["event"] == "finish"}
    running = {event["trial"] for event in recorded if event["event"] == "start"} - finished
    assert (finished, running) == ({"00000", "00001"}, {"00002", "00003"})

    project.write("go", "")  # which those trials wait for
    argv = [sys.executable, str(SCRIPTS / "run_sweep.py"), "--sweep", "interrupted", "--config", "state/.config/interrupted.yaml"]
    argv += ["--env-dir", str(env_file.parent.relative_to(project.folder)), "--allocation", "local", "--threads", "2"]
    run = project.finished([*argv, "--log", "logs/run_sweep/interrupted.log"])
    assert run.returncode == 0, run.stdout + run.stderr

    assert sorted(path.name for path in (project.folder / "state").iterdir()) == sorted(path.name for path in (WRITTEN / "state").iterdir())
    after = (state_dir / "record.jsonl").read_bytes()
    assert after.startswith(before)
    starts = [(e["trial"], e["from_epoch"]) for e in events(after[len(before) :].splitlines()) if e["event"] == "start"]
    assert sorted(starts) == [("00002", 1), ("00003", 1), ("00004", 0)]
    # As version 0.1 itself went on from there.
    assert rows(project.folder / "results" / "interrupted" / "trials.csv") == rows(WRITTEN / "results" / "interrupted" / "trials.csv")
