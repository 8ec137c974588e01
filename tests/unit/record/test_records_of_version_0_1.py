"""Sweeps that version 0.1 wrote, read by the present version: results, confirmations and reports come out as that version wrote them.

The project lies in `tests/fixtures/version-0.1`; its README says how it was made. The copies have an environment without a Python, so a sweep whose record
did not count would set its old state aside, start anew, and fail at once.
"""

from __future__ import annotations

import html
import json
import re
import runpy
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

REPOSITORY = Path(__file__).resolve().parents[3]
SCRIPTS = REPOSITORY / "workflow" / "scripts"
WRITTEN = REPOSITORY / "tests" / "fixtures" / "version-0.1"
[ENV_DIR] = (path.parent.relative_to(WRITTEN) for path in WRITTEN.glob("resources/env/*/env.yaml"))
PYTHON = "/tmp/project/venv/bin/python"  # by which version 0.1 ran the sweeps
FINISHED = ["asha-model", "median-repeats", "pbt", "hyperband", "optuna-min"]  # in the order of the config
PROSE = {"title", "description", "$schema"}  # of a figure: what may be worded differently, and the version of the figures' language

Call = Callable[..., int]  # an entry point and its arguments → exit code


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Copy the project of version 0.1, and make the copy the working folder."""
    folder = tmp_path / "a project"
    shutil.copytree(WRITTEN, folder)
    (folder / "state").chmod(0o700)
    for state_dir in (folder / "state").iterdir():
        state_dir.chmod(0o700)  # git keeps no more of a mode than whether a file can be executed
    env_file = folder / ENV_DIR / "env.yaml"
    text = env_file.read_text(encoding="utf-8")
    assert PYTHON in text
    env_file.write_text(text.replace(PYTHON, str(folder / "no python")), encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield folder
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call the script of a rule, in this process, as a shell would."""

    def run(script: str, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
        except SystemExit as error:
            return error.code if isinstance(error.code, int) else 1
        return 0

    return run


def stage_arguments(stage: str, sweep: str) -> list[object]:
    """Return the arguments that the rules `run_sweep` and `confirm` give to their scripts."""
    arguments = ["--sweep", sweep, "--config", f"state/.config/{sweep}.yaml", "--env-dir", ENV_DIR, "--allocation", "local"]
    return [*arguments, "--threads", 2, "--log", f"logs/{stage}/{sweep}.log"]


def report_arguments(sweep: str) -> list[object]:
    """Return the arguments that the rule `report` gives to its script."""
    results, config = Path("results") / sweep, yaml.safe_load(Path(f"state/.config/{sweep}.yaml").read_text())
    dataset = config["sweeps"][sweep]["dataset"]
    files = {"record": f"state/{sweep}/record.jsonl", "best": results / "best.yaml", "confirmed": results / "confirmed.yaml"}
    files |= {"config": results / "config.yaml", "env-manifest": ENV_DIR / "env.yaml", "plan": f"state/.plan/{sweep}.yaml"}
    files |= {"output": results / "report.html", "figures-dir": results / "figures", "journal": results / "optuna.journal"}
    files |= {"data-manifest": f"resources/data/{dataset}/manifest.yaml"} if dataset else {}
    return ["--sweep", sweep, *(word for key, path in files.items() for word in (f"--{key}", path)), "--log", f"logs/report/{sweep}.log"]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of the files below a folder, by their relative paths."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("sweep", FINISHED)
def test_results_and_confirmation_are_written_to_the_byte(project: Path, call: Call, sweep: str) -> None:
    results = project / "results" / sweep
    for path in (*results.glob("*.yaml"), results / "trials.csv"):
        path.unlink()
    shutil.rmtree(results / "model")
    assert call("run_sweep", *stage_arguments("run_sweep", sweep)) == 0
    assert call("confirm", *stage_arguments("confirm", sweep)) == 0
    written, before = contents(results), contents(WRITTEN / "results" / sweep)
    added = {name for name in written.keys() - before.keys() if name.startswith(("model/code/", "model/load.py", "model/model.json"))}
    assert bool(added) == ("model/model.safetensors" in before), "a model that was published before gets the program that loads the model"
    assert {name: content for name, content in written.items() if name not in added} == before
    # The identities of the sweep and of its confirmation are those in their records: no state was set aside, and nothing was run.
    assert contents(project / "state") == contents(WRITTEN / "state")


@pytest.mark.slow
@pytest.mark.parametrize("sweep", FINISHED)
def test_the_report_shows_the_same_data_the_same_way(project: Path, call: Call, sweep: str) -> None:
    results, written = project / "results" / sweep, WRITTEN / "results" / sweep
    before = contents(written / "figures")
    shutil.rmtree(results / "figures")
    (results / "optuna.journal").rename(results / "written.journal")
    assert call("report", *report_arguments(sweep)) == 0
    page = (results / "report.html").read_text(encoding="utf-8")
    assert figures_in(page) == without_prose(json.loads((written / "figures.json").read_text(encoding="utf-8")))
    assert trials_in(page) == json.loads((written / "table.json").read_text(encoding="utf-8"))
    after = contents(results / "figures")
    assert {name: content for name, content in after.items() if name.endswith(".csv")} == before
    assert sorted(name for name in after if name.endswith(".svg")) == (written / "svg.txt").read_text(encoding="utf-8").splitlines()
    study, written_study = (study_in(results / name, sweep) for name in ("optuna.journal", "written.journal"))
    assert study.directions == written_study.directions
    assert study.metric_names == written_study.metric_names
    assert study.trials == written_study.trials


@pytest.mark.slow
def test_the_comparison_of_the_sweeps_shows_the_same_data_the_same_way(project: Path, call: Call) -> None:
    arguments = ["--sweeps", *FINISHED, "--results-dir", "results", "--state-dir", "state", "--output", "results/comparison.html"]
    assert call("compare", *arguments, "--log", "logs/compare.log") == 0
    page = (project / "results" / "comparison.html").read_text(encoding="utf-8")
    assert figures_in(page) == without_prose(json.loads((WRITTEN / "results" / "comparison.json").read_text(encoding="utf-8")))


def figures_in(page: str) -> Any:
    """Return the specifications and the data of the figures of a page, without titles."""
    found = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert found is not None
    figures = json.loads(found[1])
    return without_prose({"specs": figures["specs"], "data": figures["data"]})


def without_prose(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_prose(part) for key, part in value.items() if key not in PROSE}
    return [without_prose(part) for part in value] if isinstance(value, list) else value


def trials_in(page: str) -> list[list[str]]:
    """Return the cells of the page's table of trials, row by row, without the head of the table."""
    found = re.search(r'<table id="trials">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert found is not None
    return [[html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)] for row in found[1].split("</tr>")[:-1]]


def study_in(journal: Path, name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(journal))))


