"""The data that figures share."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.report.charts.data import MAX_CURVES, MAX_POINTS, shared_data
from raysweep.report.report import figures_of, render
from reporting import made_up

ROOT = Path(__file__).resolve().parents[4]


def test_trials_on_one_node_that_overlap_get_rows_of_their_own(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, nodes=("b", "a"), slots=3)
    bars = shared_data(inputs, [])["bars"]
    assert set(bars["lane"]) == set(range(6))
    by_lane: dict[int, list[tuple[float, float]]] = {}
    for lane, start, end in zip(bars["lane"], bars["start"], bars["end"], strict=True):
        by_lane.setdefault(lane, []).append((start, end))
    for spans in by_lane.values():
        assert all(first[1] <= second[0] for first, second in zip(sorted(spans), sorted(spans)[1:], strict=False))
    nodes = {a.trial.trial_id: a.node for a in inputs.attempts}
    assert {nodes[t] for t, lane in zip(bars["trial"], bars["lane"], strict=True) if lane < 3} == {"a"}


def test_failed_trials_have_no_value_in_the_figures(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, failed={0: "x"})
    trials = shared_data(inputs, inputs.keys)["trials"]
    assert [v for t, v in zip(trials["trial"], trials["value"], strict=True) if t == "00000"] == [None]
    assert trials["trial"][-1] == inputs.winner.trial_id  # drawn last, on top


@pytest.mark.slow
def test_many_long_curves_are_thinned_out_and_it_is_said(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=MAX_CURVES + 50, max_epochs=MAX_POINTS + 20, slots=50)
    curves = shared_data(inputs, [])["curves"]
    assert len(set(curves["trial"])) == MAX_CURVES
    assert inputs.winner.trial_id in curves["trial"]
    winner = [(e, v) for t, e, v in zip(curves["trial"], curves["epoch"], curves["value"], strict=True) if t == inputs.winner.trial_id]
    assert len(winner) <= MAX_POINTS
    assert winner[0][0] == 1
    assert winner[-1][0] == MAX_POINTS + 20
    assert max(v for _, v in winner) == inputs.best.value
    page = render(inputs, figures_of(inputs), ROOT)
    assert f"{MAX_CURVES} of {MAX_CURVES + 50} curves are drawn" in page
    assert f"At most {MAX_POINTS} epochs are drawn" in page
