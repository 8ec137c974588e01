"""The page that compares sweeps: what it holds against what, and what it says of the differences."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raysweep.common.errors import RaysweepError
from raysweep.common.files import read_yaml, write_yaml
from raysweep.report.comparison import groups, read_sweeps, render, verdict
from recorded import write_outputs, write_record

ROOT = Path(__file__).resolve().parents[3]


def finished(folder: Path, name: str, outputs: dict[str, Any] | None = None, **sweep: Any) -> str:
    """A sweep of that name below the folder, as the workflow leaves it; returns its name."""
    write_outputs(folder, write_record(folder / "state" / name / "record.jsonl", name=name, **sweep), **(outputs or {}))
    return name


def with_result(folder: Path, name: str, values: list[float]) -> str:
    """A sweep whose confirmed seeds have these values."""
    from statistics import fmean, stdev

    finished(folder, name, num_trials=3)
    path = folder / "results" / name / "confirmed.yaml"
    seeds = [{"seed": i, "value": value, "error": None} for i, value in enumerate(values)]
    spread = stdev(values) if len(values) > 1 else None
    write_yaml(path, read_yaml(path) | {"seeds": seeds, "n": len(values), "mean": fmean(values), "standard_deviation": spread})
    return name


def compared(folder: Path, *names: str) -> list[Any]:
    return read_sweeps(list(names), folder / "results", folder / "state")


def test_only_sweeps_of_one_metric_on_one_data_set_measured_in_one_way_are_held_against_each_other(tmp_path: Path) -> None:
    functions = {"dataset": None, "model": None, "optimizer": None, "loss": None}
    names = [
        finished(tmp_path, "own", trainable="one.py:train", **functions),
        finished(tmp_path, "others", trainable="two.py:train", **functions),
        finished(tmp_path, "a"),
        finished(tmp_path, "b", seed=1),
        finished(tmp_path, "other_metric", metric="loss", mode="min"),
        finished(tmp_path, "other_data", dataset="mine"),
        finished(tmp_path, "repeated", {"on": "validation"}),
    ]
    found = groups(compared(tmp_path, *names))
    assert [sorted(one.name for one in group) for group in found] == [
        ["own"],
        ["others"],
        ["a", "b"],
        ["other_metric"],
        ["other_data"],
        ["repeated"],
    ]


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        (
            [0.80, 0.81, 0.82],
            [0.60, 0.61, 0.62],
            "one is better than other by 0.2 (p = 1.6e-05). p is the share of cases in which chance alone makes such a difference (Welch's t-test).",
        ),
        (
            [0.80, 0.90, 1.00],
            [0.79, 0.89, 0.99],
            "one and other are 0.01 apart. Chance may explain this (p = 0.91).",
        ),
        ([0.8, 0.8, 0.8], [0.60, 0.61, 0.62], "one and other are 0.19 apart. All seeds of one of them gave the same value"),
        ([0.80, 0.81], [0.60, 0.61, 0.62], "Whether one and other differ is not known: a test takes 3 confirmed seeds of each."),
    ],
)
def test_a_difference_is_called_one_where_it_is_more_than_chance(tmp_path: Path, one: list[float], other: list[float], says: str) -> None:
    [group] = groups(compared(tmp_path, with_result(tmp_path, "other", other), with_result(tmp_path, "one", one)))
    assert [found.name for found in group] == ["one", "other"]
    assert verdict(group).startswith(says)


def test_with_more_sweeps_chance_has_more_occasions(tmp_path: Path) -> None:
    """One and other differ by more than chance as a pair. Among four sweeps of which the best was chosen, the same difference may be chance."""
    one, other = [0.80, 0.81, 0.83], [0.77, 0.78, 0.79]
    [pair] = groups(compared(tmp_path, with_result(tmp_path, "one", one), with_result(tmp_path, "other", other)))
    assert verdict(pair).startswith("one is better than other by 0.03333 (p = 0.042).")
    more = [with_result(tmp_path, f"more{i}", [0.7, 0.74, 0.79 + i / 1e3]) for i in range(2)]
    [group] = groups(compared(tmp_path, "one", "other", *more))
    text = verdict(group)
    assert text.startswith("one and other are 0.03333 apart. Chance may explain this (p = 0.25). one and more1 are")
    assert "corrected for 6 pairs of 4 sweeps (Holm), because the same values chose the best sweep" in text


def test_many_sweeps_are_not_all_named(tmp_path: Path) -> None:
    names = [with_result(tmp_path, f"s{i}", [0.5 - i / 10, 0.51 - i / 10]) for i in range(8)]
    [group] = groups(compared(tmp_path, *names))
    assert "Whether s0 and s5 differ is not known" in verdict(group)
    assert verdict(group).endswith("2 sweeps with lower places are not compared here.")


def test_the_lowest_is_the_best_where_low_is_good_and_a_sweep_without_a_result_comes_last(tmp_path: Path) -> None:
    for name, value in (("high", 0.9), ("low", 0.1), ("none", None)):
        finished(tmp_path, name, num_trials=3, metric="loss", mode="min")
        path = tmp_path / "results" / name / "confirmed.yaml"
        write_yaml(path, read_yaml(path) | {"mean": value})
    [group] = groups(compared(tmp_path, "none", "high", "low"))
    assert [one.name for one in group] == ["low", "high", "none"]


def test_the_page_names_every_sweep_and_links_its_report(tmp_path: Path) -> None:
    names = [finished(tmp_path, f"s{i}", seed=i) for i in range(8)]
    page = render(compared(tmp_path, *names))
    for name in names:
        assert f'<a href="{name}/report.html">{name}</a>' in page
    assert "8 sweeps compared" in page


@pytest.mark.slow
def test_the_entry_point_writes_the_page_and_names_a_missing_file(tmp_path: Path) -> None:
    names = [finished(tmp_path, "a"), finished(tmp_path, "b")]
    command = [sys.executable, str(ROOT / "workflow/scripts/compare.py"), "--sweeps", *names]
    command += ["--results-dir", str(tmp_path / "results"), "--state-dir", str(tmp_path / "state"), "--output", str(tmp_path / "c.html")]
    subprocess.run(command, check=True)
    assert (tmp_path / "c.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    (tmp_path / "results/b/confirmed.yaml").unlink()
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "b/confirmed.yaml" in failed.stderr


def test_a_report_outside_the_constraint_is_not_the_best_of_a_sweep(tmp_path: Path) -> None:
    best = tmp_path / "results" / finished(tmp_path, "bound") / "best.yaml"
    write_yaml(best, read_yaml(best) | {"constraint": {"accuracy": {"at_most": 0.5}}})
    free, bound = compared(tmp_path, finished(tmp_path, "free"), "bound")
    assert free.ranked[0][1] > 0.5
    assert max(value for _, value in bound.ranked) <= 0.5


@pytest.mark.parametrize("name", ["best.yaml", "confirmed.yaml"])
@pytest.mark.parametrize("text", ["", "[1]", "{", "sweep: a\n"])
def test_a_damaged_output_is_one_line(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / "results" / finished(tmp_path, "a") / name
    path.write_text(text)
    with pytest.raises(RaysweepError, match=rf"{name}: it is damaged .*run Snakemake again") as caught:
        compared(tmp_path, "a")
    assert "\n" not in str(caught.value)