@pytest.mark.parametrize(
    ("sweep", "file"),
    [
        ("asha-model", "net.py"),
        ("asha-model", "resources/data/synthetic/manifest.yaml"),
        ("asha-model", "state/.config/asha-model.yaml"),
        ("optuna-min", "functions.py"),
        ("optuna-min", str(ENV_DIR / "env.yaml")),
        ("interrupted", "node.txt"),
    ],
)
def test_a_change_of_what_trials_depend_on_still_sets_the_state_aside(project: Path, call: Call, sweep: str, file: str) -> None:
    text = (project / file).read_text(encoding="utf-8")
    changes = {"manifest.yaml": ("data_sha256: ", "data_sha256: 0"), "env.yaml": ("environment_sha256: ", "environment_sha256: 0")}
    changes |= {f"{sweep}.yaml": ("max_epochs: 3", "max_epochs: 4"), "node.txt": ("torch==", "# torch==")}
    old, new = changes.get(Path(file).name, ("import", "import sys\nimport"))
    assert old in text
    (project / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    identity = json.loads((project / "state" / sweep / "record.jsonl").open(encoding="utf-8").readline())["sweep"]["identity"]
    assert call("run_sweep", *stage_arguments("run_sweep", sweep)) == 1  # there is no such Python to start anew with
    aside = project / "state" / f"{sweep}.before-{identity[:8]}"
    assert (aside / "record.jsonl").read_bytes() == (WRITTEN / "state" / sweep / "record.jsonl").read_bytes()


@pytest.mark.parametrize("name", ["lock", "driver.lock"])
def test_a_lock_of_a_process_elsewhere_is_respected(project: Path, call: Call, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    holder = json.loads((project / "locks" / name).read_text(encoding="utf-8"))
    shutil.copy(project / "locks" / name, project / "state" / "interrupted" / name)
    before = contents(project / "state" / "interrupted")
    assert call("run_sweep", *stage_arguments("run_sweep", "interrupted")) == 1
    assert f"process {holder['pid']} on node1" in capsys.readouterr().err
    assert contents(project / "state" / "interrupted") == before
