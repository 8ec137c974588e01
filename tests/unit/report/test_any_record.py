"""No valid record fails a report: any search space, any name of a metric, and any values have a page and figures."""

from __future__ import annotations

import html
import json
import math
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysweep.common.errors import RaysweepError
from raysweep.common.files import write_yaml
from raysweep.common.typed_json import to_json
from raysweep.config.space import configuration, parse_space
from raysweep.record.file import Record
from raysweep.record.outputs import best_of, write_outputs
from raysweep.record.results import Goal
from raysweep.record.study import StudyJournal
from raysweep.record.sweep import Sweep
from raysweep.report.inputs import Inputs
from raysweep.report.report import figures_of, render, write_report
from recorded import header
from recorded import write_outputs as write_made_up_outputs
from reporting import read_written

pytestmark = pytest.mark.slow  # makes many pages

ROOT = Path(__file__).resolve().parents[3]
FUNCTION = {"dataset": None, "model": None, "optimizer": None, "loss": None, "trainable": "train.py:train"}

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/[]"), min_size=1, max_size=8).filter(lambda n: n[0] != "_")
numbers = st.floats(-1e308, 1e308) | st.integers(-(10**6), 10**6)
constants = st.none() | st.booleans() | st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.floats() | st.integers()
bounds = st.tuples(numbers, numbers).map(sorted).filter(lambda pair: pair[0] < pair[1])
positive = st.tuples(st.floats(1e-320, 1e308), st.floats(1e-320, 1e308)).map(sorted).filter(lambda pair: pair[0] < pair[1])
distributions = (
    bounds.map(lambda pair: {"uniform": pair})
    | positive.map(lambda pair: {"loguniform": pair})
    | st.tuples(numbers, st.floats(1e-300, 1e308)).map(lambda pair: {"normal": list(pair)})
    | st.tuples(st.integers(1, 10**12), st.integers(1, 10**12)).map(lambda pair: {"lograndint": [pair[0], sum(pair)]})
    | st.tuples(st.integers(-(10**12), 10**12), st.integers(1, 10**12)).map(lambda pair: {"randint": [pair[0], sum(pair)]})
    | st.lists(constants | st.lists(constants, max_size=2), min_size=1, max_size=4).map(lambda values: {"choice": values})
)
spaces = st.dictionaries(names, distributions | constants | st.dictionaries(names, distributions, min_size=1, max_size=1), max_size=3)
values = st.floats(-5e307, 5e307) | st.sampled_from([math.nan, math.inf, -math.inf]) | st.floats(-1, 1) | st.integers(-(10**3), 10**3)
trials = st.tuples(st.lists(values, max_size=3), st.sampled_from(["TERMINATED", "STOPPED", "ERROR", None]))


def recorded(folder: Path, trials: list[tuple[list[float], str | None]], **changes: Any) -> Sweep:
    """Return the sweep of a new record in which the trials reported these values of the metric, and ended with these statuses."""
    about = header(**FUNCTION, num_trials=len(trials), max_epochs=3, **changes)
    repeats, space = about.get("repeats", 1), parse_space(about["search_space"])
    with Record(folder / "record.jsonl") as record:
        record.write("session", sweep=about, host="h", pid=1, nodes=[{"name": "n", "cpus": 2, "gpus": 0}])
        for number, (reported, status) in enumerate(trials):
            index, trial = number // repeats, f"{number:05d}"
            record.write("trial", trial=trial, index=index, repeat=number % repeats, seed=number, config=configuration(space, 0, index))
            record.write("start", trial=trial, node="n", from_epoch=0)
            for epoch, value in enumerate(reported, start=1):
                metrics = value if isinstance(value, dict) else {about["metric"]: value}
                record.write("result", trial=trial, epoch=epoch, metrics=metrics, time_s=float(epoch), node="n")
            if status is not None:
                record.write("finish", trial=trial, status=status, error="boom" if status == "ERROR" else None)
        record.write("session_end", outcome="complete")
        return record.sweep


