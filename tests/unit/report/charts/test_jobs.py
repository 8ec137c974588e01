"""The figure of the jobs that worked on a sweep together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from raysweep.record.events import NodeEvent
from raysweep.report.charts import jobs as charts_of_jobs
from raysweep.report.charts.jobs import jobs
from raysweep.report.report import figures_of
from recorded import MemberJob
from reporting import made_up

JOBS = (MemberJob("12_2", "a"), MemberJob("12_10", "b", from_s=20), MemberJob("12_11", "a", from_s=30, until_s=45))


def test_each_job_has_a_lane_with_its_joins_its_losses_and_the_time_in_which_it_led(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=30, jobs=JOBS, interruptions=1)
    spec, left_out = jobs(inputs)
    first_s, second_s = inputs.clock.session_s
    bars = [tuple(bar[key] for key in ("lane", "job", "node", "role", "start", "end", "lost")) for bar in spec["data"]["values"]]
    assert [(lane, job, node, role, lost) for lane, job, node, role, _, _, lost in bars] == [
        (0, "12_2", "a", "led the sweep", "no"),
        (1, "12_10", "b", "joined", "no"),
        (2, "12_11", "a", "joined", "yes"),
        (1, "12_10", "b", "led the sweep", "no"),
    ]
    ends = [(0, first_s), (20, first_s), (30, 45), (first_s, first_s + second_s)]
    assert [bar[4:6] for bar in bars] == [tuple(pytest.approx(at_s, abs=0.01) for at_s in pair) for pair in ends]
    assert [rule["start"] for rule in spec["layer"][2]["data"]["values"]] == [pytest.approx(first_s, abs=0.01)]
    labels = spec["layer"][0]["encoding"]["y"]["axis"]["labelExpr"].partition(")[datum.value]")[0][1:]
    assert json.loads(labels) == {"0": "12_2", "1": "12_10", "2": "12_11"}
    assert left_out == ""


def test_nodes_of_one_job_at_the_same_time_have_rows_of_their_own(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=8, jobs=JOBS[:2])
    event = NodeEvent("c", "joined", inputs.sessions[0].at, 0, 4, 0, "12_2")
    several = replace(inputs, sweep=replace(inputs.sweep, nodes=[event, *inputs.sweep.nodes]))
    values = jobs(several)[0]["data"]["values"]
    assert [(bar["job"], bar["node"], bar["lane"]) for bar in values] == [("12_2", "a", 0), ("12_2", "c", 1), ("12_10", "b", 2)]


def test_many_bars_are_cut_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts_of_jobs, "MAX_BARS", 1)
    spec, left_out = jobs(made_up(tmp_path, num_trials=20, jobs=JOBS[:2]))
    assert (len(spec["data"]["values"]), left_out) == (1, "The first 1 of 2 bars are drawn.")


def test_a_sweep_with_one_job_has_no_such_figure(tmp_path: Path) -> None:
    assert "jobs" in figures_of(made_up(tmp_path / "several", num_trials=20, jobs=JOBS[:2])).specs
    for name, sweep in (("local", {"nodes": ("a", "b")}), ("array of one", {"jobs": JOBS[:1]})):
        assert "jobs" not in figures_of(made_up(tmp_path / name, num_trials=20, **sweep)).specs
