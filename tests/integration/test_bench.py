"""The table of `make bench` says what was measured; the measurements themselves are for `make bench`."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bench
from bench import FIGURES, GPU_FIGURES, Figure, Runs, chosen, row_of, write_tables
from measures import MODELS, REFERENCE, Bench, Measured

RATIO = Figure("a sweep: reference ÷ ours", "s", "a/reference", "a/auto", 6)


def runs_of(path: Path, **values: list[float]) -> Runs:
    runs = Runs(path)
    for side, measured in values.items():
        for value in measured:
            runs.add(side.replace("_", "/"), Measured(value))
    return runs


def test_a_figure_is_the_ratio_of_two_medians(tmp_path: Path) -> None:
    runs = runs_of(tmp_path / "r.csv", a_reference=[600, 650, 100], a_auto=[100, 90, 95])
    assert row_of(RATIO, runs) == ["a sweep: reference ÷ ours", "s", "600", "95", "6.32", "≥ 6", "yes"]
    slower = runs_of(tmp_path / "s.csv", a_reference=[500], a_auto=[100])
    assert (row_of(RATIO, slower) or [])[4:] == ["5", "≥ 6", "no"]


def test_at_most_and_without_a_reference(tmp_path: Path) -> None:
    runs = runs_of(tmp_path / "r.csv", a_reference=[12], a_auto=[10], dry=[2.5])
    assert (row_of(Figure("growth", "ms", "a/reference", "a/auto", 1.2, at_least=False), runs) or [])[4:] == ["1.2", "≤ 1.2", "yes"]
    assert row_of(Figure("dry run", "s", None, "dry", 2, at_least=False), runs) == ["dry run", "s", "", "2.5", "", "≤ 2", "no"]


def test_a_figure_of_which_a_side_is_missing_is_not_shown(tmp_path: Path) -> None:
    assert row_of(RATIO, runs_of(tmp_path / "r.csv", a_auto=[1])) is None


def test_runs_are_written_at_once_and_found_again_with_their_accuracies(tmp_path: Path) -> None:
    Runs(tmp_path / "r.csv").add("lenet/auto", Measured(12.5, (0.25, 0.5)))
    again = Runs(tmp_path / "r.csv")
    again.add("lenet/auto", Measured(13.5))
    assert again.of == {"lenet/auto": [Measured(12.5, (0.25, 0.5)), Measured(13.5)]}
    assert again.median("lenet/auto") == 13


def test_the_table_has_the_columns_that_it_must_have_and_how_often_each_side_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "figures", lambda: (RATIO,))
    runs = runs_of(tmp_path / "r.csv", a_reference=[600, 620], a_auto=[100])
    runs.add("a/auto", Measured(101, (0.5, 0.25)))
    write_tables(runs, tmp_path / "today")
    with (tmp_path / "today.csv").open(newline="") as stream:
        [row] = csv.DictReader(stream)
    assert list(row) == ["figure", "unit", "reference", "ours", "ratio", "goal", "met"]
    assert (row["reference"], row["ours"], row["met"]) == ("610", "100.5", "yes")
    text = (tmp_path / "today.md").read_text()
    assert "| a sweep: reference ÷ ours | s | 610 (2) | 100.5 (2) | 6.07 | ≥ 6 | yes |" in text
    assert "| a/auto | 0.500 | 0.50 0.25 |" in text


def test_every_side_of_every_figure_can_be_measured_and_is_found_by_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "figures", lambda: FIGURES)  # wherever this runs
    sides = Bench(tmp_path, tmp_path, tmp_path).sides()
    named = {side for figure in FIGURES for side in (figure.reference, figure.ours) if side}
    assert named == set(sides)
    assert {side for figure in GPU_FIGURES for side in (figure.reference, figure.ours)} < named
    assert chosen(sides, "") == list(sides)
    assert chosen(sides, "memory, snakemake -n") == ["memory/reference", "memory/ours", "dry run"]
    with pytest.raises(SystemExit, match="no figure has 'nothing such' in its name"):
        chosen(sides, "nothing such")


def test_the_results_that_are_kept_are_whole() -> None:
    """The README quotes from them."""
    tables = [path for path in sorted(bench.RESULTS.glob("*.csv")) if not path.name.endswith(".runs.csv")]
    assert tables
    for path in tables:
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        runs = Runs(path.with_name(f"{path.stem}.runs.csv"))
        for row in rows:
            [figure] = [figure for figure in (*FIGURES, *GPU_FIGURES) if figure.name == row["figure"]]
            assert list(row.values()) == row_of(figure, runs), path


def rows_of_tables_in(section: str) -> list[dict[str, str]]:
    """Return the rows of the tables of benchmarks/results that a section of a document links."""
    rows = []
    for table in re.findall(r"\]\(\.\./benchmarks/results/([\w-]+)\.md\)", section):
        with (bench.RESULTS / f"{table}.csv").open(newline="") as stream:
            rows += list(csv.DictReader(stream))
    return rows


def test_the_documents_quote_the_ratios_of_the_table() -> None:
    speed = (bench.RESULTS.parents[1] / "docs" / "speed.md").read_text(encoding="utf-8")
    measured, again, bounds = (
        speed.partition(f"## {heading}\n")[2].partition("\n## ")[0] for heading in ("What was measured", "The second run", "What bounds it")
    )
    rows = rows_of_tables_in(measured)
    compared = [row["ratio"] for row in rows if row["ratio"] and "÷ ours at" not in row["figure"]]
    assert re.findall(r"(?m)^\| .* \| ([\d.]+) \|$", measured) == compared
    assert re.findall(r"(?m)^\| .* \| ([\d.]+) \|$", again) == [row["ratio"] for row in rows_of_tables_in(again)]
    missed = [row["ratio"] for row in rows if row["met"] == "no"]
    assert re.findall(r"(?m)^\| [^|]+ \| [\d.]+ \| ([\d.]+) \|", bounds) == missed
    readme = (bench.RESULTS.parents[1] / "README.md").read_text(encoding="utf-8")
    sweeps = sorted(float(row["ratio"]) for row in rows if re.fullmatch(r"sweep of [^:]*(?<!GPU): reference ÷ ours", row["figure"]))
    assert re.findall(r"were ([\d.]+) to ([\d.]+) times as fast", readme) == [(f"{sweeps[0]}", f"{sweeps[-1]}")]


def test_the_reference_is_a_sweep_that_runs(tmp_path: Path) -> None:
    from cifar_layout import files, write_folder

    write_folder(tmp_path / "cifar-10-batches-py", files())
    (tmp_path / "configs.json").write_text(json.dumps([{"lr": 0.01, "batch_size": 2}, {"lr": 0.001, "batch_size": 16}]))
    argv = [sys.executable, str(REFERENCE / "sweep.py"), "--data-dir", str(tmp_path), "--model", MODELS["strided"]]
    run = subprocess.run(
        [*argv, "--configs", str(tmp_path / "configs.json"), "--at-a-time", "2", "--cpus", "2"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["seconds"] > 0
    assert len(found["accuracies"]) == 2
    assert all(0 <= accuracy <= 1 for accuracy in found["accuracies"])