def inputs_of(folder: Path, sweep: Sweep, failed_seeds: Iterable[int] = ()) -> Inputs:
    """Return the inputs of the report of a sweep, which has a best trial. The confirmation failed with these of its three seeds."""
    about = sweep.header
    files = write_made_up_outputs(folder, sweep, seed_errors=dict.fromkeys(failed_seeds, "ValueError"))
    best = best_of(sweep, Goal(about.name, about.metric, about.mode), about.provenance)
    write_yaml(files["path_to_best"], to_json(best))
    return read_written(folder / "record.jsonl", files)


@settings(max_examples=40)
@given(
    spaces,
    names | st.sampled_from(["a.b", "a[0]", "val@5", "a b", "\\", "'"]),
    st.lists(trials, min_size=1, max_size=4),
    st.booleans(),
    st.sets(st.sampled_from([0, 1, 2])),
)
def test_any_record_has_a_page(space: dict[str, Any], metric: str, outcomes: list[Any], is_max: bool, failed_seeds: set[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, mode = Path(name), "max" if is_max else "min"
        sweep = recorded(folder, outcomes, search_space=space, metric=metric, mode=mode)
        if sweep.best_trial(metric, mode) is None:
            with pytest.raises(RaysweepError, match=r"trials? "):
                write_outputs(folder / "results", folder, sweep, Goal("lenet", metric, mode), sweep.header.provenance)
            return
        inputs = inputs_of(folder, sweep, failed_seeds)
        page = render(inputs, figures_of(inputs), ROOT)
        drawn = json.loads(html.unescape(re.search(r'id="figures">(.*?)</script>', page)[1]))  # type: ignore[index]
        assert len(drawn["data"]["trials"]["trial"]) == len(outcomes)
        StudyJournal(folder / "optuna.journal", inputs.sweep)


SPREAD = [([0.1 * i, 0.2 * i], "TERMINATED") for i in range(40)]


@pytest.mark.parametrize(
    ("space", "outcomes", "changes"),
    [
        ({"lr": {"loguniform": [1e-320, 1e308]}, "m": {"uniform": [-1e308, 1e308]}, "n": {"normal": [1e308, 1e308]}}, SPREAD, {}),
        ({"lr": {"loguniform": [1e-4, 1]}, "m": {"uniform": [0, 1]}}, [([v * 1e308], "TERMINATED") for v in (-1.7, 0.1, 0.5)], {}),
        ({"lr": {"loguniform": [1e-4, 1]}, "m": {"uniform": [0, 1]}}, [([0.5], "TERMINATED")] * 40, {}),
        ({"c": {"choice": [math.nan, math.inf, 1, True, "1", None, [1], {"a": 1}]}}, SPREAD, {}),
        (
            {"a.b": {"uniform": [0, 1]}, "x@y z": {"choice": ["p.q", "r]"]}, "\\": {"uniform": [0, 1]}},
            SPREAD,
            {"metric": "a[0].b@1 'x' \"y\"\n\u2028\\"},
        ),
        ({"lr": {"uniform": [0, 1]}}, [([0.1, math.nan, math.inf], "TERMINATED"), ([math.nan], "ERROR"), ([], None)], {}),
        ({"lr": {"uniform": [0, 1]}}, [([0.5], "TERMINATED")], {}),
    ],
    ids=["wide ranges", "huge values", "equal values", "odd choices", "names that are paths in Vega", "NaN and infinity", "one trial"],
)
def test_extreme_records_have_a_page_and_figures(
    tmp_path: Path, space: dict[str, Any], outcomes: list[Any], changes: dict[str, Any]
) -> None:
    inputs = inputs_of(tmp_path, recorded(tmp_path, outcomes, search_space=space, **changes))
    write_report(inputs, tmp_path / "report.html", tmp_path / "figures", ROOT)
    assert len(list((tmp_path / "figures").glob("*.svg"))) == len(figures_of(inputs).specs)


def test_a_mean_within_the_constraint_of_trials_outside_it_has_a_page(tmp_path: Path) -> None:
    outcomes = [([{"accuracy": 0.5, "size": size, "heat": heat}], "TERMINATED") for size, heat in ((1, 9), (9, 1))]
    constraint = {"size": {"at_most": 6}, "heat": {"at_most": 6}}
    inputs = inputs_of(tmp_path, recorded(tmp_path, outcomes, repeats=2, constraint=constraint))
    assert inputs.ranked == []
    assert inputs.best.value == 0.5
    assert "report" in render(inputs, figures_of(inputs), ROOT)
